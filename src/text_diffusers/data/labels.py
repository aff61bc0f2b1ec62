"""Class labels of documents: numbers from 0, or words, which become the names of the classes."""

import logging
import math
import re
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset

from text_diffusers.data.rows import Columns

logger = logging.getLogger(__name__)

Label = int | str
# As 3 and 3.0 are written; 03 is a word
WHOLE_NUMBER = re.compile(r"(0|[1-9][0-9]*)(\.0*)?")
OTHER_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+|[+-]?[0-9]+\.")
MISSING = -1  # among the numbers of a `datasets.ClassLabel`
SHOWN_LABELS = 20


class LabelReader:
    """The labels of a data set, one after the other: all are numbers, or all are words.

    Example:
        >>> from text_diffusers.data.labels import LabelReader
        >>> read_label = LabelReader()
        >>> [read_label(value, "line 1") for value in ("1.0", 2.0, None, "")]
        [1, 2, None, None]
        >>> read_label("good", "line 5")
        Traceback (most recent call last):
        ValueError: Labels must be all numbers or all words, got 1 (line 1) and 'good' (line 5).
    """

    def __init__(self):
        # The first of each kind, for the message
        self.number: str | None = None
        self.word: str | None = None

    def __call__(self, value: Any, place: str) -> Label | None:
        """A label as a whole number or a word; `None` if it is missing.

        Args:
            place: where it stands, for errors.

        Raises:
            ValueError: if it is a negative number or a fraction, or of another kind than those before.
        """
        label = plain_label(value, place)
        if isinstance(label, int):
            self.number = self.number or f"{label} ({place})"
        elif label is not None:
            self.word = self.word or f"{label!r} ({place})"
        if self.number and self.word:
            raise ValueError(
                f"Labels must be all numbers or all words, got {self.number} and {self.word}."
            )
        return label


