"""Documents: where texts come from, and which of them are held out. Knows nothing of diffusion.

A document is one text. A source is a registered name, a file, a folder of files, or a data set of the Hub.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from typing import Any

import pyarrow
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetsError

from text_diffusers.common.validation import closest_name
from text_diffusers.data.labels import LabelReader, typed_labels
from text_diffusers.data.local_files import (
    ARROW_TYPES,
    SUFFIXES,
    find_files,
    has_split,
    is_local,
    load_files,
    log_missing,
    log_once,
    missing_part,
    split_name,
    stream_files,
)
from text_diffusers.data.messages import FORMS, as_turns, conversation_columns
from text_diffusers.data.record_files import READERS, Row

# Documents that are looked at together; they may be books.
LOOKED_AT_ONCE = 100

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

    Texts are what stands in the files, to the character: "NA" is a text, and so is 007. Rows without a text, source or
    label are left out, and counted in a warning. Labels are integers from 0, or words, see
    `text_diffusers.data.labels.number_labels`.

    Args:
        source: a name of `CORPORA`, a file or folder of .txt, .csv, .tsv, .json, .jsonl or .parquet files, or the name
            of a Hub data set. Text files are in UTF-8, or begin with the mark of UTF-16 or UTF-32.
        text_column, label_column: names in the source.
        split: of a Hub data set, or of a folder whose files or sub-folders are called train, validation and test.
        sample_by: what one document of a .txt file is: "line", "paragraph" or "document" (the whole file).
        streaming: reads as it goes, for what does not fit on the disk or in memory.
        source_column: name in the source of the texts that `text` is to be written from.

    Raises:
        FileNotFoundError: if a path does not exist or holds no such file.
        ValueError: naming file and line, if a file is empty, not UTF-8, lacks the column or cannot be read; naming the
            splits that there are, if it has no such split.
    """
    columns = {"text": text_column}
    if label_column:
        columns["label"] = label_column
    if source_column:
        columns["source"] = source_column

    documents = load_columns(source, columns, split=split, streaming=streaming, sample_by=sample_by)
    return without_gaps(documents, source)


def load_columns(
    source: str,
    columns: Mapping[str, str],
    split: str = "train",
    streaming: bool = False,
    sample_by: str = "line",
    suffixes: Collection[str] = SUFFIXES,
) -> Any:
    """The columns of a source by the names of their roles; every file is checked first.

    Args:
        columns: name in the source of each role; other columns are left out.
        suffixes: of the kinds of files that can hold such columns.
    """
    if source not in CORPORA and is_local(source):
        files = find_files(source, split)
        if files[0].suffix.lower() not in suffixes:
            raise ValueError(
                f"`dataset` must be {' or '.join(suffixes)} to hold {' and '.join(columns)}, got {source!r}."
            )
        if streaming:
            return stream_files(files, columns, sample_by, source)
        documents = load_files(files, columns, sample_by)
        return typed_labels(documents, source) if "label" in columns else documents

    if source in CORPORA:
        if split != "train":
            raise ValueError(f"`split` must be train, all that {source!r} has, got {split!r}.")
    documents = load_by_name(source, split, streaming)
    # What a loader reads may be another text the next time.
    corpus.cache_clear()
    return named_by_role(documents, columns, source)


def load_by_name(source: str, split: str, streaming: bool) -> Any:
    """The documents of a registered name or of the Hub, with all their columns."""
    return corpus(CORPORA[source]) if source in CORPORA else load_from_hub(source, split, streaming)


@lru_cache(maxsize=1)
def corpus(loader: Callable[[], Dataset]) -> Dataset:
    """What a loader of `CORPORA` returns; it is asked once, though its columns are looked at before."""
    return loader()


