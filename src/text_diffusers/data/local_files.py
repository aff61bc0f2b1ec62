"""Files of documents: those of a split in a folder, and their rows in the cache of `datasets` or as a stream."""

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, Features, IterableDataset, Value
from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import get_temporary_cache_files_directory
from datasets.table import MemoryMappedTable

from text_diffusers.data.labels import MISSING, LabelReader, plain_label
from text_diffusers.data.messages import has_answer
from text_diffusers.data.record_files import READERS, Row, read_rows

logger = logging.getLogger(__name__)

SUFFIXES = tuple(READERS)

# Words in the names of folders or files that name a split, as in `datasets`
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}

# What is cached changes when the way of reading does.
READER_VERSION = 1
# Rows and characters that are held before they are written
ROWS_PER_BATCH = 1_000
CHARACTERS_PER_BATCH = 4_000_000
READ_BYTES = 1_000_000

TURNS = pyarrow.list_(
    pyarrow.struct(
        {"role": pyarrow.string(), "content": pyarrow.string(), "learned": pyarrow.bool_()}
    )
)
ARROW_TYPES = {
    "text": pyarrow.string(),
    "source": pyarrow.string(),
    "label": pyarrow.string(),
    "words": pyarrow.list_(pyarrow.string()),
    "tags": pyarrow.list_(pyarrow.string()),
    "messages": TURNS,
    "prompt": TURNS,
    "completion": TURNS,
}


# Which files


def is_local(source: str) -> bool:
    """Whether a source is a path; what looks like one is, so that a typo is not looked up on the Hub."""
    path = Path(source).expanduser()
    return path.exists() or path.suffix.lower() in READERS or source.startswith((".", "/", "~"))


def find_files(source: str, split: str = "train") -> list[Path]:
    """The data files of a split at a path, all of one kind, in the order of their names.

    A folder whose files or sub-folders are called train, validation (or valid, val, dev) and test (or eval) has these
    splits; any other, and a file, is training data as a whole.

    Raises:
        FileNotFoundError: if a path does not exist or holds no such file.
        ValueError: if it has no such split, or files of several kinds.
    """
    path = Path(source).expanduser()
    splits = files_by_split(path)
    name = split_name(split)
    if name not in splits:
        # A file says by its name what it holds.
        if path.is_dir() or name not in named_splits(path.name):
            raise ValueError(
                f"`split` must be one of {', '.join(splits)}, which `{path}` has, got {split!r}."
            )
        name = "train"

    files = splits[name]
    kinds = sorted({file.suffix.lower() for file in files})
    if len(kinds) > 1:
        raise ValueError(
            f"`{path}` mixes {', '.join(kinds)}; name one file, or a folder of one kind."
        )
    return files


def has_split(source: str, split: str) -> bool:
    """Whether a source is a folder with files of this split."""
    return Path(source).expanduser().is_dir() and split in files_by_split(Path(source).expanduser())


def files_by_split(path: Path) -> dict[str, list[Path]]:
    """The data files at a path, by the splits that it has."""
    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist.")
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise ValueError(f"`{path}` must end in {', '.join(SUFFIXES)}.")
        return {"train": [path]}

    # 1. All the way down, without what systems hide there
    files = []
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        hidden = any(part.startswith((".", "__")) for part in parts)
        if file.is_file() and file.suffix.lower() in READERS and not hidden:
            files.append(file)
    if not files:
        raise FileNotFoundError(f"`{path}` holds no file that ends in {', '.join(SUFFIXES)}.")

    # 2. Folders name splits, or else files do.
    splits = by_split(path, files, of_folders=True) or by_split(path, files, of_folders=False)
    if not splits:
        return {"train": files}

    # 3. Others, such as a list of labels, are of no split.
    chosen = {file for split_files in splits.values() for file in split_files}
    others = [str(file.relative_to(path)) for file in files if file not in chosen]
    if others:
        log_once(
            f"`{path}` has the splits {', '.join(splits)}; left out, since their names are of none of them: "
            f"{', '.join(others[:10])}{' ...' if len(others) > 10 else ''}"
        )
    return splits


def by_split(folder: Path, files: Iterable[Path], of_folders: bool) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {name: [] for name in SPLIT_WORDS}
    for file in files:
        parts = file.relative_to(folder).parts
        names = set()
        for part in parts[:-1] if of_folders else parts[-1:]:
            names |= named_splits(part)
        if len(names) > 1:
            raise ValueError(f"`{file}` must be of one split, but its name says {sorted(names)}.")
        for name in names:
            splits[name].append(file)
    return {name: split_files for name, split_files in splits.items() if split_files}


def named_splits(name: str) -> set[str]:
    """The splits of which a word stands in a name, between marks, digits or spaces.

    Example:
        >>> from text_diffusers.data.local_files import named_splits
        >>> named_splits("my-dev_00.csv"), named_splits("latest.csv")
        ({'validation'}, set())
    """
    words = re.split(r"[-._ 0-9]+", name.lower())
    return {split for split, names in SPLIT_WORDS.items() if not set(names).isdisjoint(words)}


