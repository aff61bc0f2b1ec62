"""Texts: their sources, what is held out, and the training of tokenizers. Knows nothing of diffusion.

A document is one text.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AddedToken, PreTrainedTokenizerFast

EOS_TOKEN, PAD_TOKEN, MASK_TOKEN = "[EOS]", "[PAD]", "[MASK]"
BUILDERS = {".txt": "text", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
VOCABULARY_LIMITS = (300, 65_536)

# Loaders of data sets by a name, for `load_documents`; see `register_corpora`.
CORPORA: dict[str, Callable[[], Dataset]] = {}


def register_corpora(loaders: Mapping[str, Callable[[], Dataset]]):
    """Make names known to `load_documents`, each with a function that returns its documents.

    Example:
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
        source: a name of `CORPORA`, a file or folder of .txt, .jsonl, .csv or .parquet
            files, or the name of a Hub data set.
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
    path = Path(source)
    if path.exists() or path.suffix in BUILDERS or source.startswith((".", "/", "~")):
        files = find_files(path.expanduser())
        builder = BUILDERS[files[0].suffix]
        for file in files:
            check_file(file, text_column, label_column, source_column)
        options: dict[str, Any] = {"sample_by": sample_by} if builder == "text" else {}
        names = [str(file) for file in files]
        options |= {"data_files": names, "split": "train", "streaming": streaming}
        documents = load_dataset(builder, **options)
    else:
        documents = load_dataset(source, split=split, streaming=streaming)
        columns = documents.column_names or [text_column]
        for column in filter(None, (text_column, label_column, source_column)):
            if column not in columns:
                raise ValueError(f"`{source}` has no column {column!r}; it has {columns}.")
    roles = {"text": text_column, "label": label_column, "source": source_column}
    renamed = {column: role for role, column in roles.items() if column}
    documents = documents.rename_columns({old: new for old, new in renamed.items() if old != new})
    documents = documents.select_columns(list(renamed.values()))
    return documents.filter(lambda row: bool(row["text"] and row["text"].strip()))


def find_files(path: Path) -> list[Path]:
    """The data files at `path`, a file or a folder, all of one kind, sorted."""
    if not path.exists():
        raise FileNotFoundError(f"`{path}` does not exist.")
    candidates = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [p for p in candidates if p.suffix in BUILDERS]
    if not files:
        raise FileNotFoundError(f"`{path}` holds no file that ends in {', '.join(BUILDERS)}.")
    kinds = sorted({p.suffix for p in files})
    if len(kinds) > 1:
        raise ValueError(f"`{path}` mixes {', '.join(kinds)}; name one file, or a folder of one kind.")
    return files


def check_file(path: Path, *names_of_columns: str | None):
    """Raise a ValueError that names the file and line if it is empty, not UTF-8, or lacks a column."""
    columns = [column for column in names_of_columns if column]
    if path.suffix == ".parquet":
        import pyarrow.parquet

        names = pyarrow.parquet.read_schema(path).names
        if missing := [column for column in columns if column not in names]:
            raise ValueError(f"{path}: no column {missing[0]!r}; it has {names}.")
        return
    number, blank = 0, True
    for number, line in enumerate(utf8_lines(path), start=1):
        blank = blank and not line.strip()
        if path.suffix == ".csv" and number == 1:
            names = next(csv.reader([line]), [])
            if missing := [column for column in columns if column not in names]:
                raise ValueError(f"{path}, line 1: no column {missing[0]!r}; it has {names}.")
        if path.suffix == ".jsonl" and line.strip():
            check_json_line(path, number, line, columns)
    if blank or (path.suffix == ".csv" and number < 2):
        raise ValueError(f"{path}, line {max(number, 1)}: the file holds no text.")


def check_json_line(path: Path, number: int, line: str, columns: list[str]):
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg} at column {error.colno}).") from error
    if not isinstance(record, dict) or any(column not in record for column in columns):
        raise ValueError(f"{path}, line {number}: expected an object with {columns}, got {line.strip()[:80]!r}.")


def utf8_lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte, position = line[error.start], error.start + 1
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x} at position {position}); "
                    "convert the file, for example with `iconv -t utf-8`."
                ) from error


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` tokens of data, `[EOS]` among them, then `[PAD]` and `[MASK]`.

    `[EOS]` separates documents, so it is also the token a text begins after (`bos_token`). Padding and mask have the
    last two ids: the first `vocab_size` are what text consists of. `[MASK]` takes in the space before it.

    Raises:
        ValueError: if `vocab_size` is outside its limits, or the texts are too few for it.
    """
    low, high = VOCABULARY_LIMITS
    if not low <= vocab_size <= high:
        raise ValueError(f"`vocab_size` must be between {low} and {high}, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"`vocab_size` must be at most {tokenizer.get_vocab_size()} for this text, which has no more repeated "
            f"pairs to merge; got {vocab_size}."
        )
    tokenizer.add_special_tokens([PAD_TOKEN, AddedToken(MASK_TOKEN, lstrip=True, special=True)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        mask_token=AddedToken(MASK_TOKEN, lstrip=True, special=True),
        clean_up_tokenization_spaces=False,
    )


def split_documents(
    documents: Dataset | IterableDataset, validation_fraction: float = 0.05, validation_documents: int = 1_000
) -> tuple[Dataset | IterableDataset, Dataset]:
    """`(train, validation)`: the last documents are held out, so neighbouring texts do not leak across.

    Of a stream, whose length is unknown, the first `validation_documents` are held out and kept in memory.
    """
    if isinstance(documents, IterableDataset):
        train = documents.skip(validation_documents)
        if next(iter(train), None) is None:
            raise ValueError(
                f"`validation_documents`={validation_documents} leaves no text of this stream to train on."
            )
        return train, Dataset.from_list(list(documents.take(validation_documents)))
    if not 0 < validation_fraction < 1:
        raise ValueError(f"`validation_fraction` must be between 0 and 1, exclusive, got {validation_fraction!r}.")
    held_out = max(1, round(len(documents) * validation_fraction))
    if held_out >= len(documents):
        raise ValueError(f"`documents` must hold at least 2 texts, to hold one out, got {len(documents)}.")
    cut = len(documents) - held_out
    return documents.select(range(cut)), documents.select(range(cut, len(documents)))
