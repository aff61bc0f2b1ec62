"""Laws of blocks over a causal past: what is seen, the causal model that stays, any block length, padding, folders.

Shapes: B rows, L sequence length.
"""

import pytest
import torch
from support.language_models import make_language_model
from transformers import AutoModelForCausalLM

from text_diffusers.models import LanguageModelDenoiser, Reading, read_config

ARCHITECTURES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "granite": {},
    "gpt2": {},
    "gpt_neox": {},
    "smollm3": {},
    "starcoder2": {},
}
LENGTH = 11
STARTS = torch.tensor([0, 1, 3])  # columns at which blocks of four begin in three rows


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_tokens(rows=3, seed=0):
    return torch.randint(6, 40, (rows, LENGTH), generator=seeded(seed))


def masked(tokens, seed=1):
    return tokens.masked_fill(torch.rand(tokens.shape, generator=seeded(seed)) < 0.6, 0)


def make_denoiser(model_type="llama", alignment="shifted", block_length=4, **sizes):
    reading = Reading(
        attention="block", past="causal", block_length=block_length, alignment=alignment
    )
    sizes = ARCHITECTURES[model_type] | sizes
    return LanguageModelDenoiser(make_language_model(model_type, reading, **sizes))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.no_grad()
def test_a_planted_token_is_felt_by_its_block_and_by_what_stands_behind_its_block(model_type):
    """Aligned predictions are those of a token's own state, and clean ones those of the clean state before."""
    denoiser = make_denoiser(model_type, alignment="aligned")
    tokens = random_tokens()
    blocks = (torch.arange(LENGTH) - STARTS.unsqueeze(1)).div(4, rounding_mode="floor")
    columns = torch.arange(LENGTH)

    def logits_of(noisy, clean):
        output = denoiser(
            noisy, clean_ids=clean, block_starts=STARTS, clean_positions=torch.ones_like(clean) > 0
        )
        return output.logits, output.clean_logits.unflatten(0, clean.shape)

    base = logits_of(tokens, tokens)
    for column in range(LENGTH):
        planted = tokens.clone()
        planted[:, column] = 6 + (tokens[:, column] - 6 + 15) % 34
        of_noisy, of_clean = (
            [(got - want).abs().amax(dim=-1) > 1e-5 for got, want in zip(both, base, strict=True)]
            for both in (logits_of(planted, tokens), logits_of(tokens, planted))
        )
        own = blocks[:, column : column + 1]
        assert torch.equal(of_noisy[0], blocks == own)
        assert torch.equal(of_clean[0], blocks > own)
        assert not of_noisy[1].any()
        # The first clean token has none before it.
        assert torch.equal(of_clean[1][:, 1:], (columns > column).expand(3, -1)[:, 1:])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@torch.no_grad()
