"""The denoiser of published embedding diffusion: what it shares with BERT, its time, and how it reads off words."""

import pytest
import torch
from support.conformance_models import ModelCase, ModelTesterMixin
from transformers import BertConfig, BertModel

from text_diffusers import BertEmbeddingDenoiser

B, L, V = 2, 8, 20
SIZES = {
    "vocab_size": V,
    "embedding_dim": 8,
    "hidden_size": 16,
    "num_layers": 2,
    "num_attention_heads": 2,
    "feed_forward_size": 24,
    "max_length": 12,
    "time_dim": 6,
}
MASK = torch.tensor([[1] * L, [1] * (L - 3) + [0] * 3])


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def make(**changes):
    torch.manual_seed(0)
    return BertEmbeddingDenoiser(**SIZES | changes).eval()


def inputs_of(width):
    return lambda: {
        "sample": normal(B, L, width),
        "timestep": torch.tensor([3, 500]),
        "attention_mask": MASK,
    }


class TestBertEmbeddingDenoiser(ModelTesterMixin):
    cases = {
        "projected": ModelCase(
            BertEmbeddingDenoiser, SIZES, inputs_of(8), (B, L, 8), reads_weights=True
        ),
        "as_wide": ModelCase(
            BertEmbeddingDenoiser,
            SIZES | {"hidden_size": 8, "project_embeddings": False},
            inputs_of(8),
            (B, L, 8),
            reads_weights=True,
        ),
    }
    few = ("projected",)


@torch.no_grad()
def test_without_time_and_projections_it_is_bert_on_embeddings():
    model = make(embedding_dim=16, project_embeddings=False)
    for parameter in model.time_embedding.parameters():
        parameter.zero_()

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(intermediate_size=24, max_position_embeddings=12, **sizes)
    bert = BertModel(config, add_pooling_layer=False).eval()
    bert.encoder.load_state_dict(model.encoder.state_dict())
    bert.embeddings.LayerNorm.load_state_dict(model.norm_in.state_dict())
    bert.embeddings.position_embeddings.load_state_dict(model.position_embedding.state_dict())
    bert.embeddings.token_type_embeddings.weight.zero_()

    sample = normal(B, L, 16)
    expected = bert(inputs_embeds=sample, attention_mask=MASK).last_hidden_state
    found = model(sample, timestep=7, attention_mask=MASK).sample
    torch.testing.assert_close(found[MASK.bool()], expected[MASK.bool()])


@torch.no_grad()
def test_a_rescaled_clock_runs_from_0_to_1000():
    """By its own definition: 500 steps are shown at every second of a thousand."""
    rescaled = make(num_train_timesteps=500)
    plain = make(num_train_timesteps=500, rescale_timesteps=False)
    plain.load_state_dict(rescaled.state_dict())

    sample = normal(B, L, 8)
    found = rescaled(sample, torch.tensor([3, 200])).sample
    assert torch.equal(found, plain(sample, torch.tensor([6, 400])).sample)
    assert not torch.allclose(found, plain(sample, torch.tensor([3, 200])).sample)


@torch.no_grad()
def test_a_padded_row_is_what_it_is_alone():
    model = make()
    sample = normal(B, L, 8)
    together = model(sample, 300, MASK).sample
    alone = model(sample[1:, : L - 3], 300).sample
    torch.testing.assert_close(together[1:, : L - 3], alone)


@torch.no_grad()
def test_words_are_read_off_by_their_embeddings_and_a_bias():
    model = make(mask_token_id=0, pad_token_id=1)
    clean = normal(3, 5, 8)
    table = model.token_embedding.weight
    model.head_bias.copy_(normal(V))
    logits = torch.einsum("ble,ve->blv", clean, table) + model.head_bias
    torch.testing.assert_close(model.logits(clean), logits)

    # By default neither mask nor padding, or without the ids that are named.
    assert torch.equal(model.round(clean), logits[..., 2:].argmax(-1) + 2)
    assert torch.equal(model.round(clean, excluded_ids=range(15)), logits[..., 15:].argmax(-1) + 15)
    # Those that an estimate is clamped to may be any.
    nearest = torch.cdist(clean, table).argmin(-1)
    assert torch.equal(model.nearest_words(clean), table[nearest])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hidden_size": 15},
            "`hidden_size` must be a multiple of `num_attention_heads`=2, got 15",
        ),
        ({"project_embeddings": False}, "`embedding_dim` must be `hidden_size`=16 without"),
        ({"time_dim": 5}, "`time_dim` must be even, got 5"),
        (
            {"num_positions": 11},
            "`num_positions` must be None or an integer of at least 12, got 11",
        ),
        ({"num_layers": 0}, "`num_layers` must be an integer of at least 1, got 0"),
        ({"norm_eps": 0.0}, "`norm_eps` must be above 0, got 0.0"),
        ({"dropout": 1.0}, "`dropout` must be in"),
        ({"mask_token_id": V}, "`mask_token_id` must be in the vocabulary of 20, got 20"),
        ({"partial_noising": 1}, "`partial_noising` must be true or false, got 1"),
    ],
)
def test_a_configuration_that_makes_no_model_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample": normal(1, 13, 8)}, "`sample` must be .* `max_length`=12"),
        ({"sample": normal(1, 4, 7)}, "`sample` must be"),
        ({"class_labels": torch.tensor([0])}, "`class_labels` were given"),
        ({"given": torch.ones(1, 4, dtype=torch.bool)}, "`given` .* `partial_noising=False`"),
    ],
)
def test_what_it_cannot_be_shown_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make()(**{"sample": normal(1, 4, 8), "timestep": 3} | changes)
