"""Whether texts under structure controls are right, and what a step costs with them.

    python benchmarks/structure.py [--parts texts steps] [--num_texts 1000] [--json FILE]

- texts: of 10 regular expressions and 5 JSON schemas, as judged by `re` and `jsonschema`; the model is one that comes
  with the package, which has hardly seen JSON.
- steps: a whole step of sampling, with control and draws, in units of a bare forward pass of the denoiser that
  sampling.py measures, whose weights are random.

Times are CPU time on one thread and wall-clock time on more, and the cases take turns in one run.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from jsonschema import Draft202012Validator, FormatChecker
from parts.common.measured_tables import print_machine, print_tables
from parts.common.options import run
from parts.sampling.measuring import Size, interleaved, random_model, verdict

from text_diffusers import ConfidenceScheduler, D3PMAbsorbingScheduler, TextDiffusionPipeline
from text_diffusers.common.validation import require
from text_diffusers.guidance import JsonControl, RegexControl
from text_diffusers.training.config import OptionParser, check_options, option

PARTS = ("texts", "steps")

# Formats that jsonschema checks by itself; `is_date_time` adds another
FORMATS = FormatChecker(["date", "uuid"])

# A whole step with a control, in bare forward passes
TARGET = 1.2

PATTERNS = {
    "answer": r" (yes|no), [a-z ,']{5,30}[.!]",
    "date": r" on (Mon|Tues|Wednes|Thurs|Fri)day, [0-9]{1,2} (May|June|July) 20[0-9]{2}\.",
    "mail": r" write to [a-z]{2,8}(\.[a-z]{2,8})?@[a-z]{3,10}\.(com|org|net)",
    "number": r" -?(0|[1-9][0-9]{0,5})(\.[0-9]{1,3})?",
    "list": r"\n(- [a-z ]{3,20}\n){3}",
    "sentence": r" [^.!?\n\"]{10,60}[.!?]",
    "no e": r"[^eE]{20,60}",
    "words": r"( [^\W\d_]\w*){3,8}",
    "dialogue": r"\nA: [^\n:]{5,40}\nB: [^\n:]{5,40}",
    "dots": r"( (I|you|we) (think|know|say))?( [a-z]+){2,6}\.{3}",
}
POINT = {
    "type": "array",
    "items": {"type": "number", "minimum": -90, "maximum": 90},
    "minItems": 2,
    "maxItems": 2,
}
SCHEMAS = {
    "person": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
    },
    "tagged": {
        "type": "object",
        "properties": {
            "text": {"type": "string", "maxLength": 60},
            "tags": {"type": "array", "items": {"enum": ["a", "b", "music", None]}, "maxItems": 3},
            "is_new": {"type": "boolean"},
        },
        "required": ["text", "tags", "is_new"],
    },
    "points": {"type": "array", "items": POINT, "minItems": 1, "maxItems": 3},
    "choice": {
        "anyOf": [{"const": {"kind": "none"}}, {"type": "string", "pattern": "^[A-Z][a-z]{2,9}$"}]
    },
    "event": {
        "$defs": {"time": {"type": "string", "format": "date-time"}},
        "type": "object",
        "properties": {"start": {"$ref": "#/$defs/time"}, "note": {"type": ["string", "null"]}},
        "required": ["start"],
    },
}

# Texts of any length, so that all rows of a measured step are full
STEP_PATTERN = r"( [^.!?\n\"]+[.!?])+"
STEP_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "music"]}, "maxItems": 3},
        "text": {"type": "string"},
    },
    "required": ["name", "age", "tags", "text"],
}


@dataclass
class StructureOptions:
    # What is measured
    parts: list[str] = option(list(PARTS), f"among {', '.join(PARTS)}")
    model: str = option("four-voices", "that writes the texts: a folder, Hub repository or name")
    num_texts: int = option(1_000, "of all patterns and schemas together", limit="at least 1")
    num_inference_steps: int = option(16, "of a text, and of a measured run", limit="at least 1")
    length: int = option(64, "tokens of the rows of a measured step", limit="at least 1")
    batch: int = option(8, "rows of a measured step", limit="at least 1")

    # How it is measured
    threads: int = option(1, "of torch", limit="at least 1")
    repetitions: int = option(5, "of each measured run", limit="at least 1")
    seed: int = option(0, "of the texts", limit="at least 0")
    json: str | None = option(None, "file into which all tables are written too")

    def __post_init__(self):
        check_options(self)
        require(set(self.parts) <= set(PARTS), "parts", f"among {list(PARTS)}", self.parts)


def main(options: StructureOptions, size: Size | None = None):
    """Print the tables of the chosen parts, line by line as they are measured."""
    torch.set_num_threads(options.threads)
    pipe = TextDiffusionPipeline.from_pretrained(options.model)
    pipe.set_progress_bar_config(disable=True)
    machine = print_machine(options.threads)
    measurements = {
        "texts": lambda: texts(pipe, options),
        "steps": lambda: steps(pipe.tokenizer, options, size),
    }
    chosen = {part: measurements[part] for part in options.parts}
    print_tables(chosen, options.json, run=machine)


# --- texts


def texts(pipe: Any, options: StructureOptions) -> Iterator[dict]:
    """A line for each pattern and schema: how many of its texts are right."""
    num_each = -(-options.num_texts // (len(PATTERNS) + len(SCHEMAS)))
    num_right = 0
    num_written = 0
    for name, wanted in (PATTERNS | SCHEMAS).items():
        is_pattern = name in PATTERNS
        begun = time.perf_counter()
        if is_pattern:
            control: Any = RegexControl(pipe.tokenizer, wanted)
        else:
            control = JsonControl(pipe.tokenizer, wanted)
        compiled = time.perf_counter()
        prompt = "i think" if is_pattern else ""
        output = pipe(
            prompt,
            controls=control,
            max_new_tokens=80,
            num_inference_steps=options.num_inference_steps,
            num_return_sequences=num_each,
            generator=torch.Generator().manual_seed(options.seed),
        )
        written = [text.removeprefix(prompt) for text in output.texts]
        right = sum(is_right(wanted, text) for text in written)
        num_right += right
        num_written += len(written)
        yield {
            "name": name,
            "kind": "regex" if is_pattern else "schema",
            "right": f"{right} of {len(written)}",
            "different": len(set(written)),
            "compiled in s": round(compiled - begun, 2),
            "example": repr(written[0])[:60],
        }
    yield {
        "name": "all",
        "kind": "",
        "right": f"{num_right} of {num_written}",
        "different": "",
        "compiled in s": "",
        "example": "",
    }


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(value: object) -> bool:
    # jsonschema checks times only where rfc3339-validator is installed.
    return not isinstance(value, str) or bool(datetime.fromisoformat(value))


def is_right(wanted: Any, text: str) -> bool:
    """Whether a text matches a pattern, or is JSON that is valid under a schema."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, text) is not None
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return False
    return Draft202012Validator(wanted, format_checker=FORMATS).is_valid(value)


