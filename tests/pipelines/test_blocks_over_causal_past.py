"""Laws of pipelines whose language model reads its past token by token: exact caches, any block length, stock greedy.

Shapes: B rows, L sequence length.
"""

import itertools

import pytest
import torch
from conftest import mostly_slow
from support.language_models import make_language_model, word_tokenizer
from support.masked_lms import make_masked_lm
from transformers import AutoModelForCausalLM

from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.common.token_ids import end_ids
from text_diffusers.guidance import LengthControl, WordsControl
from text_diffusers.models import LanguageModelDenoiser, Reading
from text_diffusers.samplers import most_steps, with_sampler
from text_diffusers.training.adaptation.language_models import adapt_masked

MASK, PAD, END = 0, 1, 2
EXCLUDED = [MASK, PAD, *range(40, 44)]  # mask, padding, ids without a token
PROMPTS = ["w8", "w9 w31 w12 w33 w7", "w10 w14 w36", "w20 w21 w22 w23 w24 w25"]
NEVER_END = {"suppress_tokens": [END, 3]}


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def causal_pipe(model_type="llama", alignment="shifted", scheduler=None, **sizes):
    tokenizer = word_tokenizer(
        mask_token="<|mask|>", pad_token="<|pad|>", eos_token="<|end|>", bos_token="<|user|>"
    )
    reading = Reading(
        attention="block",
        past="causal",
        block_length=4,
        alignment=alignment,
        mask_token_id=MASK,
        end_token_ids=[END, 3],
    )
    model = make_language_model(model_type, reading, **sizes)
    scheduler = scheduler or D3PMAbsorbingScheduler(MASK)
    pipe = TextDiffusionPipeline(tokenizer, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read_lengths(pipe):
    lengths = []
    pipe.denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    return lengths


SCHEDULERS = {
    "ancestral": lambda: D3PMAbsorbingScheduler(MASK),
    "from the left": lambda: ConfidenceScheduler(MASK, order="left_to_right", quota="even"),
    "greedy": lambda: ConfidenceScheduler(MASK, temperature=0.0),
    "threshold": lambda: ConfidenceScheduler(MASK, threshold=0.3),
}


@pytest.mark.parametrize(
    "model_type, alignment, name",
    mostly_slow(
        itertools.product(["llama", "gpt2"], ["shifted", "aligned"], SCHEDULERS),
        fast=[
            ("llama", "shifted", "from the left"),
            ("gpt2", "aligned", "greedy"),
        ],
    ),
)
def test_the_cache_changes_no_token_alone_or_in_a_batch(model_type, alignment, name):
    pipe = causal_pipe(model_type, alignment, SCHEDULERS[name]())
    lengths = read_lengths(pipe)
    for block_length in (None, 1, 3, 8):
        settings = {"max_new_tokens": 13, "num_inference_steps": 4, "block_length": block_length}

        def write(prompts, seeds, settings=settings):
            return pipe(prompts, generator=[seeded(seed) for seed in seeds], **settings)

        lengths.clear()
        together = write(PROMPTS, range(4))
        longest = max(length for _, length in lengths[1:])
        pipe.use_cache = False
        assert torch.equal(write(PROMPTS, range(4)).tokens, together.tokens)
        pipe.use_cache = True
        for row, prompt in enumerate(PROMPTS):
            assert write(prompt, [row]).texts[0] == together.texts[row]
        # What is finished is read once, with the block behind it.
        assert longest <= 2 * (block_length or 4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "gemma2"])
def test_in_blocks_of_one_token_a_pipeline_writes_what_stock_transformers_writes(
    model_type, tmp_path
):
    pipe = causal_pipe(model_type, scheduler=ConfidenceScheduler(MASK, temperature=0.0))
    pipe.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "denoiser").eval()
    lengths = read_lengths(pipe)
    settings = {"max_new_tokens": 12, "num_inference_steps": 1, "block_length": 1}
    tokens = pipe(PROMPTS, **settings).tokens
    # One token a row and call
    assert {length for _, length in lengths[1:]} == {1}

    for row, prompt in zip(tokens, PROMPTS, strict=True):
        start = torch.tensor([[4, *pipe.tokenizer(prompt)["input_ids"]]])
        want = stock.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=PAD,
            eos_token_id=[END, 3],
            suppress_tokens=EXCLUDED,
        )[0]
        written = row[row != PAD]
        assert torch.equal(written, want[: len(written)])
        assert len(written) == len(want)


