"""Whole replies with and without caches, and early stops: `language_models.py --parts blocks caches steps`.

Times are of calls of a pipeline that take turns. Every call is greedy, so that tokens can be compared.

Shapes: B batch, L length.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from parts.common.results import Record
from parts.conditional.turns import shares_of_facts
from parts.language_models.models import (
    REPLY_LENGTH,
    ModelSize,
    Trained,
    conversation_of,
    random_pipe,
)
from parts.sampling.measuring import interleaved
from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline

# Of a model that writes in blocks, and of the windows of the random bidirectional one
BLOCK_LENGTH = 32
BLOCK_STEPS = 8
NUM_BLOCKS = (1, 2, 4, 8, 16)

# Windows of the trained model, three of a reply
WINDOW_LENGTH = REPLY_LENGTH // 3
TOKENS_A_STEP = (1, 4)
APPROXIMATIONS = (None, "prefix", "dual")
THRESHOLDS = (None, 0.95, 0.9, 0.7, 0.5)


class Writer:
    """Calls a pipeline, and keeps what it wrote last and how often it called its model.

    Attributes:
        rows: the tokens written for each prompt.
        texts: the same as texts.
        calls: of the model.
    """

    def __init__(self, pipe: TextDiffusionPipeline, **arguments: Any):
        self.pipe = pipe
        self.arguments = arguments
        self.rows: list[Tensor] = []
        self.texts: list[str] = []
        self.calls = 0

    def __call__(self):
        count = [0]

        def note_call(module: Any, args: tuple):
            count[0] += 1

        hook = self.pipe.denoiser.base_model.register_forward_pre_hook(note_call)
        output = self.pipe(**self.arguments)
        hook.remove()
        self.calls = count[0]
        self.texts = output.texts
        self.rows = list(output.tokens)

    def share_equal_to(self, other: "Writer") -> float:
        """The share of tokens that another call wrote too, at their places; padding behind both texts is left out."""
        pad = self.pipe.tokenizer.pad_token_id
        equal = 0
        total = 0
        for pair in zip(self.rows, other.rows, strict=True):
            both = pad_sequence(list(pair), batch_first=True, padding_value=pad)  # (2, L)
            counted = (both != pad).any(dim=0)
            equal += int((both[0] == both[1])[counted].sum())
            total += int(counted.sum())
        return equal / total


def exact_caches(size: ModelSize, repetitions: int) -> Iterator[Record]:
    """Yield a line for each number of blocks: a reply of a block-causal model, with its cache and without.

    Times are in forward passes over the whole row at its end.
    """
    prompt = " ".join(f"w{number}" for number in range(1, BLOCK_LENGTH + 1))
    for num_blocks in NUM_BLOCKS:
        num_tokens = num_blocks * BLOCK_LENGTH
        pipe = random_pipe(replace(size, length=num_tokens + BLOCK_LENGTH), BLOCK_LENGTH)
        arguments = {"max_new_tokens": num_tokens, "num_inference_steps": BLOCK_STEPS}
        writers = {key: Writer(pipe, prompt=prompt, **arguments) for key in (False, True)}

        def use_cache(name: str, pipe: TextDiffusionPipeline = pipe):
            pipe.use_cache = name == "True"

        whole = torch.ones(1, num_tokens + BLOCK_LENGTH, dtype=torch.long)
        runs: dict[str, Callable] = {
            "forward": torch.no_grad()(partial(pipe.denoiser, input_ids=whole)),
            "False": writers[False],
            "True": writers[True],
        }
        runs["forward"]()
        seconds = interleaved(runs, repetitions, use_cache)
        yield {
            "case": f"{num_blocks} blocks of {BLOCK_LENGTH} tokens",
            "calls": writers[True].calls,
            "no cache": f"{seconds['False'] / seconds['forward']:.1f}",
            "cache": f"{seconds['True'] / seconds['forward']:.1f}",
            "times faster": f"{seconds['False'] / seconds['True']:.2f}",
            "equal tokens": f"{writers[True].share_equal_to(writers[False]):.3f}",
        }


def speeds_of_approximations(size: ModelSize, repetitions: int) -> Iterator[Record]:
    """Yield a line for each number of steps and cache, of a longer text by a model with random weights.

    What such a model predicts depends on each token that it sees, so equal tokens are the least to be expected.
    """
    pipe = random_pipe(size)
    num_tokens = size.length - 2 * BLOCK_LENGTH
    prompt = " ".join(f"w{number}" for number in range(1, 2 * BLOCK_LENGTH + 1))
    for tokens_a_step in TOKENS_A_STEP:
        writers = {
            str(cache): Writer(
                pipe,
                prompt=prompt,
                max_new_tokens=num_tokens,
                num_inference_steps=BLOCK_LENGTH // tokens_a_step,
                block_length=BLOCK_LENGTH,
                approximate_cache=cache,
            )
            for cache in APPROXIMATIONS
        }
        seconds = interleaved(dict(writers), repetitions)
        for name, writer in writers.items():
            yield {
                "case": f"{tokens_a_step} a step, {name}",
                "calls": writer.calls,
                "times faster": f"{seconds['None'] / seconds[name]:.2f}",
                "equal tokens": f"{writer.share_equal_to(writers['None']):.3f}",
            }


def faithfulness_of_approximations(trained: Trained) -> Iterator[Record]:
    """Yield a line for each number of steps and cache: equal tokens, and the facts that replies have right."""
    for tokens_a_step in TOKENS_A_STEP:
        writers = {}
        for cache in APPROXIMATIONS:
            writer = reply_writer(
                trained,
                num_inference_steps=WINDOW_LENGTH // tokens_a_step,
                approximate_cache=cache,
            )
            writer()
            writers[str(cache)] = writer

        for name, writer in writers.items():
            yield {
                "case": f"{tokens_a_step} a step, {name}",
                **figures_of_replies(trained, writer, writers["None"]),
            }


def reply_writer(trained: Trained, **arguments: Any) -> Writer:
    """A call that answers all unseen questions together."""
    return Writer(
        trained.pipe,
        messages=[conversation_of(turn) for turn in trained.turns],
        max_new_tokens=REPLY_LENGTH,
        block_length=WINDOW_LENGTH,
        **arguments,
    )


def figures_of_replies(trained: Trained, writer: Writer, exact: Writer) -> Record:
    facts = shares_of_facts(trained.turns, writer.texts)
    same_texts = [text == other for text, other in zip(writer.texts, exact.texts, strict=True)]
    return {
        "calls": writer.calls,
        "equal tokens": f"{writer.share_equal_to(exact):.3f}",
        "equal texts": f"{sum(same_texts) / len(same_texts):.2f}",
        # Name, product, number and tone; all of them in one reply
        **{name: f"{share:.2f}" for name, share in facts.items()},
    }


def early_stops(trained: Trained) -> Iterator[Record]:
    """Yield a line for each threshold beside one token a step: steps that call the model, and how good replies are."""
    pipe = trained.pipe
    one_a_step = pipe.scheduler
    mask = pipe.tokenizer.mask_token_id
    exact = None
    for threshold in THRESHOLDS:
        if threshold is not None:
            pipe.scheduler = ConfidenceScheduler(mask, temperature=0.0, threshold=threshold)
        writer = reply_writer(trained, num_inference_steps=WINDOW_LENGTH)
        writer()
        exact = exact or writer
        # Steps of the slowest reply count for a batch.
        yield {
            "case": "one token a step" if threshold is None else f"threshold {threshold}",
            **figures_of_replies(trained, writer, exact),
        }
    pipe.scheduler = one_a_step
