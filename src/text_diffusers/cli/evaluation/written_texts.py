"""Texts that a pipeline writes to be evaluated, or that a file holds; and the files of texts.

Several processes share the writing. A text's seed is a function of its place, so that the texts depend neither on the
batches nor on the number of processes, but for rounding.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import gather_object

from text_diffusers.cli.text_requests import Settings, TextRequest
from text_diffusers.cli.writer import Writer
from text_diffusers.common.progress import progress_bar
from text_diffusers.data.rows import encode_texts
from text_diffusers.data.sources import load_documents
from text_diffusers.data.text_files import read_lines
from text_diffusers.evaluation.estimates import share_of_process

# What a text may be written from, by the names of `evaluate_texts` and of a request
REQUEST_NAMES = {"prompts": "prompt", "sources": "source", "messages": "messages"}

# The column of the texts in a file of `--save-texts`
SAVED_COLUMN = "text"


class WrittenTexts(NamedTuple):
    """Texts that are evaluated.

    Attributes:
        texts: those that were written.
        seconds: that the writing took; `None` of texts from a file.
    """

    texts: list[str]
    seconds: float | None


def requests_for(conditions: dict[str, list[Any]], count: int) -> list[TextRequest]:
    """Requests for so many texts, written from what the texts of a data set are, in turn; or from nothing.

    Args:
        conditions: as in `JudgedTexts`.

    Example:
        >>> from text_diffusers.cli.evaluation.written_texts import requests_for
        >>> [dict(request.inputs) for request in requests_for({"prompts": ["a", "b"]}, 3)]
        [{'prompt': 'a'}, {'prompt': 'b'}, {'prompt': 'a'}]
    """
    requests = []
    for place in range(count):
        inputs = {}
        label = None
        for name, values in conditions.items():
            value = values[place % len(values)]
            if name == "labels":
                label = value
            else:
                inputs[REQUEST_NAMES[name]] = value
        requests.append(TextRequest(place, inputs, label))
    return requests


def write(
    pipe: Any,
    requests: Sequence[TextRequest],
    num_inference_steps: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
    accelerator: Any = None,
) -> WrittenTexts:
    """One text for each request, by the settings of the pipeline.

    Args:
        num_inference_steps: by default the pipeline's own.
        batch_size: texts in one call of the pipeline.
        seed: of all texts; each has its own.
        progress: show a bar.
        accelerator: its processes share the requests and all get all texts; each must call this.

    Raises:
        ValueError: if a request does not fit the pipeline.
    """
    writer = Writer(pipe, Settings(num_inference_steps=num_inference_steps, seed=seed))
    batches = []
    for first in range(0, len(requests), batch_size):
        batches.append(list(requests[first : first + batch_size]))

    begin = time.perf_counter()
    written: list[Any] = []
    with progress_bar(total=len(requests), disable=not progress, unit="text") as bar:
        for batch in share_of_process(batches, accelerator):
            texts = writer(batch)
            written += [
                (request.place, each[0]) for request, each in zip(batch, texts, strict=True)
            ]
            bar.update(len(batch))
    if accelerator is not None:
        written = gather_object(written)
    seconds = time.perf_counter() - begin

    # Each process had every so many batches.
    return WrittenTexts([text for _, text in sorted(written)], seconds)


def save_texts(path: Path, texts: Sequence[str], requests: Sequence[TextRequest]):
    """Write texts into a .jsonl file, an object each, with what they were written from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for number, (text, request) in enumerate(zip(texts, requests, strict=True), start=1):
            line: dict[str, Any] = {"line": number, **request.inputs}
            if request.label is not None:
                line["label"] = request.label
            file.write(json.dumps(line | {SAVED_COLUMN: text}, ensure_ascii=False) + "\n")


def read_texts(path: Path, text_column: str = "text") -> list[str]:
    """The texts of a file that `--save-texts` or `generate --output` wrote, empty ones among them; or of another file.

    Args:
        text_column: of the texts; lines of a .jsonl file without it are read as `--save-texts` writes them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds no text.
    """
    if not path.exists():
        raise FileNotFoundError(f"`written` {str(path)!r} does not exist.")
    if path.suffix.lower() != ".jsonl":
        return list(load_documents(str(path), text_column)["text"])

    texts: list[str] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: must be JSON: {error}.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: must be an object, got {line[:80]!r}.")
        # The data set may call its texts otherwise than the file of written ones.
        column = text_column if text_column in record else SAVED_COLUMN
        found = record.get("texts", [record.get(column)])
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            names = dict.fromkeys([text_column, SAVED_COLUMN])
            columns = " or ".join(f"`{name}`" for name in names)
            raise ValueError(
                f"{path}, line {number}: must have a string {columns}, or `texts`, got {line[:80]!r}."
            )
        texts += found
    if not texts:
        raise ValueError(f"`written` must hold at least one text, got none in {str(path)!r}.")
    return texts


def cut_texts(pipe: Any, texts: Sequence[str]) -> tuple[list[str], int]:
    """`(texts, count)`: real texts, those beyond what the pipeline can write cut to it, and how many these are."""
    cut = []
    count = 0
    for text, ids in zip(texts, encode_texts(pipe.tokenizer, list(texts)), strict=True):
        if len(ids) > pipe.max_length:
            text = pipe.tokenizer.decode(ids[: pipe.max_length])
            count += 1
        cut.append(text)
    return cut, count
