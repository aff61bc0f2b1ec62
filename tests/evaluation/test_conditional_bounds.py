"""Bounds of texts given their prompts, sources, conversations or labels, of language models of either kind."""

import itertools

import pytest
import torch
from conftest import covering
from support.language_models import chat_pipe

from text_diffusers import TextDiffusionPipeline
from text_diffusers.evaluation import estimate_bound, evaluate_likelihood
from text_diffusers.evaluation.written_texts import padded_rows, texts_of_pipeline
from text_diffusers.models import LanguageModelDenoiser
from text_diffusers.models.language_model import as_denoiser

MASK, END, EOT, USER, ASSISTANT = 0, 2, 3, 4, 5
# Never written: mask, padding, and ids without a token.
EXCLUDED = [0, 1, *range(40, 44)]
LENGTH = 16  # of the longest row
NAMES = ["w30", "w31 w32"]
QUESTION = [{"role": "user", "content": "w8 w9"}]

# What stands before the text "w13 w20", and the end behind it
CONDITIONS = {
    "prompts": ({"prompts": ["w8 w9"]}, [8, 9], [END]),
    "sources": ({"sources": ["w8 w9"]}, [END, 8, 9, END], [END]),
    "messages": ({"messages": QUESTION}, [USER, 8, 9, END, ASSISTANT], [END]),
    "label": ({"class_labels": ["w31 w32"]}, [END, 31, 32, END], [END]),
    "label and prompt": (
        {"class_labels": [0], "prompts": ["w8"]},
        [END, 30, END, 8],
        [END],
    ),
    "no label": ({"class_labels": [None]}, [END, MASK, END], [END]),
}


def make_pipe(name="prompts", attention="bidirectional", alignment="shifted"):
    pipe = chat_pipe(attention=attention, alignment=alignment, max_length=LENGTH)
    settings = {}
    if "label" in name:
        settings = {"label_names": NAMES}
    if name == "sources":
        settings = {"takes_source": True}
    conditional = TextDiffusionPipeline(pipe.tokenizer, pipe.denoiser, pipe.scheduler, **settings)
    conditional.set_progress_bar_config(disable=True)
    return conditional


@torch.no_grad()
def cost_by_all_orders(model, row, given, block_length=None):
    """The absorbing bound in continuous time: the mean over all orders in which the tokens of a block are revealed.

    A block, or without blocks the longest row of the model, goes on behind the end in masks.
    """
    denoiser = LanguageModelDenoiser(model, EXCLUDED)
    size = block_length or LENGTH
    total = 0.0
    for first in range(0, len(row), size):
        columns = [
            column for column in range(first, min(first + size, len(row))) if column >= given
        ]
        orders = list(itertools.permutations(columns))
        for order in orders:
            noisy = torch.tensor([[*row, *[MASK] * size][: first + size]])
            noisy[0, columns] = MASK
            for column in order:
                logits = denoiser(noisy).logits[0, column]
                total -= float(logits.log_softmax(dim=-1)[row[column]]) / len(orders)
                noisy[0, column] = row[column]
    return total


@pytest.mark.parametrize("name, attention", covering(CONDITIONS, ["bidirectional", "block"]))
def test_the_bound_given_a_condition_is_the_mean_over_all_orders(name, attention):
    arguments, given, end = CONDITIONS[name]
    pipe = make_pipe(name, attention)
    row = [*given, 13, 20, *end]
    exact = cost_by_all_orders(pipe.denoiser, row, len(given), pipe.block_length)
    got = evaluate_likelihood(pipe, ["w13 w20"], **arguments, num_times=2048)
    error = max(5 * got.per_text_errors[0], 1e-4)
    assert got.num_tokens == 3
    assert got.per_text_nats[0] == pytest.approx(exact, abs=error) and error < 0.5


