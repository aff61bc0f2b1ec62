"""Whether guided texts are what they were asked to be, and what that costs: each control at scales 0, 1, 2, 3 and 5.

    python benchmarks/control.py --model runs/sentiment --classifier runs/classifier --tagger runs/tagger
    python benchmarks/control.py --model none --embedding_model runs/diffusion_lm \\
        --embedding_classifier runs/embedding_classifier

A control whose model is not there is left out. Scale 0 is the unguided model, whose texts are the same for all
controls of it. Text i of every control and scale has the same seed, and is asked to be the same at every scale.
A length is fixed, so all its scales but 0 are one.

- success: share of texts that are all they were asked to be, and its 95% interval (Wilson). Judges are not what
  guides, and learn from other texts: labels by TF-IDF and logistic regression, parts of speech by a linear tagger of
  words; words are searched for in the text, tokens are counted, and a length is right within 2 of them.
- parts met: where a text is asked for several things, such as tags of a pattern, the mean share that it has.
- generative perplexity under a language model, distinct n-grams of tokens, and self-BLEU of the first 100 texts:
  always of as many texts, but a control of length changes their lengths.
- "real texts" are held-out ones, cut to what the model can write; as success, the judge says they have their label.

Finished texts are files in `output_dir`; delete one to repeat it. The report is control.md, control.json and a plot.
"""

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from common.comparison import check_settings, read_json, write_json
from corpora.registry import brown_documents, movie_review_sentences
from guided_control.cases import CASES, Models, batches, label_wish, load_models, usable_sentences, wishes_of
from guided_control.config import ControlConfig
from guided_control.judges import Judges, LabelJudge, TagJudge, Wish, met, split_words, wilson_interval
from transformers import HfArgumentParser

from text_diffusers.data.sources import load_documents
from text_diffusers.evaluation.text_metrics import distinct_n, generative_perplexity, load_judge, self_bleu
from text_diffusers.training.tagged_text import load_tagged

Record = dict[str, Any]

REAL, UNGUIDED = "real texts", "unguided"
HELD_OUT = 5_000  # texts, but at most a twentieth of the data, which recipes hold out too
TAGGED_HELD_OUT = 4_000  # sentences, at most a fifth
COLUMNS = {  # name in a record: title, format
    "success": ("success", ".3f"),
    "interval": ("95% interval", ""),
    "parts_met": ("parts met", ".3f"),
    "generative_perplexity": ("generative perplexity", ".1f"),
    "distinct_1": ("distinct-1", ".3f"),
    "distinct_2": ("distinct-2", ".3f"),
    "self_bleu": ("self-BLEU", ".1f"),
    "seconds": ("seconds", ".0f"),
}
SUCCESS, GAIN, PERPLEXITY_RATIO, LENGTHS_RIGHT = 0.85, 0.20, 1.5, 0.99  # targets, at scale
TARGET_SCALE = 3
MODELS = [model.name for model in fields(Models)]  # each file of texts names its own
FREE = {"output_dir", "scales", "batch_size", "num_cpu_threads", "judge", "judge_cache", "picture", "judge_dataset"}


def judge_of_labels(options: ControlConfig, texts: Sequence[str], labels: Sequence[int]) -> tuple[LabelJudge, str]:
    """The judge, and what it is worth on held-out texts with labels."""
    source = options.judge_dataset
    data = movie_review_sentences("judge") if source is None else load_documents(source, label_column="label")
    judge = LabelJudge(data["text"], data["label"])
    accuracy = judge.accuracy(texts, labels)
    return judge, f"The judge of labels gives {accuracy:.1%} of {len(texts):,} held-out real texts their own label."