def plain_label(value: Any, place: str) -> Label | None:
    """A number or a word; truth values are the words "false" and "true"."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (int, float, str)):
        raise ValueError(f"{place}: a label must be a number or a word, got {value!r}.")

    word = str(value)
    whole_number = WHOLE_NUMBER.fullmatch(word)
    if whole_number:
        return int(whole_number[1])
    # -1 often stands for a missing label, and one of a thousand fractions is no class.
    if OTHER_NUMBER.fullmatch(word) and not word.isdecimal():
        raise ValueError(
            f"{place}: a label must be a whole number from 0, or a word, got {word}; leave the label empty where "
            "there is none."
        )
    return word if word.strip() else None


def typed_labels(documents: Dataset, source: str) -> Dataset:
    """Documents whose `label` is a column of integers from 0 or of words, `None` where it is missing.

    Labels of the type `datasets.ClassLabel` are integers with names, and stay as they are.

    Raises:
        ValueError: naming the row of `source`, if a label is neither or of another kind than the others.
    """
    feature = documents.features["label"]
    if isinstance(feature, ClassLabel):
        return documents

    read_label = LabelReader()
    labels = []
    for number, value in enumerate(documents["label"][:], start=1):
        labels.append(read_label(value, f"`{source}`, row {number}"))
    if str(getattr(feature, "dtype", "")).startswith("int"):
        return documents
    return documents.remove_columns("label").add_column("label", labels)


def number_labels(
    documents: Dataset | IterableDataset, names: Sequence[str | None] | None = None
) -> tuple[Any, list[Any] | None]:
    """Documents with labels from 0, and the names of the classes: `names`, or the words in alphabetical order.

    Args:
        documents: from `load_documents`; a stream of words is gone through once more.
        names: of the classes, if they are known. Words are looked up among them; numbers stay as they are.

    Returns:
        `(documents, names)`; without `names`, numbers have none.

    Raises:
        ValueError: if a word is not among `names`.

    Example:
        >>> from datasets import Dataset
        >>> from text_diffusers.data.labels import number_labels
        >>> documents = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["sad", "happy", "sad"]})
        >>> numbered, names = number_labels(documents)
        >>> numbered["label"][:], names
        ([1, 0, 1], ['happy', 'sad'])
    """
    # 1. Numbers stay as they are, unless they are names.
    own_names = names_of(documents)
    labels = sorted(labels_in(documents))
    if own_names is None and not any(isinstance(label, str) for label in labels):
        ids: dict[Any, int] = dict(zip(labels, class_numbers(labels, names or ()), strict=True))
        if any(label != number for label, number in ids.items()):
            documents = renumbered(documents, ids)
        return documents, None if names is None else list(names)

    # 2. So do those of a data set that numbers its names itself, unless a model knows these by other numbers.
    if own_names is not None:
        if names is None or not set(own_names) <= set(names):
            return documents, own_names if names is None else list(names)
        ids = dict(enumerate(class_numbers(own_names, names)))
        return renumbered(documents, ids), list(names)

    # 3. Words by the alphabet, so that the same words have the same numbers in any data
    class_names = labels if names is None else list(names)
    ids = dict(zip(labels, class_numbers(labels, class_names), strict=True))
    return renumbered(documents, ids), class_names


def renumbered(documents: Any, ids: dict[Any, int]) -> Any:
    def with_ids(columns: Columns) -> Columns:
        return {"label": [ids[label] for label in columns["label"]]}

    if isinstance(documents, IterableDataset):
        return documents.map(with_ids, batched=True)
    labels = with_ids({"label": documents["label"][:]})["label"]
    return documents.remove_columns("label").add_column("label", labels)


def class_numbers(labels: Iterable[Label], names: Sequence[str | None]) -> list[int]:
    """Labels as a model of these class names numbers them; numbers that are no names stay as they are.

    Raises:
        ValueError: naming the words that are not among `names`.

    Example:
        >>> from text_diffusers.data.labels import class_numbers
        >>> class_numbers(["sad", "happy"], names=["happy", "sad"])
        [1, 0]
        >>> class_numbers([0, 1], names=["happy", "sad"])
        [0, 1]
    """
    labels = list(labels)
    numbers = {name: number for number, name in enumerate(names) if name is not None}
    if all(str(label) in numbers for label in labels):
        return [numbers[str(label)] for label in labels]

    unknown = sorted({label for label in labels if isinstance(label, str)} - numbers.keys())
    if unknown:
        limit = f"be among the names {list(numbers)}" if numbers else "be numbers: none has a name"
        raise ValueError(f"Labels of this model must {limit}, got {shown(unknown)}.")
    return [int(label) for label in labels]


def names_of(documents: Any) -> list[str] | None:
    """The names of labels that the data set numbers itself."""
    feature = (documents.features or {}).get("label")
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def labels_in(documents: Dataset | IterableDataset) -> set[Any]:
    if isinstance(documents, IterableDataset):
        return {row["label"] for row in documents}
    return set(documents["label"][:])


def check_classes(
    train: Any, validation: Any, names: Sequence[str] | None, known_classes: bool = False
) -> int:
    """The number of classes of training texts with labels from 0.

    Args:
        train, validation: documents from `number_labels`.
        names: of the classes, if they have any.
        known_classes: whether the model has learned its classes before, so that texts may lack some.

    Raises:
        ValueError: naming the classes without a text to learn them from, or that are held out only.
    """
    present = labels_in(train)
    num_classes = max(present) + 1
    if known_classes:
        return num_classes

    # What is not there cannot be learned, and would look like a class when it is asked for.
    held_out = labels_in(validation) - present
    if held_out:
        raise ValueError(
            f"`label_column` holds {called(held_out, names)} in held-out texts only, and nothing to learn it from: "
            "shuffle the texts, or hold out others."
        )
    numbers = range(num_classes if names is None else len(names))
    absent = (number for number in numbers if number not in present)
    # Numbers may be as large as years, so the first are enough.
    missing = list(islice(absent, SHOWN_LABELS))
    if missing and names is None:
        labels = sorted(present)
        example = " ".join(str(label) for label in labels[:SHOWN_LABELS])
        raise ValueError(
            f"`label_column` must hold the numbers from 0 on without a gap, got {shown(labels)}: no text has "
            f"{shown(missing)}. Make them names, `--label_names {example}`, or words, or number them anew."
        )
    if missing:
        logger.warning(
            f"No text has the labels {called(missing, names)}: nothing is learned of them."
        )
    return num_classes


def called(labels: Collection[int], names: Sequence[str] | None) -> str:
    named = names or ()
    return shown([named[label] if label < len(named) else label for label in sorted(labels)])


def shown(labels: Sequence[Any]) -> str:
    """At most so many, for a message."""
    more = len(labels) - SHOWN_LABELS
    listed = ", ".join(repr(label) for label in labels[:SHOWN_LABELS])
    return f"{listed} and {more} more" if more > 0 else listed
