"""The page of a model: README.md with front matter for the Hub, from a pipeline and what its training left behind.

It says what was measured or recorded, and nothing else: without a folder there are no figures of training.
"""

import json
import logging
import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from text_diffusers.common.validation import is_number
from text_diffusers.hub.card_examples import SEED, examples_of, labels_of, literal
from text_diffusers.hub.card_text import LINE, code, escaped, fenced, one_line, table, wrapped
from text_diffusers.hub.papers import papers_of
from text_diffusers.training.config import NOTE_FILE
from text_diffusers.training.curves import (
    CURVES_PICTURE,
    METRICS_FILE,
    curves_of,
    draw_curves,
    read_record,
)

logger = logging.getLogger(__name__)

LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
KINDS = {  # of pipelines; the first that fits the class or one that it extends
    "TwoLevelVQDiffusionPipeline": "writes text by two levels of diffusion over the codes of an autoencoder",
    "TokenParaGuidePipeline": "paraphrases text by diffusion over tokens, steered by classifiers of clean text",
    "ParaGuidePipeline": "paraphrases text by diffusion over word embeddings, steered by classifiers of clean text",
    "GuidedDiffusionLMPipeline": "writes text by diffusion over word embeddings, with guidance",
    "DiffusionLMPipeline": "writes text by diffusion over word embeddings",
    "TextBlockDiffusionPipeline": "writes text block by block, by discrete diffusion over the tokens of a block",
    "TextDiffusionCFGPipeline": "writes text by discrete diffusion over tokens, with guidance",
    "TextDiffusionPipeline": "writes text by discrete diffusion over tokens",
}
FIGURES = {  # of metrics.json, with their meaning and unit
    "bound": ("upper bound of the negative log-likelihood", "nats per token"),
    "unigram_entropy": ("entropy of token frequencies", "nats per token"),
    "coarse_bound": ("of the bound: coarse codes", "nats per token"),
    "fine_bound": ("of the bound: fine codes, given these", "nats per token"),
    "decoder_cross_entropy": ("of the bound: tokens, given the codes", "nats per token"),
    "mean_length": ("length of written texts", "tokens"),
    "mean_length_of_data": ("length of held-out texts", "tokens"),
    "length_distance": ("Wasserstein distance of their lengths", "tokens"),
}