def judge_of_tags(options: ControlConfig, tokenizer: Any) -> tuple[TagJudge, list[tuple[str, ...]], str]:
    """The judge, patterns of held-out sentences, and how often it finds them in these."""
    source = options.tagged_dataset
    data = brown_documents(part="judge") if source is None else load_tagged(source, "words", "tags")
    words, tags = list(data["words"]), list(data["tags"])
    cut = len(words) - max(1, min(TAGGED_HELD_OUT, len(words) // 5))
    judge = TagJudge(words[:cut], tags[:cut], options.seed)
    right = [own == tag for own, tag in zip(chain(*judge.tags(words[cut:])), chain(*tags[cut:]), strict=True)]
    sentences = usable_sentences(words[cut:], tags[cut:], tokenizer, options)
    found = judge.tags([split_words(text) for text, _ in sentences])
    whole = sum(tuple(own) == pattern for own, (_, pattern) in zip(found, sentences, strict=True)) / len(sentences)
    line = (
        f"The judge of parts of speech tags {sum(right) / len(right):.1%} of the words of held-out sentences as their "
        f"corpus does, and finds the whole pattern in {whole:.1%} of the {len(sentences)} sentences with the patterns."
    )
    return judge, [pattern for _, pattern in sentences], line


def held_out_texts(options: ControlConfig) -> tuple[list[str], list[int]]:
    """The last labelled texts, in a random order."""
    data = load_documents(options.dataset, label_column="label")
    count = min(len(data), max(options.num_texts, min(HELD_OUT, len(data) // 20)))
    last = data.select(range(len(data) - count, len(data)))
    order = random.Random(f"{options.seed} real").sample(range(count), count)
    texts, labels = list(last["text"]), list(last["label"])
    return [texts[i] for i in order], [labels[i] for i in order]


def write_texts(options: ControlConfig, models: Models, name: str, scale: float, wishes: Sequence[Wish]) -> Record:
    """The texts of a control at a scale; at 0 of its unguided model."""
    case = CASES[name]
    pipe = getattr(models, case.needs[0])
    special = set(pipe.tokenizer.all_special_ids)
    tokens: list[list[int]] = [[] for _ in wishes]
    started = time.perf_counter()
    for places in batches(wishes if scale else [Wish()] * len(wishes), options.batch_size):
        generators = [torch.Generator().manual_seed(options.seed * len(wishes) + place) for place in places]
        arguments = {"num_return_sequences": len(places), "num_inference_steps": options.num_inference_steps}
        if scale:
            arguments |= case.arguments(models, [wishes[place] for place in places], scale)
        rows = pipe(generator=generators, output_type="tokens", **arguments).tokens.tolist()
        for place, row in zip(places, rows, strict=True):
            tokens[place] = [token for token in row if token not in special]
    record = {"control": name if scale else UNGUIDED, "scale": scale, "seconds": time.perf_counter() - started}
    texts = [text.strip() for text in pipe.tokenizer.batch_decode(tokens)]
    return record | request(options, name, scale, wishes) | {"texts": texts, "tokens": tokens}


def request(options: ControlConfig, name: str, scale: float, wishes: Sequence[Wish]) -> Record:
    """What texts are made from, as it is written to a file: the models, and what is wished for."""
    needs = CASES[name].needs if scale else CASES[name].needs[:1]
    asked = [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(wish).items()} for wish in wishes]
    return {"models": [options.folder(need) for need in needs], "wishes": asked if scale else []}


def check_request(record: Record, asked: Record, path: Path):
    """Refuse texts that were made from something else.

    Raises:
        ValueError: naming the file.
    """
    for name, value in asked.items():
        if record[name] != value:
            what = f"{name} {record[name]}" if name == "models" else f"other {name}"
            raise ValueError(f"`output_dir` must hold texts of what is asked for, got {path} of {what}: delete it.")


def real_record(texts: Sequence[str], models: Models, num_texts: int) -> Record:
    """Held-out texts, cut to what the model can write."""
    pipe = models.model or models.embedding_model
    longest = pipe.denoiser.config.max_length - 2
    rows = pipe.tokenizer(list(texts[:num_texts]), add_special_tokens=False)["input_ids"]
    tokens = [ids[:longest] for ids in rows]
    return {"control": REAL, "scale": None, "texts": pipe.tokenizer.batch_decode(tokens), "tokens": tokens}


def cell_path(options: ControlConfig, name: str, scale: float) -> Path:
    """Where the texts of a control are kept; those at scale 0 belong to the model."""
    stem = f"{name}-{scale:g}" if scale else f"{UNGUIDED}-{CASES[name].needs[0]}"
    return Path(options.output_dir, "texts", stem.replace(",", "").replace(" ", "-") + ".json")


def judged(path: Path, options: ControlConfig, language_judge: Any) -> Record:
    """A finished file, with figures of fluency, which are added to it once."""
    record = read_json(path)
    figures: Record = {}
    if "self_bleu" not in record:
        figures |= {f"distinct_{n}": distinct_n(record["tokens"], n) for n in (1, 2)}
        figures["self_bleu"] = self_bleu(record["texts"])
    if language_judge is not None and record.get("judge") != options.judge:
        figures["generative_perplexity"] = generative_perplexity(record["texts"], *language_judge).perplexity
        figures["judge"] = options.judge
    if figures:
        write_json(path, record | figures)
    return record | figures


def with_success(record: Record, wishes: Sequence[Wish], judges: Judges) -> Record:
    """The record with the share of texts that are as wished, and its interval."""
    parts = met(wishes, record["texts"], [len(row) for row in record["tokens"]], judges)
    successes = sum(all(row) for row in parts)
    figures = {"success": successes / len(parts), "interval": wilson_interval(successes, len(parts))}
    if max(map(len, parts)) > 1:
        figures["parts_met"] = sum(sum(row) / len(row) for row in parts) / len(parts)
    return record | figures


def table(records: Sequence[Record]) -> str:
    """Markdown, a line a record."""
    shown = {name: column for name, column in COLUMNS.items() if any(name in record for record in records)}
    lines = [["control", "scale", *(title for title, _ in shown.values())], ["---", *["---:"] * (len(shown) + 1)]]
    for record in records:
        scale = "" if record["scale"] is None else f"{record['scale']:g}"
        values = [(record.get(name), style) for name, (_, style) in shown.items()]
        cells = [
            "" if v is None else "{:.3f} to {:.3f}".format(*v) if isinstance(v, (tuple, list)) else format(v, style)
            for v, style in values
        ]
        lines.append([record["control"], scale, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def findings(records: Sequence[Record]) -> list[str]:
    """The targets of labels and of length, each met or missed, as far as their scales were run."""
    runs = {(record["control"], record["scale"]): record for record in records}
    lines = []
    for name in CASES:
        first, guided, unguided = (runs.get((name, scale)) for scale in (1, TARGET_SCALE, 0))
        if guided is None:
            continue
        if name == "length":
            lines.append(verdict(f"{name}: right within 2 tokens", guided["success"], LENGTHS_RIGHT))
        if CASES[name].wish is not label_wish:
            continue
        lines.append(verdict(f"{name}: success", guided["success"], SUCCESS))
        if unguided is not None:
            gain = guided["success"] - unguided["success"]
            lines.append(verdict(f"{name}: success above the unguided model's", gain, GAIN))
        if first is not None and "generative_perplexity" in first and "generative_perplexity" in guided:
            ratio = guided["generative_perplexity"] / first["generative_perplexity"]
            lines.append(verdict(f"{name}: generative perplexity over that of scale 1", ratio, PERPLEXITY_RATIO, True))
    return lines


def verdict(what: str, value: float, target: float, at_most: bool = False) -> str:
    reached = value <= target if at_most else value >= target - 1e-9
    limit = "at most" if at_most else "at least"
    return (
        f"{what}, at scale {TARGET_SCALE}: {value:.3f}, target {limit} {target:g}: {'met' if reached else 'missed'}."
    )


def plot_control(records: Sequence[Record], path: str | Path) -> Path:
    """Draw success over generative perplexity, a line a control from scale to scale; real texts are a star."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure, axes = plt.subplots(figsize=(9, 6))
    for name in dict.fromkeys(record["control"] for record in records):
        own = [record for record in records if record["control"] == name]
        points = [(record["generative_perplexity"], record["success"]) for record in own if "success" in record]
        if name == REAL:
            axes.plot(*zip(*points, strict=True), "*", color="black", markersize=14, label=name)
            continue
        (line,) = axes.plot(*zip(*points, strict=True), "o-", markersize=4, label=name)
        for record, point in zip(own, points, strict=True):
            offset = {"textcoords": "offset points", "xytext": (4, 4)}
            axes.annotate(f"{record['scale']:g}", point, fontsize=8, color=line.get_color(), **offset)
    axes.set(xscale="log", ylim=(-0.03, 1.03), xlabel="generative perplexity", ylabel="success, by independent judges")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title("Control against fluency; numbers are guidance scales", fontsize=11)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return Path(path)


def report(options: ControlConfig, records: list[Record], notes: list[str]):
    """Print and save the table with what it says, and draw the plot."""
    folder = Path(options.output_dir)
    lines = [*findings(records), *notes]
    text = f"{options.num_texts} texts each, {options.num_inference_steps} steps\n\n{table(records)}\n\n"
    text += "\n".join(f"- {line}" for line in lines)
    (folder / "control.md").write_text(text + "\n", encoding="utf-8")
    kept = [{k: v for k, v in record.items() if k not in ("texts", "tokens", "wishes")} for record in records]
    write_json(folder / "control.json", {"records": kept, "notes": lines})
    print(f"\n{text}\n")
    if all("generative_perplexity" in record for record in records):
        print(f"Plot: {plot_control(records, options.picture or folder / 'control.png')}")
    else:
        print("No plot without a judge of perplexity.")


def main(options: ControlConfig) -> list[Record]:
    """Write what is not finished, judge all of it and report."""
    if options.num_cpu_threads:
        torch.set_num_threads(options.num_cpu_threads)
    check_settings(Path(options.output_dir), {k: v for k, v in asdict(options).items() if k not in (*FREE, *MODELS)})
    language_judge = None if options.judge == "none" else load_judge(options.judge, options.judge_cache)
    models, missing = load_models(options)
    names = [name for name, case in CASES.items() if not any(need in missing for need in case.needs)]
    notes = [
        f"Left out: {name}, for want of {' and '.join(missing[need] for need in case.needs if need in missing)}."
        for name, case in CASES.items()
        if name not in names
    ]
    print(*notes, sep="\n", flush=True)
    if not names:
        raise ValueError("`model` or `embedding_model` and `embedding_classifier` must be folders of trained models.")
    texts, labels = held_out_texts(options)
    label_judge, line = judge_of_labels(options, texts, labels)
    judges, patterns, notes = Judges(label_judge), [], [line, *notes]
    if any(CASES[name].patterned for name in names):
        judges.tag, patterns, line = judge_of_tags(options, models.model.tokenizer)
        notes.insert(1, line)
    real = Path(options.output_dir, "texts", "real.json")
    if not real.exists():
        write_json(real, real_record(texts, models, options.num_texts))
    own_labels = [Wish(label=label) for label in labels[: options.num_texts]]
    records = [with_success(judged(real, options, language_judge), own_labels, judges)]
    for name in names:
        wishes = wishes_of(name, options, patterns)
        for scale in sorted(options.scales):
            path = cell_path(options, name, scale)
            if not path.exists():
                write_json(path, write_texts(options, models, name, scale, wishes))
            record = judged(path, options, language_judge) | {"control": name, "scale": scale}
            check_request(record, request(options, name, scale, wishes), path)
            records.append(with_success(record, wishes, judges))
            print(f"{name}, scale {scale:g}: success {records[-1]['success']:.3f}", flush=True)
    report(options, records, notes)
    return records


if __name__ == "__main__":
    try:
        main(HfArgumentParser(ControlConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        sys.exit(f"control.py: {error}")