def find_conversations(
    source: str, text_column: str = "text", split: str = "train", streaming: bool = False
) -> dict[str, str]:
    """The columns of conversations of a source, see `conversation_columns`; none of one that holds texts.

    Args:
        source, split, streaming: as in `load_documents`.

    Raises:
        FileNotFoundError, ValueError: as `load_documents`.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.sources import find_conversations, register_corpora
        >>> turns = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello!"}]
        >>> register_corpora({"greetings": lambda: Dataset.from_dict({"messages": [turns]})})
        >>> find_conversations("greetings")
        {'messages': 'messages'}
    """
    if source in CORPORA or not is_local(source):
        # Nothing is known of an empty one.
        record = next(iter(load_by_name(source, split, streaming)), {})
        return conversation_columns(record, text_column)

    # A file is read as one of texts, and else as one of conversations.
    path = find_files(source, split)[0]
    for columns in ({"text": text_column}, *FORMS):
        try:
            _, record = next(READERS[path.suffix.lower()](path, [*columns.values()], "line"))
        # Without these columns, or damaged, of which the one who reads it all will speak
        except (ValueError, StopIteration):
            continue
        return conversation_columns(record, text_column)
    return {}


def load_conversations(
    source: str, columns: Mapping[str, str], split: str = "train", streaming: bool = False
) -> Dataset | IterableDataset:
    """Conversations of a source as a data set with the column `messages`, turns as `as_turns` makes them.

    Conversations without an answer, or with a turn that says nothing, are left out, and counted in a warning.

    Args:
        columns: by their roles, as `find_conversations` returns them.
        source, split, streaming: as in `load_documents`.

    Raises:
        FileNotFoundError, ValueError: as `load_documents`; or if a value is no conversation.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.sources import load_conversations, register_corpora
        >>> columns = {"prompt": ["Say hi.", "Say bye."], "completion": ["Hi!", "Bye!"]}
        >>> register_corpora({"orders": lambda: Dataset.from_dict(columns)})
        >>> chats = load_conversations("orders", {"prompt": "prompt", "completion": "completion"})
        >>> [(turn["role"], turn["learned"]) for turn in chats[0]["messages"]]
        [('user', False), ('assistant', True)]
    """
    documents = load_columns(source, columns, split=split, streaming=streaming)
    is_read = source not in CORPORA and is_local(source)

    def joined(row: Row, index: int) -> Row:
        halves = []
        for role in columns:
            place = f"`{source}`, row {index + 1}"
            halves.append(row[role] if is_read else as_turns(row[role], role, place))
        return {"messages": None if None in halves else sum(halves, [])}

    # Files already have turns of this form.
    if not is_read or "prompt" in columns:
        features = Features.from_arrow_schema(
            pyarrow.schema([("messages", ARROW_TYPES["messages"])])
        )
        documents = documents.map(
            joined, with_indices=True, remove_columns=list(columns), features=features
        )
    return without_gaps(documents, source)


def load_from_hub(source: str, split: str, streaming: bool) -> Any:
    try:
        return load_dataset(source, split=split, streaming=streaming)
    except (FileNotFoundError, ConnectionError) as error:
        # The name may be a typo of any kind.
        names = f", nor one of the names {', '.join(sorted(CORPORA))}" if CORPORA else ""
        meant = closest_name(source, CORPORA)
        if meant is not None:
            names += f" (did you mean {meant!r}?)"
        raise FileNotFoundError(
            f"`dataset` {source!r} is no file or folder here{names}, and cannot be had from the Hub: {error}"
        ) from error
    except DatasetsError as error:
        raise ValueError(
            f"`dataset` {source!r} of the Hub cannot be read: {error.__cause__ or error}"
        ) from error


def named_by_role(documents: Any, columns: Mapping[str, str], source: str) -> Any:
    """The columns of a data set by their roles, texts as strings and labels as integers or words."""
    # A stream may not know its columns before it is read.
    names = documents.column_names or list(next(iter(documents), {}))
    for column in columns.values():
        if column not in names:
            raise ValueError(f"`{source}` has no column {column!r}; it has {list(names)}.")

    # One column may have two roles, and a role the name of another column.
    used = list(dict.fromkeys(columns.values()))
    renamed = {column: role for role, column in columns.items() if column != role}
    documents = documents.select_columns(used)
    if isinstance(documents, Dataset) and len(used) == len(columns):
        documents = documents.rename_columns(renamed)
    elif renamed:
        documents = picked_columns(documents, columns, used)

    for role in ("text", "source"):
        if role in columns:
            documents = with_strings(documents, role, source, columns[role])
    if "label" not in columns:
        return documents
    if isinstance(documents, IterableDataset):
        return stream_of_labels(documents, source)
    return typed_labels(documents, source)


