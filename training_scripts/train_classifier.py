"""Train a classifier of noisy text, or a tagger of its tokens, that guides a diffusion model.

    accelerate launch training_scripts/train_classifier.py --dataset movie_reviews --label_column label \\
        --model_name_or_path runs/sentiment --output_dir runs/classifier

`--model_name_or_path` is the pipeline to guide: its tokenizer is taken, and its noise at all times. Without it the
classifier is one of clean text, or with `--noise absorbing` of masked text. With `--tags_column` it tags every token.
It writes no texts: `num_samples` and `num_length_samples` have no effect. Read it from top to bottom: options, data,
noise, model, loss, training, report. Shapes: B batch, L sequence length, C classes.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed
from transformers import HfArgumentParser

from text_diffusers import D3PMAbsorbingScheduler, EmbeddingDDIMScheduler, TextClassifierModel, TextDiffusionPipeline
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.data.rows import ShuffledRows
from text_diffusers.models.language_model import as_denoiser, is_masked_lm
from text_diffusers.pipelines.diffusion_lm.pipeline_diffusion_lm import DiffusionLMPipeline
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler
from text_diffusers.training.classifier import (
    Corruption,
    EmbeddingCorruption,
    TokenCorruption,
    check_labels,
    clean_text,
    evaluate_classifier,
    label_losses,
    noise_levels,
    one_label_each,
)
from text_diffusers.training.embedding import trimmed
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.tagged_text import prepare_tagged_data
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    prepare_data,
    refuse_parts_of_a_pipeline,
    rows_per_step,
)

PARTS_OF_A_PIPELINE = ("tokenizer", "vocab_size", "noise")
NOISES = ("none", "absorbing")
REPORTED_TIMES = 4


@dataclass
class ClassifierConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "saved pipeline that will be guided"})
    noise: str = field(default="none", metadata={"help": "without a pipeline: none, or absorbing"})
    clean_fraction: float = field(default=0.1, metadata={"help": "share of rows without noise"})
    tags_column: str | None = field(
        default=None, metadata={"help": "column of tags, one a word, strings or integers from 0: trains a tagger"}
    )
    words_column: str = field(default="words", metadata={"help": "column of the words that are tagged"})
    label_names: list[str] | None = field(default=None, metadata={"help": "names of the labels, in their order"})
    packing: bool = field(default=False, metadata={"help": "off: a row holds one text"})
    length: int = field(default=64, metadata={"help": "tokens in a row"})
    hidden_size: int = field(default=128, metadata={"help": "width of the transformer"})
    num_layers: int = field(default=4, metadata={"help": "blocks"})
    num_attention_heads: int = field(default=4, metadata={"help": "heads"})
    dropout: float = field(default=0.1, metadata={"help": "in training"})

    def __post_init__(self):
        super().__post_init__()
        if (self.label_column is None) == (self.tags_column is None):
            raise ValueError(
                "Either `label_column` or `tags_column` must be given, and not both, got "
                f"{self.label_column!r} and {self.tags_column!r}."
            )
        if self.packing:
            raise ValueError("`packing` must be off: a row holds one text.")
        if self.tags_column and (self.streaming or self.label_names):
            raise ValueError("`tags_column` goes without `streaming` and `label_names`.")
        if not 0 <= self.clean_fraction <= 1:
            raise ValueError(f"`clean_fraction` must be between 0 and 1, got {self.clean_fraction!r}.")
        if self.noise not in NOISES:
            raise ValueError(f"`noise` must be one of {NOISES}, got {self.noise!r}.")
        if Path(self.output_dir, "config.json").exists() and not (
            self.overwrite_output_dir or self.resume_from_checkpoint
        ):
            raise ValueError(
                f"`output_dir`={self.output_dir!r} holds a trained model: choose another folder, "
                "`--resume_from_checkpoint latest`, or `--overwrite_output_dir true`."
            )
        refuse_parts_of_a_pipeline(self, PARTS_OF_A_PIPELINE)


class Guided(NamedTuple):
    """What the classifier takes over from the pipeline that it will guide: the noise, and sizes of its inputs.

    `words` are arguments of `set_words`, of a pipeline over word embeddings.
    """

    corrupt: Corruption
    sizes: dict[str, Any]
    words: tuple[torch.Tensor, torch.Tensor] | None = None


def prepare(config: ClassifierConfig, accelerator: Any) -> tuple[TextData, list[str] | None]:
    """Rows with labels or tags, and the names of these."""
    if config.tags_column:
        columns = (config.words_column, config.tags_column)
        return prepare_tagged_data(config, accelerator, config.model_name_or_path, *columns)
    data = prepare_data(config, accelerator, config.model_name_or_path)
    names = config.label_names
    if names is not None and len(names) < (data.num_classes or 0):
        raise ValueError(f"`label_names` must name {data.num_classes} labels, got {names}.")
    data.num_classes = len(names) if names else data.num_classes
    with accelerator.main_process_first():
        data.train_rows = with_given(data.train_rows)
        data.validation_rows = with_given(data.validation_rows)
    check_labels(data.validation_rows, data.num_classes)
    return data, names


def with_given(rows: Any) -> Any:
    return rows.map(one_label_each, batched=True)


def guided_pipeline(config: ClassifierConfig, tokenizer: Any, device: torch.device) -> Guided:
    """The noise of the pipeline in `model_name_or_path`, or that of `noise`."""
    start, end = next(iter(start_ids(tokenizer)), None), next(iter(end_ids(tokenizer)), None)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "max_length": config.length, "time_conditioning": False}
    if config.model_name_or_path is None:
        if config.noise == "none":
            return Guided(clean_text, sizes)
        return Guided(TokenCorruption(D3PMAbsorbingScheduler(tokenizer.mask_token_id), start, end), sizes)
    pipe: Any = TextDiffusionPipeline.from_pretrained(config.model_name_or_path)
    denoiser, scheduler = as_denoiser(pipe.denoiser, pipe.tokenizer), pipe.scheduler
    sizes |= {"vocab_size": denoiser.config.vocab_size}
    sizes |= {"max_length": max(config.length, denoiser.config.max_length)}
    # A pipeline that draws lengths, or is told them, puts the end where it belongs; others predict it.
    end = end if pipe.config.lengths or is_masked_lm(pipe.denoiser) else None
    if isinstance(pipe, DiffusionLMPipeline):
        scheduler = EmbeddingDDIMScheduler.from_config(scheduler.config)
        if not denoiser.config.partial_noising:  # known words are as noisy as the rest
            start = end = None
        steps = {"num_train_timesteps": denoiser.config.num_train_timesteps, "time_conditioning": True}
        sizes |= {"embedding_dim": denoiser.config.embedding_dim} | steps
        denoiser = denoiser.to(device).eval().requires_grad_(False)
        words = (denoiser.embedding_table(), scheduler.alphas_cumprod)
        return Guided(EmbeddingCorruption(scheduler, denoiser.embed, start, end), sizes, words)
    if not isinstance(scheduler, D3PMScheduler):
        raise ValueError(
            f"`model_name_or_path` must have a token scheduler of this package, got {type(scheduler).__name__}, which "
            "cannot corrupt text."
        )
    sizes |= {"time_conditioning": scheduler.corruption != "absorbing"}
    return Guided(TokenCorruption(scheduler, start, end), sizes)


def build_model(config: ClassifierConfig, data: TextData, names: list[str] | None, guided: Guided):
    set_seed(config.seed)
    classifier = TextClassifierModel(
        num_classes=data.num_classes or 0,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        per_token=config.tags_column is not None,
        labels=names,
        dropout=config.dropout,
        mask_token_id=data.tokenizer.mask_token_id,
        pad_token_id=data.tokenizer.pad_token_id,
        **guided.sizes,
    )
    if guided.words is not None:
        classifier.set_words(*guided.words)
    return classifier


def main(
    config: ClassifierConfig, on_validation: Callable[[int, dict[str, float]], None] | None = None
) -> list[float]:
    """Train, save the classifier and its figures; returns the loss of each step in nats per label."""
    accelerator = make_accelerator(config)
    data, names = prepare(config, accelerator)
    guided = guided_pipeline(config, data.tokenizer, accelerator.device)
    corrupt, classifier = guided.corrupt, build_model(config, data, names, guided)
    accelerator.print(f"{classifier.num_parameters():,} parameters, {data.num_classes} classes")

    def loss_function(model, batch, uniform, generators):
        batch = trimmed(batch)
        levels = noise_levels(uniform, config.clean_fraction)  # (B,)
        logits = model(**corrupt(batch, levels, generators)).logits  # (B, C), or (B, L, C)
        return label_losses(logits, batch).double().sum()

    def evaluate(model) -> dict[str, float]:
        rows = data.spread_validation_rows(config.validation_rows)
        return evaluate_classifier(model, corrupt, rows, seed=config.seed).metrics()

    order = ShuffledRows(data.train_rows, rows_per_step(config, accelerator), config.seed)
    loop = TrainingLoop(config, accelerator, classifier, loss_function, order, evaluate, None, on_validation)
    losses = loop.run()
    averages = loop.state.averages()  # of all processes
    if accelerator.is_main_process:
        model = TextClassifierModel.from_config(classifier.config)
        model.load_state_dict(dict(classifier.named_buffers()) | averages)
        model.save_pretrained(config.output_dir)
        data.tokenizer.save_pretrained(config.output_dir)
        loop.log_pipeline(report(config, model.to(accelerator.device).eval(), corrupt, data))
    end_training(accelerator)
    return losses


def report(config: ClassifierConfig, model: Any, corrupt: Corruption, data: TextData) -> dict[str, float]:
    """Print, save and return what the classifier is worth on the held-out split."""
    found = evaluate_classifier(model, corrupt, data.validation_rows, REPORTED_TIMES, seed=config.seed)
    metrics = found.metrics()
    Path(config.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"\n{found.table()}\nsaved in   {config.output_dir}")
    return metrics


if __name__ == "__main__":
    try:
        main(HfArgumentParser(ClassifierConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train_classifier.py: {error}")
