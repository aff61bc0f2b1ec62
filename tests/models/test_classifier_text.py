"""Laws of the classifier: soft tokens, padding, the clock, gradients to its inputs, round trip to disk."""

import pytest
import torch
from torch.nn.functional import one_hot

from text_diffusers import TextClassifierModel

V, E, D = 40, 6, 32


def make_classifier(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "num_classes": 3, "hidden_size": D, "num_layers": 2, "num_attention_heads": 2}
    model = TextClassifierModel(**sizes | {"max_length": 24, "mask_token_id": 39, "pad_token_id": 38} | changes)
    for parameter in model.parameters():  # the zero-initialised layers would hide mistakes
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def words(rows=3, length=9, seed=0):
    return torch.randint(0, 38, (rows, length), generator=torch.Generator().manual_seed(seed))


def latents(rows=3, length=9, seed=0):
    return torch.randn(rows, length, E, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("per_token", [False, True])
def test_one_hot_soft_tokens_are_tokens(per_token):
    model, ids = make_classifier(per_token=per_token), words()
    ids[0, 3:7] = 39
    soft = one_hot(ids, V).float() @ model.get_input_embeddings().weight
    assert torch.equal(model(inputs_embeds=soft, timestep=0.4).logits, model(ids, 0.4).logits)
    assert model(ids).logits.shape == ((3, 9, 3) if per_token else (3, 3))
    assert torch.equal(model(ids, 0.4, return_dict=False)[0], model(ids, 0.4).logits)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("over_embeddings", [False, True])
def test_padding_and_other_rows_do_not_matter(per_token, over_embeddings):
    model = make_classifier(per_token=per_token, embedding_dim=E if over_embeddings else None)
    name, source = ("inputs_embeds", latents) if over_embeddings else ("input_ids", words)
    short, other = source(), source(3, 6, seed=1)
    padded, mask = torch.cat([short, other], dim=1), (torch.arange(15) < torch.tensor([[9], [9], [15]])).long()
    times = torch.tensor([0.1, 0.5, 0.9])
    together = model(**{name: padded}, timestep=times, attention_mask=mask).logits
    for row in (0, 1):
        alone = model(**{name: short[row : row + 1]}, timestep=times[row]).logits
        torch.testing.assert_close(together[row : row + 1, :9] if per_token else together[row : row + 1], alone)
    unmasked = model(**{name: padded}, timestep=times).logits
    assert (unmasked[:2] - together[:2]).abs().max() > 1e-3
    torch.testing.assert_close(unmasked[2], together[2])


@pytest.mark.parametrize("per_token", [False, True])
def test_batch_order_is_that_of_the_logits_and_positions_matter(per_token):
    model, ids = make_classifier(per_token=per_token), words(5)
    order, times = torch.tensor([3, 0, 4, 2, 1]), torch.linspace(0, 1, 5)
    torch.testing.assert_close(model(ids[order], times[order]).logits, model(ids, times).logits[order])
    backwards = model(ids.flip(1), times).logits
    assert ((backwards.flip(1) if per_token else backwards) - model(ids, times).logits).abs().max() > 1e-3


def test_a_text_of_masks_is_one_text_at_each_time():
    model, masks = make_classifier(), torch.full((2, 9), 39)
    both = model(masks, torch.tensor([1.0, 0.3])).logits
    assert both.isfinite().all() and (both[0] - both[1]).abs().max() > 1e-3
    timeless = make_classifier(time_conditioning=False)
    assert torch.equal(timeless(masks, 0.3).logits, timeless(masks).logits)


def test_the_clock_counts_shares_and_no_time_is_clean():
    short, long = (make_classifier(embedding_dim=E, num_train_timesteps=steps) for steps in (200, 2000))
    at = lambda model, time: model(inputs_embeds=latents(), timestep=time).logits  # noqa: E731
    torch.testing.assert_close(at(short, 57), at(long, 570))
    torch.testing.assert_close(at(long, torch.tensor([57, 570, 0]))[1:2], at(long, 570)[1:2])
    assert torch.equal(at(long, None), at(long, 0)) and (at(long, 57) - at(long, 0)).abs().max() > 1e-3


@pytest.mark.parametrize("embedding_dim", [None, E])
def test_the_gradient_of_the_log_probability_reaches_the_inputs(embedding_dim):
    """Against central differences in float64."""
    model = make_classifier(embedding_dim=embedding_dim).double()
    inputs = torch.randn(2, 5, embedding_dim or D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def log_prob(x):
        return model(inputs_embeds=x, timestep=0.3).logits.log_softmax(dim=-1)[:, 1]

    inputs.requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob(inputs).sum(), inputs)
    direction = torch.randn(inputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        slope = (log_prob(inputs + 1e-5 * direction) - log_prob(inputs - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(dim=(1, 2)), slope, rtol=1e-5, atol=1e-8)
    assert gradient.abs().amax(dim=2).min() > 0


def test_an_untrained_classifier_knows_nothing():
    model = TextClassifierModel(V, num_classes=4, hidden_size=D, num_layers=1, num_attention_heads=2)
    assert torch.equal(model(words(), 0.5).logits, torch.zeros(3, 4))


def test_gradient_checkpointing_computes_the_same():
    gradients = []
    for checkpointing in (False, True):
        model = make_classifier().train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        model(words(), 0.5).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("changes", [{}, {"per_token": True, "labels": ["a", "b", "c"]}, {"embedding_dim": E}])
def test_a_saved_classifier_is_the_same(changes, tmp_path):
    model = make_classifier(**changes)
    model.save_pretrained(tmp_path)
    loaded = TextClassifierModel.from_pretrained(tmp_path)
    inputs = {"inputs_embeds": latents()} if "embedding_dim" in changes else {"input_ids": words()}
    assert torch.equal(loaded(**inputs, timestep=0.7).logits, model(**inputs, timestep=0.7).logits)
    assert loaded.config.labels == changes.get("labels") and not loaded.training


def test_a_model_over_embeddings_needs_no_vocabulary():
    model = make_classifier(vocab_size=None, embedding_dim=E, mask_token_id=None, pad_token_id=None)
    assert model(inputs_embeds=latents()).logits.shape == (3, 3) and model.get_input_embeddings() is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab_size": None}, "`vocab_size` must be an integer of at least 1, got None"),
        ({"num_classes": 1}, "`num_classes` must be an integer of at least 2, got 1"),
        ({"labels": ["a"]}, "`labels` must be None or 3 names, one a class"),
        ({"embedding_dim": 0}, "`embedding_dim` must be an integer of at least 1, got 0"),
        ({"num_train_timesteps": 0}, "`num_train_timesteps` must be None or an integer of at least 1, got 0"),
        ({"num_attention_heads": 5}, "`hidden_size` must be an even multiple of `num_attention_heads`"),
        ({"pad_token_id": 40}, "`pad_token_id` must be in the vocabulary of 40, got 40"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_classifier(**changes)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "Either `input_ids` or `inputs_embeds`"),
        ({"input_ids": words(), "inputs_embeds": torch.zeros(3, 9, D)}, "Either `input_ids` or `inputs_embeds`"),
        ({"input_ids": words(2, 25)}, r"length of 1 to `max_length`=24, got \(2, 25\)"),
        ({"inputs_embeds": torch.zeros(3, 9, E)}, r"`inputs_embeds` must be \(batch, length, 32\)"),
        ({"input_ids": words(), "timestep": torch.zeros(2)}, r"`timestep` must be \(\) or \(3,\), one a row"),
        ({"input_ids": words(), "attention_mask": torch.zeros(3, 9)}, "with a real token in each row"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        make_classifier()(**inputs)
    if "input_ids" in inputs and len(inputs) == 1:
        with pytest.raises(ValueError, match="`inputs_embeds` must be given to a model with `embedding_dim`=6"):
            make_classifier(embedding_dim=E)(words())