def picked_columns(documents: Any, columns: Mapping[str, str], used: list[str]) -> Any:
    """The columns by their roles, as a map: streams cannot exchange names, and no data set has one column twice."""

    def by_role(row: Row) -> Row:
        return {role: row[column] for role, column in columns.items()}

    features = None
    if documents.features is not None:
        features = Features({role: documents.features[name] for role, name in columns.items()})
    return documents.map(by_role, remove_columns=used, features=features)


def with_strings(documents: Any, role: str, source: str, column: str) -> Any:
    """A column of texts as strings; numbers and dates are written out."""
    feature = (documents.features or {}).get(role)
    if feature is None or feature in (Value("string"), Value("large_string")):
        return documents
    if not isinstance(feature, Value) or feature.dtype == "binary":
        raise ValueError(
            f"`{source}`: the column {column!r} must hold texts, got {feature}; a row holds one text, such as one "
            "message."
        )
    return documents.cast_column(role, Value("string"))


def stream_of_labels(documents: IterableDataset, source: str) -> IterableDataset:
    """As `typed_labels`, row by row."""
    if isinstance((documents.features or {}).get("label"), ClassLabel):
        return documents
    read_label = LabelReader()

    def typed(row: Row, index: int) -> Row:
        return {"label": read_label(row["label"], f"`{source}`, row {index + 1}")}

    return documents.map(typed, with_indices=True)


def without_gaps(documents: Any, source: str) -> Any:
    """Documents without those that lack a text, source or label, which are counted in a warning."""
    if isinstance(documents, IterableDataset):
        # The files of a stream were read, and what they lack counted.
        counted = source not in CORPORA and is_local(source)
        return documents.filter(CompleteRows(source, warned=counted))

    kept = []
    reasons: Counter[str] = Counter()
    index = 0
    for batch in documents.iter(batch_size=LOOKED_AT_ONCE):
        for values in zip(*batch.values(), strict=True):
            reason = missing_part(dict(zip(batch, values, strict=True)))
            if reason is None:
                kept.append(index)
            else:
                reasons[reason] += 1
            index += 1
    if not kept:
        raise ValueError(f"`dataset` must hold at least one text, got none in {source!r}.")
    if not reasons:
        return documents
    log_missing(source, reasons, len(documents))
    return documents.select(kept)


class CompleteRows:
    """Whether a row of a stream is complete, with a warning at the first that is not."""

    def __init__(self, source: str, warned: bool):
        self.source = source
        self.warned = warned

    def __call__(self, row: Row) -> bool:
        reason = missing_part(row)
        if reason is not None and not self.warned:
            log_once(f"`{self.source}`: rows {reason} are left out, and any others with a gap.")
            self.warned = True
        return reason is None


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


def load_train_and_validation(
    load_split: Callable[..., Any],
    source: str,
    split: str = "train",
    validation_fraction: float = 0.05,
    validation_documents: int = 1_000,
    max_train_samples: int | None = None,
) -> tuple[Any, Any]:
    """`(train, validation)` of a source: its own splits, if it is a folder that has both, or by `split_documents`.

    Of a data set of the Hub the last training texts are held out, as of a file: its other splits stay unseen.

    Args:
        load_split: returns documents for an argument `split`.
        source: as in `load_documents`.
        split: to train on.
        validation_fraction, validation_documents: as in `split_documents`; of a stream with a split of its own, the
            first `validation_documents` of that.
        max_train_samples: training texts that are kept, the first; by default all. Which ones are held out does not
            depend on it.
    """
    train = load_split(split=split)
    is_folder = source not in CORPORA and is_local(source)
    if split_name(split) != "train" or not is_folder or not has_split(source, "validation"):
        train, validation = split_documents(train, validation_fraction, validation_documents)
    else:
        validation = load_split(split="validation")
        if isinstance(validation, IterableDataset):
            validation = Dataset.from_list(list(validation.take(validation_documents)))

    if max_train_samples is not None:
        train = train.take(max_train_samples)
    return train, validation
