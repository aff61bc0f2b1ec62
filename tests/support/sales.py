"""A sales assistant that has learned nothing, for tests of what it does all the same."""

import json
from pathlib import Path
from typing import Any

from support.recipes import load_script

train_d3pm = load_script("train_d3pm")


def train_assistant(pairs: list[dict[str, Any]], folder: Path, **changes: Any) -> str:
    """The folder of a model of three steps, whose pairs are in `pairs/train.jsonl` and `pairs/validation.jsonl`.

    Args:
        changes: options of the training, where others are wanted.
    """
    (folder / "pairs").mkdir()
    for name, part in (("train", pairs[:-40]), ("validation", pairs[-40:])):
        lines = "\n".join(map(json.dumps, part))
        (folder / "pairs" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    settings: dict[str, Any] = {
        "dataset": str(folder / "pairs"),
        "output_dir": str(folder / "model"),
        "source_column": "source",
        "text_column": "reply",
        "label_column": "tone",
        "packing": False,
        "length": 320,
        "vocab_size": 600,
        "hidden_size": 32,
        "num_layers": 1,
        "num_attention_heads": 2,
        "max_train_steps": 3,
        "train_batch_size": 4,
        "num_cpu_threads": 1,
        "num_length_samples": 0,
        "num_samples": 0,
        "validation_rows": 8,
        "report_to": ["none"],
    }
    options = train_d3pm.D3PMConfig(**settings | changes)
    train_d3pm.main(options)
    return options.output_dir
