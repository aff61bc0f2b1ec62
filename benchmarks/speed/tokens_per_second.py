"""Tokens per second beside autoregression: `sampling.py --parts tokens`.

The other side is transformers' GPT2LMHeadModel of the same layers, width and number of parameters under `generate()`
with its cache, sampling from the whole distribution; embeddings are tied on both sides, V = 8,192. Ours is the call of
a pipeline.
Nothing ends a text early: both sides write every token that is asked for. "block-wise" is TextBlockDiffusionPipeline
with its cache, 8 steps in each block of 32 tokens.

Shapes: B batch, L length.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from speed.measuring import Size, interleaved, random_model, verdict
from text_diffusers import (
    D3PMAbsorbingScheduler,
    TextBlockDiffusionPipeline,
    TextDiffusionPipeline,
    TextTransformerModel,
)

VOCAB_SIZE, STEP_COUNTS = 8_192, (16, 32, 64)
BLOCK_LENGTH, BLOCK_STEPS = 32, 8
SHORT, LONG = 128, 1_024
# Times the tokens per second of autoregression, by length, batch and case.
TARGETS = {
    (LONG, 1, "diffusion, 16 steps"): 2.3,
    (SHORT, 1, "diffusion, 16 steps"): 2.0,
    (LONG, 1, "block-wise"): 1.5,
}


def plain_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose first id is padding and whose last is the mask, without tokens to start or end a text."""
    words = {"[PAD]": 0} | {f"w{i}": i for i in range(1, vocab_size - 1)} | {"[MASK]": vocab_size - 1}
    tokenizer = Tokenizer(models.WordLevel(words))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", mask_token="[MASK]")


def gpt2(size: Size, vocab_size: int) -> GPT2LMHeadModel:
    """GPT-2 with random weights, that reads one start token and writes `size.length` tokens."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=size.length + 1,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def autoregressive_writer(size: Size, vocab_size: int = VOCAB_SIZE) -> tuple[int, Callable[[], torch.Tensor]]:
    """The number of parameters, and a function that writes (B, L) tokens."""
    model, start = gpt2(size, vocab_size), torch.ones(size.batch, 1, dtype=torch.long)

    def write() -> torch.Tensor:
        tokens = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=size.length,
            do_sample=True,
            top_k=0,
            use_cache=True,
        )
        return tokens[:, 1:]

    return model.num_parameters(), write


def denoiser_like(size: Size, vocab_size: int, parameters: int, block_length: int | None) -> TextTransformerModel:
    """A model that has as many parameters in all: the feed-forward layers make up for positions and biases."""
    spare = parameters - random_model(size, vocab_size, tie_embeddings=True).num_parameters()
    ratio = 4 + spare / (2 * size.layers * size.width**2)
    changes = {"tie_embeddings": True, "feed_forward_ratio": ratio, "block_length": block_length}
    return random_model(size, vocab_size, **changes)


def diffusion_writer(
    size: Size, num_steps: int, parameters: int, block_length: int | None = None, vocab_size: int = VOCAB_SIZE
) -> tuple[int, Callable[[], torch.Tensor]]:
    """As `autoregressive_writer`, of a model with `parameters`; with `block_length`, steps are those of a block."""
    tokenizer, scheduler = plain_tokenizer(vocab_size), D3PMAbsorbingScheduler(vocab_size - 1)
    model = denoiser_like(size, vocab_size, parameters, block_length)
    pipe = (TextDiffusionPipeline if block_length is None else TextBlockDiffusionPipeline)(tokenizer, model, scheduler)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)

    def write() -> torch.Tensor:
        return pipe(
            max_new_tokens=size.length,
            num_inference_steps=num_steps,
            num_return_sequences=size.batch,
            generator=generator,
            output_type="tokens",
        ).tokens

    return model.num_parameters(), write


def all_written(write: Callable[[], torch.Tensor], size: Size, mask_token_id: int | None) -> Callable[[], Any]:
    """`write`, which must return (B, L) tokens, none of them a mask."""

    def checked():
        tokens = write()
        masked = mask_token_id is not None and bool((tokens == mask_token_id).any())
        if masked or tokens.shape != (size.batch, size.length):
            raise RuntimeError(f"Of {size.batch} x {size.length} tokens not all were written: {tokens}")

    return checked


def break_even_steps(seconds_by_steps: dict[int, float], seconds: float) -> float:
    """The number of steps that take `seconds`, by straight lines between measured ones, from no time for no steps."""
    points = [(0, 0.0), *sorted(seconds_by_steps.items())]
    for (steps, start), (more_steps, end) in zip(points, points[1:], strict=False):
        if seconds <= end or more_steps == points[-1][0]:
            return steps + (more_steps - steps) * (seconds - start) / (end - start)
    raise ValueError("`seconds_by_steps` must not be empty.")


def compare(
    size: Size,
    repetitions: int,
    step_counts: tuple[int, ...] = STEP_COUNTS,
    block_length: int | None = None,
    vocab_size: int = VOCAB_SIZE,
) -> Iterator[dict[str, Any]]:
    """Yield a line for autoregression, each number of steps, block-wise writing if asked for, and the break-even."""
    writers = {"autoregression": autoregressive_writer(size, vocab_size)}
    parameters, _ = writers["autoregression"]
    for steps in step_counts:
        writers[f"diffusion, {steps} steps"] = diffusion_writer(size, steps, parameters, None, vocab_size)
    if block_length is not None:
        writers["block-wise"] = diffusion_writer(size, BLOCK_STEPS, parameters, block_length, vocab_size)
    masks = {name: None if name == "autoregression" else vocab_size - 1 for name in writers}
    runs = {name: all_written(write, size, masks[name]) for name, (_, write) in writers.items()}
    seconds = interleaved(runs, repetitions)
    autoregression = seconds["autoregression"]
    for name, (parameters, _) in writers.items():
        ratio = autoregression / seconds[name]
        yield {
            "L": size.length,
            "B": size.batch,
            "case": name,
            "parameters": parameters,
            "seconds": round(seconds[name], 2),
            "tokens/s": round(size.batch * size.length / seconds[name], 1),
            "x AR": round(ratio, 2),
        } | verdict(ratio, TARGETS.get((size.length, size.batch, name)), at_least=True)
    by_steps = {steps: seconds[f"diffusion, {steps} steps"] for steps in step_counts}
    most = break_even_steps(by_steps, autoregression)
    blank = dict.fromkeys(("parameters", "seconds", "tokens/s", "x AR", "target", "verdict"), "")
    yield {"L": size.length, "B": size.batch, "case": f"autoregression wins above {most:.1f} steps"} | blank


@torch.no_grad()
def tokens_per_second(size: Size, repetitions: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the lines of 128 tokens, `repetitions` times, and of 1,024, once; at batch 1 and `size.batch`.

    `quick` leaves out 64 steps and 1,024 tokens in a batch.
    """
    step_counts = STEP_COUNTS[:-1] if quick else STEP_COUNTS
    runs = [(SHORT, 1), (SHORT, size.batch), (LONG, 1), (LONG, size.batch)]
    for length, batch in runs[:3] if quick else runs:
        long = length == LONG
        case_size = Size(size.layers, size.width, size.heads, batch, length)
        if not long:
            for _ in compare(case_size, 1, step_counts[:1]):  # warm-up
                pass
        yield from compare(case_size, 1 if long else repetitions, step_counts, BLOCK_LENGTH if long else None)
