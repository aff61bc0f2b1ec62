"""diffusers' own discrete schedulers as token schedulers, so that a pipeline can swap them for those of this package.

They count steps upwards, sample one block of text with one generator, and know neither prompts nor padding. Here each
row is stepped by itself, its block being the tokens that may change. `BlockRefinementScheduler` gets masks to fill
in, as for absorbing noise; `DiscreteDDIMScheduler` and `EntropyBoundScheduler` are of uniform noise.

Shapes: B batch, L sequence length, V vocabulary size, N selected positions, n those of one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import BlockRefinementScheduler, DiscreteDDIMScheduler, EntropyBoundScheduler
from diffusers.utils import BaseOutput
from torch import Tensor

from text_diffusers.common.randomness import row_seeds

STEP_SETTINGS = {
    BlockRefinementScheduler: ("temperature", "top_k", "top_p"),
    DiscreteDDIMScheduler: ("temperature",),
    EntropyBoundScheduler: (),
}
RowGenerators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class StockSchedulerOutput(BaseOutput):
    """Output of `step`. `prev_sample`: (B, L) tokens at the next, less noisy time."""

    prev_sample: Tensor


class StockTokenScheduler:
    """A discrete scheduler of diffusers under the contract of a token scheduler.

    Step i of n is at time 1 - i / n, the linear noise schedule of all three; the model is told that time. Their
    `step` takes temperature, top_k and top_p at each call, and is greedy by default. Here the temperature is 1, so
    that texts are samples, unless the scheduler's config has one: `scheduler.register_to_config(temperature=0.0)`;
    likewise top_k and top_p. `EntropyBoundScheduler` has its own temperatures, `t_max` and `t_min`.

    The last step takes the predicted token wherever `EntropyBoundScheduler` would leave noise.

    Args:
        scheduler: of diffusers.
        mask_token_id: id of the mask.
        vocab_size: uniform noise is drawn from the ids below.

    Raises:
        ValueError: if the scheduler asks for corrector steps, which call the model once more, or if uniform noise has
            no ids to be drawn from.
    """

    def __init__(self, scheduler: Any, mask_token_id: int, vocab_size: int):
        self.scheduler, self.mask_token_id, self.vocab_size = scheduler, mask_token_id, vocab_size
        self.corruption = "absorbing" if isinstance(scheduler, BlockRefinementScheduler) else "uniform"
        edits = (scheduler.config.get("editing_threshold") or 0) > 0
        self.revises_tokens = edits or self.corruption == "uniform"
        steps = scheduler.config.get("corrector_steps")
        if steps:
            raise ValueError(f"`corrector_steps` must be 0 in this pipeline, which calls the model once, got {steps}.")
        if self.corruption == "uniform" and vocab_size < 2:
            raise ValueError(
                f"`tokenizer` must have the ids of its mask and padding above those of text for uniform noise, which "
                f"is drawn from the ids below, got {vocab_size} such ids."
            )

    @property
    def timesteps(self) -> Tensor:
        """(n,) the descending times, in (0, 1]."""
        steps = self.scheduler.num_inference_steps
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1].float()

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None):
        self.scheduler.set_timesteps(num_inference_steps, device=device)

    def model_timesteps(self, timestep: float | Tensor, sample: Tensor) -> Tensor:
        """(B,) times, float32, that the model is told at the step from `timestep`."""
        return torch.full((len(sample),), float(timestep), device=sample.device)

    def prior(
        self, shape: tuple[int, int], generator: RowGenerators = None, device: str | torch.device | None = None
    ) -> Tensor:
        """(B, L) pure noise: all masked, or uniformly random tokens."""
        if self.corruption == "absorbing":
            return torch.full(shape, self.mask_token_id, device=device)
        seeds = row_seeds(generator, shape[0])
        rows = [torch.randint(self.vocab_size, shape[1:], generator=torch.Generator().manual_seed(s)) for s in seeds]
        return torch.stack(rows).to(device)

    def select(self, timestep: float | Tensor, sample: Tensor, generator: RowGenerators = None) -> Tensor:
        """(B, L) bool: every position, since these schedulers compare the predictions of a block with each other."""
        return torch.ones_like(sample, dtype=torch.bool)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        *,
        positions: Tensor | None = None,
        generator: RowGenerators = None,
        return_dict: bool = True,
    ) -> StockSchedulerOutput | tuple[Tensor]:
        """From x_t to x_s, row by row.

        Args:
            model_output: (N, V) logits of clean tokens, one row a selected position; (B, L, V) without `positions`.
            timestep: one of `timesteps`.
            sample: (B, L) tokens, not changed.
            positions: (B, L) bool, the tokens that make up the block of each row; the others stay.
            generator: one generator, or one a row.

        Raises:
            ValueError: if the logits are not finite.
        """
        if positions is None:
            positions, model_output = self.select(timestep, sample), model_output.flatten(0, 1)
        logits = self._shaped(model_output)
        steps = self.scheduler.num_inference_steps
        index = round((1 - float(timestep)) * steps)
        sizes = positions.sum(dim=1).tolist()
        prev_sample = sample.clone()
        for row, (seed, block) in enumerate(zip(row_seeds(generator, len(sample)), logits.split(sizes), strict=True)):
            if len(block):
                fresh = torch.Generator(block.device).manual_seed(seed)
                there = positions[row]
                prev_sample[row, there] = self._step_block(block, index, sample[row, there], fresh)
        return StockSchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def _step_block(self, logits: Tensor, index: int, tokens: Tensor, generator: torch.Generator) -> Tensor:
        """(n,) tokens after step `index` from logits (n, V) and tokens (n,)."""
        scheduler, config = self.scheduler, self.scheduler.config
        settings = {name: config[name] for name in STEP_SETTINGS[stock_class(scheduler)] if name in config}
        if STEP_SETTINGS[stock_class(scheduler)]:
            settings = {"temperature": 1.0} | settings
        if self.corruption == "absorbing":
            scheduler.set_timesteps(scheduler.num_inference_steps, device=logits.device, block_length=len(tokens))
            settings |= {"mask_token_id": self.mask_token_id}
        inputs = logits.unsqueeze(0), index, tokens.unsqueeze(0)
        output = scheduler.step(*inputs, generator=generator, **settings)
        last = index == scheduler.num_inference_steps - 1 and self.corruption == "uniform"
        return (output.sampled_tokens if last else output.prev_sample)[0]

    def _shaped(self, model_output: Tensor) -> Tensor:
        """The logits of the ids that a text may hold: without the mask, and no wider than uniform noise."""
        if self.corruption == "absorbing":
            mask = torch.tensor(self.mask_token_id, device=model_output.device)
            model_output = model_output.index_fill(-1, mask, -torch.inf)
        else:
            model_output = model_output[:, : self.vocab_size]
        if not torch.isfinite(model_output.amax(dim=-1)).all():
            raise ValueError("`model_output` has NaN or infinite logits: check the weights and the denoiser's dtype.")
        return model_output


def stock_class(scheduler: Any) -> type | None:
    """The class of diffusers' discrete schedulers that `scheduler` is of, if any."""
    return next((cls for cls in STEP_SETTINGS if isinstance(scheduler, cls)), None)


def as_token_scheduler(scheduler: Any, tokenizer: Any) -> Any:
    """`scheduler` itself, or an adapter of one of diffusers' discrete schedulers.

    Uniform noise is drawn from the ids below those of padding and mask, as in training.
    """
    if stock_class(scheduler) is None:
        return scheduler
    special = [id for id in (tokenizer.pad_token_id, tokenizer.mask_token_id) if id is not None]
    return StockTokenScheduler(scheduler, tokenizer.mask_token_id, min(special))
