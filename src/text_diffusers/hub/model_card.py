"""Model cards: README.md with front matter for the Hub, from a pipeline and the records of its training.

A card says what was measured or recorded, and nothing else: without records there is nothing in it about training.
"""

import json
import logging
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData, metadata_load
from huggingface_hub.utils import HFValidationError, validate_repo_id

from text_diffusers.common.validation import is_number
from text_diffusers.hub.card_examples import SEED, examples_of, labels_of, literal
from text_diffusers.hub.card_text import (
    LINE_LENGTH,
    code,
    escaped,
    fenced,
    one_line,
    table,
    wrapped,
)
from text_diffusers.hub.papers import papers_of, papers_of_published
from text_diffusers.models.language_model import is_language_model, reading_of, uncompiled
from text_diffusers.pipelines.calls.steps import defaults_in_force
from text_diffusers.training.config import NOTE_FILE
from text_diffusers.training.curves import (
    CURVES_PICTURE,
    METRICS_FILE,
    curves_of,
    draw_curves,
    read_record,
)

logger = logging.getLogger(__name__)

# In the note of a training: those before it, whose models it began with
EARLIER_STAGES = "earlier_stages"

# Form of the Hub's licence identifiers
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")

# Of a pipeline's `kind`
KINDS = {
    "tokens": "discrete diffusion over tokens",
    "embeddings": "diffusion over word embeddings",
    "codes": "diffusion over the codes of an autoencoder",
    "latents": "diffusion over the latents of an autoencoder, whose decoder is a language model",
}

# Of the names in metrics.json: meaning and unit.
FIGURES = {
    "bound": ("upper bound of the negative log-likelihood", "nats per token"),
    "bits_per_character": ("the same bound", "bits per character"),
    "unigram_entropy": ("entropy of the same tokens' frequencies", "nats per token"),
    "coarse_bound": ("of the bound: coarse codes", "nats per token"),
    "fine_bound": ("of the bound: fine codes, given these", "nats per token"),
    "decoder_cross_entropy": ("of the bound: tokens, given the codes", "nats per token"),
    "mean_length": ("length of written texts", "tokens"),
    "mean_length_of_data": ("length of held-out texts", "tokens"),
    "length_distance": ("Wasserstein distance of their lengths", "tokens"),
}

# Said of every model, since no measurement in a card covers it
RISKS = (
    "What it writes may repeat or contradict itself, make no sense, and state what is false as if it were true.",
    "It may repeat the biases, the tone, names and even sentences of the texts that it was trained on.",
    "Nothing filters what it writes: look at it before you show it to others, and decide nothing by it.",
)


@dataclass
class TrainingRecord:
    """The records that a training left, as far as they are there.

    Attributes:
        folder: in which they lie.
        metrics: figures of metrics.json that are numbers.
        note: training_config.json.
        datasets: names of what it was trained on.
    """

    folder: Path | None
    metrics: dict[str, float]
    note: dict[str, Any]
    datasets: Sequence[str]


