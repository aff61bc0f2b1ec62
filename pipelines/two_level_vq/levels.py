"""One level of codes: what they are written from, one step of writing them, and whether its parts fit.

Shapes: B rows, n codes of a row, P prompt tokens, E width of the prompt's states, N selected positions, V codes and
the mask, which is the last id.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from text_diffusers.pipelines.guidance import guide, spread
from text_diffusers.pipelines.paraguide.steering import without_tokens
from text_diffusers.pipelines.scheduler_adapters import StockTokenScheduler, stock_class


@dataclass
class CodeCondition:
    """What codes are written from, each of them `None` where there is none.

    Attributes:
        context_ids: (B, n / context_ratio) coarser codes.
        prompt_states: (B, P, E) of a prompt encoder.
        prompt_mask: (B, P), 0 at padding; a row of zeros has no prompt.
    """

    context_ids: Tensor | None = None
    prompt_states: Tensor | None = None
    prompt_mask: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """What there is, by the names under which denoisers take it."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    def rows(self, rows: Any) -> "CodeCondition":
        """The condition of some rows."""
        return CodeCondition(**{name: value[rows] for name, value in self.parts().items()})


@dataclass
class CodeCanvas:
    """The codes being written: `codes` (B, n), which are `editable` (B, n), their condition and its `scales` (B,)."""

    codes: Tensor
    editable: Tensor
    condition: CodeCondition
    scales: Tensor

    def rows(self, rows: Any) -> "CodeCanvas":
        """The canvas of some rows."""
        return CodeCanvas(self.codes[rows], self.editable[rows], self.condition.rows(rows), self.scales[rows])


