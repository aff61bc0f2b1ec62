"""Laws of readings: which tokens a language model sees, where its logits belong, and what a folder remembers."""

import pytest
import torch
from support.language_models import make_language_model
from transformers import AutoModelForCausalLM, LlamaConfig

from text_diffusers.models import (
    BlockCache,
    LanguageModelDenoiser,
    Reading,
    StaleCache,
    read_config,
    write_reading,
)

ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "mistral",
    "gemma2",
    "phi3",
    "olmo2",
    "granite",
    "stablelm",
    "nemotron",
)
LENGTH = 10


def make_denoiser(model_type, **entries):
    # Logits of Gemma are capped, and those of Granite scaled, behind the head.
    return LanguageModelDenoiser(make_language_model(model_type, Reading(**entries)))


def visible_tokens(denoiser):
    """(L, L) bool: whether the logits at a row's position move if the token at a column changes."""
    tokens = torch.arange(6, 6 + LENGTH).unsqueeze(0)
    base = denoiser(tokens).logits[0]
    rows = []
    for column in range(LENGTH):
        changed = tokens.clone()
        changed[0, column] += 15
        rows.append((denoiser(changed).logits[0] - base).abs().amax(dim=-1) > 1e-5)
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.no_grad()
def test_a_planted_token_is_seen_exactly_where_the_reading_says(model_type):
    position = torch.arange(LENGTH)
    block = position // 4
    expected = {
        "bidirectional": torch.ones(LENGTH, LENGTH, dtype=torch.bool),
        "causal": position.unsqueeze(1) >= position,
        "block": block.unsqueeze(1) >= block,
    }
    for attention, visible in expected.items():
        block_length = 4 if attention == "block" else None
        denoiser = make_denoiser(model_type, attention=attention, block_length=block_length)
        assert torch.equal(visible_tokens(denoiser), visible), attention


