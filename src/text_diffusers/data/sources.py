"""Documents: where texts come from, and which of them are held out. Knows nothing of diffusion.

A document is one text. A source is a registered name, a file, a folder of files, or a data set of the Hub.
"""

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset

# The kinds of files, by their endings, and the builders of `datasets` that read them
BUILDERS = {".txt": "text", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}

# Loaders of data sets by a name, for `load_documents`; see `register_corpora`.
CORPORA: dict[str, Callable[[], Dataset]] = {}


def register_corpora(loaders: Mapping[str, Callable[[], Dataset]]):
    """Make names known to `load_documents`, each with a function that returns its documents.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.sources import load_documents, register_corpora
        >>> register_corpora({"two_lines": lambda: Dataset.from_dict({"text": ["one", "two"]})})
        >>> load_documents("two_lines")["text"][:]
        ['one', 'two']
    """
    CORPORA.update(loaders)


def load_documents(
    source: str,
    text_column: str = "text",
    label_column: str | None = None,
    split: str = "train",
    sample_by: str = "line",
    streaming: bool = False,
    source_column: str | None = None,
) -> Dataset | IterableDataset:
    """Documents of a source as a data set with the column `text` and, if asked for, `label` and `source`.

    Args:
        source: a name of `CORPORA`, a file or folder of .txt, .jsonl, .csv or .parquet files, or the name of a Hub
            data set.
        text_column, label_column: names in the source; labels must be integers from 0.
        split: split of a Hub data set.
        sample_by: what one document of a .txt file is: "line", "paragraph" or "document" (the whole file).
        streaming: reads as it goes, for what does not fit on the disk or in memory.
        source_column: name in the source of the texts that `text` is to be written from.

    Raises:
        FileNotFoundError: if a path does not exist or holds no such file.
        ValueError: naming file and line, if a file is empty, not UTF-8 or lacks the column.
    """
    if source in CORPORA:
        return CORPORA[source]()

    # Columns of the source, and what they are here
    roles = {text_column: "text"}
    if label_column:
        roles[label_column] = "label"
    if source_column:
        roles[source_column] = "source"

    documents = load_columns(source, roles, split=split, streaming=streaming, sample_by=sample_by)
    # Blank documents would be rows of nothing but ends.
    return documents.filter(lambda row: bool(row["text"] and row["text"].strip()))


def load_columns(
    source: str,
    roles: dict[str, str],
    split: str = "train",
    streaming: bool = False,
    sample_by: str = "line",
    builders: Collection[str] = tuple(BUILDERS.values()),
) -> Any:
    """The columns of a source by the names of their roles; every file is checked first.

    Args:
        roles: name in the source to name in the result; other columns are left out.
        builders: of `BUILDERS`, those that can hold such columns.
    """
    # 1. A name, files, or the Hub; what looks like a path is one, so that a typo is not looked up there
    path = Path(source).expanduser()
    if source in CORPORA:
        documents: Any = CORPORA[source]()
    elif path.exists() or path.suffix in BUILDERS or source.startswith((".", "/", "~")):
        files = find_files(path)

        # Files of one kind, all of them checked before the first is read
        builder = BUILDERS[files[0].suffix]
        if builder not in builders:
            allowed = " or ".join(suffix for suffix, name in BUILDERS.items() if name in builders)
            raise ValueError(
                f"`dataset` must be {allowed} to hold {' and '.join(roles.values())}, got {source!r}."
            )
        for file in files:
            check_file(file, roles)

        options: dict[str, Any] = {"sample_by": sample_by} if builder == "text" else {}
        names = [str(file) for file in files]
        documents = load_dataset(
            builder, data_files=names, split="train", streaming=streaming, **options
        )
    else:
        documents = load_dataset(source, split=split, streaming=streaming)

    # A stream may not know its columns before it is read; then the names are trusted.
    source_columns = documents.column_names or list(roles)
    for column in roles:
        if column not in source_columns:
            raise ValueError(f"`{source}` has no column {column!r}; it has {source_columns}.")
    renamed = {column: role for column, role in roles.items() if column != role}
    return documents.select_columns(list(roles)).rename_columns(renamed)