def model_card(
    pipe: Any,
    folder: str | Path | None = None,
    *,
    name: str,
    license: str | None = None,
    repo_id: str | None = None,
    datasets: Sequence[str] = (),
    base_model: str | None = None,
    with_code: bool = True,
) -> str:
    """README.md of a pipeline. The texts in it are written now, by the calls that it shows, from a fixed seed.

    Args:
        pipe: a pipeline of this package.
        folder: where its training left metrics.json, training_config.json and curves.jsonl; what is missing is left
            out of the card. The picture of the curves is drawn there, as curves.png, to be published beside the card.
        name: heads the card.
        license: identifier of the Hub, such as "apache-2.0".
        repo_id: where the model will be; without one the code of the card loads `name`.
        datasets: names, of the Hub if they are there, of what it was trained on.
        base_model: the repository of the model that it was made from; by default the one that `folder` names, or that
            a language model was loaded from.
        with_code: whether the code of its classes lies beside the weights, so that stock diffusers loads it.

    Raises:
        ValueError: if `name` is empty, `license`, `repo_id` or `base_model` is no identifier, or a file in `folder`
            cannot be read.

    Example:
        >>> from text_diffusers import TextDiffusionPipeline
        >>> from text_diffusers.hub.model_card import model_card
        >>> pipe = TextDiffusionPipeline.from_pretrained("four-voices")  # doctest: +SKIP
        >>> card = model_card(pipe, name="My model", license="apache-2.0")  # doctest: +SKIP
    """
    # Refused here, before the texts of the card are written, which takes a while.
    if not one_line(name):
        raise ValueError(f"`name` must hold something that can be read, got {name!r}.")
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(
            f"`license` must be an identifier of the Hub such as 'apache-2.0', got {license!r}."
        )
    for identifier in (repo_id, base_model):
        if identifier is not None:
            validate_repo_id(identifier)

    folder = None if folder is None else Path(folder)
    figures = read_record(folder, METRICS_FILE)
    note = read_record(folder, NOTE_FILE)

    # Data sets that the caller names come before the one in the options of the training.
    options = note.get("options", {})
    recorded = [str(options["dataset"])] if options.get("dataset") else []
    record = TrainingRecord(
        folder=folder,
        metrics={key: value for key, value in figures.items() if is_number(value)},
        note=note,
        datasets=datasets or recorded,
    )
    name = one_line(name)
    base_model = base_model or base_model_of(pipe, record, repo_id)

    # A section without anything to say is empty, and left out below.
    sections = [
        front_matter(pipe, record, name, license, datasets, base_model),
        f"# {escaped(name)}\n\n{description(pipe)}",
        base_section(base_model),
        parts_section(pipe),
        use_section(pipe, options, place=repo_id or name, with_code=with_code),
        training_section(record, base_model),
        evaluation_section(record.metrics),
        limits_section(pipe),
        papers_section(pipe, base_model),
    ]
    if license is not None:
        sections.append(
            f"## Licence\n\nOf the weights: {code(license)}. Of the code: `apache-2.0`."
        )
    return "\n\n".join(section for section in sections if section) + "\n"


# Head


def base_model_of(pipe: Any, record: TrainingRecord, repo_id: str | None) -> str | None:
    """The repository of the model that this one was made from, as far as it is recorded."""
    candidates = [record.note.get("options", {}).get("model_name_or_path")]

    # A converted folder has a card of its own, which says where its weights are from.
    readme = None if record.folder is None else record.folder / "README.md"
    if readme is not None and readme.is_file():
        candidates.append((metadata_load(readme) or {}).get("base_model"))
    if is_language_model(pipe.denoiser if pipe.kind != "codes" else None):
        candidates.append(pipe.config.get("_name_or_path"))

    # The path of a folder tells nobody anything, and a model is not made from itself.
    for candidate in candidates:
        is_name = isinstance(candidate, str) and candidate.count("/") == 1
        if is_name and is_repo_id(candidate) and not Path(candidate).exists():
            return None if candidate == repo_id else candidate
    return None


def base_section(base_model: str | None) -> str:
    if base_model is None:
        return ""
    return (
        f"Made from [{escaped(base_model)}](https://huggingface.co/{base_model}), whose licence holds for what comes "
        "of its weights."
    )


def front_matter(
    pipe: Any,
    record: TrainingRecord,
    name: str,
    license: str | None,
    datasets: Sequence[str],
    base_model: str | None,
) -> str:
    """YAML by which the Hub files the model; `datasets` are those that were given by name."""
    # The Hub knows data sets by ids; other names stand in the text of the card only.
    results = evaluation_results(record)
    ids = [one_line(data_set) for data_set in datasets if is_repo_id(one_line(data_set))]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-generation",
        license=license,
        base_model=base_model,
        datasets=ids or None,
        tags=["text-diffusers", "text-diffusion", type(pipe).__name__],
        metrics=["perplexity"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def evaluation_results(record: TrainingRecord) -> list[EvalResult]:
    """The bound, and the perplexity that it means, for the Hub's table of results."""
    if "bound" not in record.metrics or not record.datasets:
        return []

    # A bound on the negative log-likelihood per token is the logarithm of one on the perplexity.
    bound = record.metrics["bound"]
    figures = {
        "nats-per-token": ("Upper bound, nats per token", bound),
        "perplexity": ("Perplexity per token, upper bound", math.exp(bound)),
    }

    if "bits_per_character" in record.metrics:
        bits = record.metrics["bits_per_character"]
        figures["bits-per-character"] = ("Upper bound, bits per character", bits)

    # The Hub files a result under an id of its data set, in which few characters are allowed.
    data_set = one_line(record.datasets[0])
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_name=data_set,
            dataset_type=re.sub(r"[^\w./-]+", "-", data_set),
            dataset_split="held-out",
            metric_type=kind,
            metric_name=title,
            metric_value=value,
        )
        for kind, (title, value) in figures.items()
    ]