def model_card(
    pipe: Any,
    folder: Path | None = None,
    *,
    name: str,
    license: str | None = None,
    repo_id: str | None = None,
    datasets: Sequence[str] = (),
) -> str:
    """README.md of a pipeline.

    Texts that it shows are written here, by the calls that it shows, from a fixed seed.

    Args:
        pipe: a pipeline of this package.
        folder: where its training left metrics.json, training_config.json and curves.jsonl; what is missing is left
            out of the card. The picture of the curves is drawn there, as curves.png, to be published beside the card.
        name: heads the card.
        license: identifier of the Hub, such as "apache-2.0".
        repo_id: where the model will be; without one the code of the card loads `name`.
        datasets: names, of the Hub if they are there, of what it was trained on.

    Raises:
        ValueError: if `name` is empty, `license` or `repo_id` is no identifier, or a file in `folder` cannot be read.
    """
    if not one_line(name):
        raise ValueError(f"`name` must hold something that can be read, got {name!r}.")
    if license is not None and not LICENSE.fullmatch(license):
        raise ValueError(
            f"`license` must be an identifier of the Hub such as 'apache-2.0', got {license!r}."
        )
    if repo_id is not None:
        validate_repo_id(repo_id)
    left = {}
    for file in (METRICS_FILE, NOTE_FILE):
        left[file] = read_record(None if folder is None else Path(folder), file)
    metrics = {key: value for key, value in left[METRICS_FILE].items() if is_number(value)}
    note = left[NOTE_FILE]
    sections = [
        front_matter(pipe, metrics, note, one_line(name), license, datasets),
        f"# {escaped(name)}\n\n{description(pipe)}",
        f"## Model\n\n{table(('', ''), model_lines(pipe))}",
        use(pipe, note, repo_id or one_line(name)),
        training(None if folder is None else Path(folder), note, datasets),
        worth(metrics),
        limits(pipe),
        "## Papers\n\n" + "\n".join(papers(pipe)),
        ""
        if license is None
        else f"## Licence\n\nOf the weights: {code(license)}. Of the code: `apache-2.0`.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def front_matter(
    pipe: Any,
    metrics: dict[str, float],
    note: dict,
    name: str,
    license: str | None,
    datasets: Sequence[str],
) -> str:
    """What the Hub files the model under."""
    known = [one_line(dataset) for dataset in datasets] or [
        str(note.get("options", {}).get("dataset") or "")
    ]
    results = []
    if "bound" in metrics and known[0]:
        on: dict[str, Any] = {
            "dataset_name": known[0],
            "dataset_type": re.sub(r"[^\w./-]+", "-", known[0]),
            "dataset_split": "held-out",
        }
        task: dict[str, Any] = {"task_type": "text-generation", "task_name": "Text generation"}
        bound = metrics["bound"]
        results = [
            EvalResult(metric_type="nats-per-token", metric_name="Upper bound, nats per token", metric_value=bound,
                       **task, **on),
            EvalResult(metric_type="perplexity", metric_name="Perplexity per token, upper bound",
                       metric_value=math.exp(bound), **task, **on),
        ]  # fmt: skip
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-generation",
        license=license,
        datasets=[dataset for dataset in map(one_line, datasets) if is_repo_id(dataset)] or None,
        tags=["text-diffusers", "text-diffusion", type(pipe).__name__],
        metrics=["perplexity"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def description(pipe: Any) -> str:
    kind = next(
        (KINDS[owner.__name__] for owner in type(pipe).__mro__ if owner.__name__ in KINDS),
        "writes text",
    )
    parameters = sum(count_parameters(part) for part in pipe.components.values())
    return (
        f"A model of {parameters:,} parameters that {kind}. Its class is {code(type(pipe).__name__)} of "
        "`text-diffusers`, diffusion models for text in the manner of Hugging Face diffusers."
    )


def count_parameters(part: Any) -> int:
    return sum(one.numel() for one in part.parameters()) if isinstance(part, torch.nn.Module) else 0


def model_lines(pipe: Any) -> list[tuple[str, str]]:
    """Lines of the table of what the model consists of."""
    lines = []
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            lines.append(
                (name, f"{code(type(part).__name__)}, {count_parameters(part):,} parameters")
            )
        elif part is not None and hasattr(part, "step"):
            settings = ", ".join(
                f"{code(key)} {code(str(value))}" for key, value in settings_of(part).items()
            )
            lines.append((name, f"{code(type(part).__name__)}{': ' * bool(settings)}{settings}"))
    lines.append(("vocabulary", f"{len(pipe.tokenizer):,} tokens"))
    longest = longest_row(pipe)
    lines += [("longest row", f"{longest:,} tokens, given ones included")] if longest else []
    if hasattr(pipe, "denoiser") and (labels := labels_of(pipe)):
        lines.append(("labels", ", ".join(code(str(label)) for label in labels)))
    return lines


def settings_of(scheduler: Any) -> dict[str, Any]:
    """What a scheduler is set to, where that is a number or a name."""
    found = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    named = {
        key: value for key, value in found.items() if isinstance(value, (bool, int, float, str))
    }
    continuous = {"time": "continuous"} if found.get("num_train_timesteps", 1) is None else {}
    return continuous | named


def longest_row(pipe: Any) -> int | None:
    if hasattr(pipe, "autoencoder"):
        return pipe.fine_denoiser.config.max_length * pipe.autoencoder.config.patch_length
    return getattr(pipe, "_max_length", None)


def use(pipe: Any, note: dict, place: str) -> str:
    """How to load and call the model, with and without this package, and what the calls write."""
    examples = examples_of(pipe, note.get("options", {}))
    calls = [
        line
        for example in examples
        for line in (f"\n# {example.title}", f"print({example.source()}.texts)")
    ]
    load = ["import torch", "from text_diffusers import TextDiffusionPipeline", ""]
    load.append(f"pipe = TextDiffusionPipeline.from_pretrained({literal(place)})")
    stock = ["import torch", "from diffusers import DiffusionPipeline", ""]
    stock.append(
        f"pipe = DiffusionPipeline.from_pretrained({literal(place)}, trust_remote_code=True)"
    )
    written = []
    for example in examples:
        for caption, text in zip(example.captions, example.texts(pipe), strict=True):
            written += [f"{escaped(caption or example.title)}:", fenced(wrapped(text), "text")]
    parts = [
        "## Use",
        "With `text-diffusers` installed:",
        fenced("\n".join(load + calls), "python"),
        "Without it, by the code that lies beside the weights. Read it first: `trust_remote_code=True` runs it.",
        fenced("\n".join([*stock, f"print({examples[0].source()}.texts)"]), "python"),
        "## Texts",
        f"As these calls write them, from seed {SEED}, none left out. Lines above {LINE} characters are broken.",
        *written,
    ]
    return "\n\n".join(parts)


def training(folder: Path | None, note: dict, datasets: Sequence[str]) -> str:
    """What is known of the training; nothing, if nothing is."""
    dataset = note.get("options", {}).get("dataset")
    named = list(datasets) or ([dataset] if dataset else [])
    parts = [f"Trained on {', '.join(code(str(one)) for one in named)}."] if named else []
    if "command" in note:
        parts += ["The command, whose options that are not named have their defaults:"]
        parts += [fenced(broken_command(str(note["command"])), "bash")]
    parts += [f"{sentence}." for sentence in progress(folder, note)]
    if folder is not None and curves_picture(folder):
        parts.append(f"![Curves of the training by step]({CURVES_PICTURE})")
    if "options" in note:
        options = [(code(key), code(json.dumps(value))) for key, value in note["options"].items()]
        folded = [
            "<details><summary>All options</summary>",
            table(("option", "value"), options),
            "</details>",
        ]
        parts += folded
    return "\n\n".join(["## Training", *parts]) if parts else ""


def progress(folder: Path | None, note: dict) -> list[str]:
    """Sentences about how long it took and on what."""
    sentences = []
    for stage, curve in curves_of(folder).items():
        last = curve[-1]
        if is_number(last.get("seconds")):
            of_stage = f"The {stage} level: " if stage else ""
            sentences.append(
                f"{of_stage}{last['step']:,} optimizer steps in {last['seconds'] / 60:.1f} minutes"
            )
    if is_number(note.get("num_processes")) and "device" in note:
        kind = f"{note['num_processes']} process{'es' * (note['num_processes'] != 1)} on {code(note['device'])}"
        sentences.append(f"Run by {kind}, mixed precision {code(str(note.get('mixed_precision')))}")
    if isinstance(note.get("versions"), dict):
        versions = ", ".join(
            f"{escaped(key)} {code(str(value))}" for key, value in note["versions"].items()
        )
        sentences.append(f"Versions: {versions}")
    return sentences


def broken_command(command: str) -> str:
    """The command on several lines, an option and its values never apart."""
    groups: list[list[str]] = []
    for word in shlex.split(command):
        if not groups or word.startswith("--"):
            groups.append([])
        groups[-1].append(word)
    lines: list[str] = []
    for group in map(shlex.join, groups):
        if lines and len(lines[-1]) + len(group) < LINE:
            lines[-1] += f" {group}"
        else:
            lines.append(group)
    return " \\\n    ".join(lines)


def worth(metrics: dict[str, float]) -> str:
    """What the model is worth on held-out text."""
    lines = []
    for key, (meaning, unit) in FIGURES.items():
        if key in metrics:
            error = (
                f" ± {metrics['standard_error']:.3f}"
                if key == "bound" and "standard_error" in metrics
                else ""
            )
            lines.append((meaning, f"{metrics[key]:.3f}{error}", unit))
    if not lines:
        return ""
    parts = ["## Worth", "On held-out text:", table(("", "", ""), lines)]
    if "bound" in metrics:
        bound, entropy = metrics["bound"], metrics.get("unigram_entropy")
        sentence = (
            f"A bound of {bound:.3f} nats per token says that the model gives a token of held-out text a probability "
            f"of at least e^-{bound:.3f} = {math.exp(-bound):.3g}, in the geometric mean: its perplexity is at most "
            f"{math.exp(bound):.4g} per token."
        )
        if "standard_error" in metrics:
            sentence += " What follows ± is the standard error of the estimate."
        if entropy is not None:
            sentence += " The entropy of token frequencies is what a model comes to that knows these and nothing else."
        if entropy is not None and bound >= entropy:
            sentence += " The bound is not below it: by this measure the model is not shown to know more than these."
        parts.append(
            f"{sentence} Figures per token compare only between models of the same vocabulary."
        )
    return "\n\n".join(parts)


def limits(pipe: Any) -> str:
    longest = longest_row(pipe)
    sentences = [
        "What it writes may repeat or contradict itself, make no sense, and state what is false as if it were true.",
        "It may repeat the biases, the tone, names and even sentences of the texts that it was trained on.",
        "Nothing filters what it writes: look at it before you show it to others, and decide nothing by it.",
    ]
    if longest:
        sentences.insert(0, f"Rows have at most {longest:,} tokens.")
    return "## Limits and risks\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)


def papers(pipe: Any) -> list[str]:
    parts = [part for part in pipe.components.values() if part is not None]
    ordered = sorted(parts, key=lambda part: not hasattr(part, "step"))  # schedulers first
    return [
        f"- {title}, [arXiv:{number}](https://arxiv.org/abs/{number})"
        for number, title in papers_of(*ordered, pipe)
    ]


def curves_picture(folder: Path) -> bool:
    """Draw the curves if that can be done; whether there is a picture of them."""
    try:
        draw_curves(folder)
    except (OSError, ImportError) as error:
        logger.warning(f"{folder / CURVES_PICTURE} is not drawn anew: {error}")
    return (folder / CURVES_PICTURE).is_file()
