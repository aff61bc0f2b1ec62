"""What estimates of bounds over a data set share: random batches, counted tokens, and the estimate itself.

Shapes: B batch, L sequence length.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from text_diffusers.common.training_randomness import row_noise
from text_diffusers.common.validation import is_int, require
from text_diffusers.data.rows import ShuffledRows, unknown_tokens

NOISE_LEVELS = 10


class BoundEstimate(NamedTuple):
    """A bound, its standard error, and where it comes from: the integrand's mean in each tenth of the noise.

    All in nats per token; `by_noise` begins next to the data and averages to the bound, `nan` where no time fell. The
    tenths are of 1 - alpha for the absorbing kernel and of the time for others, which is the same if alpha is linear.

    Example:
        >>> from text_diffusers.evaluation import BoundEstimate
        >>> BoundEstimate(bound=2.5, standard_error=0.1, by_noise=[2.0, 3.0]).metrics()["bound_by_noise/0.05"]
        2.0
    """

    bound: float
    standard_error: float
    by_noise: list[float]

    def metrics(self) -> dict[str, float]:
        """For trackers: the bound, its error, and the tenths under a heading of their own."""
        metrics = {"bound": self.bound, "standard_error": self.standard_error}
        for level, nats in enumerate(self.by_noise):
            metrics[f"bound_by_noise/{(level + 0.5) / NOISE_LEVELS:.2f}"] = nats
        return metrics

    def recounted(self, scale: float, more: float = 0.0) -> "BoundEstimate":
        """The same nats over another number of tokens, and `more` nats per token that do not depend on the noise.

        Args:
            scale: tokens that the bound was divided by, over those that it is to be divided by.
        """
        return BoundEstimate(
            bound=scale * self.bound + more,
            standard_error=scale * self.standard_error,
            by_noise=[scale * nats + more for nats in self.by_noise],
        )


class SharedBatches:
    """Random batches of a data set and their noise, shared among processes.

    Iterating yields `(step, batch, uniform, generators)`: numbers (B,), one a stratum, and a generator a row. `step`
    is `None` where a process that has no batch left computes one with the others, as a model in shards needs.

    Args:
        rows: tokenized data set; it is gone through `num_times` times, or oftener until there are two batches. All
            rows come equally often.
        num_times: random times a row.
        batch_size: rows in a batch; the last one may have fewer.
        seed: of the order of the rows and of the noise.
        device: of the batches.
        accelerator: of the processes, or None.

    Raises:
        ValueError: if `num_times` or `batch_size` is no integer of at least 1, or there is no row.
    """

    def __init__(
        self,
        rows: Any,
        num_times: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        accelerator: Any,
    ):
        require(is_int(num_times, 1), "num_times", "an integer of at least 1", num_times)
        require(is_int(batch_size, 1), "batch_size", "an integer of at least 1", batch_size)
        require(len(rows) > 0, "rows", "at least one row", rows)
        self.order = ShuffledRows(rows, rows_per_step=batch_size, seed=seed)

        # Two batches at least, for the error; each row the same number of times, as in the mean that is estimated
        times_for_error = -(-2 * batch_size // len(rows))
        self.num_draws = max(num_times, times_for_error) * len(rows)
        self.count = -(-self.num_draws // batch_size)
        self.seed = seed
        self.device = device
        self.accelerator = accelerator
        self.rank = accelerator.process_index if accelerator else 0
        self.num_processes = accelerator.num_processes if accelerator else 1

    def __iter__(
        self,
    ) -> Iterator[tuple[int | None, dict[str, Tensor], Tensor, list[torch.Generator]]]:
        # Process r of P takes the batches r, r + P, ...; all of them take equally many.
        for first in range(self.rank, self.count + self.rank, self.num_processes):
            step = min(first, self.count - 1)
            num_rows = min(
                self.order.rows_per_step, self.num_draws - step * self.order.rows_per_step
            )
            columns = self.order.batch(step, range(num_rows))
            batch = {name: column.to(self.device) for name, column in columns.items()}
            uniform, generators = row_noise(self.seed, step, num_rows)
            yield (step if first < self.count else None), batch, uniform, generators

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values`, on the CPU, over the processes."""
        return total_over_processes(values, self.device, self.accelerator)


def share_of_process(work: Sequence[Any], accelerator: Any) -> Sequence[Any]:
    """The part of some work that this process does: of P processes every P-th piece; all of it without `accelerator`.

    Example:
        >>> from text_diffusers.evaluation.estimates import share_of_process
        >>> share_of_process(range(0, 10, 2), accelerator=None)
        range(0, 10, 2)
    """
    if accelerator is None:
        return work
    return work[accelerator.process_index :: accelerator.num_processes]


def total_over_processes(values: Tensor, device: torch.device, accelerator: Any) -> Tensor:
    """The sum of `values`, on the CPU, over the processes of `accelerator`, each of which must call this.

    Args:
        device: through which the processes exchange tensors.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return values
    return accelerator.reduce(values.to(device)).cpu()


def ratio_error(nats: Tensor, tokens: Tensor) -> float:
    """Standard error of sum(nats) / sum(tokens) over other draws of the pairs; `nan` of a single one.

    Args:
        nats, tokens: (n,) of batches or texts, which differ in their tokens too: long ones are not dear ones.
    """
    if len(nats) < 2:
        return float("nan")
    residuals = nats - nats.sum() / tokens.sum() * tokens
    return float(residuals.std() / tokens.mean() / len(nats) ** 0.5)


def counted_ids(rows: Iterable[Any]) -> Iterator[list[int]]:
    """The token ids of each row that are counted, as `unknown_tokens` says: neither padding nor `given`."""
    for row in rows:
        columns = {"attention_mask": torch.as_tensor(row["attention_mask"])}
        if row.get("given") is not None:
            columns["given"] = torch.as_tensor(row["given"])
        yield torch.as_tensor(row["input_ids"])[unknown_tokens(columns)].tolist()


def count_tokens(rows: Iterable[Any]) -> int:
    """How many tokens of tokenized rows are counted."""
    return sum(map(len, counted_ids(rows)))
