"""Conversations of a sales team in files, ours and a company's own: .jsonl and .csv with the same columns.

| column | |
|---|---|
| `messages` | turns with a `role`, user, assistant or system, and a `content`; the last one is the reply |
| `question`, `reply` | in the place of `messages`, for a conversation of two turns |
| `language`, `tone`, `intent` | "en" or "ru"; a key of `TONES`; a key of `INTENTS` |
| `customer` | an object with `name` and `history`; in .csv the columns `customer_name` and `customer_history` |
| `product`, `price`, `delivery` | as the customer reads them: "$45", "tomorrow" |
| `stock` | a number of pieces |
| `other_product`, `other_price` | what the reply suggests beside the product |
| `note` | what the team sees of customer and product |
| `facts` | strings that the reply contains |
| `held_out` | why a conversation is not for training, or nothing |

Only the conversation must be there. What is left out is empty, and other columns are not read; a warning names those
whose name looks like a misspelling of these. In .csv, `messages` and `facts` are JSON.

Example:
    >>> from data_files import check_record
    >>> record = check_record({"question": "How much is it?", "reply": "It is $45."}, "row 1")
    >>> record["messages"][-1]
    {'role': 'assistant', 'content': 'It is $45.'}
"""

import csv
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conversations import (
    INTENTS,
    LANGUAGES,
    TONES,
    Record,
    generate,
    is_held_out,
    missing_facts,
    split,
)

from text_diffusers.common.validation import closest_name, did_you_mean, is_int
from text_diffusers.data.messages import as_turns
from text_diffusers.data.record_files import DELIMITERS, csv_records, find_delimiter
from text_diffusers.data.text_files import read_lines

logger = logging.getLogger(__name__)

# Columns of plain text, and those that choose among names
TEXTS = ("product", "price", "delivery", "other_product", "other_price", "note", "held_out")
CHOICES = {"language": LANGUAGES, "tone": TONES, "intent": INTENTS}

CUSTOMER_COLUMNS = {"customer_name": "name", "customer_history": "history"}
COLUMNS = ("messages", "facts", "stock", "customer", *CHOICES, *TEXTS)
# Of the lines of a note that is made of columns
NOTE_LABELS = {
    "en": {"customer": "Customer", "product": "Product", "other": "Also"},
    "ru": {"customer": "Клиент", "product": "Товар", "other": "Ещё"},
}
KNOWN_COLUMNS = (*COLUMNS, *CUSTOMER_COLUMNS, "question", "reply")

# Made-up conversations, of which some hundreds are held out
NUM_MADE_UP = 2_000


def read_records(path: str | Path) -> list[Record]:
    """The conversations of a .jsonl or .csv file, checked.

    Raises:
        ValueError: naming file, line and column, at the first value that does not fit.
    """
    path = Path(path)
    readers = {".jsonl": json_lines, ".csv": csv_lines}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise ValueError(f"`path` must end in .jsonl or .csv, got {str(path)!r}.")

    rows = [*readers[suffix](path)]
    if not rows:
        raise ValueError(f"{path} holds no conversation.")
    warn_of_misspelt_columns(path, [row for _, row in rows])
    return [check_record(row, f"{path}, line {number}") for number, row in rows]


def warn_of_misspelt_columns(path: Path, rows: list[Mapping[str, Any]]):
    """A company's file has columns of its own, but a misspelt one should not be left out in silence."""
    columns = dict.fromkeys(column for row in rows for column in row)
    for column in columns:
        meant = None if column in KNOWN_COLUMNS else closest_name(column, KNOWN_COLUMNS)
        if meant is not None and meant not in columns:
            logger.warning(f"{path}: `{column}` is not read; did you mean `{meant}`?")