@pytest.mark.parametrize("attention", ["bidirectional", "block"])
@torch.no_grad()
def test_shifted_logits_are_those_of_the_state_before(attention):
    entries = {"attention": attention, "block_length": 4 if attention == "block" else None}
    aligned = make_denoiser("llama", **entries)
    shifted = make_denoiser("llama", alignment="shifted", **entries)
    tokens = torch.randint(6, 40, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    want = aligned(tokens).logits
    want = torch.cat([want[:, :1], want[:, :-1]], dim=1)
    torch.testing.assert_close(shifted(tokens).logits, want)

    positions = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    positions[0] = False
    torch.testing.assert_close(shifted(tokens, positions=positions).logits, want[positions])


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@torch.no_grad()
def test_one_pass_over_noisy_and_clean_tokens_predicts_every_block_behind_its_clean_past(alignment):
    denoiser = make_denoiser("qwen3", attention="block", block_length=4, alignment=alignment)
    clean = torch.randint(6, 40, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    noisy = torch.where(torch.rand(clean.shape) < 0.5, 0, clean)
    attention_mask = torch.ones_like(clean)
    attention_mask[1, 7:] = 0
    logits = denoiser(noisy, attention_mask=attention_mask, clean_ids=clean).logits
    for start in range(0, LENGTH, 4):
        end = min(start + 4, LENGTH)
        row = torch.cat([clean[:, :start], noisy[:, start:end]], dim=1)
        alone = denoiser(row, attention_mask=attention_mask[:, :end]).logits
        real = attention_mask[:, start:end].bool()
        torch.testing.assert_close(
            logits[:, start:end][real], alone[:, start:][real], atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_a_stale_cache_with_every_token_active_is_no_approximation():
    denoiser = make_denoiser("qwen2")
    tokens = torch.randint(6, 40, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    attention_mask = torch.ones_like(tokens)
    attention_mask[1, 6:] = 0
    positions = attention_mask.bool()
    cache = StaleCache()
    denoiser(tokens, attention_mask=attention_mask, positions=positions, cache=cache)
    other = tokens.flip(0)
    cache.active = attention_mask.bool()
    got = denoiser(other, attention_mask=attention_mask, positions=positions, cache=cache).logits
    want = denoiser(other, attention_mask=attention_mask, positions=positions).logits
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_a_saved_folder_is_read_as_before_and_opens_in_stock_transformers(tmp_path):
    reading = Reading("bidirectional", alignment="shifted", mask_token_id=0, end_token_ids=[2, 3])
    model = make_language_model("llama", reading)
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert read_config(stock.config) == reading
    tokens = torch.arange(6, 16).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(stock(tokens).logits, model(tokens).logits)


def test_readings_and_caches_that_make_no_sense_are_refused_by_name():
    for entries, message in [
        ({"attention": "both"}, "`attention` must be one of"),
        ({"attention": "block"}, "`block_length` must be an integer of at least 1"),
        ({"block_length": 4}, '`block_length` must be None without `attention="block"`'),
        ({"alignment": "left"}, "`alignment` must be one of"),
        ({"blocks_from": "end"}, "`blocks_from` must be one of"),
        ({"mask_token_id": -1}, "`mask_token_id` must be None or an id"),
        ({"end_token_ids": [1.5]}, "`end_token_ids` must be a list of ids"),
    ]:
        with pytest.raises(ValueError, match=message):
            Reading(**entries)

    config = LlamaConfig()
    config.diffusion = {"attention": "causal", "order": "left"}
    with pytest.raises(ValueError, match=r"`diffusion` in the configuration .* got \['order'\]"):
        read_config(config)
    write_reading(config, Reading("causal"))
    assert config.is_causal is True

    tokens = torch.arange(6, 10).unsqueeze(0)
    for denoiser, cache, message in [
        (make_denoiser("llama"), BlockCache(8), "`cache` must be a `StaleCache` for bidirectional"),
        (
            make_denoiser("llama", attention="block", block_length=4),
            StaleCache(),
            "`cache` must be a cache from `new_cache` for block",
        ),
    ]:
        with torch.no_grad(), pytest.raises(ValueError, match=message):
            denoiser(tokens, cache=cache)
        with pytest.raises(ValueError, match="`cache` carries no gradients"):
            denoiser(tokens, cache=cache)
    with pytest.raises(ValueError, match="`clean_ids` must be"):
        make_denoiser("llama")(tokens, clean_ids=tokens)


@torch.no_grad()
def test_what_is_asked_for_is_read_wherever_it_stands():
    denoiser = make_denoiser("llama")
    tokens = torch.randint(6, 40, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    positions = torch.ones_like(tokens, dtype=torch.bool)
    cache = StaleCache()
    whole = denoiser(tokens, positions=positions, cache=cache).logits
    cache.active = torch.zeros_like(positions)
    cache.active[:, 2] = True
    torch.testing.assert_close(denoiser(tokens, positions=positions, cache=cache).logits, whole)


@torch.no_grad()
def test_a_mask_of_pairs_does_not_open_the_windows_of_some_layers():
    model = make_language_model("mistral", Reading(), sliding_window=4)
    denoiser = LanguageModelDenoiser(model)
    tokens = torch.arange(6, 16).unsqueeze(0)
    assert denoiser(tokens).logits.shape == (1, 10, 44)
    with pytest.raises(ValueError, match="`sliding_window` of the language model .* 10 tokens"):
        denoiser(tokens, cache=StaleCache(), attention_mask=torch.ones_like(tokens))
    short = tokens[:, :4]
    denoiser(short, cache=StaleCache(), attention_mask=torch.ones_like(short))


@torch.no_grad()
def test_masks_of_pairs_are_read_in_any_of_their_forms():
    """As published samplers make them: 0 and 1 for each pair, for all rows at once, or what is added to attention."""
    blocks = make_denoiser("qwen3", attention="block", block_length=4)
    denoiser = make_denoiser("qwen3")
    tokens = torch.randint(6, 40, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    want = blocks(tokens).logits
    block = torch.arange(LENGTH) // 4
    visible = block.unsqueeze(1) >= block  # (L, L)
    additive = torch.zeros(LENGTH, LENGTH).masked_fill(~visible, -torch.inf)
    for mask in (
        visible.expand(2, 1, -1, -1),
        visible[None].long(),
        visible[None, None].float(),
        additive[None, None],
    ):
        torch.testing.assert_close(denoiser(tokens, 0.5, attention_mask=mask).logits, want)