class CodeLevel:
    """The codes of one level, by their denoiser and scheduler.

    Args:
        name: "coarse" or "fine".
        denoiser: `denoiser(codes, timestep, positions=...).logits`, also told the parts of a `CodeCondition` that
            there are; its last id is the mask.
        scheduler: a token scheduler of absorbing noise, or diffusers' `BlockRefinementScheduler`.
        code_length: tokens that a code stands for.
        coarser: the number of codes of the level above, if there is one.
        ratio: codes of this level for each of them.
    """

    def __init__(
        self,
        name: str,
        denoiser: Any,
        scheduler: Any,
        code_length: int,
        coarser: int | None = None,
        ratio: int | None = None,
    ):
        self.name, self.denoiser, self.code_length = name, denoiser, code_length
        self.coarser, self.ratio = coarser, ratio
        self.mask_id = denoiser.config.vocab_size - 1
        stock = stock_class(scheduler) is not None
        self.scheduler: Any = StockTokenScheduler(scheduler, self.mask_id, self.mask_id) if stock else scheduler

    @property
    def longest_row(self) -> int:
        """The longest row that the denoiser takes, in tokens."""
        return self.denoiser.config.max_length * self.code_length

    @property
    def prompt_size(self) -> int | None:
        """E, the width of the prompt's states; `None` if the denoiser takes none."""
        return getattr(self.denoiser.config, "prompt_size", None)

    def canvas(
        self, num_tokens: int, given: Tensor | None, prompts: CodeCondition, scales: list[float], device: torch.device
    ) -> CodeCanvas:
        """Rows of `num_tokens` tokens to be written, or what is `given` (B, n) with masks where it is to be.

        Raises:
            ValueError: if guidance is asked for, and there is nothing that the denoiser is told.
        """
        shape = (len(scales), num_tokens // self.code_length)
        codes = torch.full(shape, self.mask_id, device=device) if given is None else given
        condition = CodeCondition() if self.prompt_size is None else prompts
        if not condition.parts() and self.coarser is None and any(scale != 1 for scale in scales):
            raise ValueError(
                f"`{self.name}_guidance_scale` must be 1 without a `prompt` that the {self.name} denoiser is told, "
                f"got {scales}."
            )
        return CodeCanvas(
            codes, codes == self.mask_id, condition, torch.tensor(scales, dtype=torch.float64).to(device)
        )

    def timesteps(self, num_steps: int, device: torch.device) -> list[float]:
        """The times of so many steps, which the scheduler is set to."""
        with self._own_steps():
            self.scheduler.set_timesteps(num_steps, device=device)
        return self.scheduler.timesteps.tolist()

    def step(self, canvas: CodeCanvas, timestep: float, generators: list[torch.Generator]):
        """Bring `canvas.codes` from `timestep` to the next, less noisy time."""
        scheduler, codes = self.scheduler, canvas.codes
        with self._own_steps():
            positions = scheduler.select(timestep, codes, generators) & canvas.editable
        logits = self.predict(canvas, positions, scheduler.model_timesteps(timestep, codes))
        written = scheduler.step(logits, timestep, codes, positions=positions, generator=generators).prev_sample
        canvas.codes = torch.where(canvas.editable, written, codes)

    @contextmanager
    def _own_steps(self) -> Iterator[None]:
        """Errors of the scheduler name the steps of this level."""
        try:
            yield
        except ValueError as error:
            raise ValueError(str(error).replace("num_inference_steps", f"num_{self.name}_steps")) from error

    def write_at_once(self, canvas: CodeCanvas):
        """Put the likeliest code everywhere, by one call of the denoiser."""
        times = torch.ones(len(canvas.codes), device=canvas.codes.device)
        logits = finite_scores(self.predict(canvas, canvas.editable, times), [self.mask_id], f"{self.name}_denoiser")
        canvas.codes = canvas.codes.masked_scatter(canvas.editable, logits.argmax(dim=-1))

    def predict(self, canvas: CodeCanvas, positions: Tensor, times: Tensor) -> Tensor:
        """(N, V) guided logits at `positions` (B, n), from one call at `times` (B,).

        With and without the condition, each row is asked only what its scale needs, and nothing without positions.
        """
        some = positions.any(dim=1)
        parts = [rows.nonzero()[:, 0] for rows in (some & (canvas.scales != 0), some & (canvas.scales != 1))]
        rows = torch.cat(parts)
        if not len(rows):
            return torch.zeros(0, self.mask_id + 1, device=positions.device)
        told = self._without_condition(canvas.condition.rows(rows), told_rows=len(parts[0]))
        logits = self.denoiser(canvas.codes[rows], times[rows], positions=positions[rows], **told.parts()).logits
        if not len(parts[1]):
            return logits
        counts = positions.sum(dim=1)
        cond, uncond = logits.split([int(counts[part].sum()) for part in parts])
        at_cond, at_uncond = (counts_to_rows(part, counts) for part in parts)
        scales = canvas.scales.repeat_interleave(counts)
        return guide(spread(cond, at_cond, uncond, at_uncond), spread(uncond, at_uncond, cond, at_cond), scales)

    def _without_condition(self, condition: CodeCondition, told_rows: int) -> CodeCondition:
        """The condition with nothing told to the rows from `told_rows` on; without prompts if no row has one."""
        context, mask = condition.context_ids, condition.prompt_mask
        if context is not None:
            untold = self.denoiser.config.num_context_codes
            context = torch.cat([context[:told_rows], torch.full_like(context[told_rows:], untold)])
        if mask is not None:
            mask = torch.cat([mask[:told_rows], torch.zeros_like(mask[told_rows:])])
        states = condition.prompt_states if mask is not None and mask.any() else None
        return CodeCondition(context, states, None if states is None else mask)

    def check(self, num_codes: int):
        """Whether denoiser and scheduler fit each other and `num_codes` codes.

        Raises:
            ValueError: if they do not.
        """
        name, vocab_size = self.name, self.denoiser.config.vocab_size
        if vocab_size != num_codes + 1:
            raise ValueError(
                f"`{name}_denoiser` must have `vocab_size`={num_codes + 1}, the {num_codes} {name} codes of the "
                f"autoencoder and the mask, got {vocab_size}."
            )
        corruption = getattr(self.scheduler, "corruption", None)
        if corruption != "absorbing":
            raise ValueError(f"`{name}_scheduler` must be a token scheduler of absorbing noise, got {corruption!r}.")
        scheduled = getattr(self.scheduler, "config", {}).get("mask_token_id", self.mask_id)
        if scheduled != self.mask_id:
            raise ValueError(
                f"`{name}_scheduler` must have `mask_token_id`={self.mask_id}, the last id of the denoiser, "
                f"got {scheduled}."
            )
        config = self.denoiser.config
        wanted = {"num_context_codes": self.coarser} | ({} if self.coarser is None else {"context_ratio": self.ratio})
        for option, value in wanted.items():
            if getattr(config, option, None) != value:
                raise ValueError(
                    f"`{name}_denoiser` must have `{option}`={value}, got {getattr(config, option, None)}."
                )


def finite_scores(logits: Tensor, never: list[int], name: str) -> Tensor:
    """Logits (..., V), at least float32, with -inf at the ids in `never`.

    Raises:
        ValueError: if the component `name` predicted NaN or infinity.
    """
    scores = without_tokens(logits, never)
    if not torch.isfinite(scores.amax(dim=-1)).all():
        raise ValueError(f"`{name}` predicted NaN or infinite logits: check its weights and dtype.")
    return scores


def counts_to_rows(rows: Tensor, counts: Tensor) -> Tensor:
    """(N,) bool: whether a position is in one of `rows`, of rows with `counts` (B,) positions each."""
    chosen = torch.zeros_like(counts, dtype=torch.bool)
    chosen[rows] = True
    return chosen.repeat_interleave(counts)
