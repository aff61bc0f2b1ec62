"""Writing of many texts, some at a time, of which each has the same noise whatever it is written with.

Shapes: N texts, K latents of a text, E latent width.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from parts.latent.config import LatentBenchmarkConfig
from text_diffusers.common.source_prompts import source_prompt_ids
from text_diffusers.common.token_ids import end_ids, padding_id, start_ids, unwritable_ids

# Longest row of a decoder's prompt that is written behind
LONGEST_PROMPT = 2**16


def seeded(options: LatentBenchmarkConfig, places: Sequence[int]) -> list[torch.Generator]:
    """A generator of each text."""
    return [torch.Generator().manual_seed(2**20 * options.seed + place) for place in places]


def parts_of(count: int, size: int) -> list[list[int]]:
    """The numbers of so many texts, a list for each batch."""
    return [list(range(first, min(first + size, count))) for first in range(0, count, size)]


def write_latents(
    pipe: Any, options: LatentBenchmarkConfig, count: int, num_steps: int | None, **inputs: Any
) -> tuple[Tensor, float]:
    """(N, K, E) latents, and the seconds that they took.

    Args:
        num_steps: of the scheduler; `None` for a prior without one.
        inputs: of the pipeline; a list is of all texts.
    """
    steps = {} if num_steps is None else {"num_inference_steps": num_steps}
    found = []
    started = time.perf_counter()
    for places in parts_of(count, options.batch_size):
        own = {name: pick(values, places) for name, values in inputs.items()}
        # Without inputs, a call writes one text as many times as it is asked to.
        repeats = len(places) if not any(isinstance(v, list) for v in own.values()) else 1
        output = pipe(
            **own,
            **steps,
            num_return_sequences=repeats,
            generator=seeded(options, places),
            output_type="latents",
        )
        found.append(output.latents)
    return torch.cat(found), time.perf_counter() - started


def pick(values: Any, places: Sequence[int]) -> Any:
    """Of a list, the values of these texts; what is no list is of all."""
    return [values[place] for place in places] if isinstance(values, list) else values


def decode(
    pipe: Any,
    options: LatentBenchmarkConfig,
    latents: Tensor | None,
    temperature: float,
    sources: Sequence[str] | None = None,
    count: int | None = None,
) -> tuple[list[str], float]:
    """Texts of latents (N, K, E), and the seconds that they took; the draws are those of `seeded`.

    Args:
        latents: `None` is the decoder alone, which is told no latents.
        temperature: 0 takes the likeliest tokens.
        sources: what a text is written from, for a decoder that reads it.
        count: N, if there are no latents.
    """
    tokenizer = pipe.tokenizer
    model = pipe.autoencoder
    count = len(latents) if latents is not None else int(count or 0)
    suppressed = unwritable_ids(tokenizer, model.decoder.vocab_size)

    texts = []
    started = time.perf_counter()
    for places in parts_of(count, options.batch_size):
        prompts = [start_ids(tokenizer) or end_ids(tokenizer)] * len(places)
        if sources is not None:
            prompts = source_prompt_ids(
                tokenizer, [sources[place] for place in places], LONGEST_PROMPT
            )

        # Padded on the left, so that all texts begin at one place
        width = max(map(len, prompts))
        filling = padding_id(tokenizer)
        ids = torch.tensor([[filling] * (width - len(row)) + row for row in prompts])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])

        tokens = model.generate(
            None if latents is None else latents[places],
            ids,
            mask,
            max_new_tokens=options.max_new_tokens,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            end_token_ids=end_ids(tokenizer),
            pad_token_id=filling,
            suppressed_ids=suppressed,
            generator=seeded(options, places),
        )
        texts += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in texts], time.perf_counter() - started