@torch.no_grad()
@pytest.mark.slow
def test_under_a_model_of_independent_tokens_a_text_costs_the_same_behind_any_condition():
    """Without attention a mask is predicted from itself alone: the bound is exact, and the parts of a text add up."""

    def cost(name, texts, **arguments):
        pipe = make_pipe(name, alignment="aligned")
        for layer in pipe.denoiser.model.layers:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        likelihood = evaluate_likelihood(pipe, texts, **arguments, num_times=1024)
        denoiser = LanguageModelDenoiser(pipe.denoiser, EXCLUDED)
        nats = -denoiser(torch.tensor([[MASK]])).logits[0, 0].log_softmax(dim=-1)
        return likelihood.per_text_nats[0], 5 * likelihood.per_text_errors[0], nats

    for name, (arguments, _, end) in CONDITIONS.items():
        got, error, nats = cost(name, ["w13 w20"], **arguments)
        assert got == pytest.approx(float(nats[[13, 20, *end]].sum()), abs=error) and error < 0.6

    # The whole is the prompt, and the text given the prompt.
    whole, error, nats = cost("prompts", ["w8 w9 w13 w20"])
    behind, error_behind, _ = cost("prompts", ["w13 w20"], prompts=["w8 w9"])
    parts = behind + float(nats[[8, 9]].sum())
    assert whole == pytest.approx(parts, abs=error + error_behind) and error < 1


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["bidirectional", "block"])
def test_counts_of_masks_and_times_give_one_bound(attention):
    """`evaluate_likelihood` draws how many tokens are masked, `estimate_bound` at which time: both are unbiased."""
    pipe = make_pipe("label", attention)
    texts = ["w13 w20", "w9 w10 w11"]
    labels = [1, 0]
    by_count = evaluate_likelihood(pipe, texts, class_labels=labels, num_times=2048)
    written = texts_of_pipeline(pipe, texts, labels=labels)
    # Copies of the rows, so that the error is that of the noise alone.
    rows = padded_rows(written * 1024, pipe.tokenizer.pad_token_id)
    denoiser = as_denoiser(pipe.denoiser, pipe.tokenizer)
    by_time = estimate_bound(denoiser.eval(), pipe.scheduler, rows, batch_size=256)
    error = 4 * (by_count.standard_error**2 + by_time.standard_error**2) ** 0.5
    assert by_time.bound == pytest.approx(by_count.nats_per_token, abs=error) and error < 0.6


@pytest.mark.parametrize("attention", ["bidirectional", "block"])
def test_a_text_does_not_depend_on_the_conditions_of_others(attention):
    pipe = make_pipe("label", attention)
    texts = ["w13 w20", "w9 w10 w11 w12 w13", "w8"]
    arguments = {"class_labels": [1, None, 0], "prompts": ["w8 w9 w10", "", "w11"], "num_times": 4}
    alone = evaluate_likelihood(pipe, texts, **arguments, batch_size=1)
    together = evaluate_likelihood(pipe, texts, **arguments, batch_size=64)
    assert together.per_text_nats == pytest.approx(alone.per_text_nats, rel=1e-5)


def test_the_end_of_a_reply_is_that_of_the_template():
    pipe = chat_pipe()
    pipe.tokenizer.chat_template = pipe.tokenizer.chat_template.replace("<|end|>", "<|eot|>")
    (text,) = texts_of_pipeline(pipe, ["w13 w20"], messages=QUESTION)
    assert text.given == [USER, 8, 9, EOT, ASSISTANT]
    assert text.counted == [13, 20, EOT] and text.num_characters == len("w13 w20") + 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("prompts", {"sources": ["w8"]}, "`sources` need a denoiser that was trained with them"),
        ("sources", {"sources": ["w8"], "prompts": ["w8"]}, "`sources` excludes `prompts`"),
        ("messages", {"messages": [QUESTION] * 2}, "`messages` must be one a text, 1, got 2"),
        ("messages", {"messages": QUESTION, "prompts": ["w8"]}, "`messages` excludes `prompts`"),
        ("label", {"class_labels": [3]}, r"`class_labels` must be between 0 and 1 \(or 2 for no"),
        ("label", {"class_labels": [0], "messages": QUESTION}, "`class_labels` must be None with"),
        ("messages", {"messages": [{"role": "user", "content": "<|end|>"}]}, "special token"),
    ],
)
def test_conditions_that_do_not_fit_are_refused_by_name(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_likelihood(make_pipe(name), ["w13"], **arguments)
