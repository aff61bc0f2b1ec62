"""Texts for a whole file of requests: resumed after a crash, and shared by several processes.

The result is a .jsonl file with one object a request, `{"line": 1, "prompt": ..., "texts": [...]}`. A text's seed is
a function of its place, whoever writes it and whenever.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from tqdm import tqdm

from text_diffusers.cli.text_requests import TextRequest, Writer, process_state

NAMES = ("prompt", "source", "text", "label")


def read_requests(
    path: str | Path, name: str = "prompt", label: int | str | None = None
) -> list[TextRequest]:
    """The requests of a .txt file, one a line, or of a .jsonl file, one object a line.

    Args:
        path: UTF-8. An empty line of a .txt file is an empty prompt: a text from nothing.
        name: what a line of a .txt file is, "prompt", "source" or "text". Objects have one of these names, or none
            and a `label` only, in all lines the same.
        label: of lines without their own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line, if it cannot be read so.
    """
    path = Path(path)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"`input` must end in .txt or .jsonl, got {str(path)!r}.")
    requests = []
    for place, line in enumerate(text_lines(path)):
        given = {name: line} if path.suffix == ".txt" else read_object(path, place, line)
        own = given.pop("label", None)
        requests.append(TextRequest(place, given, label if own is None else own))
        if set(given) != set(requests[0].given):
            first = ", ".join(requests[0].given) or "no text"
            raise ValueError(
                f"{path}, line {place + 1}: must have {first} as line 1, got {', '.join(given) or 'none'}."
            )
    if not requests:
        raise ValueError(f"{path}, line 1: the file holds no request.")
    return requests


def text_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: not UTF-8 ({error.reason}).") from error
    return lines if lines[-1] else lines[:-1]


def read_object(path: Path, place: int, line: str) -> dict[str, Any]:
    """The fields of one line of a .jsonl file, checked."""
    where = f"{path}, line {place + 1}"
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from error
    texts = [key for key in fields if key != "label"] if isinstance(fields, dict) else ["", ""]
    if len(texts) > 1 or not set(texts) <= set(NAMES):
        raise ValueError(
            f"{where}: expected one of {', '.join(NAMES[:3])}, and a label if any, got {line[:80]!r}."
        )
    if not all(isinstance(fields[key], str) for key in texts):
        raise ValueError(f"{where}: `{texts[0]}` must be a string, got {fields[texts[0]]!r}.")
    label = fields.get("label")
    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))):
        raise ValueError(f"{where}: `label` must be an integer or a name, got {label!r}.")
    return fields


class BatchFile:
    """A .jsonl file that is written line by line, and continued after a crash.

    Beside it lies `<file>.settings.json`, what it was begun with. A last line that was torn is removed.

    Args:
        path: of the file.
        settings: what its lines depend on, as JSON.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]):
        self.path = Path(path)
        self.record = self.path.with_name(f"{self.path.name}.settings.json")
        self.settings = json.loads(json.dumps(settings))  # as it is read
        self.size = 0  # bytes of whole lines

    def begin(self, overwrite: bool = False) -> int:
        """How many lines are there already.

        Args:
            overwrite: begin anew, whatever is there.

        Raises:
            ValueError: if the file was begun with other settings, or has lines that are not of it.
        """
        if overwrite or not self.path.exists():
            return 0
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.split(b"\n")[:-1]
        if not lines:
            return 0
        self._check_settings()
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line)["line"]
            except (ValueError, TypeError, KeyError):
                found = None
            if found != number:
                raise ValueError(
                    f"{self.path}, line {number}: not of this file; pass `--overwrite` to begin anew."
                )
        self.size = len(whole)
        return len(lines)

    def append(self, objects: Sequence[dict[str, Any]]):
        """Write lines after those that are there, and see them to the disk."""
        if not self.size:
            temporary = self.record.with_name(f"{self.record.name}.tmp")
            temporary.write_text(
                json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            os.replace(temporary, self.record)
        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            file.seek(self.size)
            file.truncate()  # what was torn
            for fields in objects:
                file.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self.size = file.tell()

    def _check_settings(self):
        if not self.record.exists():
            raise ValueError(
                f"`output` {self.path} holds something else; name another, or pass `--overwrite`."
            )
        try:
            begun = json.loads(self.record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{self.record}: not JSON; pass `--overwrite` to begin anew."
            ) from error
        others = sorted(differing(begun, self.settings))
        if others:
            raise ValueError(
                f"`output` {self.path} was begun with another {', '.join(others)}: pass the same, name another file, "
                "or pass `--overwrite`."
            )


def differing(first: Any, second: Any, name: str = "") -> Iterator[str]:
    """The names of the settings in which two records differ."""
    if (
        isinstance(first, dict)
        and isinstance(second, dict)
        and name in ("", "settings", "versions")
    ):
        for key in first.keys() | second.keys():
            yield from differing(first.get(key), second.get(key), key)
    elif first != second:
        yield name


def generate_file(
    writer: Writer,
    requests: Sequence[TextRequest],
    output: str | Path,
    batch_size: int = 16,
    overwrite: bool = False,
    progress: bool | None = None,
) -> int:
    """Write the texts of all requests into a .jsonl file, continuing one that was begun.

    A request that the pipeline refuses gets an `error` instead of `texts`, and the others go on.

    Batches are made of the same requests in every run, so a run that was stopped and continued leaves the same bytes
    as one that was not, and so do several processes on equal devices with equal threads. Another `batch_size` leaves
    the seeds as they are, and the texts up to rounding errors of the model.

    Args:
        batch_size: requests in one call of the pipeline.
        overwrite: begin anew.
        progress: show a bar; by default in a terminal.

    Returns:
        How many requests were refused.

    Raises:
        ValueError: if the file was begun with other settings, or the pipeline refuses all requests.
    """
    state = process_state()
    asked = json.dumps(
        [[request.place, dict(request.given), request.label] for request in requests]
    )
    record = writer.record() | {
        "input": hashlib.sha256(asked.encode()).hexdigest(),
        "lines": len(requests),
    }
    file = BatchFile(output, record)
    done = begin_together(file, state, overwrite)
    batches = [
        requests[first : first + batch_size] for first in range(0, len(requests), batch_size)
    ]
    hidden: Any = (None if progress is None else not progress) if state.is_main_process else True
    held: list[
        dict[str, Any]
    ] = []  # refused before any text was written: it may be the settings that do not fit
    with tqdm(total=len(requests), initial=done, disable=hidden, unit="text") as bar:
        for first in (
            range(done // batch_size, len(batches), state.num_processes)
            if done < len(requests)
            else ()
        ):
            with state.split_between_processes(
                list(batches[first : first + state.num_processes])
            ) as own:
                shared: Any = own
                written: Any = [
                    fields for batch in shared for fields in written_lines(writer, batch)
                ]
            lines = gather_object(written) if state.num_processes > 1 else written
            new = [fields for fields in lines if fields["line"] > done]
            held += new
            if done or any("texts" in fields for fields in held):
                if state.is_main_process:
                    file.append(held)
                done, held = done + len(held), []
            bar.update(len(new))
    if held:
        raise ValueError(held[0]["error"])
    state.wait_for_everyone()
    return sum(
        "error" in json.loads(line) for line in Path(output).read_bytes().split(b"\n") if line
    )


def begin_together(file: BatchFile, state: Any, overwrite: bool) -> int:
    """What `begin` says in the first process, in all of them."""
    found: Any = None
    if state.is_main_process:
        try:
            found = file.begin(overwrite)
        except ValueError as error:
            found = str(error)
    found = gather_object([found])[0] if state.num_processes > 1 else found
    if isinstance(found, str):
        raise ValueError(found)
    return found


def written_lines(writer: Writer, requests: Sequence[TextRequest]) -> list[dict[str, Any]]:
    """The lines of requests that are written together, or one by one if the pipeline refuses one of them."""
    try:
        results: list[dict[str, Any]] = [{"texts": texts} for texts in writer(requests)]
    except ValueError as error:
        if len(requests) > 1:
            return [fields for request in requests for fields in written_lines(writer, [request])]
        results = [{"error": str(error)}]
    labels = [{} if request.label is None else {"label": request.label} for request in requests]
    return [
        {"line": request.place + 1, **request.given, **label, **result}
        for request, label, result in zip(requests, labels, results, strict=True)
    ]
