"""Self-distillation through time: a student that predicts at once what its teacher predicts in several steps.

A text is corrupted to a time at which the student begins a step. The teacher goes the same way in several smaller
steps, writing as it always does, and the student learns what the teacher has predicted on that way: of a mask the
prediction by which it was revealed, and of one that is still there, or of a token that can be revised, the prediction
at the end of the way. So the student needs fewer steps (https://arxiv.org/abs/2410.21035).

Shapes: B batch, L row length, V vocabulary size, N predicted positions, b rows of the batch with the same time.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.training_randomness import row_noise
from text_diffusers.common.validation import require
from text_diffusers.data.rows import Batch, to_tensors, trimmed, unknown_tokens
from text_diffusers.evaluation.modules import device_of, evaluating
from text_diffusers.losses.discrete import without_mask
from text_diffusers.losses.distillation import distillation_divergence
from text_diffusers.schedulers.few_steps.scheduling_even import EvenRevealScheduler
from text_diffusers.schedulers.scheduling_d3pm import D3PMAbsorbingScheduler, D3PMUniformScheduler

TEACHERS = (D3PMAbsorbingScheduler, EvenRevealScheduler, D3PMUniformScheduler)
ROWS_AT_ONCE = 64


@dataclass
class DistilledBatch:
    """Rows as the student is shown them, and what it is to predict.

    Attributes:
        noisy: (B, L) tokens.
        times: (B,) of the noise.
        positions: (B, L) bool, the N tokens that are predicted.
        log_probs: (N, V) of the teacher; -inf at tokens that it does not write.
        mask_token_id: of absorbing noise, which no student writes either.
    """

    noisy: Tensor
    times: Tensor
    positions: Tensor
    log_probs: Tensor
    mask_token_id: int | None = None

    def loss(self, logits: Tensor, divergence: str = "forward") -> Tensor:
        """Divergence of the student's logits (N, V or more) from the teacher, in nats, summed over the positions."""
        logits = logits[:, : self.log_probs.shape[-1]]
        log_probs = self.log_probs
        if self.mask_token_id is not None:
            logits = without_mask(logits, self.mask_token_id)
            # Of which the logarithm is not finite, but takes a place
            log_probs = without_mask(log_probs, self.mask_token_id)
        return distillation_divergence(logits, log_probs, divergence).sum()


@dataclass
class TeacherSteps:
    """The ways of a teacher from one step of its student to the next.

    Args:
        teacher: a denoiser, in evaluation mode.
        scheduler: one of `TEACHERS`, of absorbing or uniform noise; how it shapes predictions is learned too.
        student_steps: in which the student is to write a text.
        teacher_steps: in which the teacher writes one, a multiple of `student_steps`.

    Raises:
        ValueError: if the scheduler is another, or the steps do not fit each other.

    Example:
        >>> import torch
        >>> from text_diffusers import D3PMAbsorbingScheduler, TextTransformerModel
        >>> from text_diffusers.training.steps.distillation import TeacherSteps
        >>> model = TextTransformerModel(vocab_size=9, hidden_size=8, num_layers=1, num_attention_heads=2).eval()
        >>> steps = TeacherSteps(model, D3PMAbsorbingScheduler(mask_token_id=8), student_steps=2, teacher_steps=8)
        >>> rows = {"input_ids": torch.zeros(2, 6, dtype=torch.long), "attention_mask": torch.ones(2, 6)}
        >>> generators = [torch.Generator().manual_seed(row) for row in range(2)]
        >>> batch = steps(rows, torch.tensor([0.2, 0.7]), generators)
        >>> batch.times.tolist()
        [0.5, 1.0]
        >>> batch.positions.sum(dim=1).tolist(), list(batch.log_probs.shape)
        ([2, 6], [8, 9])
    """

    teacher: Any
    scheduler: Any
    student_steps: int
    teacher_steps: int

    def __post_init__(self):
        # Others have a state between steps, or revise what was revealed, whose predictions mean nothing.
        names = " or ".join(teacher.__name__ for teacher in TEACHERS)
        kind = type(self.scheduler)
        require(kind in TEACHERS, "scheduler", f"a {names}", kind.__name__)
        fits = self.student_steps >= 1 and self.teacher_steps % self.student_steps == 0
        limit = f"a multiple of the student's {self.student_steps}"
        require(fits and self.teacher_steps > 0, "teacher_steps", limit, self.teacher_steps)
        # A scheduler of its own: its grid is that of the teacher.
        self.scheduler = type(self.scheduler).from_config(self.scheduler.config)
        self.scheduler.set_timesteps(self.teacher_steps)

    @torch.no_grad()
    def __call__(
        self, batch: Batch, uniform: Tensor, generators: list[torch.Generator]
    ) -> DistilledBatch:
        """Corrupt rows and let the teacher go on from there.

        Args:
            batch: `input_ids` and `attention_mask` (B, L); tokens that are `given` stay clean and are not predicted.
            uniform: (B,) numbers in [0, 1), which say at which of its steps the student stands.
            generators: one a row.
        """
        clean = batch["input_ids"]
        unknown = unknown_tokens(batch)

        # The steps of the student are numbered from pure noise on.
        steps_to_go = (uniform * self.student_steps).long() + 1
        first_steps = (self.student_steps - steps_to_go) * self.steps_of_teacher
        times = self.scheduler.timesteps[first_steps.to(self.scheduler.timesteps.device)]
        corrupted = self.scheduler.add_noise(clean, times.double(), generators)
        noisy = torch.where(unknown, corrupted, clean)
        positions = self._open(noisy, unknown)

        # Rows that stand at the same step go on together.
        log_probs = None
        for first_step in first_steps.unique().tolist():
            in_part = first_steps == first_step
            rows = in_part.nonzero().squeeze(1).tolist()
            part = {name: column[rows] for name, column in batch.items()}
            predicted = self._predictions(
                part, noisy[rows], unknown[rows], first_step, [generators[row] for row in rows]
            )
            if log_probs is None:
                log_probs = predicted.new_empty(int(positions.sum()), predicted.shape[-1])
            # Where the positions of these rows are among all
            places = (positions & in_part.to(positions.device).unsqueeze(1))[positions]
            log_probs[places] = predicted
        assert log_probs is not None
        return DistilledBatch(
            noisy,
            times.to(clean.device, torch.float32),
            positions,
            log_probs,
            None if self.scheduler.revises_tokens else self.scheduler.config.mask_token_id,
        )

    @property
    def steps_of_teacher(self) -> int:
        """Steps of the teacher in one of the student."""
        return self.teacher_steps // self.student_steps

    def _predictions(
        self,
        batch: Batch,
        noisy: Tensor,
        unknown: Tensor,
        first_step: int,
        generators: list[torch.Generator],
    ) -> Tensor:
        """(n, V) log-probabilities of the n open tokens of `noisy` (b, L), as the teacher goes on from a step."""
        scheduler = self.scheduler
        predicted = self._open(noisy, unknown)  # (b, L)
        tokens = noisy
        log_probs = None
        last_step = first_step + self.steps_of_teacher
        # The prediction at the end of the way is one more; at time 0 there is none.
        for step in range(first_step, min(last_step + 1, self.teacher_steps)):
            # 1. What the teacher says of all that is open; what was revealed keeps its prediction
            timestep = scheduler.timesteps[step]
            is_open = self._open(tokens, unknown)
            logits = self.teacher(
                tokens,
                scheduler.model_timesteps(timestep, tokens),
                batch["attention_mask"],
                class_labels=batch.get("label"),
                positions=is_open,
            ).logits
            log_probs_now = self._log_probs(logits, timestep, tokens)
            if log_probs is None:
                log_probs = log_probs_now
            else:
                log_probs[is_open[predicted]] = log_probs_now
            if step == last_step or not is_open.any():
                break

            # 2. One of its steps, as it writes
            chosen = scheduler.select(timestep, tokens, generators) & is_open
            stepped = scheduler.step(
                logits[chosen[is_open]], timestep, tokens, positions=chosen, generator=generators
            ).prev_sample
            tokens = torch.where(unknown, stepped, tokens)
        assert log_probs is not None
        return log_probs

    def _log_probs(self, logits: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """(n, V) of logits (n, V or more), shaped as the scheduler shapes what it writes."""
        # As one row of n tokens, of which the schedulers here look at the logits alone.
        scores = self.scheduler.clean_scores(logits.unsqueeze(0), timestep, tokens[:1]).squeeze(0)
        return self.scheduler.shape(scores).log_softmax(dim=-1)

    def _open(self, tokens: Tensor, unknown: Tensor) -> Tensor:
        """(b, L) bool, the tokens that are still to be decided."""
        if self.scheduler.revises_tokens:
            return unknown
        return unknown & (tokens == self.scheduler.config.mask_token_id)


def distillation_loss(
    model: Any,
    steps: TeacherSteps,
    batch: Batch,
    uniform: Tensor,
    generators: list[torch.Generator],
    divergence: str = "forward",
) -> Tensor:
    """Divergence of a student from its teacher on rows, in nats, summed over all that is predicted.

    Args:
        model: the student.
        batch, uniform, generators: as `TeacherSteps` takes them.
        divergence: one of `DIVERGENCES`.
    """
    distilled = steps(batch, uniform, generators)
    logits = model(
        distilled.noisy,
        distilled.times,
        batch["attention_mask"],
        class_labels=batch.get("label"),
        positions=distilled.positions,
    ).logits  # (N, V)
    return distilled.loss(logits, divergence)


@torch.no_grad()
def held_out_divergence(
    model: Any, steps: TeacherSteps, rows: Any, divergence: str = "forward", seed: int = 0
) -> float:
    """Mean divergence of a student from its teacher on held-out rows, in nats a token, always under the same noise.

    Args:
        model: the student.
        rows: tokenized data set.
        divergence: one of `DIVERGENCES`.
        seed: of the noise and of the teacher's ways.
    """
    total = 0.0
    num_tokens = 0
    device = device_of(model)
    with evaluating(model):
        for first in range(0, len(rows), ROWS_AT_ONCE):
            part = rows.select(range(first, min(first + ROWS_AT_ONCE, len(rows))))
            columns = to_tensors(part[:])
            batch = trimmed({name: column.to(device) for name, column in columns.items()})
            uniform, generators = row_noise(seed, first, len(part))
            loss = distillation_loss(
                model, steps, batch, uniform.to(device), generators, divergence
            )
            total += float(loss)
            num_tokens += int(unknown_tokens(batch).sum())
    return total / num_tokens