def test_clean_tokens_are_predicted_as_by_the_causal_model_itself(model_type):
    stock = make_language_model(model_type, **ARCHITECTURES[model_type])
    denoiser = make_denoiser(model_type)
    tokens = random_tokens()
    attention_mask = torch.ones_like(tokens)
    attention_mask[1, 8:] = 0
    clean_positions = attention_mask.bool()
    clean_positions[:, 0] = False
    want = stock(input_ids=tokens, attention_mask=attention_mask).logits[:, :-1]
    want = want[clean_positions[:, 1:]]

    options = {"attention_mask": attention_mask, "block_starts": STARTS}
    output = denoiser(masked(tokens), clean_ids=tokens, clean_positions=clean_positions, **options)
    torch.testing.assert_close(output.clean_logits, want, atol=1e-4, rtol=1e-4)

    # In blocks of one token the model is autoregressive.
    alone = denoiser(
        tokens, attention_mask=attention_mask, positions=clean_positions, block_length=1
    ).logits
    torch.testing.assert_close(alone, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@torch.no_grad()
def test_one_pass_predicts_every_block_of_any_length_as_it_is_written_alone(model_type, alignment):
    """Alone a block stands behind its clean past, which padding on the left fills up to whole blocks."""
    denoiser = make_denoiser(model_type, alignment)
    tokens = random_tokens()
    noisy = masked(tokens)
    for block_length in (1, 3, 4, 16):
        options = {"block_length": block_length, "block_starts": STARTS}
        logits = denoiser(noisy, clean_ids=tokens, **options).logits
        for row, start in enumerate(STARTS.tolist()):
            first = start % block_length
            padding = -start % block_length
            for begin in range(first, LENGTH, block_length):
                end = min(begin + block_length, LENGTH)
                alone = torch.cat([tokens[row, :begin], noisy[row, begin:end]])
                alone = torch.cat([torch.full((padding,), 1), alone]).unsqueeze(0)
                real = torch.ones_like(alone)
                real[:, :padding] = 0
                written = denoiser(alone, attention_mask=real, block_length=block_length).logits
                got = logits[row, begin:end]
                torch.testing.assert_close(got, written[0, padding + begin :], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_only_what_is_asked_for_is_read_of_a_block():
    denoiser = make_denoiser()
    tokens = random_tokens()
    read = []
    denoiser.language_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    whole = denoiser(tokens).logits
    for column, num_read in ((7, 8), (8, 8), (9, 11)):
        positions = torch.zeros_like(tokens, dtype=torch.bool)
        positions[:, column] = True
        logits = denoiser(tokens, positions=positions).logits
        torch.testing.assert_close(logits, whole[:, column], atol=1e-5, rtol=1e-5)
        assert read[-1] == num_read


@torch.no_grad()
def test_noisy_blocks_of_which_nothing_is_asked_are_not_read():
    denoiser = make_denoiser()
    tokens = random_tokens()
    noisy = masked(tokens)
    read = []
    denoiser.language_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    whole = denoiser(noisy, clean_ids=tokens, block_starts=STARTS).logits
    positions = torch.zeros_like(tokens, dtype=torch.bool)
    positions[0, 5] = True  # of the second block of the first row
    positions[1, 9:] = True  # of the third block of the second, of two tokens
    positions[2, [2, 3]] = True  # of a first block of three tokens, and the first token behind it
    logits = denoiser(noisy, clean_ids=tokens, block_starts=STARTS, positions=positions).logits
    torch.testing.assert_close(logits, whole[positions], atol=1e-5, rtol=1e-5)
    # The first token of a block is read off the past.
    assert read == [2 * LENGTH, 4 + LENGTH]

    # In blocks of one token all are first ones, and the call needs one noisy token to be well-formed.
    ones = {"clean_ids": tokens, "block_starts": STARTS, "block_length": 1}
    denoiser(noisy, positions=torch.arange(LENGTH).expand_as(tokens) > 0, **ones)
    assert read[-1] == 1 + LENGTH


def test_in_blocks_of_one_token_the_loss_is_the_autoregressive_one():
    stock = make_language_model("qwen2")
    denoiser = make_denoiser("qwen2")
    tokens = random_tokens()
    labels = tokens.clone()
    labels[2, :4] = -100  # a prompt, which is given
    want = stock(input_ids=tokens, labels=labels).loss

    positions = labels != -100
    positions[:, 0] = False
    noisy = tokens.masked_fill(positions, 0)
    logits = denoiser(noisy, clean_ids=tokens, positions=positions, block_length=1).logits
    loss = torch.nn.functional.cross_entropy(logits, tokens[positions])
    torch.testing.assert_close(loss, want)
    gradients = []
    for model, value in ((stock, want), (denoiser.language_model, loss)):
        value.backward()
        gradients.append(model.model.layers[0].mlp.up_proj.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@torch.no_grad()
def test_padding_on_either_side_changes_no_row(model_type):
    denoiser = make_denoiser(model_type)
    tokens = random_tokens()
    noisy = masked(tokens)
    want = denoiser(noisy, clean_ids=tokens, block_starts=STARTS).logits

    filling = torch.full((3, 5), 1)
    padded = [torch.cat([filling[:, :4], part, filling], dim=1) for part in (noisy, tokens)]
    real = torch.zeros_like(padded[0])
    real[:, 4 : 4 + LENGTH] = 1
    got = denoiser(
        padded[0], attention_mask=real, clean_ids=padded[1], block_starts=STARTS + 4
    ).logits
    got = got[:, 4 : 4 + LENGTH]
    # The first token of a row of four begins a block: it has nothing before it, or padding, which says nothing.
    columns = slice(1, None)
    torch.testing.assert_close(got[:, columns], want[:, columns], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_texts_that_share_a_row_are_predicted_as_alone():
    denoiser = make_denoiser("gpt2")
    tokens = random_tokens(rows=1)
    noisy = masked(tokens)
    segments = torch.tensor([[0] * 5 + [1] * 6])
    positions = torch.ones_like(tokens, dtype=torch.bool)
    positions[:, [0, 5]] = False  # each begins with what is given
    options = {"clean_positions": positions, "positions": positions, "block_starts": STARTS[1:2]}
    together = denoiser(noisy, clean_ids=tokens, segment_ids=segments, **options)
    alone = []
    for part, start in ((slice(0, 5), 1), (slice(5, 11), 0)):
        cut = {name: value[:, part] for name, value in options.items() if name != "block_starts"}
        starts = torch.tensor([start])
        alone.append(
            denoiser(noisy[:, part], clean_ids=tokens[:, part], block_starts=starts, **cut)
        )
    for name in ("logits", "clean_logits"):
        want = torch.cat([output[name] for output in alone])
        torch.testing.assert_close(together[name], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
@torch.no_grad()
def test_a_saved_folder_is_a_causal_lm_to_stock_transformers(model_type, tmp_path):
    denoiser = make_denoiser(model_type)
    model = denoiser.language_model
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert read_config(stock.config) == denoiser.reading and stock.config.is_causal is True

    tokens = random_tokens()
    again = LanguageModelDenoiser(stock)
    torch.testing.assert_close(again(tokens).logits, denoiser(tokens).logits)

    # What stock transformers writes is what the model that never heard of diffusion writes, also beside a denoiser.
    plain = make_language_model(model_type, **ARCHITECTURES[model_type])
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1}
    mask = torch.ones_like(tokens)
    want = plain.generate(tokens, attention_mask=mask, **settings)
    for written_by in (stock, model):
        assert torch.equal(written_by.generate(tokens, attention_mask=mask, **settings), want)


def test_what_does_not_go_with_the_past_is_refused_by_name():
    for entries, message in [
        ({"past": "causal"}, '`past` must be "block" without'),
        ({"attention": "block", "block_length": 4, "past": "all"}, "`past` must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            Reading(**entries)

    reading = Reading(attention="block", block_length=4)
    blocks = LanguageModelDenoiser(make_language_model(reading=reading))
    tokens = random_tokens()
    here = torch.ones_like(tokens, dtype=torch.bool)
    past = {"past_lengths": STARTS}
    pairs = torch.ones(len(tokens), LENGTH, LENGTH)
    for denoiser, options, message in [
        (blocks, {"block_length": 8}, "`block_length` must be None or 4 for a LlamaForCausalLM"),
        (blocks, {"block_starts": STARTS}, "`block_starts` were given"),
        (blocks, {"clean_ids": tokens, "clean_positions": here}, "`clean_positions` go with"),
        (make_denoiser(), {"clean_positions": here}, "`clean_positions` go with `clean_ids`"),
        (make_denoiser(), {"cache": object(), "segment_ids": tokens}, "`segment_ids` go without"),
        (make_denoiser(), {**past, "clean_ids": tokens}, "`past_lengths` exclude `clean_ids`"),
        (make_denoiser(), {**past, "block_length": 8}, "`past_lengths` exclude `block_length`"),
        (
            make_denoiser(),
            {**past, "attention_mask": pairs},
            "`past_lengths` go with an `attention_mask`",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            denoiser(tokens, **options)
    with pytest.raises(ValueError, match="`block_length` must be None or 4"):
        blocks.with_block_length(8)
    with pytest.raises(ValueError, match="`block_length` must be an integer of at least 1"):
        make_denoiser().with_block_length(0)
