"""Train a diffusion model over word embeddings (Diffusion-LM), from raw files to a saved `DiffusionLMPipeline`.

    accelerate launch training_scripts/train_diffusion_lm.py --dataset chitchat --output_dir runs/diffusion_lm

With `--source_column` it learns to write one text from another by partial noising (DiffuSeq). Read it from top to
bottom: options, model, loss, training, report. Shapes: B batch, L sequence length, E embedding width.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed
from transformers import HfArgumentParser

from text_diffusers import (
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingTransformerModel,
    GuidedDiffusionLMPipeline,
)
from text_diffusers.data.rows import tensor_batches
from text_diffusers.evaluation.embedding import embedding_health, estimate_embedding_bound, rounding_accuracy
from text_diffusers.evaluation.embedding_plots import plot_rounding
from text_diffusers.losses.time_density import TIME_DENSITIES
from text_diffusers.schedulers.embedding_noise import EMBEDDING_SCHEDULES
from text_diffusers.training.condition_dropout import drop_conditions
from text_diffusers.training.embedding import OBJECTIVES, TIMED_ROWS, EmbeddingLoss, trimmed
from text_diffusers.training.initialization import LARGEST_VOCABULARY, TextStatistics, pretrained_vectors
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    bound_metrics,
    length_metrics,
    prepare_data,
    refuse_parts_of_a_pipeline,
    row_order,
    rows_per_step,
    text_lengths,
)

COUNTED_ROWS = 200_000
WRITING_STEPS = 50
PLOTTED_TIMES = 20
TIME_BINS = 20
LOSS_OPTIONS = ("objective", "rounding_weight", "anchor_weight", "self_conditioning", "given_words", "time_sampling")
PARTS_OF_A_PIPELINE = (
    *("tokenizer", "vocab_size", "beta_schedule", "num_train_timesteps", "prediction_type", "categorical_output"),
    *("embedding_dim", "embedding_model", "init_embeddings", "train_embeddings", "normalize_embeddings", "rounding"),
    *("embedding_scale", "own_evidence"),
    *("hidden_size", "num_layers", "num_attention_heads", "dropout", "self_conditioning", "time_sampling"),
)


@dataclass
class DiffusionLMConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    source_column: str | None = field(
        default=None, metadata={"help": "column of the texts from which `text_column` is to be written"}
    )
    condition_dropout: float = field(
        default=0.0, metadata={"help": "share of rows without their label or source, for classifier-free guidance"}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "saved pipeline to train further"})
    vocab_size: int = field(default=2_048, metadata={"help": "tokens of a trained byte-level BPE"})
    length: int = field(default=64, metadata={"help": "tokens in a row"})
    beta_schedule: str = field(default="sqrt", metadata={"help": f"{', '.join(EMBEDDING_SCHEDULES)}"})
    num_train_timesteps: int = field(default=2_000, metadata={"help": "steps from words to noise"})
    objective: str = field(default="diffusion_lm", metadata={"help": "diffusion_lm, bound or simple"})
    prediction_type: str = field(default="sample", metadata={"help": "sample, epsilon or v_prediction"})
    categorical_output: bool = field(
        default=True, metadata={"help": "predict probabilities of words and take their mean embedding; needs sample"}
    )
    own_evidence: bool = field(
        default=True, metadata={"help": "tell the model by Bayes' rule what a noisy embedding says of its own word"}
    )
    rounding_weight: float = field(default=1.0, metadata={"help": "of the words read off noisy embeddings"})
    anchor_weight: float = field(default=1.0, metadata={"help": "of the words read off the clean estimate"})
    self_conditioning: float = field(default=0.5, metadata={"help": "share of rows shown a first estimate; 0: off"})
    given_words: float | None = field(
        default=None,
        metadata={
            "help": "share of rows with some clean words, to learn prompts and gaps; default: 0.25, with sources 0"
        },
    )
    time_sampling: str = field(
        default="uniform", metadata={"help": f"uniform, by_signal, {', '.join(TIME_DENSITIES)}"}
    )
    timing_steps: int = field(default=500, metadata={"help": "optimizer steps between looks at the losses by time"})
    embedding_dim: int = field(default=16, metadata={"help": "width of the embeddings, in which diffusion happens"})
    embedding_model: str | None = field(
        default=None, metadata={"help": "transformers model whose embeddings, projected, and tokenizer are taken"}
    )
    init_embeddings: str = field(default="random", metadata={"help": "random, or cooccurrence of tokens"})
    train_embeddings: bool = field(default=True, metadata={"help": "off: they stay as they are at first"})
    normalize_embeddings: bool = field(default=True, metadata={"help": "scale each to the same length"})
    embedding_scale: float = field(default=1.0, metadata={"help": "of embeddings where the noise has 1"})
    rounding: str = field(default="head", metadata={"help": "how words are found: head, nearest or codebook"})
    hidden_size: int = field(default=256, metadata={"help": "width of the transformer"})
    num_layers: int = field(default=6, metadata={"help": "blocks"})
    num_attention_heads: int = field(default=4, metadata={"help": "heads"})
    dropout: float = field(default=0.0, metadata={"help": "in training"})

    def __post_init__(self):
        super().__post_init__()
        choices = {
            "objective": OBJECTIVES,
            "beta_schedule": EMBEDDING_SCHEDULES,
            "time_sampling": ("uniform", "by_signal", *TIME_DENSITIES),
            "init_embeddings": ("cooccurrence", "random"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {sorted(known)}, got {getattr(self, name)!r}.")
        for name in ("rounding_weight", "anchor_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)!r}.")
        if self.given_words is None:
            self.given_words = 0.0 if self.source_column else 0.25
        for name in ("self_conditioning", "given_words"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(self, name)!r}.")
        if self.source_column and self.given_words:
            raise ValueError("`source_column` needs `--given_words 0`: of a pair, the source is given.")
        conditional = bool(self.label_column or self.source_column)
        if not 0 <= self.condition_dropout < 1 or (self.condition_dropout and not conditional):
            raise ValueError(
                "`condition_dropout` must be in [0, 1) and needs a `label_column` or `source_column`, got "
                f"{self.condition_dropout!r}."
            )
        if self.timing_steps < 1:
            raise ValueError(f"`timing_steps` must be at least 1, got {self.timing_steps!r}.")
        if self.prediction_type != "sample" and (self.anchor_weight or self.objective == "bound"):
            raise ValueError(
                '`anchor_weight` and `--objective bound` read words off a predicted "sample"; with `prediction_type`='
                f"{self.prediction_type!r} pass `--anchor_weight 0` and another objective."
            )
        if self.objective == "bound" and self.time_sampling in TIME_DENSITIES:
            raise ValueError(f'`time_sampling` of `--objective bound` is "by_signal", got {self.time_sampling!r}.')
        if self.objective == "simple" and (self.prediction_type != "epsilon" or self.train_embeddings):
            raise ValueError(
                "`--objective simple` predicts noise between embeddings that stay: pass `--prediction_type epsilon "
                f"--train_embeddings false`, got {self.prediction_type!r} and {self.train_embeddings}."
            )
        if self.source_column and self.packing:
            raise ValueError("`source_column` needs `--packing false`: a row holds one pair.")
        refuse_parts_of_a_pipeline(self, PARTS_OF_A_PIPELINE)


def build_model(config: DiffusionLMConfig, data: TextData) -> tuple[Any, Any]:
    """`(denoiser, scheduler)`, new or of the pipeline that is trained further."""
    set_seed(config.seed)
    if config.model_name_or_path:
        return load_model(config)
    tokenizer = data.tokenizer
    denoiser = EmbeddingTransformerModel(
        vocab_size=len(tokenizer),
        embedding_dim=config.embedding_dim,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        max_length=config.length,
        num_train_timesteps=config.num_train_timesteps,
        prediction_type=config.prediction_type,
        categorical_output=config.categorical_output,
        self_conditioning=config.self_conditioning > 0,
        partial_noising=config.source_column is not None or config.given_words > 0,
        num_classes=data.num_classes,
        normalize_embeddings=config.normalize_embeddings,
        embedding_scale=config.embedding_scale,
        train_embeddings=config.train_embeddings,
        rounding=config.rounding,
        time_bins=TIME_BINS if config.time_sampling in TIME_DENSITIES else 0,
        dropout=config.dropout,
        mask_token_id=tokenizer.mask_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if not config.resume_from_checkpoint:
        set_first_vectors(config, data, denoiser)
    scheduler = EmbeddingDDIMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
    )
    if config.categorical_output and config.own_evidence:
        denoiser.set_noise(scheduler.alphas_cumprod)
    return denoiser, scheduler


def set_first_vectors(config: DiffusionLMConfig, data: TextData, denoiser: Any):
    """Start from what is known of the words: their vectors in the network, and if asked for, their embeddings.

    Embeddings are random by default: noise then confuses words that have nothing in common, which context tells apart.
    """
    counted = partial(tensor_batches, data.train_rows, COUNTED_ROWS)
    vocab_size = len(data.tokenizer)
    if denoiser.words_in is not None and vocab_size <= LARGEST_VOCABULARY:
        denoiser.words_in.weight.data.copy_(TextStatistics(counted, vocab_size, config.hidden_size).vectors())
    if config.embedding_model:
        vectors = pretrained_vectors(config.embedding_model, config.embedding_dim)[:vocab_size]
        denoiser.token_embedding.weight.data[: len(vectors)] = vectors  # the model may lack padding and mask
    elif config.init_embeddings == "cooccurrence":
        denoiser.token_embedding.weight.data.copy_(TextStatistics(counted, vocab_size, config.embedding_dim).vectors())


def load_model(config: DiffusionLMConfig) -> tuple[Any, Any]:
    pipe: Any = DiffusionLMPipeline.from_pretrained(config.model_name_or_path)
    limit = pipe.denoiser.config.max_length
    if config.length > limit:
        raise ValueError(f"`length` must be at most {limit} for this model, got {config.length}.")
    if (config.source_column or config.given_words) and not pipe.denoiser.config.partial_noising:
        raise ValueError(
            "`source_column` and `given_words` must be left out, `--given_words 0`, for the model in "
            "`model_name_or_path`, which was trained without given words."
        )
    return pipe.denoiser, EmbeddingDDIMScheduler.from_config(pipe.scheduler.config)


def main(
    config: DiffusionLMConfig, on_validation: Callable[[int, dict[str, float]], None] | None = None
) -> list[float]:
    """Train, save the pipeline and its figures; returns the loss of each step."""
    accelerator = make_accelerator(config)
    pretrained = config.model_name_or_path or config.embedding_model
    data = prepare_data(config, accelerator, pretrained, source_column=config.source_column)
    denoiser, scheduler = build_model(config, data)
    accelerator.print(f"{denoiser.num_parameters():,} parameters, {len(data.tokenizer):,} tokens in the vocabulary")
    settings = {name: getattr(config, name) for name in LOSS_OPTIONS}
    token_losses = EmbeddingLoss(scheduler, denoiser, **settings)

    def loss_function(model, batch, uniform, generators):
        if denoiser.config.time_bins and loop.step % config.timing_steps == 0 and timed.get("step") != loop.step:
            losses = token_losses.by_time(model, data.validation_rows, denoiser.config.time_bins)
            denoiser.time_density.copy_(TIME_DENSITIES[config.time_sampling](losses))
            timed["step"] = loop.step
        dropout = (config.condition_dropout, denoiser.config.num_classes, data.tokenizer.pad_token_id)
        batch = drop_conditions(batch, generators, *dropout)
        density = denoiser.time_density.cpu() if denoiser.config.time_bins else None
        times, weights = token_losses.draw_times(uniform.cpu(), density)  # (B,)
        batch = trimmed(batch)
        losses = token_losses(model, batch, times, generators)  # (B, L)
        return (losses * weights.to(losses).unsqueeze(1)).sum()

    def evaluate(model) -> dict[str, float]:
        rows = data.spread_validation_rows(config.validation_rows)
        estimate = estimate_embedding_bound(model, scheduler, rows, seed=config.seed, accelerator=accelerator)
        return estimate.metrics() | word_distances(model, scheduler)

    def write(model) -> list[str]:
        set_codes(model)
        pipe = make_pipeline(data.tokenizer, model, scheduler, data.lengths)
        return written(config, pipe, data, config.num_samples).texts

    make_pipeline = GuidedDiffusionLMPipeline if config.condition_dropout else DiffusionLMPipeline
    timed: dict[str, int] = {}
    order = row_order(config, data.train_rows, rows_per_step(config, accelerator))
    writer = write if config.num_samples else None
    loop = TrainingLoop(config, accelerator, denoiser, loss_function, order, evaluate, writer, on_validation)
    losses = loop.run()
    weights = loop.state.averages() | dict(loop.unwrapped.named_buffers())  # of all processes
    if accelerator.is_main_process:
        model = EmbeddingTransformerModel.from_config(denoiser.config)
        model.load_state_dict(weights)
        set_codes(model)
        pipe: Any = make_pipeline(data.tokenizer, model.eval(), scheduler, data.lengths)
        pipe.save_pretrained(config.output_dir)
        loop.log_pipeline(report(config, pipe.to(accelerator.device), data))
    end_training(accelerator)
    return losses


def set_codes(model: Any):
    """Begin a codebook with the embeddings as they are now; several codes of a word are for users to set."""
    if model.config.rounding == "codebook":
        model.set_codebook(model.embedding_table().detach(), torch.arange(model.config.vocab_size))


def word_distances(model: Any, scheduler: Any) -> dict[str, float]:
    """`embedding_health`, and the distance of words in units of the noise at t = 0: near 1 they have collapsed."""
    health = embedding_health(model.embedding_table())
    return health | {"nearest_in_noise": health["nearest_distance"] / float((1 - scheduler.alphas_cumprod[0]).sqrt())}


def written(config: DiffusionLMConfig, pipe: Any, data: TextData, count: int) -> Any:
    """Seeded texts of the pipeline: for the first validation sources, or of the first label, if there are such."""
    inputs: dict[str, Any] = {"num_return_sequences": count}
    if config.source_column:
        some = data.validation_documents.select(range(min(count, len(data.validation_rows))))
        inputs = {"source": list(some["source"])}
    if data.num_classes is not None:
        inputs["class_labels"] = 0
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(config.seed)
    return pipe(**inputs, num_inference_steps=min(WRITING_STEPS, config.num_train_timesteps), generator=generator)


def report(config: DiffusionLMConfig, pipe: Any, data: TextData) -> dict[str, float]:
    """Print, save and return what the model is worth on the held-out split; draw how well it rounds."""
    rows = data.validation_rows
    estimate = estimate_embedding_bound(pipe.denoiser, pipe.scheduler, rows, seed=config.seed)
    data_lengths = text_lengths(pipe.tokenizer, data.validation_documents, rows, config)
    metrics = bound_metrics(estimate, rows, None if config.packing else pipe.config.lengths, data_lengths)
    metrics |= word_distances(pipe.denoiser, pipe.scheduler)
    print(
        f"embeddings         norm {metrics['norm']:.2f}, nearest other {metrics['nearest_distance']:.2f} or "
        f"{metrics['nearest_in_noise']:.0f} times the least noise, effective rank {metrics['effective_rank']:.1f} of "
        f"{pipe.denoiser.config.embedding_dim}"
    )
    last = len(pipe.scheduler.alphas_cumprod) - 1
    times = sorted({round(last * i / PLOTTED_TIMES) for i in range(PLOTTED_TIMES + 1)})
    some = data.spread_validation_rows(TIMED_ROWS)
    accuracies = rounding_accuracy(pipe.denoiser, pipe.scheduler, some, times, seed=config.seed)
    metrics |= {f"rounding_accuracy/{found.timestep}": found.model_accuracy for found in accuracies}
    print(f"rounding by noise  {plot_rounding(accuracies, Path(config.output_dir, 'rounding.png'))}")
    if config.num_length_samples:
        tokens = written(config, pipe, data, config.num_length_samples).tokens
        metrics |= length_metrics(tokens, pipe.tokenizer, data_lengths, pipe.config.lengths is not None)
    Path(config.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"saved in           {config.output_dir}")
    return metrics


if __name__ == "__main__":
    try:
        main(HfArgumentParser(DiffusionLMConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train_diffusion_lm.py: {error}")
