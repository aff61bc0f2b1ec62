"""One level of codes: the rows that are written, a step of writing them, and whether its components fit each other.

Shapes: B rows, n codes of a row, P prompt tokens, E width of the prompt's states, N selected positions, V number of
codes and the mask, which is the last id.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from text_diffusers.pipelines.guidance import guide, scales_by_row, split_predictions
from text_diffusers.pipelines.paraguide.steering import without_tokens
from text_diffusers.pipelines.scheduler_adapters import StockTokenScheduler, stock_class
from text_diffusers.pipelines.text_batch import TextBatch


@dataclass
class CodeLevel:
    """The codes of one level, by their denoiser and scheduler.

    Args:
        name: "coarse" or "fine".
        denoiser: `denoiser(codes, timestep, positions=...).logits`, also told the `condition` of a batch: the coarser
            `context_ids` (B, n / context_ratio), the `prompt_states` (B, P, E) and `prompt_mask` (B, P), as far as
            there are any. Its last id is the mask.
        scheduler: a token scheduler of absorbing noise, or diffusers' `BlockRefinementScheduler`.
        num_codes: codes of this level that the autoencoder has.
        code_length: tokens that a code stands for.
        num_context_codes: number of codes of the level above, if there is one.
        context_ratio: codes of this level for each of them.
    """

    name: str
    denoiser: Any
    scheduler: Any
    num_codes: int
    code_length: int
    num_context_codes: int | None = None
    context_ratio: int | None = None
    mask_id: int = field(init=False)

    def __post_init__(self):
        self.mask_id = self.denoiser.config.vocab_size - 1

        # One of diffusers' own, which does not know the mask
        if stock_class(self.scheduler) is not None:
            self.scheduler = StockTokenScheduler(self.scheduler, self.mask_id, self.mask_id)

    @property
    def longest_row(self) -> int:
        """The longest row that the denoiser takes, in tokens."""
        return self.denoiser.config.max_length * self.code_length

    @property
    def prompt_size(self) -> int | None:
        """E, the width of the prompt's states; `None` if the denoiser takes none."""
        return getattr(self.denoiser.config, "prompt_size", None)

    # Rows

    def new_batch(
        self, codes: Tensor, prompts: dict[str, Tensor], num_steps: int, repeats: int
    ) -> TextBatch:
        """Rows of codes (B, n), which are written where they are the mask.

        Args:
            prompts: the prompts' part of the condition; empty without prompts.
            num_steps: that writing takes, if there is anything to write.
            repeats: rows of each text, which stand next to each other.
        """
        editable = codes == self.mask_id
        return TextBatch(
            tokens=codes,
            editable=editable,
            attention_mask=torch.ones_like(codes),
            repeats=repeats,
            # Where all codes are given, no step is taken.
            num_steps=num_steps if editable.any() else 0,
            condition={} if self.prompt_size is None else dict(prompts),
        )

    def set_guidance_scale(self, batch: TextBatch, guidance_scale: Any):
        """Guide the codes of a batch, which are those of all texts, by a scale, or one a text.

        Raises:
            ValueError: if guidance is asked for, and there is nothing that the denoiser is told.
        """
        with errors_of_level(self.name):
            num_texts = len(batch.tokens) // batch.repeats
            scales = scales_by_row(guidance_scale, num_texts, batch.repeats)
            is_conditional = bool(batch.condition) or self.num_context_codes is not None
            if not is_conditional and any(scale != 1 for scale in scales):
                raise ValueError(
                    f"`guidance_scale` must be 1 without a `prompt` that the {self.name} denoiser is told, got "
                    f"{scales}."
                )
        batch.scales = torch.tensor(scales, dtype=torch.float64, device=batch.tokens.device)

    def masked_rows(
        self, batch: TextBatch, rows: list[int], generators: list[torch.Generator]
    ) -> TextBatch:
        """Some rows of a batch as they are before anything is written, with a generator for each of them."""
        editable = batch.editable[rows]
        return TextBatch(
            # An earlier attempt may have left its codes there.
            tokens=batch.tokens[rows].masked_fill(editable, self.mask_id),
            editable=editable,
            attention_mask=batch.attention_mask[rows],
            generators=generators,
            scales=batch.scales[rows],
            num_steps=batch.num_steps,
            condition={name: values[rows] for name, values in batch.condition.items()},
        )

    # Steps

    def timesteps(self, num_inference_steps: int, device: torch.device) -> list[float]:
        """The times of so many steps, which the scheduler is set to."""
        with errors_of_level(self.name):
            self.scheduler.set_timesteps(num_inference_steps, device=device)
        return self.scheduler.timesteps.tolist()

    def step(self, batch: TextBatch, timestep: float) -> Tensor:
        """(B, n) codes of a batch at the next, less noisy time."""
        scheduler = self.scheduler
        codes = batch.tokens
        generators = batch.generators
        with errors_of_level(self.name):
            positions = scheduler.select(timestep, codes, generators) & batch.editable
            times = scheduler.model_timesteps(timestep, codes)
            logits = self.predict(batch, positions, times)  # (N, V)
            output = scheduler.step(
                logits, timestep, codes, positions=positions, generator=generators
            )

        # Schedulers that take codes back do not know which ones were given.
        return torch.where(batch.editable, output.prev_sample, codes)

    def likeliest_codes(self, batch: TextBatch, timestep: float = 1.0) -> Tensor:
        """(B, n) codes of a batch with the likeliest one at each mask, by one call of the denoiser.

        Args:
            timestep: that the denoiser is told; 1 is that of pure noise, all masks.
        """
        masked = batch.editable & (batch.tokens == self.mask_id)
        times = torch.full((len(batch.tokens),), timestep, device=batch.tokens.device)
        logits = self.predict(batch, masked, times)
        scores = finite_scores(logits, [self.mask_id], component=f"{self.name}_denoiser")
        return batch.tokens.masked_scatter(masked, scores.argmax(dim=-1))

    def predict(self, batch: TextBatch, positions: Tensor, times: Tensor) -> Tensor:
        """(N, V) guided logits at `positions` (B, n), from one call at `times` (B,).

        With and without the condition, each row is asked only what its scale needs, and nothing without positions.
        """
        # Rows that are asked with the condition, then those that are asked without it
        has_positions = positions.any(dim=1)
        cond_rows = has_positions & (batch.scales != 0)
        uncond_rows = has_positions & (batch.scales != 1)
        rows = torch.cat([cond_rows.nonzero()[:, 0], uncond_rows.nonzero()[:, 0]])
        if not len(rows):
            return torch.zeros(0, self.mask_id + 1, device=positions.device)

        condition = self._condition(batch, rows, num_cond=int(cond_rows.sum()))
        # One call; a row that is asked both ways stands in it twice.
        output = self.denoiser(
            batch.tokens[rows], times[rows], positions=positions[rows], **condition
        )
        if not uncond_rows.any():
            return output.logits

        counts = positions.sum(dim=1)  # (B,), N in all
        cond, uncond = split_predictions(output.logits, cond_rows, uncond_rows, counts)
        return guide(cond, uncond, batch.scales.repeat_interleave(counts))

    def _condition(self, batch: TextBatch, rows: Tensor, num_cond: int) -> dict[str, Tensor]:
        """The condition of rows, of which those behind the first `num_cond` are told nothing."""
        # Copies, since indexed by a tensor: the batch's own condition stays.
        condition = {name: values[rows] for name, values in batch.condition.items()}
        if "context_ids" in condition:
            # The id behind those of all codes stands for an unknown one.
            condition["context_ids"][num_cond:] = self.denoiser.config.num_context_codes
        if "prompt_mask" in condition:
            condition["prompt_mask"][num_cond:] = 0
            # Where no row has a prompt, attention to prompts is spared.
            if not condition["prompt_mask"].any():
                del condition["prompt_mask"], condition["prompt_states"]
        return condition

    # Checks

    def check(self):
        """Raise a `ValueError` unless denoiser and scheduler fit each other and the autoencoder."""
        name = self.name
        config = self.denoiser.config
        if config.vocab_size != self.num_codes + 1:
            raise ValueError(
                f"`{name}_denoiser` must have `vocab_size`={self.num_codes + 1}, the {self.num_codes} {name} codes of "
                f"the autoencoder and the mask, got {config.vocab_size}."
            )

        corruption = getattr(self.scheduler, "corruption", None)
        if corruption != "absorbing":
            raise ValueError(
                f"`{name}_scheduler` must be a token scheduler of absorbing noise, got {corruption!r}."
            )

        # The adapter of a scheduler of diffusers has no configuration: it was told the mask.
        scheduled_mask = getattr(self.scheduler, "config", {}).get("mask_token_id", self.mask_id)
        if scheduled_mask != self.mask_id:
            raise ValueError(
                f"`{name}_scheduler` must have `mask_token_id`={self.mask_id}, the last id of the denoiser, "
                f"got {scheduled_mask}."
            )

        # A denoiser that is told nothing of another level may be of another class, without these options.
        expected = {"num_context_codes": self.num_context_codes}
        if self.num_context_codes is not None:
            expected["context_ratio"] = self.context_ratio
        for option, value in expected.items():
            actual = getattr(config, option, None)
            if actual != value:
                raise ValueError(f"`{name}_denoiser` must have `{option}`={value}, got {actual}.")


@contextmanager
def errors_of_level(name: str) -> Iterator[None]:
    """Errors say which level they are of: both levels have schedulers, scales and numbers of steps."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"At the {name} level, {error}") from error


def finite_scores(logits: Tensor, excluded_ids: list[int], component: str) -> Tensor:
    """Logits (..., V), at least float32, with -inf at the excluded ids.

    Raises:
        ValueError: if the component of this name predicted NaN or infinity.
    """
    scores = without_tokens(logits, excluded_ids)
    if not torch.isfinite(scores.amax(dim=-1)).all():
        raise ValueError(
            f"`{component}` predicted NaN or infinite logits: check its weights and dtype."
        )
    return scores