def is_repo_id(name: str) -> bool:
    # The Hub's own rule, instead of a second one here
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def description(pipe: Any) -> str:
    num_parameters = sum(count_parameters(part) for part in pipe.components.values())
    # A Gaussian prior of latents has no scheduler, and writes.
    writes = pipe.draws_from_scheduler or pipe.kind == "latents"
    does = "writes" if writes else "paraphrases"
    in_blocks = ", block by block" if pipe.block_length else ""
    return (
        f"A model of {num_parameters:,} parameters that {does} text by {KINDS[pipe.kind]}{in_blocks}. "
        f"Its class is {code(type(pipe).__name__)} of `text-diffusers`, diffusion models for text in the manner of "
        "Hugging Face diffusers."
    )


def count_parameters(part: Any) -> int:
    if not isinstance(part, torch.nn.Module):
        return 0
    return sum(parameter.numel() for parameter in part.parameters())


# The parts, and how they are called


def parts_section(pipe: Any) -> str:
    """Models and schedulers with their sizes and settings."""
    # A tokenizer is neither; its size has a row of its own below.
    lines = []
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            size = f"{count_parameters(part):,} parameters"
            lines.append((name, f"{code(type(uncompiled(part)).__name__)}, {size}"))
        elif part is not None and hasattr(part, "step"):
            lines.append((name, described_scheduler(part)))

    lines.append(("vocabulary", f"{len(pipe.tokenizer):,} tokens"))
    if pipe.max_length:
        lines.append(("longest row", f"{pipe.max_length:,} tokens, given ones included"))
    if pipe.block_length:
        lines.append(("block", f"{pipe.block_length:,} tokens, written together"))
    if is_language_model(getattr(pipe, "denoiser", None)):
        lines.append(("read as", described_reading(pipe)))
    labels = labels_of(pipe)
    if labels:
        lines.append(("labels", ", ".join(code(str(label)) for label in labels)))
    prompts = pipe.config.get("label_prompts")
    if prompts:
        lines.append(("their prompts", ", ".join(code(prompt) for prompt in prompts)))
    defaults = defaults_in_force(pipe, {})
    if defaults:
        lines.append(("writes by default with", described_defaults(defaults)))
    return f"## Model\n\n{table(('', ''), lines)}"


def described_scheduler(scheduler: Any) -> str:
    """The class of a scheduler and those of its settings that are numbers or names."""
    settings = []
    for key, value in scheduler.config.items():
        if key == "num_train_timesteps" and value is None:
            value = "continuous"

        # Other values, such as lists of betas or of counts, are too long for a table.
        if isinstance(value, (int, float, str)) and not key.startswith("_"):
            settings.append(f"{code(key)} {code(str(value))}")
    return f"{code(type(scheduler).__name__)}: {', '.join(settings)}"


def described_defaults(defaults: Mapping[str, Any]) -> str:
    """The arguments of a call that hold where it gives none."""
    return ", ".join(code(f"{name}={literal(value)}") for name, value in defaults.items())


def described_reading(pipe: Any) -> str:
    """How the predictions of a language model are read, and which tokens end its texts."""
    reading = reading_of(pipe.denoiser)
    parts = [f"{code(reading.attention)} attention, {code(reading.alignment)} predictions"]
    parts.append(f"mask {code(str(pipe.tokenizer.mask_token))}")
    if reading.end_token_ids:
        ends = pipe.tokenizer.convert_ids_to_tokens(reading.end_token_ids)
        parts.append(f"texts end at {', '.join(code(str(end)) for end in ends)}")
    return "; ".join(parts)


