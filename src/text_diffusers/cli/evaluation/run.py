"""What `text-diffusers evaluate` does: load everything, so that mistakes show early, and then measure."""

import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from text_diffusers.cli.env import installed_version
from text_diffusers.cli.evaluation.records import EvaluationRecord
from text_diffusers.cli.evaluation.session import Session
from text_diffusers.cli.evaluation.text_bounds import JudgedTexts, load_texts, spread
from text_diffusers.cli.evaluation.written_texts import read_texts
from text_diffusers.cli.writer import load_pipeline, process_state
from text_diffusers.common.validation import require, require_key
from text_diffusers.data.sources import load_documents
from text_diffusers.evaluation.distances.sentence_embeddings import (
    DEFAULT_ENCODER,
    load_sentence_encoder,
)
from text_diffusers.evaluation.distances.text_distances import FEWEST_TEXTS
from text_diffusers.evaluation.judges.judges import load_named_judge
from text_diffusers.evaluation.protocols.zero_shot import ZERO_SHOT_SETS, load_zero_shot_texts
from text_diffusers.pipelines.lora import check_adaptable

# On which figures depend; the last two are optional
PACKAGES = (
    "text-diffusers",
    "torch",
    "transformers",
    "diffusers",
    "tokenizers",
    "datasets",
    "scikit-learn",
    "sacrebleu",
)
# Tokens of a row of a zero-shot set, as in the papers, where the model takes as many
ZERO_SHOT_LENGTH = 1_024
NO_ENCODER = "none"


@dataclass
class EvaluationOptions:
    """The options of `text-diffusers evaluate` by their names, with `_` for `-`."""

    model: str
    dataset: str = ""
    text_column: str = "text"
    label_column: str | None = None
    split: str = "train"
    max_texts: int = 1_000
    num_times: int = 8
    batch_size: int = 64
    seed: int = 0
    source_column: str | None = None
    prompt_column: str | None = None
    dtype: str | None = None
    lora: str | None = None
    generate: int | None = None
    written: Path | None = None
    save_texts: Path | None = None
    num_inference_steps: int | None = None
    judge: str | None = None
    reference: str | None = None
    encoder: str | None = None
    wrap: int | None = None
    wrap_ends: bool = True
    wrap_frame: bool = False
    zero_shot: list[str] = field(default_factory=list)
    zero_shot_folder: Path | None = None

    @property
    def judges_texts(self) -> bool:
        """Whether texts of the model are looked at."""
        return self.generate is not None or self.written is not None

    @property
    def encoder_name(self) -> str | None:
        """The sentence encoder of the distances; `None` if there are none to be measured."""
        if self.encoder == NO_ENCODER or not self.judges_texts:
            return None
        return self.encoder or (DEFAULT_ENCODER if self.reference else None)


def evaluate_model(options: EvaluationOptions) -> EvaluationRecord | None:
    """Measure what is asked for, together with other processes if there are any.

    Returns:
        What was measured, in the first process; `None` in the others.

    Raises:
        ValueError: if an option does not fit the model or the texts.
        OSError: if something cannot be had.
    """
    begin = time.perf_counter()
    check_options(options)
    transformers_logging.disable_progress_bar()
    if options.zero_shot_folder is not None:
        disable_progress_bars()  # of reading files
    state = process_state()
    device: Any = state.device
    accelerator = Accelerator(cpu=device.type == "cpu") if state.num_processes > 1 else None

    # The texts first: a mistake in them shows before a model is loaded. Only labels need the names that it has, and
    # an adapter is refused before any work where there is no denoiser for it.
    needs_model = options.label_column is not None or options.lora is not None
    pipe = load_model(options) if needs_model else None
    label_names = () if pipe is None else pipe.label_names
    judged = None
    if options.dataset and options.wrap is None:
        judged = load_judged_texts(options, label_names, options.max_texts)
    wrapped_texts = load_wrapped_texts(options)
    zero_shot_texts = {
        name: load_zero_shot_texts(name, options.zero_shot_folder) for name in options.zero_shot
    }
    written_texts = None
    count = options.generate or 0
    if options.written is not None:
        written_texts = read_texts(options.written, options.text_column)
        count = len(written_texts)
    real_texts = load_real_texts(options, label_names, count)
    encoder = None
    if options.encoder_name is not None:
        name = "written" if options.generate is None else "generate"
        check_enough_texts(name, count, real_texts)
        encoder = load_sentence_encoder(options.encoder_name, device)
    judge = None
    if options.judge is not None:
        judge = load_named_judge(options.judge, device)
    pipe = pipe or load_model(options)

    session = Session(options, pipe, judge, encoder, accelerator, state.is_main_process)
    record = EvaluationRecord(run={})

    # 1. The bound
    if options.dataset:
        record.bound, record.no_bound = session.bound(judged, wrapped_texts)
    for name, texts in zero_shot_texts.items():
        length = options.wrap or min(pipe.max_length, ZERO_SHOT_LENGTH)
        record.zero_shot[name] = session.wrapped_bound(texts, length)

    # 2. Texts of the model
    if options.judges_texts:
        session.measure_written(record, judged, written_texts, real_texts)

    record.run = {
        "model": options.model,
        "lora": options.lora,
        "device": str(device),
        "dtype": session.dtype,
        "seed": options.seed,
        "num_processes": state.num_processes,
        "seconds": round(time.perf_counter() - begin, 3),
        "versions": installed_versions(),
    }
    return record if state.is_main_process else None


def installed_versions() -> dict[str, str]:
    """Versions of the packages on which figures depend, without those that are not installed."""
    versions = {}
    for package in PACKAGES:
        installed = installed_version(package)
        if installed is not None:
            versions[package] = installed
    return versions