@torch.no_grad()
def test_each_block_is_the_greedy_choice_of_a_whole_pass_over_all_before_it():
    """Steps one by one: from the left, two tokens a step, by calls without a cache and without padding."""
    scheduler = ConfidenceScheduler(MASK, temperature=0.0, order="left_to_right", quota="even")
    pipe = causal_pipe(scheduler=scheduler)
    tokens = pipe(PROMPTS, max_new_tokens=8, num_inference_steps=2, **NEVER_END).tokens
    denoiser = LanguageModelDenoiser(pipe.denoiser, [*EXCLUDED, END, 3])
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        past = [4, *pipe.tokenizer(prompt)["input_ids"]]
        for _ in range(2):
            block = [MASK] * 4
            for first in (0, 2):
                # A row whose last block is this one, whatever the length of its past
                whole = denoiser(
                    torch.tensor([[*past, *block]]),
                    attention_mask=torch.ones(1, len(past) + 4, len(past) + 4).tril()
                    + (torch.arange(len(past) + 4) >= len(past)).unsqueeze(1),
                ).logits[0]
                # Shifted: the prediction of the first token is read off the last one of the past.
                block[first : first + 2] = whole[len(past) + first :].argmax(dim=-1)[:2].tolist()
            past += block
        assert row[row != PAD].tolist() == past


def test_guidance_by_a_masked_prompt_reaches_a_causal_past():
    settings = {"max_new_tokens": 8, "num_inference_steps": 2, "guide_by": "masked_prompt"}
    pipe = causal_pipe(scheduler=ConfidenceScheduler(MASK, temperature=0.0))
    guided = pipe(PROMPTS, guidance_scale=3.0, **settings).tokens
    pipe.use_cache = False
    assert torch.equal(pipe(PROMPTS, guidance_scale=3.0, **settings).tokens, guided)
    assert not torch.equal(pipe(PROMPTS, guidance_scale=1.0, **settings).tokens, guided)


def test_gaps_are_filled_in_over_a_causal_past():
    pipe = causal_pipe()
    texts = ["w8 <|mask|> w9 w10 <|mask|> w11", "<|mask|> w12"]
    output = pipe(text=texts, num_inference_steps=2, generator=[seeded(0), seeded(1)])
    for text, row in zip(texts, output.tokens, strict=True):
        ids = torch.tensor([4, *pipe.tokenizer(text)["input_ids"]])
        written = row[: len(ids)]
        assert torch.equal(written[ids != MASK], ids[ids != MASK]) and not (written == MASK).any()
    pipe.use_cache = False
    again = pipe(text=texts, num_inference_steps=2, generator=[seeded(0), seeded(1)])
    assert torch.equal(again.tokens, output.tokens)


@pytest.mark.parametrize("alignment", ["shifted", "aligned"])
@torch.no_grad()
def test_a_gap_is_filled_in_by_all_of_its_text_as_a_block_of_training(alignment):
    """Greedy, all gaps at once: what one pass over noisy and clean tokens predicts of a block as long as the row."""
    pipe = causal_pipe(alignment=alignment, scheduler=ConfidenceScheduler(MASK, temperature=0.0))
    pipe.generation_defaults = {"num_inference_steps": 4, "block_length": 2, "max_new_tokens": 3}
    texts = ["w8 <|mask|> w9 w10 <|mask|> w11 w36", "<|mask|> w12"]
    rows = pipe(text=texts, num_inference_steps=1).tokens
    denoiser = LanguageModelDenoiser(pipe.denoiser, [*EXCLUDED, END, 3])
    for text, row in zip(texts, rows, strict=True):
        noisy = torch.tensor([[4, *pipe.tokenizer(text)["input_ids"]]])
        gaps = noisy == MASK
        logits = denoiser(
            noisy,
            clean_ids=noisy,
            positions=gaps,
            block_length=noisy.shape[1] - 1,
            block_starts=torch.ones(1, dtype=torch.long),
        ).logits
        want = noisy.masked_scatter(gaps, logits.argmax(dim=-1))
        assert torch.equal(row[row != PAD], want[0])


def test_controls_see_all_of_a_text_over_a_causal_past_alone_and_in_a_batch():
    pipe = causal_pipe()
    seen = []

    def banish(logits, state):
        """Forbid every word that stands in the text already, and note the text."""
        seen.append(state.tokens.clone())
        for index, row in enumerate(state.open.nonzero()[:, 0].tolist()):
            logits[index, state.tokens[row]] = -torch.inf
        return logits

    settings = {"max_new_tokens": 6, "num_inference_steps": 6, "controls": banish} | NEVER_END
    prompts = PROMPTS[:2]
    together = pipe(prompts, generator=[seeded(0), seeded(1)], **settings)
    for index, prompt in enumerate(prompts):
        alone = pipe(prompt, generator=seeded(index), **settings)
        assert alone.texts[0] == together.texts[index]
        words = alone.texts[0].split()
        assert len(set(words)) == len(words)
        # Start, prompt and text
        assert seen[-1].shape[1] == 1 + len(prompt.split()) + 6


