"""What `text-diffusers evaluate` measured, and how it is written as JSON."""

from dataclasses import dataclass, field
from typing import Any

from text_diffusers.cli.evaluation.text_bounds import Evaluation
from text_diffusers.evaluation.distances.figures import Figure
from text_diffusers.evaluation.distances.text_distances import TextDistances
from text_diffusers.evaluation.judges.text_figures import TextFigures


@dataclass
class WrittenFigures:
    """Figures of texts that a model wrote.

    Attributes:
        figures: of the texts by themselves.
        tokens_per_second: while they were written; `None` of texts from a file.
        length_distance: Wasserstein-1 distance of their numbers of tokens from those of real texts, in tokens.
        judge_is_kin: whether the judge seems to be the model itself, or what it was made from.
    """

    figures: TextFigures
    tokens_per_second: float | None = None
    length_distance: Figure | None = None
    judge_is_kin: bool = False

    def record(self) -> dict[str, Any]:
        """For JSON."""
        distance = self.length_distance
        return self.figures.record() | {
            "tokens_per_second": self.tokens_per_second,
            "length_distance": None if distance is None else distance.record(),
            "judge_is_kin": self.judge_is_kin,
        }


@dataclass
class RealFigures:
    """Figures of real texts, as many as were written.

    Attributes:
        figures: of the texts by themselves.
        num_cut: those that were cut to what the model can write.
    """

    figures: TextFigures
    num_cut: int

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return self.figures.record() | {"num_cut": self.num_cut}


@dataclass
class DistancesFromReal:
    """Distances of written texts from real ones, and between real ones, of as many texts each.

    Attributes:
        written: from real texts.
        floor: of other real texts from the same ones.
        encoder: of the embeddings.
    """

    written: TextDistances
    floor: TextDistances
    encoder: str

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "written": self.written.record(),
            "floor": self.floor.record(),
            "encoder": self.encoder,
        }


@dataclass
class WrappedEvaluation:
    """The bound of rows of joined texts.

    Attributes:
        evaluation: its texts are the rows.
        rows: the facts about them, for JSON.
    """

    evaluation: Evaluation
    rows: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return self.evaluation.record() | {"wrap": self.rows}


@dataclass
class EvaluationRecord:
    """Everything that was measured; `None` of what was not asked for.

    Attributes:
        bound: of the texts of `--dataset`.
        no_bound: why the pipeline has none.
        zero_shot: by the names of the sets.
        run: how it was measured: device, dtype, seed, versions, seconds, number of processes.
    """

    run: dict[str, Any]
    bound: Evaluation | WrappedEvaluation | None = None
    no_bound: str | None = None
    written: WrittenFigures | None = None
    real: RealFigures | None = None
    distances: DistancesFromReal | None = None
    zero_shot: dict[str, WrappedEvaluation] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The bound at the top level, and each other part under its own key."""
        record: dict[str, Any] = {}
        if self.bound is not None:
            record |= self.bound.record()
        if self.no_bound is not None:
            record["no_bound"] = self.no_bound
        for name in ("written", "real", "distances"):
            part = getattr(self, name)
            if part is not None:
                record[name] = part.record()
        if self.zero_shot:
            record["zero_shot"] = {name: part.record() for name, part in self.zero_shot.items()}
        return record | {"run": self.run}
