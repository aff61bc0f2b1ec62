"""A training loop whose minutes are those of the CPU."""

import time
from dataclasses import dataclass
from typing import Any

from text_diffusers.training.loop import TrainingLoop


@dataclass(eq=False)
class CpuClockLoop(TrainingLoop):
    """A training loop whose minutes are those of the CPU in its steps, on one thread.

    The budget, and with it the learning rate, goes by these minutes, so that other work on the machine takes nothing
    away from a run.
    """

    def __post_init__(self):
        super().__post_init__()
        self.step_seconds = 0.0

    def train_step(self) -> Any:
        started = time.process_time()
        step = super().train_step()
        self.step_seconds = time.process_time() - started
        return step

    def _agree(self, seconds: float, signal_number: int) -> tuple[float, int]:
        return super()._agree(self.step_seconds, signal_number)