# --- steps


def steps(tokenizer: Any, options: StructureOptions, size: Size | None) -> Iterator[dict]:
    """A line for each sampler and control: a step in bare forward passes."""
    size = size or Size(batch=options.batch)
    row_length = options.length + 2  # with the tokens around a text
    model = random_model(
        Size(size.layers, size.width, size.heads, size.batch, row_length, len(tokenizer))
    )
    tokens = torch.randint(1, len(tokenizer) - 2, (size.batch, row_length))
    times = torch.full((size.batch,), 0.5)

    @torch.no_grad()
    def forward():
        model(tokens, times)

    controls = {
        "no control": None,
        "regex": RegexControl(tokenizer, STEP_PATTERN),
        "schema": JsonControl(tokenizer, STEP_SCHEMA),
    }
    mask = tokenizer.mask_token_id
    schedulers = {
        "ancestral": D3PMAbsorbingScheduler(mask),
        "confidence": ConfidenceScheduler(mask),
    }
    runs: dict[str, Callable[[], Any]] = {"forward": forward}
    for sampler, scheduler in schedulers.items():
        pipe = TextDiffusionPipeline(tokenizer, model, scheduler)
        pipe.set_progress_bar_config(disable=True)
        for name, control in controls.items():
            runs[f"{sampler}, {name}"] = writer(pipe, control, options, size)

    # Tables of tokens are made in the first call of each control.
    for write in runs.values():
        write()
    seconds = interleaved(runs, options.repetitions)
    forward_seconds = seconds.pop("forward")
    for name, total in seconds.items():
        per_step = total / options.num_inference_steps / forward_seconds
        target = None if name.endswith("no control") else TARGET
        yield {
            "sampler, control": name,
            "forward in ms": round(1000 * forward_seconds),
            "a step in forwards": round(per_step, 2),
            **verdict(per_step, target),
        }


def writer(pipe: Any, control: Any, options: StructureOptions, size: Size) -> Callable[[], Any]:
    """A function that writes a batch."""

    def write():
        pipe(
            length=options.length,
            controls=control,
            num_inference_steps=options.num_inference_steps,
            num_return_sequences=size.batch,
            generator=torch.Generator().manual_seed(options.seed),
            output_type="tokens",
        )

    return write


if __name__ == "__main__":
    run(main, OptionParser(StructureOptions, description=__doc__))
