"""Requests for texts, and the settings by which they are written, from options or a file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from text_diffusers.data.text_files import read_lines, without_end

# Arguments of a pipeline that a request gives a text for
TEXT_NAMES = ("prompt", "source", "text", "messages")


@dataclass
class Settings:
    """How texts are written; `None` leaves it to the pipeline.

    Attributes:
        scheduler: one of `samplers_for` the pipeline.
        order, window: as in `ConfidenceScheduler`, which takes the place of another scheduler of absorbing noise.
        num_inference_steps: of both levels of a two-level pipeline.
        num_return_sequences: texts for each request.
        seed: each text's generator is a function of it, the place of the request and that of the text.
        temperature, top_k, top_p, guidance_scale, guide_by, negative_prompt: as in the pipelines.
        max_new_tokens, min_new_tokens, suppress_tokens, block_length, approximate_cache: as in the pipelines.
        regex, json_schema, choices: of `RegexControl`, `JsonControl`, as text, and `ChoiceControl`; one of them.
    """

    scheduler: str | None = None
    order: str | None = None
    window: int | None = None
    num_inference_steps: int | None = None
    num_return_sequences: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    guidance_scale: float | None = None
    guide_by: str | None = None
    negative_prompt: str | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    suppress_tokens: list[str] | None = None
    block_length: int | None = None
    approximate_cache: str | None = None
    regex: str | None = None
    json_schema: str | None = None
    choices: list[str] | None = None
    seed: int = 0


@dataclass(frozen=True)
class TextRequest:
    """A text to begin (`prompt`), fill in (`text`) or write from (`source`), or a conversation; and its class label.

    Attributes:
        place: its number among the requests, from 0.
        inputs: the text, if any, by its name; `messages` are turns `{"role": ..., "content": ...}`.
        label: number or name of the class.
    """

    place: int
    inputs: Mapping[str, Any] = field(default_factory=dict)
    label: int | str | None = None


def check_files(input: Path | None, output: Path | None):
    # Texts would scroll past in a terminal, and a run that stopped could not go on.
    if input is not None and output is None:
        raise ValueError(
            "`--output` must be given with `--input`: the .jsonl file that takes the texts."
        )


def requests_of(
    name: str, texts: list[str], label: str | None, file: Path | None
) -> list[TextRequest]:
    """The requests of options, or of a file.

    Args:
        name: "prompt", "source" or "text".
        texts: one for each request; none for a text from nothing.
        label: of all requests without their own.
        file: instead of texts, see `read_requests`.
    """
    # On the command line the number of a class is text as well.
    number = int(label) if label is not None and label.isdecimal() else label
    if file is None:
        # Without any text there is one request, for a text from nothing.
        if not texts:
            return [TextRequest(0, label=number)]
        return [TextRequest(place, {name: text}, number) for place, text in enumerate(texts)]
    if texts:
        raise ValueError(f"`--input` excludes `--{name}`: the texts come from {file}.")
    return read_requests(file, name, number)


def read_requests(
    path: str | Path, name: str = "prompt", label: int | str | None = None
) -> list[TextRequest]:
    """The requests of a .txt file, one a line, or of a .jsonl file, one object a line.

    Args:
        path: UTF-8, or with the mark of UTF-16. An empty line of a .txt file is an empty prompt: a text from nothing.
        name: argument that a line of a .txt file is, "prompt", "source" or "text". Objects have one of these names,
            or none and a `label` only, in all lines the same.
        label: of lines without their own.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming file and line, if it cannot be read so.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        raise ValueError(f"`input` must end in .txt or .jsonl, got {str(path)!r}.")

    requests = []
    for place, line in enumerate(map(without_end, read_lines(path))):
        # Editors count lines from 1.
        where = f"{path}, line {place + 1}"
        fields = {name: line} if kind == ".txt" else read_fields(line, where)
        line_label = fields.pop("label", None)
        requests.append(TextRequest(place, fields, label if line_label is None else line_label))

        # The pipeline is called with many requests at once, by one name.
        if set(fields) != set(requests[0].inputs):
            first = ", ".join(requests[0].inputs) or "no text"
            raise ValueError(
                f"{where}: must have {first} as line 1, got {', '.join(fields) or 'none'}."
            )
    if not requests:
        raise ValueError(f"{path}, line 1: the file holds no request.")
    return requests


def read_fields(line: str, where: str) -> dict[str, Any]:
    """The fields of one line of a .jsonl file, checked."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error.msg} at column {error.colno}).") from error

    # What is not an object gets a name that is refused below.
    names = [name for name in fields if name != "label"] if isinstance(fields, dict) else [""]
    if len(names) > 1 or not set(names) <= set(TEXT_NAMES):
        raise ValueError(
            f"{where}: expected one of {', '.join(TEXT_NAMES)}, and a label if any, got {line[:80]!r}."
        )
    for name in names:
        if name == "messages":
            check_messages(fields[name], where)
        elif not isinstance(fields[name], str):
            raise ValueError(f"{where}: `{name}` must be a string, got {fields[name]!r}.")

    # In Python `true` would pass for the number 1.
    label = fields.get("label")
    if isinstance(label, bool) or not isinstance(label, (int, str, type(None))):
        raise ValueError(f"{where}: `label` must be an integer or a name, got {label!r}.")
    return fields


def check_messages(messages: Any, where: str):
    """Refuse what is not one conversation."""
    # Help, which reads this module, does not wait for torch.
    from text_diffusers.pipelines.chat_inputs import conversations

    try:
        conversations([messages])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