def split_name(split: str) -> str:
    for name, words in SPLIT_WORDS.items():
        if split.lower() in words:
            return name
    return split


# Their rows


def read_files(files: Sequence[str], columns: Mapping[str, str], sample_by: str) -> Iterator[Row]:
    """The rows of all files, one after the other; see `read_rows`."""
    labels = LabelReader()
    for file in files:
        yield from read_rows(Path(file), columns, sample_by, labels)


def load_files(files: Sequence[Path], columns: Mapping[str, str], sample_by: str) -> Dataset:
    """The rows of files as a data set on the disk, which is read again only if their content changes.

    Args:
        columns: name in the files of each role.
    """
    # 1. By their content, wherever they lie and whenever they were written
    digest = hashlib.sha256(repr((READER_VERSION, sorted(columns.items()), sample_by)).encode())
    for file in files:
        digest.update(f"\n{file.suffix.lower()} {file.stat().st_size}\n".encode())
        with open(file, "rb") as content:
            while chunk := content.read(READ_BYTES):
                digest.update(chunk)
    key = digest.hexdigest()[:32]

    # 2. What `datasets` makes of them later, it puts beside them.
    folder = writable_folder(Path(HF_DATASETS_CACHE, "text_diffusers", key))
    path = folder / "documents.arrow"
    if not path.exists():
        write_rows(path, read_files([str(file) for file in files], columns, sample_by), columns)
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint=key)


def writable_folder(folder: Path) -> Path:
    """The folder, which is made if need be, or a temporary one if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    temporary = Path(get_temporary_cache_files_directory(), folder.name)
    temporary.mkdir(parents=True, exist_ok=True)
    log_once(f"`{folder.parent}` cannot be written to: texts are read again by every run.")
    return temporary


def write_rows(path: Path, rows: Iterable[Row], roles: Iterable[str]):
    """Write rows into an Arrow file, all of them or none."""
    schema = pyarrow.schema([(role, ARROW_TYPES[role]) for role in roles])

    # Another process may write the same: the last one wins, and both are whole.
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with pyarrow.ipc.new_stream(str(temporary), schema) as writer:
            for batch in batches(rows):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema))
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(size_of(value) for value in row.values())
        # Books are long, lines are many.
        if len(batch) == ROWS_PER_BATCH or size > CHARACTERS_PER_BATCH:
            yield batch
            batch = []
            size = 0
    if batch:
        yield batch


def size_of(value: Any) -> int:
    """Characters of a text, a list of words or turns, about."""
    if value is None:
        return 0
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sum(len(turn["content"]) for turn in value)
    return len(value)


def stream_files(
    files: Sequence[Path], columns: Mapping[str, str], sample_by: str, source: str
) -> IterableDataset:
    """The rows of files as a stream; all are read once before, so that a mistake shows at once."""
    names = [str(file) for file in files]
    numbered = False
    reasons: Counter[str] = Counter()
    num_rows = 0
    for row in read_files(names, columns, sample_by):
        num_rows += 1
        reason = missing_part(row)
        if reason is not None:
            reasons[reason] += 1
        # All labels are numbers if one is.
        numbered = numbered or isinstance(plain_label(row.get("label"), ""), int)
    if reasons:
        log_missing(source, reasons, num_rows)

    types = Features.from_arrow_schema(
        pyarrow.schema([(role, ARROW_TYPES[role]) for role in columns])
    )
    if numbered:
        types["label"] = Value("int64")
    return IterableDataset.from_generator(
        stream_rows,
        features=types,
        gen_kwargs={
            "files": names,
            "columns": dict(columns),
            "sample_by": sample_by,
            "numbered": numbered,
        },
    )


def stream_rows(
    files: Sequence[str], columns: Mapping[str, str], sample_by: str, numbered: bool
) -> Iterator[Row]:
    for row in read_files(files, columns, sample_by):
        if numbered and row["label"] is not None:
            row["label"] = int(row["label"])
        yield row


# What is left out


def missing_part(row: Row) -> str | None:
    """Why a row is left out: a text, source, label or turn that is missing or blank; `None` if it is complete."""
    for role in ("text", "source"):
        if role in row:
            if row[role] is None:
                return f"with a null {role}"
            if not row[role].strip():
                return f"with a blank {role}"
    if "label" in row and row["label"] in (None, MISSING):
        return "without a label"
    if "messages" in row and row["messages"] is None:
        return "with an empty turn"
    if "messages" in row and not has_answer(row["messages"]):
        return "without an answer to learn"
    return None


def log_missing(source: str, reasons: Counter[str], num_rows: int):
    listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    log_once(f"`{source}`: left out {reasons.total():,} of {num_rows:,} rows: {listed}.")


def log_once(message: str):
    """Warn, of several processes in the first alone."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning(message)
