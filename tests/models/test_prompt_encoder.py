"""Laws of the encoder of prompts: padding does not matter, not even a row of it, and BERT may stand in its place."""

import pytest
import torch
from transformers import BertConfig, BertModel

from text_diffusers.models.prompt_encoder import PromptEncoderModel

SIZES = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "max_length": 12}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return PromptEncoderModel(20, **SIZES).eval()


def tokens(rows=3, length=7, seed=0):
    return torch.randint(0, 20, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_padding_does_not_matter_on_either_side(encoder):
    prompts, base = tokens(), encoder(tokens()).last_hidden_state
    ones, zeros = torch.ones(3, 7, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    assert base.shape == (3, 7, 32) == (*prompts.shape, encoder.config.hidden_size)
    torch.testing.assert_close(encoder(prompts, ones).last_hidden_state, base, atol=1e-5, rtol=0)
    noise = tokens(length=5, seed=1)
    right = encoder(
        torch.cat([prompts, noise], dim=1), torch.cat([ones, zeros], dim=1)
    ).last_hidden_state[:, :7]
    torch.testing.assert_close(right, base, atol=1e-5, rtol=0)
    left = encoder(
        torch.cat([noise, prompts], dim=1), torch.cat([zeros, ones], dim=1)
    ).last_hidden_state[:, 5:]
    torch.testing.assert_close(left, base, atol=1e-5, rtol=0)
    assert (
        encoder(torch.cat([prompts, noise], dim=1)).last_hidden_state[:, :7] - base
    ).abs().max() > 1e-2


def test_a_row_of_padding_is_finite_and_leaves_the_others_as_they_are(encoder):
    mask = torch.tensor([[1] * 7, [0] * 7, [1] * 4 + [0] * 3])
    with torch.no_grad():
        states = encoder(tokens(), mask).last_hidden_state
    assert states.isfinite().all()
    torch.testing.assert_close(
        states[:1], encoder(tokens()[:1]).last_hidden_state, atol=1e-5, rtol=0
    )
    short = encoder(tokens()[2:, :4]).last_hidden_state
    torch.testing.assert_close(states[2:, :4], short, atol=1e-5, rtol=0)
    loss = encoder(tokens(), mask).last_hidden_state.square().sum()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_every_token_sees_every_other_and_where_it_is(encoder):
    base = encoder(tokens(rows=1)).last_hidden_state
    for position in (0, 6):
        changed = tokens(rows=1)
        changed[0, position] = (changed[0, position] + 1) % 20
        assert (encoder(changed).last_hidden_state - base).abs().amax(dim=-1).min() > 1e-5
    turned = encoder(tokens(rows=1).flip(1)).last_hidden_state.flip(1)
    assert (turned - base).abs().max() > 1e-2


def test_it_is_called_as_encoders_of_transformers_are(encoder):
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=20,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
        )
    ).eval()
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 4 + [0] * 3])
    shapes = {tuple(one(tokens(), mask).last_hidden_state.shape) for one in (encoder, bert)}
    assert shapes == {(3, 7, bert.config.hidden_size)}
    assert torch.equal(
        encoder(tokens(), mask, return_dict=False)[0], encoder(tokens(), mask).last_hidden_state
    )


def test_a_saved_encoder_gives_the_same_states(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    loaded = PromptEncoderModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(tokens()).last_hidden_state, encoder(tokens()).last_hidden_state)


@pytest.mark.parametrize(
    "name", ["vocab_size", "hidden_size", "num_layers", "num_attention_heads", "max_length"]
)
def test_a_config_that_makes_no_sense_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1, got 0"):
        PromptEncoderModel(**{"vocab_size": 20} | SIZES | {name: 0})


@pytest.mark.parametrize("shape", [(3, 13), (3, 0), (7,)])
def test_a_prompt_that_is_too_long_is_refused(encoder, shape):
    with pytest.raises(ValueError, match="`input_ids` must be .* 1 to `max_length`=12, got \\("):
        encoder(torch.zeros(shape, dtype=torch.long))


def test_a_mask_of_other_tokens_is_refused(encoder):
    with pytest.raises(
        ValueError, match="`attention_mask` must be \\(3, 7\\) as `input_ids`, got \\(3, 6\\)"
    ):
        encoder(tokens(), torch.ones(3, 6))
