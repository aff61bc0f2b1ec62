"""Train a classifier of noisy text, or a tagger of its tokens, that guides a diffusion model.

    accelerate launch training_scripts/train_classifier.py --dataset movie_reviews --label_column label \\
        --model_name_or_path runs/sentiment --output_dir runs/classifier

`--model_name_or_path` is the pipeline to guide: its tokenizer is taken, and its noise at all times. Without it the
classifier is one of clean text, or with `--noise absorbing` of masked text. With `--tags_column` it tags every token.
It writes no texts: `num_samples` and `num_length_samples` have no effect. Read it from top to bottom: options, data,
noise, model, loss, training, report. Shapes: B batch, L sequence length, C classes.
"""

from dataclasses import dataclass
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed

from text_diffusers import (
    D3PMAbsorbingScheduler,
    EmbeddingDDIMScheduler,
    TextClassifierModel,
    TextDiffusionPipeline,
)
from text_diffusers.common.scheduler_config import HIDING_NOISES
from text_diffusers.common.token_ids import end_ids, start_ids
from text_diffusers.data.rows import ShuffledRows, trimmed
from text_diffusers.evaluation.classifier import (
    Corruption,
    clean_text,
    evaluate_classifier,
    label_losses,
)
from text_diffusers.models.language_model import as_denoiser, is_masked_lm
from text_diffusers.schedulers.scheduling_d3pm import D3PMScheduler
from text_diffusers.training.config import option, refuse_parts_of_a_pipeline
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.steps.classifier import (
    EmbeddingCorruption,
    TokenCorruption,
    check_labels,
    noise_levels,
    one_label_each,
)
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    prepare_data,
    prepare_tagged_data,
    rows_per_step,
)

REPORTED_TIMES = 4  # random times of a row in the report


@dataclass
class ClassifierConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    # Noise: that of the pipeline, or a simple one
    model_name_or_path: str | None = option(None, "saved pipeline that will be guided")
    noise: str = option(
        "none",
        "without a pipeline: none, or absorbing",
        part_of="pipeline",
        one_of=("none", "absorbing"),
    )
    clean_fraction: float = option(0.1, "share of rows without noise", limit="between 0 and 1")

    # Labels or tags
    tags_column: str | None = option(
        None, "column of tags, one a word, strings or integers from 0: trains a tagger"
    )
    words_column: str = option("words", "column of the words that are tagged")
    label_names: list[str] | None = option(
        None, "names of the labels, in their order; default: labels that are words"
    )

    # Rows
    packing: bool = option(False, "off: a row holds one text")
    length: int = option(64, "tokens in a row")

    # Transformer
    hidden_size: int = option(128, "width of the transformer")
    num_layers: int = option(4, "blocks")
    num_attention_heads: int = option(4, "heads")
    dropout: float = option(0.1, "in training")

    def __post_init__(self):
        super().__post_init__()
        refuse_parts_of_a_pipeline(self)
        # A classifier has one target: a label a text, or a tag a token.
        if (self.label_column is None) == (self.tags_column is None):
            raise ValueError(
                "Either `label_column` or `tags_column` must be given, and not both, got "
                f"{self.label_column!r} and {self.tags_column!r}."
            )
        if self.packing:
            raise ValueError("`packing` must be off: a row holds one text.")
        # Tags take their names from the data, all of which is read first: no stream.
        if self.tags_column and (self.streaming or self.label_names):
            raise ValueError("`tags_column` goes without `streaming` and `label_names`.")


@dataclass
class PipelineNoise:
    """The noise of the pipeline that the classifier will guide, and what the classifier must be like to read it.

    Attributes:
        corrupt: adds noise to a batch.
        sizes: arguments of `TextClassifierModel`.
        words: arguments of its `set_words`, for a pipeline over word embeddings.
    """

    corrupt: Corruption
    sizes: dict[str, Any]
    words: dict[str, torch.Tensor] | None = None


def prepare(config: ClassifierConfig, accelerator: Any) -> tuple[TextData, list[str] | None]:
    """Rows with labels or tags, and the names of these."""
    if config.tags_column:
        return prepare_tagged_data(
            config,
            accelerator,
            pretrained=config.model_name_or_path,
            words_column=config.words_column,
            tags_column=config.tags_column,
        )

    # Names may include labels that no text here has, such as those of another part of the data.
    data = prepare_data(
        config, accelerator, config.model_name_or_path, label_names=config.label_names
    )
    names = data.label_names
    if names is not None and len(names) < (data.num_classes or 0):
        raise ValueError(f"`label_names` must name {data.num_classes} labels, got {names}.")
    if names:
        data.num_classes = len(names)

    # The loop counts tokens that are not given, so a row with one label has one such token.
    with accelerator.main_process_first():
        data.train_rows = data.train_rows.map(one_label_each, batched=True)
        data.validation_rows = data.validation_rows.map(one_label_each, batched=True)
    check_labels(data.validation_rows, data.num_classes)
    return data, names


