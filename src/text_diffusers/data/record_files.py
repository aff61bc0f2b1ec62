"""Rows of .txt, .csv, .tsv, .json, .jsonl and .parquet files, as they stand there; errors name file and line."""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from text_diffusers.common.plain_text import check_unicode
from text_diffusers.common.validation import require_key
from text_diffusers.data.labels import LabelReader
from text_diffusers.data.messages import as_turns
from text_diffusers.data.text_files import read_lines, read_paragraphs, with_newline, without_end

# What one text of a .txt file is
SAMPLINGS = ("line", "paragraph", "document")
# The first that gives the columns is taken.
DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}
LONGEST_FIELD = 2**31 - 1  # of a .csv file, in characters; by default Python refuses books

# Roles of columns of conversations
TURN_ROLES = ("messages", "prompt", "completion")

# A line or row, counted from 1, and the values of its columns by their names in the file
Records = Iterator[tuple[int, Mapping[str, Any]]]
# Values by their roles, such as "text"
Row = dict[str, Any]


def read_rows(
    path: Path,
    columns: Mapping[str, str],
    sample_by: str = "line",
    labels: LabelReader | None = None,
) -> Iterator[Row]:
    """The rows of a file: texts, sources and labels as strings, words and tags as lists; `None` for what is missing.

    Numbers, dates and truth values are what is written in the file. Conversations are turns of one form.

    Args:
        columns: name in the file of each role: `text`, `source`, `label`, `words`, `tags`, or for conversations
            `messages`, `prompt` and `completion`.
        sample_by: of `SAMPLINGS`.
        labels: reads labels; the same for all files of a data set, so that it sees when they disagree.

    Raises:
        ValueError: naming file and line, if the file cannot be read so, or holds no text.
    """
    read_label = labels or LabelReader()
    noun = "row" if path.suffix.lower() == ".parquet" else "line"
    number = 0
    blank = True
    for number, record in READERS[path.suffix.lower()](path, [*columns.values()], sample_by):
        place = f"{path}, {noun} {number}"
        row: Row = {}
        for role, column in columns.items():
            value = record[column]
            if role == "label":
                label = read_label(value, place)
                row[role] = None if label is None else as_text(str(label), place, column)
            elif role in ("words", "tags"):
                row[role] = as_list(value, place, column)
            elif role in TURN_ROLES:
                row[role] = as_turns(value, role, place)
            else:
                row[role] = as_text(value, place, column)
        blank = blank and not has_content(row)
        yield row

    # One part of a table may well be empty.
    if blank and noun == "line":
        raise ValueError(f"{path}, line {max(number, 1)}: the file holds no text.")


def has_content(row: Row) -> bool:
    # A row has one of these.
    content = [row[role] for role in ("text", "words", "messages", "completion") if role in row]
    return any(value.strip() if isinstance(value, str) else value for value in content)


def as_text(value: Any, place: str, column: str) -> str | None:
    if value is None or isinstance(value, str):
        check_characters([value or ""], place, column)
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        raise ValueError(
            f"{place}: `{column}` must hold a text, got a list of messages, {str(value)[:80]}...; a row holds one "
            "text, such as one message."
        )
    if isinstance(value, (list, dict, bytes)):
        raise ValueError(f"{place}: `{column}` must hold a text, got {str(value)[:80]!r}.")
    return str(value)


def as_list(value: Any, place: str, column: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, (str, int)) for item in value):
        raise ValueError(f"{place}: `{column}` must hold a list of words, got {str(value)[:80]!r}.")
    words = [str(item) for item in value]
    check_characters(words, place, column)
    return words


def check_characters(texts: Sequence[str], place: str, column: str):
    # JSON may spell half of a character, which no file and no tokenizer can hold.
    try:
        check_unicode(column, texts)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


# Readers of each kind of file


def text_records(path: Path, columns: Sequence[str], sample_by: str) -> Records:
    """Lines, paragraphs, or the whole file."""
    check_columns(f"{path}", ["text"], columns)
    require_key("sample_by", sample_by, SAMPLINGS)
    if sample_by == "line":
        for number, line in enumerate(read_lines(path), start=1):
            yield number, {"text": without_end(line)}
        return

    if sample_by == "document":
        yield 1, {"text": "".join(map(with_newline, read_lines(path)))}
        return

    number = 1
    for paragraph in read_paragraphs(path):
        # Several empty lines are one gap.
        if paragraph:
            yield number, {"text": paragraph}
        number += paragraph.count("\n") + 2


