"""Long texts by two levels of diffusion, beside one level of codes and a token model: equal parameters and minutes.

    python benchmarks/two_level.py --train_minutes 30 --output_dir runs/two_level_benchmark
    python benchmarks/two_level.py --stage train --systems two-level --seeds 0 1     # processes may share the folder
    python benchmarks/two_level.py --stage write
    python benchmarks/two_level.py --stage report --picture docs/two_level.png

What is done is kept in `output_dir` and not done again: a model, or the texts of a cell; a training that was
interrupted goes on.

- Systems: "two-level", an autoencoder with coarse and fine codes and a denoiser of each; "one-level", an autoencoder
  with fine codes only, as many tokens each, and their denoiser; "tokens", an absorbing D3PM. Each is trained by its
  recipes on the same rows for the same minutes of training steps on one thread, all its parts together. The width of a
  baseline's denoiser is what brings all its parameters closest to those of two levels.
- Equal forwards: calls of denoisers; the decoder's is not one of them, but its FLOPs count. Steps are coarse + fine.
- Equal FLOPs: those that the token model needs for its forwards (the budget); the others take as many steps as fit.
  FLOPs are of a whole call of the pipeline, two for each multiplication of a matrix product.
- Consistency: a judge that has learned from other documents says of each window of about 64 tokens how probable each
  kind of text is (Jane Austen, or speeches of an era); the mean over pairs of windows of sum_c p_i(c) p_j(c). "real
  texts" are held-out ones, "real windows, shuffled" texts that were mixed of theirs. Who writes one kind only is
  consistent too, so "classes, distance" is the total variation between the kinds written and the training texts',
  and "above chance" the consistency beyond that of windows of two different texts of the cell.
- Fluency: share of neighbouring words that stand together in the judge's documents or the training texts.
- Generative perplexity is of the beginnings of a few texts; of cells at equal FLOPs and of plans only.
- Plans: the fine denoiser's plan is that of real, held-out texts ("oracle"); the same codes, but each place shuffled
  among the texts; or the model's own, which the decoder is given, but the fine denoiser is not told ("untold").
- Tokens a second are of CPU time on one thread. Peak memory is beyond the loaded pipeline, for 8 texts at once.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.comparison import check_settings, read_json, write_json
from datasets import disable_progress_bars
from long_texts.config import (
    ORACLE,
    SHUFFLED,
    SYSTEMS,
    TOKENS,
    TWO_LEVEL,
    UNTOLD,
    WRITTEN,
    Cell,
    Cost,
    Steps,
    TwoLevelConfig,
    fitting_steps,
    split_forwards,
)
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
from long_texts.report import FLOPS, FORWARDS, PLANS_TOLD, REAL, Row, findings, markdown, plot
from long_texts.systems import (
    is_trained,
    load_pipeline,
    measured_cost,
    parameters_of,
    peak_memory,
    shared_tokenizer,
    train,
    write_cell,
)
from torch import Tensor
from training import in_own_process
from transformers import HfArgumentParser

from text_diffusers.data.rows import tokenize
from text_diffusers.data.sources import load_documents, split_documents
from text_diffusers.evaluation.text_metrics import distinct_n, generative_perplexity, load_judge

Record = dict[str, Any]

REAL_TEXTS, TRAINING_TEXTS = 64, 512
SHUFFLED_REAL = "real windows, shuffled"
FREE = {"output_dir", "stage", "systems", "seeds", "budgets", "coarse_forwards", "coarse_flops", "batch_tokens"}
FREE |= {"judge", "judge_cache", "judge_texts", "judge_tokens", "window_tokens", "picture", "checkpointing_steps"}


# --- real texts


def held_out_rows(options: TwoLevelConfig, tokenizer: Any) -> tuple[Tensor, list[str]]:
    """Held-out rows (B, L) of tokens, full ones in a random order, and texts of the beginnings of training rows."""
    train_texts, held_out = split_documents(load_documents(options.dataset), options.validation_fraction)
    rows, others = (tokenize(texts, tokenizer, options.length) for texts in (held_out, train_texts))
    full = [row["input_ids"] for row in rows if all(row["attention_mask"])]
    needed = max(options.texts_of(length) for length in options.lengths)  # for plans of real texts
    if len(full) < needed:
        raise ValueError(
            f"`dataset` must have {needed} held-out rows of `length`={options.length} tokens, one for each text of a "
            f"cell, got {len(full)}."
        )
    random.Random(0).shuffle(full)
    chosen = random.Random(0).sample(range(len(others)), min(TRAINING_TEXTS, len(others)))
    starts = [others[place]["input_ids"][: min(options.lengths)] for place in chosen]
    return torch.tensor(full), [without_ends(tokenizer, row)[1] for row in starts]


def without_ends(tokenizer: Any, row: Sequence[int]) -> tuple[list[int], str]:
    """Tokens and text of the first text in a row."""
    special, found = set(tokenizer.all_special_ids), []
    for token in row:
        if token in special and found:
            break
        found += [token] if token not in special else []
    return found, tokenizer.decode(found).strip()


def real_records(options: TwoLevelConfig, tokenizer: Any, rows: Tensor) -> list[Record]:
    """Held-out texts of each length."""
    records = []
    for length in options.lengths:
        pairs = [without_ends(tokenizer, row) for row in rows[:REAL_TEXTS, :length].tolist()]
        tokens, texts = [ids for ids, _ in pairs], [text for _, text in pairs]
        records.append({"system": REAL, "length": length, "tokens": tokens, "texts": texts})
    return records


# --- cells


def trained_seed(options: TwoLevelConfig, system: str) -> int:
    """A seed of which a system is trained, if there is one, else the first."""
    return next((seed for seed in options.seeds if is_trained(options, system, seed)), options.seeds[0])


def costs(options: TwoLevelConfig) -> dict[tuple[str, int], Cost]:
    """What a text of each system and length costs; measured once, with any trained seed.

    Raises:
        FileNotFoundError: if a system is not trained at all.
    """
    found = {}
    for system in SYSTEMS:
        path = Path(options.output_dir, "costs", f"{system}.json")
        known = read_json(path) if path.exists() else {}
        missing = [length for length in options.lengths if str(length) not in known]
        if missing:
            pipe = load_pipeline(options, system, trained_seed(options, system))
            known |= {str(length): asdict(measured_cost(pipe, system, length)) for length in missing}
            write_json(path, known | {"parameters": parameters_of(pipe)})
        found |= {(system, length): Cost(**known[str(length)]) for length in options.lengths}
    return found


def steps_at(
    mode: str, system: str, length: int, budget: int, options: TwoLevelConfig, known: dict[tuple[str, int], Cost]
) -> Steps | None:
    """The steps of a system that are compared at a budget; None if nothing fits."""
    if mode == FORWARDS or system == TOKENS:
        return split_forwards(system, budget, options)
    flops = known[TOKENS, length].of(Steps(budget))
    codes = length // options.patch_length, length // (options.patch_length * options.coarse_ratio)
    return fitting_steps(known[system, length], flops, *codes, options.coarse_flops)


def kinds_of_cells(options: TwoLevelConfig, known: dict[tuple[str, int], Cost]) -> list[tuple[Row, Steps | None, str]]:
    """`(row of the table, steps, plan)` of all comparisons, in the order of the table."""
    found: list[tuple[Row, Steps | None, str]] = []
    for length in options.lengths:
        for mode in (FLOPS, FORWARDS):
            for budget in options.budgets:
                for system in SYSTEMS:
                    steps = steps_at(mode, system, length, budget, options, known)
                    found.append((Row(mode, length, budget, system, str(steps or "")), steps, WRITTEN))
        steps = split_forwards(TWO_LEVEL, options.ablation_budget, options)
        for plan in (ORACLE, SHUFFLED, UNTOLD):
            found.append((Row(PLANS_TOLD, length, options.ablation_budget, plan, str(steps)), steps, plan))
    return found


def system_of(row: Row) -> str:
    return row.name if row.name in SYSTEMS else TWO_LEVEL


def text_path(options: TwoLevelConfig, name: str) -> Path:
    return Path(options.output_dir, "texts", name)


def write_texts(options: TwoLevelConfig):
    """Write the texts of all cells of the chosen systems and seeds that are not there."""
    tokenizer = shared_tokenizer(options)
    memory = Path(options.output_dir, "memory.json")
    if not memory.exists():
        measured = {
            system: {
                length: in_own_process(1, peak_memory, options, system, trained_seed(options, system), length)
                for length in options.lengths
            }
            for system in SYSTEMS
        }
        write_json(memory, measured)
    rows, training_texts = held_out_rows(options, tokenizer)
    if not text_path(options, "real.json").exists():
        write_json(text_path(options, "training.json"), training_texts)
        write_json(text_path(options, "real.json"), real_records(options, tokenizer, rows))
    known = costs(options)
    for system in options.systems:
        for seed in options.seeds:
            kinds = kinds_of_cells(options, known)
            cells = [
                Cell(system, seed, row.length, s, plan) for row, s, plan in kinds if s and system_of(row) == system
            ]
            missing = [cell for cell in dict.fromkeys(cells) if not text_path(options, cell.file_name).exists()]
            pipe = load_pipeline(options, system, seed) if missing else None
            for cell in missing:
                print(f"{system}, seed {seed}: {cell.length} tokens, steps {cell.steps}, plan {cell.plan}", flush=True)
                real = rows[: options.texts_of(cell.length), : cell.length]
                write_json(text_path(options, cell.file_name), write_cell(pipe, cell, options, real))


# --- judging


class Judging:
    """Adds figures to records."""

    def __init__(self, options: TwoLevelConfig):
        self.options = options
        self.real: list[Record] = read_json(text_path(options, "real.json"))
        longest = max(self.real, key=lambda record: record["length"])
        words, tokens = sum(len(text.split()) for text in longest["texts"]), sum(map(len, longest["tokens"]))
        documents = classed_documents(options.dataset, options.judge_dataset)
        self.kinds = KindJudge(documents, max(1, round(options.window_tokens * words / tokens)))
        self.shares = class_shares(self.kinds.probabilities(read_json(text_path(options, "training.json"))))
        train_texts, _ = split_documents(load_documents(options.dataset), options.validation_fraction)
        self.pairs = set(word_pairs([*(text for text, _ in documents), *train_texts["text"]]))
        self.memory = read_json(Path(options.output_dir, "memory.json"))
        self.language_judge = None if options.judge == "none" else partial(load_judge, options.judge)

    def figures(self, record: Record) -> Record:
        """All figures but the generative perplexity."""
        found = self.kinds.probabilities(record["texts"])
        figures: Record = {"consistency": consistency(found), "fluency": fluency(record["texts"], self.pairs)}
        shares = class_shares(found)
        figures["class_distance"] = total_variation(shares, self.shares)
        expected = chance(found)
        if figures["consistency"] is not None and expected is not None:
            figures["excess"] = figures["consistency"] - expected
        for n in (1, 2):
            if any(len(row) >= n for row in record["tokens"]):
                figures[f"distinct_{n}"] = distinct_n(record["tokens"], n)
        if record["system"] in self.memory:
            figures["peak_memory"] = self.memory[record["system"]][str(record["length"])]
        return {name: value for name, value in record.items() if name not in ("texts", "tokens")} | figures

    def shuffled(self, record: Record) -> Record:
        """The figures of texts that are mixed of the windows of these."""
        found = shuffled_windows(self.kinds.probabilities(record["texts"]))
        return {"consistency": consistency(found), "class_distance": total_variation(class_shares(found), self.shares)}

    def generative_perplexity(self, path: Path, records: list[Record], place: int = 0) -> float | None:
        """Of the beginnings of the first texts of a record, kept in its file; None without a judge."""
        if self.language_judge is None:
            return None
        record, asked = records[place], [self.options.judge, self.options.judge_texts, self.options.judge_tokens]
        if record.get("judged_by") != asked:
            if isinstance(self.language_judge, partial):
                self.language_judge = self.language_judge(self.options.judge_cache)
            texts = [text for text in record["texts"] if len(text.split()) > 1][: self.options.judge_texts]
            score = partial(generative_perplexity, max_length=self.options.judge_tokens)
            record["generative_perplexity"] = score(texts, *self.language_judge).perplexity if texts else None
            record["judged_by"] = asked
            write_json(path, records if path.name == "real.json" else record)
        return record["generative_perplexity"]


def judged_rows(options: TwoLevelConfig) -> tuple[list[Row], list[str]]:
    """The rows of the table with the records of all seeds whose texts are there, and notes."""
    judging, known = Judging(options), costs(options)
    rows = []
    for place, record in enumerate(judging.real):
        perplexity = judging.generative_perplexity(text_path(options, "real.json"), judging.real, place)
        own = judging.figures(record) | {"generative_perplexity": perplexity}
        rows.append(Row(REAL, record["length"], 0, REAL, records=[own]))
        rows.append(Row(REAL, record["length"], 0, SHUFFLED_REAL, records=[judging.shuffled(record)]))
    judged: dict[Path, Record] = {}
    for row, steps, plan in kinds_of_cells(options, known):
        rows.append(row)
        for seed in options.seeds if steps else ():
            path = text_path(options, Cell(system_of(row), seed, row.length, steps, plan).file_name)
            if not path.exists():
                continue
            record = read_json(path)
            judged[path] = judged.get(path) or judging.figures(record)
            if row.mode != FORWARDS:
                judged[path]["generative_perplexity"] = judging.generative_perplexity(path, [record])
            row.records.append(judged[path])
    parameters = {name: read_json(Path(options.output_dir, "costs", f"{name}.json"))["parameters"] for name in SYSTEMS}
    counts = ", ".join(f"{name} {count:,}" for name, count in parameters.items())
    shares = ", ".join(
        f"{name} {share:.2f}" for name, share in zip(judging.kinds.classes, judging.shares, strict=True)
    )
    return sorted(rows, key=lambda row: row.length), [
        f"parameters: {counts}.",
        f"the judge is right about {judging.kinds.accuracy:.1%} of the windows of its own held-out documents, of "
        f"{judging.kinds.window_words} words; the training texts are {shares}.",
    ]


def report(options: TwoLevelConfig) -> list[Row]:
    """Print and save the table with what it says, and draw the picture."""
    rows, notes = judged_rows(options)
    folder = Path(options.output_dir)
    seeds = sorted({record["seed"] for row in rows for record in row.records if "seed" in record})
    text = f"Seeds {seeds}, {options.train_minutes:g} minutes of training each.\n\n{markdown(rows)}\n\n"
    text += "\n".join(f"- {line}" for line in (*findings(rows), *notes))
    (folder / "two_level.md").write_text(text + "\n", encoding="utf-8")
    write_json(folder / "two_level.json", [asdict(row) for row in rows])
    print(f"{text}\n- picture: {plot(rows, options.picture or folder / 'two_level.png')}")
    return rows


def main(options: TwoLevelConfig) -> list[Row]:
    """Train, write and report what the stage asks for; returns the rows of the table, if there is one."""
    torch.set_num_threads(1)
    disable_progress_bars()
    check_settings(Path(options.output_dir), {k: v for k, v in asdict(options).items() if k not in FREE})
    if options.stage == "all":
        classed_documents(options.dataset, options.judge_dataset)  # errors now, and not after the training
    if options.stage in ("all", "train"):
        for seed in options.seeds:
            for system in options.systems:
                if not is_trained(options, system, seed):
                    train(options, system, seed)
    if options.stage in ("all", "write"):
        write_texts(options)
    return report(options) if options.stage in ("all", "report") else []


if __name__ == "__main__":
    try:
        main(HfArgumentParser(TwoLevelConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"two_level.py: {error}")
