"""Figures of the texts of benchmarks/two_level.py, by judges that share nothing with the systems."""

from collections.abc import Callable
from functools import partial
from typing import Any

from parts.common.results import Record, read_json, write_json
from parts.common.texts import distinct_ngrams
from parts.two_level.cells import Comparison, Costs, comparisons
from parts.two_level.config import SYSTEMS, TwoLevelConfig
from parts.two_level.judges import (
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
from parts.two_level.report import FORWARDS, REAL, Row
from parts.two_level.systems import System
from text_diffusers.data.sources import load_documents, split_documents

SHUFFLED_REAL = "real windows, shuffled"


class Judging:
    """The judges and the yardsticks of a finished folder; adds figures to the records of its texts.

    Attributes:
        kinds: the judge of kinds.
        shares: (K,) shares of the kinds in the training texts.
        pairs: neighbouring words of real texts.
    """

    def __init__(self, options: TwoLevelConfig):
        self.options = options
        self.texts = options.folder / "texts"

        # 1. What earlier stages have written
        self.perplexity_judge = options.perplexity_judge()
        self.memory = read_json(options.folder / "memory.json")
        self.real = read_json(self.texts / "real.json")

        # 2. Windows have as many words as so many tokens of real text: a judge reads words, whatever the tokens.
        longest = max(self.real, key=lambda record: record["length"])
        num_words = sum(len(text.split()) for text in longest["texts"])
        num_tokens = sum(map(len, longest["tokens"]))
        window_words = max(1, round(options.window_tokens * num_words / num_tokens))

        # 3. The judge of kinds has learned from documents that no system has seen.
        documents = classed_documents(options.dataset, options.judge_dataset)
        self.kinds = KindJudge(documents, window_words)
        training_texts = read_json(self.texts / "training.json")
        self.shares = class_shares(self.kinds.probabilities(training_texts))

        # 4. Pairs of words are learned from both, as even a large corpus lacks many good ones.
        corpus = load_documents(options.dataset)
        train_texts, _ = split_documents(corpus, options.validation_fraction)
        documents_of_judge = [text for text, _ in documents]
        self.pairs = set(word_pairs([*documents_of_judge, *train_texts["text"]]))

    def figures(self, record: Record) -> Record:
        """A record without its texts, but with all their figures except the generative perplexity."""
        figures = {}
        for name, value in record.items():
            if name not in ("texts", "tokens"):
                figures[name] = value

        # 1. By the judge of kinds; who writes one kind only is consistent by chance
        probabilities = self.kinds.probabilities(record["texts"])  # of each text (W, K)
        figures["consistency"] = consistency(probabilities)
        figures["class_distance"] = total_variation(class_shares(probabilities), self.shares)
        by_chance = chance(probabilities)
        if figures["consistency"] is not None and by_chance is not None:
            figures["excess"] = figures["consistency"] - by_chance

        # 2. By words and tokens
        figures["fluency"] = fluency(record["texts"], self.pairs)
        figures |= distinct_ngrams(record["tokens"])

        # 3. Memory is a figure of a system and a length; real texts have none.
        if record["system"] in self.memory:
            peaks = self.memory[record["system"]]
            figures["peak_memory"] = peaks[str(record["length"])]
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

        # The judge is large: its figure is kept with the texts, and with what it depends on.
        options = self.options
        judged_by = [options.judge, options.judge_texts, options.judge_tokens]
        if record.get("judged_by") != judged_by:
            # A text of one word may be a single token, of which the judge predicts nothing.
            texts = [text for text in record["texts"] if len(text.split()) > 1]
            texts = texts[: options.judge_texts]

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
        # All of them are in one file, which is written again after each.
        save = partial(write_json, self.texts / "real.json", self.real)
        for record in self.real:
            perplexity = self.perplexity(record, save)
            figures = self.figures(record) | {"generative_perplexity": perplexity}
            length = record["length"]
            rows.append(Row(REAL, length, 0, REAL, records=[figures]))

            mixed = self.shuffled(record)
            rows.append(Row(REAL, length, 0, SHUFFLED_REAL, records=[mixed]))
        return rows

    def judge_comparison(self, comparison: Comparison, judged: dict[str, Record]):
        """Add the figures of all seeds whose texts are written to a row.

        Args:
            judged: figures by file name, to which new ones are added; a cell may stand in two rows.
        """
        for seed in self.options.seeds:
            cell = comparison.cell(seed)
            if cell is None or not (self.texts / cell.file_name).exists():
                continue

            path = self.texts / cell.file_name
            record = read_json(path)
            if cell.file_name not in judged:
                judged[cell.file_name] = self.figures(record)
            figures = judged[cell.file_name]

            # The language model is dear, so rows at equal forwards go without it.
            if comparison.row.mode != FORWARDS:
                save = partial(write_json, path, record)
                figures["generative_perplexity"] = self.perplexity(record, save)
            comparison.row.records.append(figures)

    def notes(self) -> list[str]:
        """Notes on the sizes of the systems, the accuracy of the judge and the kinds of the training texts."""
        counts = []
        for system in SYSTEMS:
            costs = read_json(self.options.folder / "costs" / f"{system}.json")
            counts.append(f"{system} {costs['parameters']:,}")

        pairs = zip(self.kinds.classes, self.shares, strict=True)
        shares = [f"{name} {share:.2f}" for name, share in pairs]
        return [
            f"parameters: {', '.join(counts)}.",
            *bound_notes(self.options),
            f"the judge is right about {self.kinds.accuracy:.1%} of the windows of its own held-out documents, of "
            f"{self.kinds.window_words} words; the training texts are {', '.join(shares)}.",
        ]


def bound_notes(options: TwoLevelConfig) -> list[str]:
    """A note for each system with the bounds of its seeds, as its recipe left them: of the same held-out tokens."""
    notes = []
    for name in SYSTEMS:
        system = System(name, options)
        bounds = []
        for seed in options.seeds:
            if system.is_trained(seed):
                metrics = read_json(system.pipeline_folder(seed) / "metrics.json")
                nats = f"{metrics['bound']:.2f}"
                # Older figures have no characters.
                if "bits_per_character" in metrics:
                    nats += f" ({metrics['bits_per_character']:.2f})"
                bounds.append(nats)
        if bounds:
            listed = ", ".join(bounds)
            notes.append(f"bounds of {name}, nats per token (bits per character): {listed}.")
    return notes


def judged_rows(options: TwoLevelConfig, costs: Costs) -> tuple[list[Row], list[str]]:
    """The rows of the table with the records of all seeds whose texts are there, and notes."""
    judging = Judging(options)
    rows = judging.real_rows()

    judged = {}
    for comparison in comparisons(options, costs):
        judging.judge_comparison(comparison, judged)
        rows.append(comparison.row)

    # Sorting is stable: real texts come before the systems of their length.
    return sorted(rows, key=lambda row: row.length), judging.notes()