def write_records(records: Iterable[Record], path: str | Path):
    """Write conversations to a .jsonl or .csv file, which `read_records` reads as they were."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".jsonl":
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        path.write_text("".join(lines), encoding="utf-8")
        return

    header = [*CUSTOMER_COLUMNS, *(column for column in COLUMNS if column != "customer")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(flat(record) for record in records)


def flat(record: Record) -> dict[str, Any]:
    """A record as a row of a table."""
    row = {name: value for name, value in record.items() if name != "customer"}
    for column, key in CUSTOMER_COLUMNS.items():
        row[column] = record["customer"][key]
    for column in ("messages", "facts"):
        row[column] = json.dumps(record[column], ensure_ascii=False)
    return row


# Reading


def json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        row = as_json(line, place, "the line")
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected an object with columns, got {line[:80]!r}.")
        # Nothing is a column that is left out.
        yield number, without_none(row)


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_none(part) for name, part in value.items() if part is not None}
    return value


def csv_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    # The columns that must be there tell which mark stands between the columns.
    header = next(read_lines(path), "")
    delimiter = find_delimiter(header, DELIMITERS[".csv"], ["messages"])
    has_messages = "messages" in next(csv.reader([header], delimiter=delimiter), [])
    needed = ["messages"] if has_messages else ["question", "reply"]

    for number, row in csv_records(path, needed, "line"):
        # An empty cell is a column that is left out.
        yield number, {column: value for column, value in row.items() if value != ""}


def completed(record: Record, language: str) -> Record:
    """A record of a company's own with what `as_pair` and `split` need: language, note, facts, and its part.

    A note that is left out is made of the columns that are there, and facts that are left out are those of the columns
    that stand in the reply. If no part is named, a twenty-fifth of the conversations is held out.

    Args:
        language: of records that name none.
    """
    language = record["language"] or language
    customer = record["customer"]
    stock = [str(record["stock"])] if record["stock"] else []
    parts = {
        "customer": [customer["name"], customer["history"]],
        "product": [record["product"], record["price"], *stock, record["delivery"]],
        "other": [record["other_product"], record["other_price"]],
    }
    lines = [
        f"{NOTE_LABELS[language][name]}: {', '.join(filter(None, values))}."
        for name, values in parts.items()
        if any(values)
    ]

    # In the order in which a price stands behind its product
    columns = ("product", "price", "delivery", "other_product", "other_price")
    values = [customer["name"], *(record[column] for column in columns)]
    reply = record["messages"][-1]["content"]
    said = [value for value in values if value and not missing_facts(reply, [value])]

    is_asked = is_held_out(json.dumps(record["messages"]))
    return record | {
        "language": language,
        "note": record["note"] or "\n".join(lines),
        "facts": record["facts"] or said,
        "held_out": record["held_out"] or ("conversation" if is_asked else ""),
    }


def conversations_to_ask(language: str, path: str = "") -> list[Record]:
    """Conversations whose reply is to be written: all of a file, or made-up ones that are held out.

    Args:
        language: those of a file that name another are left out.
        path: .jsonl or .csv; empty for made-up ones.

    Raises:
        ValueError: if the file has none.
    """
    if not path:
        return split(generate(language, NUM_MADE_UP))[1]
    records = [
        completed(record, language)
        for record in read_records(path)
        if record["language"] in ("", language)
    ]
    if not records:
        raise ValueError(f"`conversations` must hold some with language {language!r}, got {path}.")
    return records


def check_record(row: Mapping[str, Any], place: str) -> Record:
    """A row in the form that `generate` gives.

    Args:
        place: file and line, for errors.

    Raises:
        ValueError: naming the place and the column, what the value may be, and what came.
    """
    messages = check_messages(row, place)
    record: Record = {"messages": messages, "facts": check_facts(row, messages, place)}
    record["stock"] = check_stock(row.get("stock", 0), place)
    record["customer"] = check_customer(row, place)
    for column, names in CHOICES.items():
        record[column] = check_choice(row.get(column, ""), column, names, place)
    for column in TEXTS:
        record[column] = check_text(row.get(column, ""), column, place)
    return record


def check_messages(row: Mapping[str, Any], place: str) -> list[dict[str, str]]:
    """The conversation, which ends with a reply to somebody."""
    if "messages" in row:
        value = row["messages"]
        if isinstance(value, str):
            value = as_json(value, place, "`messages`")
    elif "question" in row and "reply" in row:
        roles = {"user": "question", "assistant": "reply"}
        value = [
            {"role": role, "content": check_text(row[column], column, place)}
            for role, column in roles.items()
        ]
    else:
        raise ValueError(f"{place}: `messages` must be there, or `question` and `reply`.")

    turns = as_turns(value, "messages", f"{place}, `messages`") or []
    roles = [turn["role"] for turn in turns]
    if roles[-1:] != ["assistant"] or "user" not in roles:
        raise ValueError(
            f"{place}: `messages` must end with a reply of the assistant to a user, got turns of {roles}."
        )
    return [{"role": turn["role"], "content": turn["content"]} for turn in turns]


def check_facts(row: Mapping[str, Any], messages: list[dict[str, str]], place: str) -> list[str]:
    facts = row.get("facts", [])
    if isinstance(facts, str):
        facts = as_json(facts, place, "`facts`")
    if not isinstance(facts, list) or not all(isinstance(fact, str) and fact for fact in facts):
        raise ValueError(f"{place}: `facts` must be a list of strings, got {facts!r}.")

    # A fact that a right reply lacks would count against every model.
    missing = missing_facts(messages[-1]["content"], facts)
    if missing:
        raise ValueError(f"{place}: `facts` must stand in the reply, which lacks {missing[0]!r}.")
    return facts


def check_stock(value: Any, place: str) -> int:
    # A table has only texts, and some write whole numbers with a fraction of nothing.
    number: Any = value
    if isinstance(value, str) and re.fullmatch(r"[0-9]+([.,]0*)?", value):
        number = int(re.split("[.,]", value)[0])
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    if not is_int(number, 0):
        raise ValueError(f"{place}: `stock` must be a number of pieces, got {value!r}.")
    return number


def check_customer(row: Mapping[str, Any], place: str) -> dict[str, str]:
    customer = row.get("customer", {})
    if not isinstance(customer, Mapping) or not customer.keys() <= {"name", "history"}:
        raise ValueError(
            f"{place}: `customer` must be an object with `name` and `history`, got {customer!r}."
        )
    checked = {}
    for column, key in CUSTOMER_COLUMNS.items():
        value = row.get(column, customer.get(key, ""))
        checked[key] = check_text(value, column, place)
    return checked


def check_choice(value: Any, column: str, names: tuple[str, ...], place: str) -> str:
    if value != "" and value not in names:
        meant = did_you_mean(value, names)
        raise ValueError(
            f"{place}: `{column}` must be one of {', '.join(names)}, got {value!r}{meant}"
        )
    return value


def check_text(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: `{column}` must be a text, got {value!r}.")
    return value


def as_json(text: str, place: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{place}: {what} must be JSON ({error.msg} at character {error.pos + 1}), got {text[:80]!r}."
        ) from error
