"""The table of a comparison of models: finished runs are files of JSON, a row is a model over its seeds.

A record has the `model`, the `seed` and numbers; "data" is the model of real texts.
"""

import json
import os
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

DATA = "data"
COLUMNS = {  # name in a record: title, format
    "parameters": ("parameters", ",.0f"),
    "seconds_per_step": ("CPU s a step", ".4f"),
    "steps": ("steps", ",.0f"),
    "cpu_minutes": ("CPU minutes", ".2f"),
    "nats_per_token": ("nats per token", ".3f"),
    "ratio": ("to GPT-2", ".3f"),
    "bits_per_character": ("bits per character", ".3f"),
    "generative_perplexity": ("generative perplexity", ".1f"),
    "entropy": ("entropy", ".3f"),
    "distinct_1": ("distinct-1", ".3f"),
    "distinct_2": ("distinct-2", ".3f"),
    "distinct_3": ("distinct-3", ".3f"),
}


def write_json(path: Path, values: Any):
    """Whole or not at all: several processes may work in one folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def check_settings(folder: Path, settings: Record):
    """Write the settings of a new folder of results; refuse others in an old one.

    Raises:
        ValueError: naming the option.
    """
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, settings)
    for name, value in read_json(path).items():
        if settings[name] != value:
            raise ValueError(
                f"`{name}` must be {value!r}, as in the runs of {folder}, got {settings[name]!r}: choose another "
                "`output_dir`."
            )


def read_records(folder: Path) -> list[Record]:
    """All finished runs of a folder, the data first, then from the fewest nats per token to the most."""
    records = [read_json(path) for path in sorted(folder.glob("*.json"))]
    if not records:
        raise FileNotFoundError(f"`{folder}` holds no finished run.")
    nats = {record["model"]: values_of(records, record["model"], "nats_per_token") for record in records}
    return sorted(records, key=lambda r: (statistics.fmean(nats[r["model"]] or [0.0]), r["model"], r["seed"]))


def values_of(records: Iterable[Record], model: str, name: str) -> list[float]:
    """One value a seed."""
    return [record[name] for record in records if record["model"] == model and name in record]


def mean_and_spread(values: list[float], style: str) -> str:
    """Mean and, of several values, their standard deviation."""
    if not values:
        return ""
    mean = format(statistics.fmean(values), style)
    return mean if len(set(values)) == 1 else f"{mean} ± {format(statistics.stdev(values), style)}"


def markdown_table(records: list[Record], baseline: str) -> str:
    """A line a model, with mean ± standard deviation over seeds; "to GPT-2" is the ratio to the baseline's mean nats.

    Args:
        records: in the order of the lines.
        baseline: the model that ratios refer to; without it there are none.
    """
    reference = values_of(records, baseline, "nats_per_token")
    if reference:
        mean = statistics.fmean(reference)
        records = [r | ({"ratio": r["nats_per_token"] / mean} if "nats_per_token" in r else {}) for r in records]
    shown = {name: column for name, column in COLUMNS.items() if any(name in record for record in records)}
    lines = [["model", "seeds", *(title for title, _ in shown.values())], ["---", *["---:"] * (len(shown) + 1)]]
    for model in dict.fromkeys(record["model"] for record in records):
        seeds = sum(record["model"] == model for record in records)
        cells = [mean_and_spread(values_of(records, model, name), style) for name, (_, style) in shown.items()]
        lines.append([model, "" if model == DATA else str(seeds), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def order_of(records: list[Record], models: Iterable[str]) -> list[str]:
    """Those of the models that were run, from the fewest mean nats per token to the most."""
    means = {model: values_of(records, model, "nats_per_token") for model in models}
    return sorted((m for m in means if means[m]), key=lambda model: statistics.fmean(means[model]))
