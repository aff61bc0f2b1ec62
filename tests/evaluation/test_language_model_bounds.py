"""Bounds of language models: of which rows they are, and that they are those of the pipeline's own layout."""

import itertools
from functools import partial

import pytest
import torch
from support.language_models import chat_pipe, make_language_model, word_tokenizer

from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline
from text_diffusers.evaluation import evaluate_likelihood
from text_diffusers.evaluation.written_texts import texts_of_pipeline
from text_diffusers.models import LanguageModelDenoiser, Reading

MASK, END = 0, 2
# Never written: mask, padding, and ids without a token.
EXCLUDED = [0, 1, *range(40, 44)]


@torch.no_grad()
def cost_by_all_orders(denoiser, row, written, padding=0):
    """The absorbing bound in continuous time, exactly: the mean over all orders in which `written` is revealed."""
    attention_mask = torch.ones_like(row)
    attention_mask[:, :padding] = 0
    orders = list(itertools.permutations(written))
    total = 0.0
    for order in orders:
        noisy = row.clone()
        noisy[0, list(order)] = MASK
        for column in order:
            logits = denoiser(noisy, attention_mask=attention_mask).logits[0, column]
            total -= float(logits.log_softmax(dim=-1)[row[0, column]])
            noisy[0, column] = row[0, column]
    return total / len(orders)


@pytest.mark.parametrize("alignment", ["aligned", "shifted"])
@pytest.mark.parametrize("blocks_from", ["row", "prompt"])
def test_the_bound_after_a_prompt_is_that_of_the_blocks_the_pipeline_writes(blocks_from, alignment):
    """A prompt of three tokens and blocks of four: the text shares its first block with the prompt, or begins one."""
    pipe = chat_pipe(attention="block", alignment=alignment)
    pipe.denoiser.config.diffusion["blocks_from"] = blocks_from
    row = [8, 13, 20, 9, END]
    seen = []
    handle = pipe.denoiser.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    pipe("w8 w13 w20", max_new_tokens=2, num_inference_steps=2)
    handle.remove()
    padding = max(seen) - 5 if blocks_from == "prompt" else 0
    assert padding == (1 if blocks_from == "prompt" else 0)

    # Written are w9 and the end: in one block if it is counted from the prompt, else the last of one and a new one.
    # Masks stand where the last block goes on.
    padded = torch.tensor([[1] * padding + row + [MASK] * (2 if padding else 3)])
    denoiser = LanguageModelDenoiser(pipe.denoiser, EXCLUDED)
    text, end = padding + 3, padding + 4
    if blocks_from == "prompt":
        exact = cost_by_all_orders(denoiser, padded, [text, end], padding)
    else:
        exact = cost_by_all_orders(denoiser, padded[:, :4], [text])
        exact += cost_by_all_orders(denoiser, padded, [end])
    got = evaluate_likelihood(pipe, ["w9"], prompts=["w8 w13 w20"], num_times=512)
    error = max(5 * got.per_text_errors[0], 1e-4)
    assert got.num_tokens == 2
    assert got.per_text_nats[0] == pytest.approx(exact, abs=error) and error < 0.5


def test_the_bound_of_a_bidirectional_model_is_the_mean_over_all_orders():
    for alignment in ("aligned", "shifted"):
        pipe = chat_pipe(alignment=alignment)
        denoiser = LanguageModelDenoiser(pipe.denoiser, EXCLUDED)
        # The row is as long as the model allows, whatever the text needs.
        row = torch.tensor([[8, 13, 20, END, *[MASK] * 60]])
        exact = cost_by_all_orders(denoiser, row, range(1, 4))
        got = evaluate_likelihood(pipe, ["w13 w20"], prompts=["w8"], num_times=1024)
        error = 5 * got.per_text_errors[0]
        assert got.per_text_nats[0] == pytest.approx(exact, abs=error) and error < 0.8


def test_an_end_counts_where_the_model_predicts_one_whatever_the_tokenizer_says():
    """The tokenizer has no end: the first of the model's own ends the text. A model without any is given none."""
    tokenizer = word_tokenizer(mask_token="<|mask|>", pad_token="<|pad|>")
    assert tokenizer.eos_token_id is None
    scheduler = ConfidenceScheduler(MASK)
    for ends, tokens in (([3, END], [8, 9, 3]), ([], [8, 9])):
        model = make_language_model(reading=Reading(mask_token_id=MASK, end_token_ids=ends))
        pipe = TextDiffusionPipeline(tokenizer, model, scheduler)
        text = texts_of_pipeline(pipe, ["w8 w9"])[0]
        assert text.counted == tokens and text.end_is_given == (not ends)
        assert evaluate_likelihood(pipe, ["w8 w9"], num_times=2).num_tokens == len(tokens)


def test_the_width_of_a_row_does_not_tell_where_its_text_ends():
    """A text is judged in rows as long as those in which the pipeline writes; drawn lengths are told by the row."""

    def widths(pipe, call):
        seen = set()
        handle = pipe.denoiser.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.add(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        call()
        handle.remove()
        return seen

    pipe = chat_pipe()
    written = widths(pipe, lambda: pipe("w8", num_inference_steps=2))
    texts = [" ".join(["w9"] * size) for size in range(1, 7)]
    for text in texts:
        judge = partial(evaluate_likelihood, pipe, [text], prompts=["w8"], num_times=2)
        assert widths(pipe, judge) == written

    drawn = TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, pipe.scheduler, lengths=[1] * 9)
    for size, text in enumerate(texts, start=1):
        judge = partial(evaluate_likelihood, drawn, [text], prompts=["w8"], num_times=2)
        assert widths(pipe, judge) == {1 + size + 1}
