"""Write conversations of customers and a sales team to files: those to learn from, and those that are held out.

    python examples/sales_assistant/make_data.py --language ru --count 20000 --seed 0 --output data/sales_ru.jsonl

`data/sales_ru.jsonl` is to be learned from, `data/sales_ru_validation.jsonl` is held out. An `output` without an
ending is a folder with train.jsonl and validation.jsonl, which the recipes read by themselves with `--dataset`.

What is held out: all conversations about four products of which no training conversation speaks, and a twenty-fifth of
the pairs of another product and the body of a reply. The sentences themselves are those of the training part, so that
the held-out part asks whether a model puts facts that it has not seen into sentences that it knows. It does not ask
for new sentences.

Each conversation to learn from has brands and figures of its own, and those that are held out have the catalogue's. A
model that always meets the same ones learns the catalogue by heart, and knows nothing of a product that is new. For
the same reason a fifth of the products to learn from are of a kind that does not exist. `--varied false` lets training
have the catalogue, too.

`--input mine.csv` writes a company's own conversations instead, see data_files.py: a twenty-fifth of them is held out.

A model that reads the same conversations again and again learns these by heart: write so many that it reads each once
or twice.
"""

from dataclasses import dataclass
from pathlib import Path

from conversations import LANGUAGES, Record, as_pair, generate, split, with_note
from data_files import completed, read_records, write_records

from text_diffusers.training.config import check_options, option
from text_diffusers.training.recipes import run

# Conversations of which a seventh are held out, where they are not those to learn from
MOST_TO_ASK = 40_000
# What the sources of the pairs to learn from show, in turn
SHOWN = ("conversation", "facts", "conversation", "products")


@dataclass
class DataOptions:
    """Options of the conversations and of their files."""

    language: str = option("en", "en or ru", one_of=LANGUAGES)
    count: int = option(
        20000, "conversations, of which about a seventh are held out", limit="at least 1"
    )
    seed: int = option(0, "the same seed, the same files")
    input: str = option(
        "", "a .jsonl or .csv file of a company's own conversations, in the place of made-up ones"
    )
    output: str = option("data/sales", "a file that ends in .jsonl or .csv, or a folder")
    note: bool = option(
        False,
        "begin each conversation with what the team sees of customer and product, as a turn of the "
        "system; a model that is to say true prices needs it",
    )

    pairs: bool = option(
        False,
        "write .jsonl files with `reply` and its `source`, the note, the turns and the facts to be said, for recipes "
        "with --source_column; every second source to learn from is short",
    )

    varied: bool = option(
        True, "each conversation to learn from has brands, figures and kinds of its own, see above"
    )

    def __post_init__(self):
        check_options(self)
        if self.pairs and self.note:
            raise ValueError("`note` must be left out with `pairs`, whose sources begin with it.")
        suffix = Path(self.output).suffix
        if suffix not in ("", ".jsonl", ".csv"):
            raise ValueError(
                f"`output` must end in .jsonl or .csv, or be a folder, got {self.output!r}."
            )
        if self.pairs and suffix == ".csv":
            raise ValueError(
                f"`output` must end in .jsonl or be a folder with `pairs`, got {self.output!r}."
            )


def main(options: DataOptions):
    if options.input:
        own = [completed(record, options.language) for record in read_records(options.input)]
        train, held_out = split(own)
    elif options.varied:
        train, _ = split(generate(options.language, options.count, options.seed, varied=True))
        # Of conversations that are only asked, a few thousand are enough.
        count = min(options.count, MOST_TO_ASK)
        _, held_out = split(generate(options.language, count, options.seed))
    else:
        train, held_out = split(generate(options.language, options.count, options.seed))

    train_path, held_out_path = paths_of(options.output)
    write_part(train, train_path, options, is_learned=True)
    write_part(held_out, held_out_path, options, is_learned=False)


def write_part(records: list[Record], path: Path, options: DataOptions, is_learned: bool):
    """Write a part in the form that is asked for; of the pairs to learn from, every second is short."""
    rows = records
    if options.note:
        rows = [with_note(record) for record in records]
    elif options.pairs:
        rows = [
            as_pair(record, shown=SHOWN[place % len(SHOWN)] if is_learned else "conversation")
            for place, record in enumerate(records)
        ]
    write_records(rows, path)
    print(f"{path}: {len(rows):,} conversations")


def paths_of(output: str) -> tuple[Path, Path]:
    """The files of both parts, the one to learn from first."""
    path = Path(output)
    if path.suffix:
        return path, path.with_name(f"{path.stem}_validation{path.suffix}")
    return path / "train.jsonl", path / "validation.jsonl"


if __name__ == "__main__":
    run(main, DataOptions)