def prepare_noise(config: ClassifierConfig, tokenizer: Any, device: torch.device) -> PipelineNoise:
    """The noise of the pipeline in `model_name_or_path`, or that of `noise`."""
    # Both ends of a text may be known to the pipeline, and are then never noisy.
    start = next(iter(start_ids(tokenizer)), None)
    end = next(iter(end_ids(tokenizer)), None)
    # The least that a classifier needs; noise with more to tell adds to it.
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "max_length": config.length,
        "time_conditioning": False,
    }

    # 1. Without a pipeline: clean text, or masks
    if config.model_name_or_path is None:
        if config.noise == "none":
            return PipelineNoise(clean_text, sizes)
        return PipelineNoise(
            TokenCorruption(D3PMAbsorbingScheduler(tokenizer.mask_token_id), start, end), sizes
        )

    # 2. The noise of a pipeline, read by a classifier with the same vocabulary
    pipe: Any = TextDiffusionPipeline.from_pretrained(config.model_name_or_path)
    scheduler = pipe.scheduler
    denoiser = as_denoiser(pipe.denoiser, pipe.tokenizer)
    sizes["vocab_size"] = denoiser.config.vocab_size
    # Guidance shows it whole rows of the pipeline, however short the rows of training are.
    sizes["max_length"] = max(config.length, denoiser.config.max_length)

    # A pipeline that draws lengths, or is told them, puts the end where it belongs; others predict it.
    if not (pipe.config.lengths or is_masked_lm(pipe.denoiser)):
        end = None

    # Over word embeddings the classifier reads vectors, and needs the time at which they are.
    if pipe.kind == "embeddings":
        scheduler = EmbeddingDDIMScheduler.from_config(scheduler.config)
        if not denoiser.config.partial_noising:  # known words are as noisy as the rest
            start = end = None
        sizes["embedding_dim"] = denoiser.config.embedding_dim
        sizes["num_train_timesteps"] = denoiser.config.num_train_timesteps
        sizes["time_conditioning"] = True

        denoiser = denoiser.to(device).eval().requires_grad_(False)
        words = {"table": denoiser.embedding_table(), "alphas_cumprod": scheduler.alphas_cumprod}
        return PipelineNoise(
            EmbeddingCorruption(scheduler, denoiser.embed, start, end), sizes, words
        )

    # 3. Over tokens the classifier reads what the denoiser reads.
    if not isinstance(scheduler, D3PMScheduler):
        raise ValueError(
            f"`model_name_or_path` must have a token scheduler of this package, got {type(scheduler).__name__}, which "
            "cannot corrupt text."
        )
    # Masks and clusters show by their number how noisy a text is; other noise looks like words.
    sizes["time_conditioning"] = scheduler.corruption not in HIDING_NOISES
    return PipelineNoise(TokenCorruption(scheduler, start, end), sizes)


def build_model(
    config: ClassifierConfig, data: TextData, names: list[str] | None, noise: PipelineNoise
) -> TextClassifierModel:
    """The classifier of this configuration, for the inputs that the noise makes."""
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
        **noise.sizes,
    )
    # The pipeline's embeddings are frozen inputs, and no weights of the classifier.
    if noise.words is not None:
        classifier.set_words(**noise.words)
    return classifier


def main(config: ClassifierConfig, on_validation: ValidationCallback | None = None) -> list[float]:
    """Train, save the classifier and its figures; returns the loss of each step in nats per label."""
    # 1. Data, noise and model
    accelerator = make_accelerator(config)
    data, names = prepare(config, accelerator)
    noise = prepare_noise(config, data.tokenizer, accelerator.device)
    classifier = build_model(config, data, names, noise)
    accelerator.print(f"{classifier.num_parameters():,} parameters, {data.num_classes} classes")

    # 2. The loss of a batch, and what is watched on the way
    def loss_function(model, batch, uniform, generators):
        batch = trimmed(batch)
        # The classifier will judge texts at all stages of the writing, and finished ones.
        levels = noise_levels(uniform, config.clean_fraction)  # (B,)
        noisy = noise.corrupt(batch, levels, generators)
        logits = model(**noisy).logits  # (B, C), or (B, L, C)
        return label_losses(logits, batch).double().sum()

    # Few held-out rows on the way; the report reads all of them.
    def evaluate(model) -> dict[str, float]:
        rows = data.spread_validation_rows(config.validation_rows)
        return evaluate_classifier(model, noise.corrupt, rows, seed=config.seed).metrics()

    # 3. Train
    # Rows are never cropped: a label is of a whole text.
    loop = TrainingLoop(
        config,
        accelerator,
        classifier,
        loss_function,
        ShuffledRows(data.train_rows, rows_per_step(config, accelerator), config.seed),
        evaluate=evaluate,
        on_validation=on_validation,
    )
    losses = loop.run()

    # 4. Save the averaged weights and report. All processes take part in the averages; buffers have none.
    averages = loop.state.averages()
    if accelerator.is_main_process:
        model = TextClassifierModel.from_config(classifier.config)
        model.load_state_dict(dict(classifier.named_buffers()) | averages)
        model.save_pretrained(config.output_dir)
        # A classifier is of no use without the tokens that it reads.
        data.tokenizer.save_pretrained(config.output_dir)
        loop.log_pipeline(report(config, model.to(accelerator.device).eval(), noise.corrupt, data))
    end_training(accelerator)
    return losses


def report(
    config: ClassifierConfig, model: Any, corrupt: Corruption, data: TextData
) -> dict[str, float]:
    """Print, save and return what the classifier is worth on the held-out split."""
    # Several times a row, for smooth figures in each tenth of the noise.
    evaluation = evaluate_classifier(
        model, corrupt, data.validation_rows, REPORTED_TIMES, seed=config.seed
    )
    metrics = evaluation.metrics()
    print(f"\n{evaluation.table()}")
    save_metrics(config, metrics)
    return metrics


if __name__ == "__main__":
    run(main, ClassifierConfig)