def csv_records(path: Path, columns: Sequence[str], sample_by: str) -> Records:
    """Records of a table with a header, between commas, semicolons, tabs or bars: the first that give the columns."""
    # 1. The delimiter, by the first line that is not empty
    lines = read_lines(path)
    head = []
    for line in lines:
        head.append(line)
        if line.strip():
            break
    else:
        return
    delimiter = find_delimiter(head[-1], DELIMITERS[path.suffix.lower()], columns)

    # 2. The names of the columns
    records = csv_fields(path, chain(head, lines), delimiter)
    number, header = next(records)
    check_columns(f"{path}, line {number}", header, columns)
    for column in columns:
        if header.count(column) > 1:
            raise ValueError(f"{path}, line {number}: the column {column!r} is there twice.")

    # 3. The rows
    for number, fields in records:
        if len(fields) != len(header):
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields between {delimiter!r}, but {len(header)} columns; "
                f'a text that holds {delimiter!r} is written "in quotes".'
            )
        yield number, dict(zip(header, fields, strict=True))


def csv_fields(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of each record, and the line in which it begins."""
    csv.field_size_limit(LONGEST_FIELD)
    # Strict, so that a quote in the wrong place is an error and does not join rows
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        # A record may take several lines; what is wrong with it began in the first.
        number = records.line_num + 1
        try:
            fields = next(records, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {number}: a quote that is not closed, or stands within a text ({error}); a text with "
                'quotes is written "so, with ""two"" of them".'
            ) from error
        if fields is None:
            return
        # An empty line between records is none.
        if fields:
            yield number, fields


def find_delimiter(line: str, delimiters: str, columns: Sequence[str]) -> str:
    """The first delimiter that finds the columns in a header, or else the one that finds most names."""
    num_names = {}
    for delimiter in delimiters:
        names = next(csv.reader([line], delimiter=delimiter), [])
        if set(columns) <= set(names):
            return delimiter
        num_names[delimiter] = len(names)
    return max(delimiters, key=lambda delimiter: num_names[delimiter])


def json_line_records(path: Path, columns: Sequence[str], sample_by: str) -> Records:
    """Objects, one a line."""
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield number, read_object(line, f"{path}, line {number}", columns)


def json_records(path: Path, columns: Sequence[str], sample_by: str) -> Records:
    """The objects of a list, or objects one a line."""
    content = "".join(read_lines(path))
    position = after_blanks(content, 0)
    if content[position : position + 1] != "[":
        yield from json_line_records(path, columns, sample_by)
        return

    # One object after the other, so that each has its line
    decoder = json.JSONDecoder()
    line = 1 + content.count("\n", 0, position)
    separator = "["
    while True:
        start = after_blanks(content, position + len(separator))
        line += content.count("\n", position, start)
        if content[start : start + 1] == "]" and separator == "[":
            return
        try:
            _, end = decoder.raw_decode(content, start)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {error.lineno}: not JSON ({error.msg} at column {error.colno})."
            ) from error
        yield line, read_object(content[start:end], f"{path}, line {line}", columns)

        position = after_blanks(content, end)
        line += content.count("\n", start, position)
        separator = content[position : position + 1]
        if separator == "]" and not content[position + 1 :].strip():
            return
        if separator != ",":
            raise ValueError(f"{path}, line {line}: not JSON (',' or the last ']' expected).")


def after_blanks(content: str, position: int) -> int:
    while content[position : position + 1].isspace():
        position += 1
    return position


def read_object(text: str, place: str, columns: Sequence[str]) -> Mapping[str, Any]:
    """An object, in which numbers of these columns are strings, as they were written."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error.msg} at column {error.colno}).") from error
    if not isinstance(record, dict) or not record.keys() >= set(columns):
        raise ValueError(
            f"{place}: expected an object with {list(columns)}, got {text.strip()[:80]!r}."
        )

    values = [record[column] for column in columns]
    if any(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        written = json.loads(text, parse_int=str, parse_float=str)
        record = {column: written[column] for column in columns}
    return {column: without_nan(record[column]) for column in columns}


def parquet_records(path: Path, columns: Sequence[str], sample_by: str) -> Records:
    """Rows of a table, numbers and dates as Arrow writes them."""
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not Parquet ({error}).") from error
    check_columns(f"{path}", file.schema_arrow.names, columns)

    number = 0
    for batch in file.iter_batches(columns=list(columns)):
        values = {column: arrow_values(batch.column(column)) for column in columns}
        for index in range(batch.num_rows):
            number += 1
            yield number, {column: values[column][index] for column in columns}


def arrow_values(array: pyarrow.Array) -> list[Any]:
    kind = array.type
    is_date = pyarrow.types.is_temporal(kind) or pyarrow.types.is_decimal(kind)
    values = array.cast(pyarrow.string()).to_pylist() if is_date else array.to_pylist()
    return [without_nan(value) for value in values]


def without_nan(value: Any) -> Any:
    """`None` for the number that tables have in place of what is missing."""
    return None if isinstance(value, float) and math.isnan(value) else value


def check_columns(place: str, names: Sequence[str], columns: Sequence[str]):
    for column in columns:
        if column not in names:
            raise ValueError(f"{place}: no column {column!r}; it has {list(names)}.")


READERS: dict[str, Callable[[Path, Sequence[str], str], Records]] = {
    ".txt": text_records,
    ".csv": csv_records,
    ".tsv": csv_records,
    ".json": json_records,
    ".jsonl": json_line_records,
    ".parquet": parquet_records,
}
