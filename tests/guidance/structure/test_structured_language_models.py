"""Texts of language models under structure controls: replies, masked LMs, causal pasts, and blocks."""

import re

import pytest
import torch
from support.language_models import chat_pipe
from support.masked_lms import make_masked_lm, wordpiece_tokenizer

from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.guidance import RegexControl

QUESTIONS = [[{"role": "user", "content": f"w{8 + index} w20"}] for index in range(3)]
PATTERN = r"w1\d( w[23]\d){2,4}"


def generators(count=3):
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("settings", [{}, {"block_length": 3}])
def test_replies_match(alignment, settings):
    """The model has more logits than its tokenizer has tokens, and ends where the pattern lets it."""
    pipe = chat_pipe(scheduler=D3PMAbsorbingScheduler(0), alignment=alignment)
    control = RegexControl(pipe.tokenizer, PATTERN)
    output = pipe(
        messages=QUESTIONS,
        controls=control,
        max_new_tokens=7,
        num_inference_steps=3,
        generator=generators(),
        **settings,
    )
    assert all(re.fullmatch(PATTERN, text) for text in output.texts), output.texts


def test_over_a_causal_past_all_that_is_written_is_one_block():
    pipe = chat_pipe(
        scheduler=ConfidenceScheduler(0), attention="block", past="causal", block_length=2
    )
    control = RegexControl(pipe.tokenizer, PATTERN)
    settings = {"messages": QUESTIONS, "controls": control, "max_new_tokens": 7}
    output = pipe(num_inference_steps=3, generator=generators(), **settings)
    assert all(re.fullmatch(PATTERN, text) for text in output.texts), output.texts
    with pytest.raises(ValueError, match="`block_length` must be left out with `controls`"):
        pipe(block_length=2, **settings)


def test_a_denoiser_with_blocks_is_refused():
    pipe = chat_pipe(scheduler=D3PMAbsorbingScheduler(0), attention="block", block_length=2)
    control = RegexControl(pipe.tokenizer, PATTERN)
    with pytest.raises(ValueError, match="`controls` must be left out for a denoiser with blocks"):
        pipe(messages=QUESTIONS, controls=control, max_new_tokens=7)


def test_a_masked_lm_writes_a_text_of_a_given_length_that_matches():
    tokenizer = wordpiece_tokenizer()
    pipe = TextDiffusionPipeline(
        tokenizer,
        make_masked_lm("bert", tokenizer)[0],
        D3PMAbsorbingScheduler(tokenizer.mask_token_id),
    )
    pipe.set_progress_bar_config(disable=True)
    pattern = r"( [a-z]+)+[.,]?"
    control = RegexControl(tokenizer, pattern)
    output = pipe(
        "the cat",
        controls=control,
        max_new_tokens=6,
        num_inference_steps=3,
        generator=generators(1),
    )
    assert re.fullmatch(pattern, output.texts[0].removeprefix("the cat")), output.texts