def find_files(path: Path) -> list[Path]:
    """The data files at `path`, a file or a folder, all of one kind, sorted."""
    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist.")

    # All the way down, in the order of the names
    candidates = [path] if path.is_file() else sorted(path.rglob("*"))
    files = [file for file in candidates if file.is_file() and file.suffix in BUILDERS]
    if not files:
        raise FileNotFoundError(f"`{path}` holds no file that ends in {', '.join(BUILDERS)}.")

    kinds = sorted({file.suffix for file in files})
    if len(kinds) > 1:
        raise ValueError(
            f"`{path}` mixes {', '.join(kinds)}; name one file, or a folder of one kind."
        )
    return files


def check_file(path: Path, columns: Collection[str]):
    """Raise a ValueError that names the file and line if it is empty, not UTF-8, or lacks a column."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        check_columns(str(path), pyarrow.parquet.read_schema(path).names, columns)
        return

    # Line by line, so that the message can name the line of the mistake
    number = 0
    blank = True
    for number, line in enumerate(utf8_lines(path), start=1):
        blank = blank and not line.strip()
        if path.suffix == ".csv" and number == 1:
            check_columns(f"{path}, line 1", next(csv.reader([line]), []), columns)
        if path.suffix == ".jsonl" and line.strip():
            check_json_line(path, number, line, columns)
    if blank or (path.suffix == ".csv" and number < 2):
        raise ValueError(f"{path}, line {max(number, 1)}: the file holds no text.")


def check_columns(place: str, names: list[str], columns: Collection[str]):
    for column in columns:
        if column not in names:
            raise ValueError(f"{place}: no column {column!r}; it has {names}.")


def check_json_line(path: Path, number: int, line: str, columns: Collection[str]):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: not JSON ({error.msg} at column {error.colno})."
        ) from error
    if not isinstance(record, dict) or not record.keys() >= set(columns):
        raise ValueError(
            f"{path}, line {number}: expected an object with {list(columns)}, got {line.strip()[:80]!r}."
        )


def utf8_lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
                    f"{error.start + 1}); convert the file, for example with `iconv -t utf-8`."
                ) from error


def split_documents(
    documents: Dataset | IterableDataset,
    validation_fraction: float = 0.05,
    validation_documents: int = 1_000,
) -> tuple[Dataset | IterableDataset, Dataset]:
    """`(train, validation)`: the last documents are held out, so neighbouring texts do not leak across.

    Of a stream, whose length is unknown, the first `validation_documents` are held out and kept in memory.

    Raises:
        ValueError: if nothing is left to train on.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.sources import split_documents
        >>> train, validation = split_documents(Dataset.from_dict({"text": ["a", "b", "c", "d"]}), 0.25)
        >>> len(train), validation["text"][:]
        (3, ['d'])
    """
    if isinstance(documents, IterableDataset):
        # Neighbours may leak across here: a stream has no last documents.
        train = documents.skip(validation_documents)
        if next(iter(train), None) is None:
            raise ValueError(
                f"`validation_documents`={validation_documents} leaves no text of this stream to train on."
            )
        return train, Dataset.from_list(list(documents.take(validation_documents)))

    if not 0 < validation_fraction < 1:
        raise ValueError(
            f"`validation_fraction` must be between 0 and 1, exclusive, got {validation_fraction!r}."
        )
    # At least one text, however small the share
    held_out = max(1, round(len(documents) * validation_fraction))
    if held_out >= len(documents):
        raise ValueError(
            f"`documents` must hold at least 2 texts, to hold one out, got {len(documents)}."
        )

    cut = len(documents) - held_out
    return documents.select(range(cut)), documents.select(range(cut, len(documents)))
