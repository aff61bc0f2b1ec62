"""Write the data of four tasks of understanding: texts to learn from, and texts that are held out.

    python examples/understanding/make_tasks.py --output data/understanding

Each task is a folder with train.jsonl and validation.jsonl, which the recipes read by themselves with `--dataset`.

| task | columns |
|---|---|
| tags | `text`, each word with its tag behind it; `words` and `tags` |
| prepositions | `text`; `gapped`, the same with a gap, and the `answer`; `source`, with "_" for the gap |
| compression | `text`, the short sentence; `source`, the long one; `words`; `kept`, the places that stay |
| | `marked`, the long one with KEEP or DROP behind each word |
| paraphrase | `text`, a verse of the World English Bible; `source`, the same of the King James Bible |

The first three are sentences of the Brown corpus, `make brown`, in an order of its samples that depends on a seed; the
last is `make bible`. The last twentieth of the rows is held out, and what also stands there is not learned from.
"""

from dataclasses import dataclass
from pathlib import Path

from task_data import TASKS, make_task

from text_diffusers.training.config import check_options, option
from text_diffusers.training.recipes import run


@dataclass
class DataOptions:
    """Options of the data."""

    output: str = option("data/understanding", "a folder, in which each task gets its own")
    tasks: list[str] = option(list(TASKS), ", ".join(TASKS))
    most_words: int = option(24, "words of the longest sentence", limit="at least 1")

    def __post_init__(self):
        check_options(self)
        unknown = set(self.tasks) - set(TASKS)
        if unknown:
            raise ValueError(f"`tasks` must be among {list(TASKS)}, got {sorted(unknown)}.")


def main(options: DataOptions):
    for task in options.tasks:
        make_task(task, Path(options.output, task), options.most_words)


if __name__ == "__main__":
    run(main, DataOptions)
