"""Tokens a second of one language model, written one after the other, in blocks and bidirectionally.

The same weights do it all: `generate` of transformers with its cache, and `TextDiffusionPipeline`. All are greedy,
write as many tokens behind a start token, and take turns.

Shapes: B texts, L tokens of a text with its start, n that are written.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from parts.adaptation.config import AdaptationBenchmarkConfig
from parts.common.results import Record
from parts.common.tables import Column, TableRow, markdown_table
from parts.sampling.measuring import interleaved, plain_tokenizer
from parts.writing_orders.writing import counted
from text_diffusers import ConfidenceScheduler, TextDiffusionPipeline
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.data.tokenizers import add_missing_tokens
from text_diffusers.models.language_model import ids_never_predicted
from text_diffusers.training.adaptation.language_models import adapt_causal, load_model
from text_diffusers.training.adaptation.starting_models import load_tokenizer

AUTOREGRESSIVE = "autoregressive"

# Sizes of SmolLM2-135M, for random weights where its own are not there
SMOLLM2_VOCABULARY = 49_152
SMOLLM2_SIZES = {
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8_192,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Case:
    """A way to write.

    Attributes:
        name: in the table.
        block_length: tokens of a block; `None` is without blocks.
        steps: of a block, or of a whole text.
    """

    name: str
    block_length: int | None
    steps: int


def cases(options: AdaptationBenchmarkConfig) -> list[Case]:
    """The ways to write by diffusion; a block takes at most as many steps as it has tokens."""
    ways = [
        Case(f"blocks of {length}, {steps} {'step' if steps == 1 else 'steps'}", length, steps)
        for length in options.block_lengths
        for steps in options.steps
        if steps <= length
    ]
    if options.bidirectional:
        count = options.num_tokens
        ways.append(Case(f"bidirectional, {count} steps", None, count))
    return ways


def load_causal_lm(options: AdaptationBenchmarkConfig) -> tuple[Any, Any, bool]:
    """`(model, tokenizer, is_trained)`: the causal LM with a mask token, or one of its size with random weights."""
    if Path(options.smollm2).is_dir():
        tokenizer = add_missing_tokens(load_tokenizer(options.smollm2, "smollm2"))
        model = load_model(options.smollm2, "causal_lm", tokenizer, None, 0.0)
        return model, tokenizer, True
    tokenizer = plain_tokenizer(SMOLLM2_VOCABULARY)
    tokenizer.eos_token = "w1"
    torch.manual_seed(0)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = LlamaConfig(vocab_size=len(tokenizer), **ids, **SMOLLM2_SIZES)
    return LlamaForCausalLM(config), tokenizer, False


def pipeline_of(
    model: Any, tokenizer: Any, attention: str, block_length: int | None = None
) -> TextDiffusionPipeline:
    """A pipeline that writes greedily from the left; the model's configuration is changed."""
    adapt_causal(model, tokenizer, attention, block_length)
    scheduler = ConfidenceScheduler(
        tokenizer.mask_token_id, temperature=0.0, order="left_to_right", quota="even"
    )
    pipe = TextDiffusionPipeline(tokenizer, model.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Writers:
    """All ways to write with one causal LM.

    Args:
        options: of the benchmark.
        model: a causal LM; its configuration is changed.
        tokenizer: with a mask token.
    """

    def __init__(self, options: AdaptationBenchmarkConfig, model: Any, tokenizer: Any):
        self.options = options
        self.tokenizer = tokenizer
        self.model = model
        # The configuration of a model says one way to read it, so the other way has a copy.
        self.bidirectional = None
        if options.bidirectional:
            self.bidirectional = pipeline_of(copy.deepcopy(model), tokenizer, "bidirectional")
        self.blocks = pipeline_of(model, tokenizer, "block")
        self.start = start_ids(tokenizer)[0]

    def one_by_one(self, num_texts: int) -> Tensor:
        """(B, n) tokens by transformers' own `generate`, which reads its cache."""
        count = self.options.num_tokens
        start = torch.full((num_texts, 1), self.start, device=self.model.device)
        # The mask and others are never written, and no text ends early.
        unwanted = [*ids_never_predicted(self.model, self.tokenizer), *end_ids(self.tokenizer)]
        tokens = self.model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=False,
            use_cache=True,
            min_new_tokens=count,
            max_new_tokens=count,
            suppress_tokens=sorted(set(unwanted)),
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return self._checked(tokens[:, 1:], num_texts)

    def by_diffusion(self, case: Case, num_texts: int) -> Tensor:
        """(B, n) tokens by the pipeline."""
        pipe = self.bidirectional if case.block_length is None else self.blocks
        assert pipe is not None
        count = self.options.num_tokens
        output = pipe(
            block_length=case.block_length,
            num_inference_steps=case.steps,
            num_return_sequences=num_texts,
            min_new_tokens=count,
            max_new_tokens=count,
            # Behind the last token an end may stand, which `generate` does not write.
            suppress_tokens=end_ids(self.tokenizer),
            generator=torch.Generator().manual_seed(0),
            output_type="tokens",
        )
        return self._checked(output.tokens[:, 1 : count + 1], num_texts)

    def _checked(self, tokens: Tensor, num_texts: int) -> Tensor:
        # Who stops early would look fast.
        is_masked = bool((tokens == self.tokenizer.mask_token_id).any())
        if is_masked or tokens.shape != (num_texts, self.options.num_tokens):
            raise RuntimeError(
                f"Of {num_texts} x {self.options.num_tokens} tokens not all were written: {tokens}"
            )
        return tokens

    def ways(self, num_texts: int) -> dict[str, Callable[[], Tensor]]:
        """Functions that write so many texts together, by their names in the table."""
        ways: dict[str, Callable[[], Tensor]] = {AUTOREGRESSIVE: lambda: self.one_by_one(num_texts)}
        for case in cases(self.options):
            ways[case.name] = lambda case=case: self.by_diffusion(case, num_texts)
        return ways

    def count_calls(self, write: Callable[[], Tensor], num_texts: int) -> float:
        """Calls of the model for a text."""
        models = [self.model]
        if self.bidirectional is not None:
            models.append(self.bidirectional.denoiser)
        with ExitStack() as stack:
            counters = [stack.enter_context(counted(model)) for model in models]
            write()
        return sum(calls.rows for calls in counters) / num_texts


def measure(writers: Writers, options: AdaptationBenchmarkConfig) -> Iterator[Record]:
    """Yield a record for each number of texts and way to write, of one run."""
    for num_texts in options.batch_sizes:
        ways = writers.ways(num_texts)
        # The first turn allocates, and counts.
        calls = {name: writers.count_calls(write, num_texts) for name, write in ways.items()}
        seconds = interleaved(ways, options.repetitions, clock=clock_of(writers.model.device))
        for name in ways:
            yield {
                "case": name,
                "batch": num_texts,
                "calls": calls[name],
                "seconds": seconds[name],
                "tokens_per_second": num_texts * options.num_tokens / seconds[name],
                "ratio": seconds[AUTOREGRESSIVE] / seconds[name],
            }


def clock_of(device: torch.device) -> Callable[[], float] | None:
    """The clock of an accelerator, which is waited for; `None` is what suits the CPU."""
    if device.type == "cpu":
        return None

    def seconds() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return seconds


def speed_table(records: list[Record]) -> str:
    """Markdown, a line a way to write, and two columns for each number of texts."""
    columns = {"calls": Column("calls of the model", ".0f")}
    lines: dict[str, Record] = {}
    for record in records:
        num_texts = record["batch"]
        columns |= {
            f"tokens {num_texts}": Column(f"tokens a second, {num_texts} at once", ".1f"),
            f"ratio {num_texts}": Column("to autoregressive", ".2f"),
        }
        cells = lines.setdefault(record["case"], {"calls": record["calls"]})
        cells[f"tokens {num_texts}"] = record["tokens_per_second"]
        cells[f"ratio {num_texts}"] = record["ratio"]
    rows = [TableRow([name], [cells]) for name, cells in lines.items()]
    return markdown_table(["written"], rows, columns)