@pytest.mark.slow
def test_a_control_of_length_writes_in_blocks_what_the_length_by_itself_writes():
    """It changes each token by itself, so that no block need hold all of the text."""
    pipe = causal_pipe(scheduler=ConfidenceScheduler(MASK, temperature=0.0))
    pipe.generation_defaults = {"num_inference_steps": 4}
    lengths = [9, 12, 10, 17]
    read = read_lengths(pipe)
    for block_length in (None, 3):
        told = pipe(PROMPTS, length=lengths, block_length=block_length)
        read.clear()
        control = LengthControl(lengths, eos_token_id=END)
        controlled = pipe(PROMPTS, controls=control, block_length=block_length)
        assert torch.equal(controlled.tokens, told.tokens)
        assert max(length for _, length in read[1:]) <= 2 * (block_length or 4)


def test_a_sampler_of_a_token_a_step_writes_gaps_beyond_a_block_one_by_one():
    pipe = with_sampler(causal_pipe(), "first_hitting")
    text = f"w8 {' <|mask|>' * 7} w9"
    assert most_steps(pipe) == most_steps(pipe, {"prompt": "w8"}) == pipe.block_length
    assert most_steps(pipe, {"prompt": "w8", "block_length": 6}) == 6
    num_steps = most_steps(pipe, {"text": text})
    output = pipe(text=text, num_inference_steps=num_steps, return_history=True)
    num_open = [int((tokens == MASK).sum()) for tokens in output.history]
    assert sorted(set(num_open), reverse=True) == list(range(7, -1, -1))


def test_what_needs_another_way_of_writing_is_refused_with_the_way():
    pipe = causal_pipe()
    control = WordsControl(pipe.tokenizer, ["w20"])
    settings = {"max_new_tokens": 4, "num_inference_steps": 4}
    for arguments, message in [
        ({"controls": control, "block_length": 4}, "`block_length` must be left out with `controls`"),
        ({"negative_prompt": "w9", "guidance_scale": 2.0}, "cannot be left out or give way to a `negative_prompt`"),
        ({"guide_by": "prompt", "guidance_scale": 2.0, "controls": control}, "masks can stand for its prompt"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            pipe("w8", **settings, **arguments)
    # The ways that are named
    assert "w20" in pipe("w8", controls=control, **settings).texts[0].split()
    pipe("w8", guide_by="masked_prompt", guidance_scale=2.0, controls=control, **settings)


def test_a_callback_that_changes_the_past_changes_what_is_read():
    pipe = causal_pipe(scheduler=ConfidenceScheduler(MASK, temperature=0.0))

    def overwrite(pipe, step, timestep, tensors):
        tokens = tensors["tokens"].clone()
        tokens[:, 5] = 17
        return {"tokens": tokens} if step == 5 else None

    settings = {"max_new_tokens": 14, "num_inference_steps": 2, "callback_on_step_end": overwrite}
    changed = pipe("w8 w9", **settings, **NEVER_END).tokens
    pipe.use_cache = False
    assert torch.equal(pipe("w8 w9", **settings, **NEVER_END).tokens, changed)
    assert changed[0, -1] != PAD


@pytest.mark.parametrize("model_type", ["bert", "roberta", "modernbert"])
def test_an_encoder_writes_the_same_with_and_without_its_cache(model_type):
    """What takes no keys and values of its own may hand them on to a body that does."""
    model, tokenizer = make_masked_lm(model_type)
    adapt_masked(model, tokenizer, attention="block", block_length=4)
    scheduler = ConfidenceScheduler(tokenizer.mask_token_id, order="left_to_right")
    pipe = TextDiffusionPipeline(tokenizer, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    lengths = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: lengths.append(args[0].shape[1])
    )
    ends = end_ids(tokenizer)

    def write():
        lengths.clear()
        settings = {"max_new_tokens": 12, "num_inference_steps": 2, "suppress_tokens": ends}
        return pipe(["The cat", "She"], generator=[seeded(0), seeded(1)], **settings).tokens

    cached = write()
    reads_past_once = max(lengths[1:]) <= 8
    assert reads_past_once == (model_type != "modernbert")
    pipe.use_cache = False
    assert torch.equal(write(), cached)