def use_section(pipe: Any, options: dict[str, Any], place: str, with_code: bool) -> str:
    """Code that loads and calls the model, with and without this package, and the texts that the calls write."""
    # The texts are written by the very calls that stand above them.
    calls = []
    texts = []
    examples = examples_of(pipe, options)
    for example in examples:
        calls.append(f"# {example.title}\nprint({example.source()}.texts)")
        for caption, text in zip(example.captions, example.texts(pipe), strict=True):
            texts += [f"{escaped(caption or example.title)}:", fenced(wrapped(text), "text")]

    installed = f"""import torch
from text_diffusers import TextDiffusionPipeline

pipe = TextDiffusionPipeline.from_pretrained({literal(place)})
"""
    # Stock diffusers is shown by the first call: the others differ by their arguments alone.
    stock = f"""import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({literal(place)}, trust_remote_code=True)
print({examples[0].source()}.texts)"""

    without_package = [
        "Without it, by the code that lies beside the weights. Read it first: `trust_remote_code=True` runs it.",
        fenced(stock, "python"),
    ]
    if not with_code:
        without_package = [
            "After `text-diffusers publish`, stock diffusers loads it from the Hub, by the code that then lies beside "
            "the weights."
        ]

    paragraphs = [
        "## Use",
        "With `text-diffusers` installed:",
        fenced("\n\n".join([installed.strip(), *calls]), "python"),
        *without_package,
        "## Texts",
        f"As these calls write them, from seed {SEED}, none left out. "
        f"Lines above {LINE_LENGTH} characters are broken.",
        *texts,
    ]
    return "\n\n".join(paragraphs)


# The training and its result


def training_section(record: TrainingRecord, base_model: str | None) -> str:
    """The training as far as it was recorded, with those before it; empty if nothing was."""
    note = record.note
    stages = earlier_stages_of(note)
    paragraphs = []
    if record.datasets:
        names = ", ".join(code(str(name)) for name in record.datasets)
        in_stages = ""
        if stages:
            origin = f"the first from {escaped(base_model)} and " if base_model else ""
            in_stages = (
                f", in {len(stages) + 1} stages, {origin}each from the model of the one before"
            )
        paragraphs.append(f"Trained on {names}{in_stages}.")
    for number, stage in enumerate(stages, start=1):
        work = described_work(stage.get("num_steps"), stage.get("minutes"))
        paragraphs.append(f"Stage {number}{f', {work}' if work else ''}:")
        paragraphs.append(fenced(broken_command(stage["command"]), "bash"))
    if "command" in note:
        of_stage = " of the last stage" if stages else ""
        paragraphs.append(
            f"The command{of_stage}, whose options that are not named have their defaults:"
        )
        paragraphs.append(fenced(broken_command(str(note["command"])), "bash"))

    # How long it took: two levels have a curve for each, others have one without a name.
    for stage, curve in curves_of(record.folder).items():
        # The last line of a curve holds the time since the training began.
        last = curve[-1]
        if is_number(last.get("seconds")):
            work = f"{described_work(last['step'], last['seconds'] / 60)}."
            paragraphs.append(f"The {stage} level: {work}" if stage else work)

    # On how many devices, and in which precision
    num_processes = note.get("num_processes")
    if is_number(num_processes) and "device" in note:
        processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
        precision = code(str(note.get("mixed_precision")))
        place = code(note["device"])
        paragraphs.append(f"Run by {processes} on {place}, mixed precision {precision}.")
    if isinstance(note.get("versions"), dict):
        versions = [f"{escaped(key)} {code(str(value))}" for key, value in note["versions"].items()]
        paragraphs.append(f"Versions: {', '.join(versions)}.")

    # Curves and options
    if record.folder is not None and has_curves_picture(record.folder):
        paragraphs.append(f"![Curves of the training by step]({CURVES_PICTURE})")
    if "options" in note:
        options = [(code(key), code(json.dumps(value))) for key, value in note["options"].items()]

        # Folded up: there are many, and most have their defaults.
        paragraphs.append("<details><summary>All options</summary>")
        paragraphs.append(table(("option", "value"), options))
        paragraphs.append("</details>")
    return "\n\n".join(["## Training", *paragraphs]) if paragraphs else ""


def earlier_stages_of(note: dict[str, Any]) -> list[dict[str, Any]]:
    """The trainings before the last one, each with its `command`, and maybe `num_steps` and `minutes`.

    Raises:
        ValueError: if the note says something else.
    """
    stages = note.get(EARLIER_STAGES, [])
    are_stages = isinstance(stages, list) and all(
        isinstance(stage, dict) and isinstance(stage.get("command"), str) for stage in stages
    )
    if not are_stages:
        raise ValueError(
            f"`{EARLIER_STAGES}` in {NOTE_FILE} must be a list of objects with a `command` each, got {stages!r}."
        )
    return stages


