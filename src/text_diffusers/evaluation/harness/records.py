"""How each request of lm-eval was answered: errors of log-likelihoods, contexts that were cut, and sums by task."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from text_diffusers.evaluation.harness.scores import Score
from text_diffusers.evaluation.harness.writing import seed_of

# Below lm-eval's own logger, whose level and handler it has
logger = logging.getLogger("lm_eval.text_diffusers")


@dataclass
class RequestRecord:
    """How a request was answered.

    Attributes:
        task, document, choice: of lm-eval.
        kind: the method that was asked.
        nats: minus the log-likelihood that was returned; `None` of a text that was written.
        error: standard error of `nats` over repeated noise; 0 where nothing is drawn, `nan` of a single draw.
        is_cut: whether its context was cut on the left.
    """

    task: str | None
    document: int | None
    choice: int
    kind: str
    nats: float | None = None
    error: float = 0.0
    is_cut: bool = False


class RequestRecords:
    """The records of requests, each request once.

    Args:
        file: a .jsonl file to write them to, one object a request; what is infinite or unknown is null.

    Example:
        >>> from lm_eval.api.instance import Instance
        >>> from text_diffusers.evaluation.harness.records import RequestRecords
        >>> from text_diffusers.evaluation.harness.scores import Score
        >>> records = RequestRecords()
        >>> request = Instance("loglikelihood", {}, ("One and", " two"), idx=0, metadata=("counting", 0, 1))
        >>> records.keep(request, "loglikelihood", Score(nats=2.5, error=0.1))
        >>> records.summary()["counting"]["mean_error"]
        0.1
    """

    def __init__(self, file: str | None = None):
        self.file = file
        self.by_request: dict[tuple, RequestRecord] = {}
        self._logged: dict[str, dict[str, Any]] = {}

    def keep(self, request: Any, kind: str, score: Score | None, is_cut: bool = False):
        """Keep how an `Instance` of lm-eval was answered."""
        record = RequestRecord(
            task=getattr(request, "task_name", None),
            document=getattr(request, "doc_id", None),
            choice=getattr(request, "idx", 0),
            kind=kind,
            nats=None if score is None else score.nats,
            error=0.0 if score is None else score.error,
            is_cut=is_cut,
        )
        # lm-eval repeats requests to give all processes as many.
        key = (record.task, record.document, record.choice, kind, seed_of(request.args))
        self.by_request[key] = record

    def in_order(self) -> list[RequestRecord]:
        """All of them, in the order of tasks, documents and choices."""
        return sorted(
            self.by_request.values(),
            key=lambda record: (record.task or "", record.document or 0, record.choice),
        )

    def summary(self) -> dict[str, dict[str, Any]]:
        """By task: its requests, the errors of their log-likelihoods in nats, cut contexts, and what is impossible.

        The errors are those of repeated noise; `None` if nothing was drawn twice, or nothing scored. What came from a
        cache of lm-eval is not among the requests.
        """
        tasks: dict[str, list[RequestRecord]] = {}
        for record in self.in_order():
            tasks.setdefault(record.task or "", []).append(record)

        summary = {}
        for task, records in tasks.items():
            scored = [record for record in records if record.nats is not None]
            possible = [record for record in scored if math.isfinite(record.nats or 0.0)]
            errors = [record.error for record in possible]
            is_known = bool(errors) and not any(map(math.isnan, errors))
            summary[task] = {
                "requests": len(records),
                "mean_error": sum(errors) / len(errors) if is_known else None,
                "largest_error": max(errors) if is_known else None,
                "cut_contexts": sum(record.is_cut for record in records),
                "impossible": len(scored) - len(possible),
            }
        return summary

    def report(self, max_length: int):
        """Log what is new of each task, and write the records down.

        Args:
            max_length: tokens of the longest row, to which contexts were cut.
        """
        if self.file is not None:
            lines = [json.dumps(finite(asdict(record))) for record in self.in_order()]
            Path(self.file).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

        for task, figures in self.summary().items():
            if self._logged.get(task) == figures:
                continue
            self._logged[task] = figures
            name = task or "requests"
            if figures["mean_error"] is not None:
                logger.info(
                    f"{name}: log-likelihoods have a standard error of {figures['mean_error']:.3f} nats on average, "
                    f"{figures['largest_error']:.3f} at most, over repeated noise."
                )
            if figures["cut_contexts"]:
                logger.warning(
                    f"{name}: {figures['cut_contexts']} of {figures['requests']} contexts were cut on the left, to "
                    f"fit into rows of {max_length} tokens."
                )
            if figures["impossible"]:
                logger.warning(
                    f"{name}: {figures['impossible']} continuations hold a token that the model never writes: their "
                    "log-likelihood is minus infinity."
                )


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """For JSON: `None` in the place of numbers that are infinite or none.

    Example:
        >>> from text_diffusers.evaluation.harness.records import finite
        >>> finite({"nats": float("inf"), "error": 0.1})
        {'nats': None, 'error': 0.1}
    """
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }
