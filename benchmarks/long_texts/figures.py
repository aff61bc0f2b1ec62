"""The figures of the texts of benchmarks/two_level.py, by judges that share nothing with the systems."""

from collections.abc import Callable
from functools import partial
from typing import Any

from common.results import Record, read_json, write_json
from common.texts import distinct_ngrams

from long_texts.cells import Comparison, Costs, comparisons
from long_texts.config import SYSTEMS, TwoLevelConfig
from long_texts.judges import (
    KindJudge,
    chance,
    class_shares,
    classed_documents,
    consistency,
    fluency,
    shuffled_windows,
    total_variation,
    word_pairs,
)
from long_texts.report import FORWARDS, REAL, Row
from text_diffusers.data.sources import load_documents, split_documents

SHUFFLED_REAL = "real windows, shuffled"


class Judging:
    """The judges, and what real texts are like; it adds figures to records whose texts are written."""

    def __init__(self, options: TwoLevelConfig):
        self.options = options
        self.texts = options.folder / "texts"
        self.perplexity_judge = options.perplexity_judge()
        self.memory = read_json(options.folder / "memory.json")
        self.real = read_json(self.texts / "real.json")

        # Windows have as many words as so many tokens of real text.
        longest = max(self.real, key=lambda record: record["length"])
        num_words = sum(len(text.split()) for text in longest["texts"])
        num_tokens = sum(map(len, longest["tokens"]))
        window_words = max(1, round(options.window_tokens * num_words / num_tokens))

        documents = classed_documents(options.dataset, options.judge_dataset)
        self.kinds = KindJudge(documents, window_words)
        training_texts = read_json(self.texts / "training.json")
        self.shares = class_shares(self.kinds.probabilities(training_texts))

        # Words that stand together in the judge's documents or the training texts
        train_texts, _ = split_documents(
            load_documents(options.dataset), options.validation_fraction
        )
        self.pairs = set(word_pairs([*(text for text, _ in documents), *train_texts["text"]]))

    def figures(self, record: Record) -> Record:
        """A record without its texts, but with all their figures except the generative perplexity."""
        probabilities = self.kinds.probabilities(record["texts"])
        figures = {name: value for name, value in record.items() if name not in ("texts", "tokens")}
        figures["consistency"] = consistency(probabilities)
        figures["fluency"] = fluency(record["texts"], self.pairs)
        figures["class_distance"] = total_variation(class_shares(probabilities), self.shares)
        by_chance = chance(probabilities)
        if figures["consistency"] is not None and by_chance is not None:
            figures["excess"] = figures["consistency"] - by_chance
        figures |= distinct_ngrams(record["tokens"])
        if record["system"] in self.memory:
            figures["peak_memory"] = self.memory[record["system"]][str(record["length"])]
        return figures

    def shuffled(self, record: Record) -> Record:
        """The figures of texts that are mixed of the windows of these."""
        mixed = shuffled_windows(self.kinds.probabilities(record["texts"]))
        distance = total_variation(class_shares(mixed), self.shares)
        return {"consistency": consistency(mixed), "class_distance": distance}

    def perplexity(self, record: Record, save: Callable[[], Any]) -> float | None:
        """Generative perplexity of the beginnings of the first texts, which is saved; None without a judge."""
        if self.perplexity_judge is None:
            return None
        options = self.options
        judged_by = [options.judge, options.judge_texts, options.judge_tokens]
        if record.get("judged_by") != judged_by:
            # A text of one word has nothing to pay for.
            texts = [text for text in record["texts"] if len(text.split()) > 1][
                : options.judge_texts
            ]
            record["generative_perplexity"] = None
            if texts:
                score = self.perplexity_judge.score(texts, options.judge_tokens)
                record["generative_perplexity"] = score.perplexity
            record["judged_by"] = judged_by
            save()
        return record["generative_perplexity"]

    def real_rows(self) -> list[Row]:
        """Two rows a length: real texts, and texts mixed of their windows."""
        rows = []
        for record in self.real:
            perplexity = self.perplexity(
                record, lambda: write_json(self.texts / "real.json", self.real)
            )
            figures = self.figures(record) | {"generative_perplexity": perplexity}
            length = record["length"]
            rows.append(Row(REAL, length, 0, REAL, records=[figures]))
            rows.append(Row(REAL, length, 0, SHUFFLED_REAL, records=[self.shuffled(record)]))
        return rows

    def judge_comparison(self, comparison: Comparison, judged: dict[str, Record]):
        """Add the figures of all seeds that are written to its row; cells that were `judged` before are not again."""
        for seed in self.options.seeds:
            cell = comparison.cell(seed)
            if cell is None or not (self.texts / cell.file_name).exists():
                continue

            path = self.texts / cell.file_name
            record = read_json(path)
            if cell.file_name not in judged:
                judged[cell.file_name] = self.figures(record)
            figures = judged[cell.file_name]
            if comparison.row.mode != FORWARDS:  # the judge is dear
                save = partial(write_json, path, record)
                figures["generative_perplexity"] = self.perplexity(record, save)
            comparison.row.records.append(figures)

    def notes(self) -> list[str]:
        """What the judge is worth, what the training texts are like, and how large the systems are."""
        counts = []
        for system in SYSTEMS:
            costs = read_json(self.options.folder / "costs" / f"{system}.json")
            counts.append(f"{system} {costs['parameters']:,}")
        pairs = zip(self.kinds.classes, self.shares, strict=True)
        shares = [f"{name} {share:.2f}" for name, share in pairs]
        return [
            f"parameters: {', '.join(counts)}.",
            f"the judge is right about {self.kinds.accuracy:.1%} of the windows of its own held-out documents, of "
            f"{self.kinds.window_words} words; the training texts are {', '.join(shares)}.",
        ]


def judged_rows(options: TwoLevelConfig, costs: Costs) -> tuple[list[Row], list[str]]:
    """The rows of the table with the records of all seeds whose texts are there, and notes."""
    judging = Judging(options)
    rows = judging.real_rows()
    judged = {}  # cells may stand in two rows
    for comparison in comparisons(options, costs):
        judging.judge_comparison(comparison, judged)
        rows.append(comparison.row)
    return sorted(rows, key=lambda row: row.length), judging.notes()