def described_work(num_steps: Any, minutes: Any) -> str:
    """How long a training was; empty where that was not noted."""
    if not is_number(num_steps):
        return ""
    time = f" in {minutes:.1f} minutes" if is_number(minutes) else ""
    return f"{num_steps:,} optimizer steps{time}"


def broken_command(command: str) -> str:
    """The command on several lines, an option and its values never apart."""
    # The words before the first option are a group too: the program and its script.
    groups: list[list[str]] = []
    for word in shlex.split(command):
        if not groups or word.startswith("--"):
            groups.append([])
        groups[-1].append(word)

    # As many of them on a line as fit
    lines: list[str] = []
    for words in groups:
        group = shlex.join(words)
        if lines and len(lines[-1]) + len(group) < LINE_LENGTH:
            lines[-1] += f" {group}"
        else:
            lines.append(group)
    return " \\\n    ".join(lines)


def has_curves_picture(folder: Path) -> bool:
    """Whether there is a picture of the curves, which is drawn anew if that can be done."""
    try:
        draw_curves(folder)
    except (OSError, ImportError) as error:
        # A picture that was drawn by the training is still good.
        logger.warning(f"{folder / CURVES_PICTURE} is not drawn anew: {error}")
    return (folder / CURVES_PICTURE).is_file()


def evaluation_section(metrics: dict[str, float]) -> str:
    """The figures of held-out text, and how they are to be read; empty without figures."""
    lines = []
    for name, (meaning, unit) in FIGURES.items():
        if name in metrics:
            figure = f"{metrics[name]:.3f}"
            if name == "bound" and "standard_error" in metrics:
                figure += f" ± {metrics['standard_error']:.3f}"
            lines.append((meaning, figure, unit))
    if not lines:
        return ""

    paragraphs = ["## Evaluation", "On held-out text:", table(("", "", ""), lines)]
    if "bound" in metrics:
        paragraphs.append(meaning_of_bound(metrics))
    return "\n\n".join(paragraphs)


def meaning_of_bound(metrics: dict[str, float]) -> str:
    bound = metrics["bound"]
    sentences = [
        f"A bound of {bound:.3f} nats per token says that the model gives a token of held-out text a probability of "
        f"at least e^-{bound:.3f} = {math.exp(-bound):.3g}, in the geometric mean: its perplexity is at most "
        f"{math.exp(bound):.4g} per token."
    ]
    if "standard_error" in metrics:
        sentences.append("What follows ± is the standard error of the estimate.")

    # The trivial baseline for the bound: each token drawn by its frequency, without context
    if "unigram_entropy" in metrics:
        sentences.append(
            "The entropy of token frequencies is what a model comes to that knows these and nothing else."
        )
        if bound >= metrics["unigram_entropy"]:
            sentences.append(
                "The bound is not below it: by this measure the model is not shown to know more than these."
            )
    # What is counted, by `text_diffusers.evaluation.written_texts`; older figures counted otherwise.
    if "num_tokens" in metrics:
        sentences.append(
            f"Counted are the {metrics['num_tokens']:,.0f} tokens of the texts and their ends, which the model "
            "writes, and nothing that it is given."
        )
    else:
        sentences.append(
            "These figures were left by an earlier version, which also counted the start token of texts that have a "
            "row of their own."
        )
    sentences.append("Figures per token compare only between models of the same vocabulary.")
    if "bits_per_character" in metrics:
        sentences.append("Those per character compare between any; an end counts as a character.")
    return " ".join(sentences)


# Limits and sources


def limits_section(pipe: Any) -> str:
    sentences: list[str] = list(RISKS)
    if pipe.max_length:
        sentences.insert(0, f"Rows have at most {pipe.max_length:,} tokens.")
    return "## Limits and risks\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)


def papers_section(pipe: Any, base_model: str | None) -> str:
    # Schedulers first: theirs is the paper that the model is known by.
    parts = [part for part in pipe.components.values() if part is not None]
    parts.sort(key=lambda part: not hasattr(part, "step"))

    # A paper of the published model comes first, and no paper twice.
    lines = []
    for number, title in dict([*papers_of_published(base_model), *papers_of(*parts, pipe)]).items():
        lines.append(f"- {title}, [arXiv:{number}](https://arxiv.org/abs/{number})")
    return "## Papers\n\n" + "\n".join(lines)
