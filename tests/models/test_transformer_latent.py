"""Laws of the denoiser over latents: what it is told enters by row, and padding and absence are nothing."""

import pytest
import torch

from text_diffusers import LatentTransformerModel

K, E, WIDTH, CLASSES = 3, 4, 6, 2


def make(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_layers": 2, "num_attention_heads": 2}
    told = {"num_classes": CLASSES, "prompt_size": WIDTH}
    model = LatentTransformerModel(E, K, **sizes | told | changes)
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def model():
    return make()


INPUTS = {
    "sample": normal(3, K, E),
    "timestep": torch.tensor([0.0, 333.3, 1000.0]),
    "class_labels": torch.tensor([0, 1, CLASSES]),
    "prompt_states": normal(3, 5, WIDTH, seed=1),
    "prompt_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [0] * 5]),
    "self_condition": normal(3, K, E, seed=2),
}


def test_a_row_does_not_depend_on_who_shares_its_batch(model):
    together = model(**INPUTS).sample
    assert together.shape == (3, K, E)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in INPUTS.items()}
        torch.testing.assert_close(model(**alone).sample[0], together[row], atol=1e-5, rtol=1e-4)
    assert torch.equal(model(**INPUTS, return_dict=False)[0], together)


def test_padding_of_a_prompt_is_not_seen_and_an_empty_prompt_is_none(model):
    changed = dict(INPUTS)
    hidden = INPUTS["prompt_mask"].unsqueeze(-1) == 0
    changed["prompt_states"] = INPUTS["prompt_states"].masked_fill(hidden, 7.0)
    together = model(**INPUTS).sample
    torch.testing.assert_close(model(**changed).sample, together)

    without = {name: value[2:] for name, value in INPUTS.items() if "prompt" not in name}
    torch.testing.assert_close(model(**without).sample, together[2:], atol=1e-5, rtol=1e-4)


def test_no_label_is_the_last_one_and_no_estimate_is_zeros(model):
    plain = {"sample": INPUTS["sample"], "timestep": 500}
    told = {
        "class_labels": torch.full((3,), CLASSES),
        "self_condition": torch.zeros_like(plain["sample"]),
    }
    assert torch.equal(model(**plain).sample, model(**plain, **told).sample)


@pytest.mark.parametrize("name", ["timestep", "class_labels", "prompt_states", "self_condition"])
def test_all_that_the_model_is_told_counts(model, name):
    changed = {"timestep": 5.0, "class_labels": torch.tensor([1, 0, 0])}.get(name)
    if changed is None:
        changed = INPUTS[name].roll(1, dims=0)
    other = model(**INPUTS | {name: changed}).sample
    assert (other[:2] - model(**INPUTS).sample[:2]).abs().amax(dim=(1, 2)).min() > 1e-3


def test_places_of_latents_are_told_apart(model):
    """The same vector at each place is not denoised alike."""
    alike = torch.ones(1, K, E)
    rows = model(alike, 500).sample[0]
    assert (rows[0] - rows[1]).abs().max() > 1e-3 and (rows[1] - rows[2]).abs().max() > 1e-3


def test_a_fresh_model_predicts_zeros():
    fresh = LatentTransformerModel(E, K, hidden_size=16, num_layers=1, num_attention_heads=2)
    assert not fresh(INPUTS["sample"], 500).sample.any()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sample": normal(3, K + 1, E)}, "`sample` must be"),
        ({"self_condition": normal(3, K, E + 1)}, "`self_condition` must be"),
        ({"class_labels": torch.tensor([0, 1, 5])}, "`class_labels` must be"),
        ({"prompt_states": normal(3, 5, WIDTH + 1)}, "`prompt_states` must be"),
        ({"prompt_states": None}, "`prompt_mask` must be"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(model, changes, message):
    with pytest.raises(ValueError, match=message):
        model(**INPUTS | changes)


def test_what_the_model_was_not_built_for_is_refused_by_name():
    plain = make(num_classes=None, prompt_size=None, self_conditioning=False)
    for name in ("class_labels", "prompt_states", "self_condition"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            plain(INPUTS["sample"], 0, **{name: INPUTS[name]})
    for argument, value in {
        "prediction_type": "score",
        "num_latents": 0,
        "latent_dim": 1.5,
    }.items():
        with pytest.raises(ValueError, match=f"`{argument}`"):
            LatentTransformerModel(**{argument: value})
