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

from text_diffusers.cli.text_requests import TextRequest
from text_diffusers.cli.writer import Writer, process_state
from text_diffusers.common.progress import progress_bar

Line = dict[str, Any]


class BatchFile:
    """A .jsonl file that is written line by line, and continued after a crash.

    Beside it lies `<file>.settings.json` with the settings that it was begun with. A last line that was torn is
    removed.

    Args:
        path: of the file.
        settings: all that its lines depend on, as JSON.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]):
        self.path = Path(path)
        self.record = self.path.with_name(f"{self.path.name}.settings.json")

        # As JSON gives it back, so that a record that was read compares equal
        self.settings = json.loads(json.dumps(settings))

        # In bytes, of whole lines
        self.size = 0

    def begin(self, overwrite: bool = False) -> int:
        """The number of lines that are there already.

        Args:
            overwrite: begin anew, whatever is there.

        Raises:
            ValueError: if the file was begun with other settings, or has lines that are not of it.
        """
        if overwrite or not self.path.exists():
            return 0

        # A line without its end was torn.
        content = self.path.read_bytes()
        whole_lines = content[: content.rfind(b"\n") + 1]

        # A file whose only line was torn is as good as none.
        if not whole_lines:
            return 0

        self._check_settings()

        # A line of another program has no number, or another one.
        lines = whole_lines.split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            if number_of(line) != number:
                raise ValueError(
                    f"{self.path}, line {number}: not of this file; pass `--overwrite` to begin anew."
                )
        self.size = len(whole_lines)
        return len(lines)

    def append(self, lines: Sequence[Line]):
        """Write lines after those that are there, and see them to the disk."""
        # The settings are there, whole, before the first line.
        if not self.size:
            # A crash leaves the old record or the new one, never a part.
            temporary = self.record.with_name(f"{self.record.name}.tmp")
            settings = json.dumps(self.settings, indent=2, ensure_ascii=False)
            temporary.write_text(settings + "\n", encoding="utf-8")
            os.replace(temporary, self.record)

        with open(self.path, "r+b" if self.path.exists() else "wb") as file:
            # A torn line goes.
            file.seek(self.size)
            file.truncate()

            for line in lines:
                file.write(json_line(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            self.size = file.tell()

    def _check_settings(self):
        # Without a record nothing says that the file is one of ours.
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

        names = sorted(differing(begun, self.settings))
        if names:
            raise ValueError(
                f"`output` {self.path} was begun with another {', '.join(names)}: pass the same, name another file, "
                "or pass `--overwrite`."
            )


def json_line(line: Line) -> bytes:
    """A line in UTF-8; half of a character, which UTF-8 cannot spell, is written as JSON can."""
    try:
        return json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(line).encode()


def number_of(line: bytes) -> Any:
    """The number in a line of the file; `None` in one that is not of it."""
    try:
        return json.loads(line)["line"]
    except (ValueError, TypeError, KeyError):
        return None


def differing(first: Any, second: Any, name: str = "") -> Iterator[str]:
    """The names of the settings in which two records differ."""
    # These groups are looked into; of the others, such as `weights`, the name is enough.
    is_group = name in ("", "settings", "versions")
    if is_group and isinstance(first, dict) and isinstance(second, dict):
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
) -> int:
    """Write the texts of all requests into a .jsonl file, continuing one that was begun.

    A request that the pipeline refuses gets an `error` instead of `texts`, and the others go on.

    Batches are made of the same requests in every run, so a run that was stopped and continued leaves the same bytes
    as one that was not, and so do several processes on equal devices with equal threads. Another `batch_size` leaves
    the seeds as they are, and the texts up to rounding errors of the model.

    Args:
        batch_size: requests in one call of the pipeline.
        overwrite: begin anew.

    Returns:
        The number of requests that were refused.

    Raises:
        ValueError: if the file was begun with other settings, or the pipeline refuses all requests.
    """
    # 1. Open the file, and count its lines: they must be of the same requests and settings
    state = process_state()

    # Requests may be many, so the record holds their digest alone.
    inputs = [[request.place, dict(request.inputs), request.label] for request in requests]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    file = BatchFile(output, writer.record() | {"input": digest, "lines": len(requests)})
    num_done = begin_together(file, state, overwrite)

    # 2. Write the others, each process one batch in a round
    batches = []
    for first in range(0, len(requests), batch_size):
        batches.append(requests[first : first + batch_size])

    # A batch that was begun is written again whole: the model's rounding depends on its rows.
    first_batch = num_done // batch_size if num_done < len(requests) else len(batches)

    # Refusals are kept back until a text was written: it may be the settings that do not fit.
    kept_back: list[Line] = []
    # In a terminal, of the first process: `None` lets tqdm find out whether there is one.
    hide_bar = None if state.is_main_process else True
    bar = progress_bar(total=len(requests), initial=num_done, disable=hide_bar, unit="text")
    with bar:
        for first in range(first_batch, len(batches), state.num_processes):
            written = write_round(writer, batches[first : first + state.num_processes], state)

            # Lines that are on the disk already stay as they are.
            new_lines = [line for line in written if line["line"] > num_done]
            kept_back += new_lines
            if num_done or any("texts" in line for line in kept_back):
                if state.is_main_process:
                    file.append(kept_back)
                num_done += len(kept_back)
                kept_back = []
            bar.update(len(new_lines))

    # All requests were refused, so this is an error of the whole command.
    if kept_back:
        raise ValueError(kept_back[0]["error"])

    # 3. Count the errors of the whole file
    state.wait_for_everyone()
    lines = Path(output).read_bytes().split(b"\n")
    return sum("error" in json.loads(line) for line in lines if line)


def begin_together(file: BatchFile, state: Any, overwrite: bool) -> int:
    """`file.begin` of the first process, in all of them."""
    # An error is passed on as a text: raised in one process, it would leave the others waiting.
    result: Any = None
    if state.is_main_process:
        try:
            result = file.begin(overwrite)
        except ValueError as error:
            result = str(error)
    if state.num_processes > 1:
        result = gather_object([result])[0]
    if isinstance(result, str):
        raise ValueError(result)
    return result


def write_round(writer: Writer, batches: Sequence[Sequence[TextRequest]], state: Any) -> list[Line]:
    """The lines of one batch a process, in order, in all processes."""
    lines: Any = []
    # `share` has one batch, or none in the last round.
    with state.split_between_processes(list(batches)) as share:
        for batch in share:
            lines += written_lines(writer, batch)
    return gather_object(lines) if state.num_processes > 1 else lines


def written_lines(writer: Writer, requests: Sequence[TextRequest]) -> list[Line]:
    """The lines of requests that are written together, or one by one if the pipeline refuses one of them."""
    try:
        results: list[Line] = [{"texts": texts} for texts in writer(requests)]
    except ValueError as error:
        # The message does not say which request it was.
        if len(requests) > 1:
            return [line for request in requests for line in written_lines(writer, [request])]
        results = [{"error": str(error)}]

    lines = []
    for request, result in zip(requests, results, strict=True):
        label = {} if request.label is None else {"label": request.label}
        lines.append({"line": request.place + 1, **request.inputs, **label, **result})
    return lines