def check_options(options: EvaluationOptions):
    """Refuse options that exclude or need each other, before anything is loaded."""
    if options.generate is not None and options.written is not None:
        raise ValueError("`--generate` excludes `--written`: the texts come from the file.")
    needs_texts = {
        "judge": options.judge,
        "reference": options.reference,
        "encoder": options.encoder,
    }
    for name, value in needs_texts.items():
        if value is not None and not options.judges_texts:
            raise ValueError(f"`--{name}` must be given with `--generate` or `--written`.")
    needs_writing = {
        "save-texts": options.save_texts,
        "num-inference-steps": options.num_inference_steps,
    }
    for name, value in needs_writing.items():
        if value is not None and options.generate is None:
            raise ValueError(f"`--{name}` must be given with `--generate`.")
    if options.save_texts is not None and options.save_texts.suffix.lower() != ".jsonl":
        raise ValueError(f"`--save-texts` must be a .jsonl file, got {str(options.save_texts)!r}.")

    # A row of several texts has neither one label nor one beginning.
    conditions = {
        "label-column": options.label_column,
        "source-column": options.source_column,
        "prompt-column": options.prompt_column,
    }
    for name, value in conditions.items():
        if value is not None and not options.dataset:
            raise ValueError(f"`--{name}` must be given with `--dataset`.")
        if value is not None and options.wrap is not None:
            raise ValueError(f"`--{name}` excludes `--wrap`: a row holds several texts.")
    for name in options.zero_shot:
        require_key("zero_shot", name, ZERO_SHOT_SETS)
    if options.zero_shot_folder is not None and not options.zero_shot:
        raise ValueError("`--zero-shot-folder` must be given with `--zero-shot`.")
    if options.wrap is not None and not (options.dataset or options.zero_shot):
        raise ValueError("`--wrap` must be given with `--dataset` or `--zero-shot`.")
    frames_rows = options.wrap_frame or not options.wrap_ends
    if frames_rows and options.wrap is None and not options.zero_shot:
        raise ValueError(
            "`--wrap-frame` and `--no-wrap-ends` must be given with `--wrap` or `--zero-shot`."
        )

    # A package that is missing shows now, and not behind the writing.
    needed = {"sacrebleu": options.judges_texts, "sklearn": options.encoder_name is not None}
    for package, is_needed in needed.items():
        if is_needed and find_spec(package) is None:
            raise ModuleNotFoundError(
                f"`--generate` and `--written` need {package}: pip install 'text-diffusers[eval]'."
            )


def load_model(options: EvaluationOptions) -> Any:
    """The pipeline, with its adapter if there is one.

    Raises:
        ValueError: if an adapter is named, and the pipeline has no denoiser that takes one.
    """
    pipe = load_pipeline(options.model, dtype=options.dtype)
    if options.lora is None:
        return pipe
    try:
        check_adaptable(pipe)
    except ValueError as error:
        raise ValueError(f"`--lora` must be left out with this model: {error}") from error
    pipe.load_lora_weights(options.lora)
    return pipe


def load_judged_texts(options: EvaluationOptions, label_names: Any, max_texts: int) -> JudgedTexts:
    """At most so many texts of `--dataset`, of which the bound is and from whose conditions others are written."""
    return load_texts(
        options.dataset,
        options.text_column,
        options.label_column,
        options.split,
        max_texts,
        label_names,
        options.source_column,
        options.prompt_column,
    )


def load_wrapped_texts(options: EvaluationOptions) -> list[str]:
    """All texts of `--dataset`, in order, to be joined; none unless `--wrap` is given."""
    if not options.dataset or options.wrap is None:
        return []
    return list(load_documents(options.dataset, options.text_column, split=options.split)["text"])


def load_real_texts(options: EvaluationOptions, label_names: Any, count: int) -> list[str]:
    """Real texts beside which `count` written ones are judged: twice as many, if there are so many; or none."""
    if not options.judges_texts:
        return []

    if options.reference is not None:
        real = load_reference(options)
    elif options.dataset:
        # All of them, though the bound may take fewer
        real = load_judged_texts(options, label_names, sys.maxsize)
    else:
        return []

    # With a prompt, as the pipeline writes it before a text
    prompts = real.conditions.get("prompts") or [""] * len(real.texts)
    pairs = zip(prompts, real.texts, strict=True)
    return spread([prompt + text for prompt, text in pairs], 2 * count)


def load_reference(options: EvaluationOptions) -> JudgedTexts:
    """The texts of `--reference`; with `--prompt-column` their beginnings too, as written texts have them.

    Raises:
        ValueError: if it lacks one of the columns.
    """
    assert options.reference is not None
    try:
        return load_texts(
            options.reference,
            options.text_column,
            None,
            options.split,
            sys.maxsize,
            prompt_column=options.prompt_column,
        )
    except ValueError as error:
        if options.prompt_column is None:
            raise
        raise ValueError(
            f"`--reference` must have texts in the column {options.text_column!r} and, with `--prompt-column`, what "
            f"stands before them in {options.prompt_column!r}: {error}"
        ) from error


def check_enough_texts(name: str, num_written: int, real_texts: list[str]):
    """Refuse to measure distances of too few texts, before any is written."""
    limit = f"at least {FEWEST_TEXTS} texts, for their distances (`--encoder none` leaves them out)"
    require(num_written >= FEWEST_TEXTS, name, limit, num_written)
    limit = f"at least {2 * FEWEST_TEXTS} texts, for two halves of them (`--encoder none` leaves them out)"
    require(len(real_texts) >= 2 * FEWEST_TEXTS, "reference", limit, len(real_texts))
