"""Train a diffusion model over word embeddings (Diffusion-LM), from raw files to a saved `DiffusionLMPipeline`.

    accelerate launch training_scripts/train_diffusion_lm.py --dataset chitchat --output_dir runs/diffusion_lm

With `--source_column` it learns to write one text from another by partial noising (DiffuSeq). Read it from top to
bottom: options, model, loss, training, report. Shapes: B batch, L sequence length, E embedding width.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed

from text_diffusers import DiffusionLMPipeline, EmbeddingDDIMScheduler, EmbeddingTransformerModel
from text_diffusers.data.rows import tensor_batches, trimmed
from text_diffusers.evaluation.embedding import (
    embedding_health,
    estimate_embedding_bound,
    rounding_accuracy,
)
from text_diffusers.evaluation.held_out import (
    length_metrics,
    make_validation_rows,
    report_rows,
    report_texts,
)
from text_diffusers.evaluation.plots import plot_rounding
from text_diffusers.losses.time_density import TIME_DENSITIES
from text_diffusers.schedulers.embedding_noise import EMBEDDING_SCHEDULES
from text_diffusers.training.checkpoints import begins_anew
from text_diffusers.training.config import marked_options, option, refuse_parts_of_a_pipeline
from text_diffusers.training.initialization import (
    LARGEST_VOCABULARY,
    TextStatistics,
    pretrained_vectors,
)
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics, write_texts
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.steps.condition_dropout import drop_conditions
from text_diffusers.training.steps.embedding import OBJECTIVES, TIMED_ROWS, EmbeddingLoss
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    check_label_names,
    chosen_label_names,
    known_label_names,
    prepare_data,
    row_order,
    rows_per_step,
    text_lengths,
)

COUNTED_ROWS = 200_000  # for the neighbours of tokens
WRITING_STEPS = 50
PLOTTED_TIMES = 20  # at which rounding is drawn
TIME_BINS = 20  # of the density from which times are drawn by loss


@dataclass
class DiffusionLMConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    # Conditions
    source_column: str | None = option(
        None, "column of the texts from which `text_column` is to be written"
    )
    label_names: list[str] | None = option(
        None,
        "names of the labels, in their order, to ask for texts by; default: labels that are words",
        part_of="pipeline",
    )
    condition_dropout: float = option(
        0.0, "share of rows without their label or source, for classifier-free guidance"
    )

    # A model to start from, tokens and rows
    model_name_or_path: str | None = option(None, "saved pipeline to train further")
    vocab_size: int = option(2_048, "tokens of a trained byte-level BPE", part_of="pipeline")
    length: int = option(64, "tokens in a row")

    # Noise, and what the model predicts
    beta_schedule: str = option(
        "sqrt", f"{', '.join(EMBEDDING_SCHEDULES)}", part_of="pipeline", one_of=EMBEDDING_SCHEDULES
    )
    num_train_timesteps: int = option(2_000, "steps from words to noise", part_of="pipeline")
    objective: str = option(
        "diffusion_lm", "diffusion_lm, bound or simple", part_of="loss", one_of=OBJECTIVES
    )
    prediction_type: str = option("sample", "sample, epsilon or v_prediction", part_of="pipeline")
    categorical_output: bool = option(
        True,
        "predict probabilities of words and take their mean embedding; needs sample",
        part_of="pipeline",
    )
    own_evidence: bool = option(
        True,
        "tell the model by Bayes' rule what a noisy embedding says of its own word",
        part_of="pipeline",
    )

    # Loss
    rounding_weight: float = option(
        1.0, "of the words read off noisy embeddings", part_of="loss", limit="at least 0"
    )
    anchor_weight: float = option(
        1.0, "of the words read off the clean estimate", part_of="loss", limit="at least 0"
    )

    # Rows that are shown more than noise
    self_conditioning: float = option(
        0.5,
        "share of rows shown a first estimate; 0: off",
        part_of=("pipeline", "loss"),
        limit="between 0 and 1",
    )
    given_words: float | None = option(
        None,
        "share of rows with some clean words, to learn prompts and gaps; default: 0.25, with sources 0",
        part_of="loss",
        limit="between 0 and 1",
    )

    # Times
    time_sampling: str = option(
        "uniform",
        f"uniform, by_signal, {', '.join(TIME_DENSITIES)}",
        part_of=("pipeline", "loss"),
        one_of=("uniform", "by_signal", *TIME_DENSITIES),
    )
    timing_steps: int = option(
        500, "optimizer steps between looks at the losses by time", limit="at least 1"
    )

    # Embeddings and rounding
    embedding_dim: int = option(
        16, "width of the embeddings, in which diffusion happens", part_of="pipeline"
    )
    embedding_model: str | None = option(
        None,
        "transformers model whose embeddings, projected, and tokenizer are taken",
        part_of="pipeline",
    )
    init_embeddings: str = option(
        "random",
        "random, or cooccurrence of tokens",
        part_of="pipeline",
        one_of=("cooccurrence", "random"),
    )
    train_embeddings: bool = option(True, "off: they stay as they are at first", part_of="pipeline")
    normalize_embeddings: bool = option(True, "scale each to the same length", part_of="pipeline")
    embedding_scale: float = option(1.0, "of embeddings where the noise has 1", part_of="pipeline")
    rounding: str = option(
        "head", "how words are found: head, nearest or codebook", part_of="pipeline"
    )

    # Transformer
    hidden_size: int = option(256, "width of the transformer", part_of="pipeline")
    num_layers: int = option(6, "blocks", part_of="pipeline")
    num_attention_heads: int = option(4, "heads", part_of="pipeline")
    dropout: float = option(0.0, "in training", part_of="pipeline")

    def __post_init__(self):
        super().__post_init__()
        refuse_parts_of_a_pipeline(self)
        check_label_names(self)

        # The source of a pair is clean already, and a packed row would hold several pairs.
        if self.given_words is None:
            self.given_words = 0.0 if self.source_column else 0.25
        if self.source_column and self.given_words:
            raise ValueError(
                "`source_column` needs `--given_words 0`: of a pair, the source is given."
            )
        if self.source_column and self.packing:
            raise ValueError("`source_column` needs `--packing false`: a row holds one pair.")
        # Only a condition that is there can be dropped.
        conditional = self.label_column or self.source_column
        if not 0 <= self.condition_dropout < 1 or (self.condition_dropout and not conditional):
            raise ValueError(
                "`condition_dropout` must be in [0, 1) and needs a `label_column` or `source_column`, got "
                f"{self.condition_dropout!r}."
            )

        # Objectives that do not go with this prediction, or with these times
        if self.prediction_type != "sample" and (self.anchor_weight or self.objective == "bound"):
            raise ValueError(
                '`anchor_weight` and `--objective bound` read words off a predicted "sample"; with `prediction_type`='
                f"{self.prediction_type!r} pass `--anchor_weight 0` and another objective."
            )
        if self.objective == "bound" and self.time_sampling in TIME_DENSITIES:
            raise ValueError(
                f'`time_sampling` of `--objective bound` is "by_signal", got {self.time_sampling!r}.'
            )
        if self.objective == "simple" and (
            self.prediction_type != "epsilon" or self.train_embeddings
        ):
            raise ValueError(
                "`--objective simple` predicts noise between embeddings that stay: pass `--prediction_type epsilon "
                f"--train_embeddings false`, got {self.prediction_type!r} and {self.train_embeddings}."
            )


def build_model(config: DiffusionLMConfig, data: TextData) -> tuple[Any, Any]:
    """`(denoiser, scheduler)`, new or of the pipeline that is trained further."""
    set_seed(config.seed)
    if config.model_name_or_path:
        return load_model(config)

    # Given words are marked by an embedding, so the architecture must know of them.
    denoiser = EmbeddingTransformerModel(
        vocab_size=len(data.tokenizer),
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
        mask_token_id=data.tokenizer.mask_token_id,
        pad_token_id=data.tokenizer.pad_token_id,
        predicts_length=config.source_column is not None,
    )
    # A checkpoint brings its own.
    if begins_anew(config):
        set_first_vectors(config, data, denoiser)

    # Training reads only the noise of this scheduler, which the samplers for embeddings share.
    scheduler = EmbeddingDDIMScheduler(
        num_train_timesteps=config.num_train_timesteps,
        beta_schedule=config.beta_schedule,
        prediction_type=config.prediction_type,
    )
    # From the noise at each time the model knows how likely a word is by its noisy embedding alone.
    if config.categorical_output and config.own_evidence:
        denoiser.set_noise(scheduler.alphas_cumprod)
    return denoiser, scheduler


def set_first_vectors(config: DiffusionLMConfig, data: TextData, denoiser: Any):
    """Start from what is known of the words: their vectors in the network, and if asked for, their embeddings.

    Embeddings are random by default: noise then confuses words that have nothing in common, which context tells apart.
    """
    # 1. Vectors in the network, where the vocabulary is small enough to count pairs of tokens
    counted_batches = partial(tensor_batches, data.train_rows, COUNTED_ROWS)
    vocab_size = len(data.tokenizer)
    if denoiser.words_in is not None and vocab_size <= LARGEST_VOCABULARY:
        statistics = TextStatistics(counted_batches, vocab_size, config.hidden_size)
        denoiser.words_in.weight.data.copy_(statistics.vectors())

    # 2. The embeddings themselves, in which diffusion happens
    embeddings = denoiser.token_embedding.weight.data  # (V, E)
    if config.embedding_model:
        # The model may lack padding and mask, or have more rows than its tokenizer has tokens.
        vectors = pretrained_vectors(config.embedding_model, config.embedding_dim)[:vocab_size]
        embeddings[: len(vectors)] = vectors
    elif config.init_embeddings == "cooccurrence":
        embeddings.copy_(
            TextStatistics(counted_batches, vocab_size, config.embedding_dim).vectors()
        )


def load_model(config: DiffusionLMConfig) -> tuple[Any, Any]:
    """`(denoiser, scheduler)` of the saved pipeline, which must take the rows of this configuration."""
    pipe: Any = DiffusionLMPipeline.from_pretrained(config.model_name_or_path)
    # Architecture cannot change, so what this run asks for must be in it.
    limit = pipe.denoiser.config.max_length
    if config.length > limit:
        raise ValueError(f"`length` must be at most {limit} for this model, got {config.length}.")
    if (config.source_column or config.given_words) and not pipe.denoiser.config.partial_noising:
        raise ValueError(
            "`source_column` and `given_words` must be left out, `--given_words 0`, for the model in "
            "`model_name_or_path`, which was trained without given words."
        )
    if config.source_column and not pipe.denoiser.config.predicts_length:
        raise ValueError(
            "`source_column` needs a pipeline in `model_name_or_path` that predicts how long a text from a source is; "
            "this one was trained without sources, or by an earlier version."
        )
    # The saved scheduler may be another sampler; training takes the noise that they share.
    return pipe.denoiser, EmbeddingDDIMScheduler.from_config(pipe.scheduler.config)


def main(config: DiffusionLMConfig, on_validation: ValidationCallback | None = None) -> list[float]:
    """Train, save the pipeline and its figures; returns the loss of each step."""
    # 1. Data, model and noise
    accelerator = make_accelerator(config)
    # Embeddings come with their tokenizer, those of a saved pipeline as those of a language model.
    data = prepare_data(
        config,
        accelerator,
        pretrained=config.model_name_or_path or config.embedding_model,
        source_column=config.source_column,
        label_names=known_label_names(config),
        known_classes=config.model_name_or_path is not None,
    )
    names = chosen_label_names(config, data)
    denoiser, scheduler = build_model(config, data)
    accelerator.print(
        f"{denoiser.num_parameters():,} parameters, {len(data.tokenizer):,} tokens in the vocabulary"
    )

    # 2. The loss of a batch, and what is watched on the way
    # Options marked `part_of="loss"` have the names that `EmbeddingLoss` gives them.
    loss_options = {
        name: getattr(config, name) for name in marked_options(config, "part_of", "loss")
    }
    token_losses = EmbeddingLoss(scheduler, denoiser, **loss_options)
    num_bins = denoiser.config.time_bins
    timed_step = None

    def loss_function(model, batch, uniform, generators):
        # Times at which the loss is high are drawn more often; a step of several micro-batches looks once.
        nonlocal timed_step
        if num_bins and loop.step % config.timing_steps == 0 and timed_step != loop.step:
            losses_by_time = token_losses.by_time(model, data.validation_rows, num_bins)
            denoiser.time_density.copy_(TIME_DENSITIES[config.time_sampling](losses_by_time))
            timed_step = loop.step

        # Rows without their condition teach the model the text that guidance leads away from.
        batch = drop_conditions(
            batch,
            generators,
            probability=config.condition_dropout,
            num_classes=denoiser.config.num_classes,
            pad_token_id=data.tokenizer.pad_token_id,
        )

        # Each row has a time of its own; `weights` undo what a density of times favours.
        density = denoiser.time_density.cpu() if num_bins else None
        times, weights = token_losses.draw_times(uniform.cpu(), density)  # (B,)
        losses = token_losses(model, trimmed(batch), times, generators, weights)  # (B, L)
        loss = losses.sum()
        return loss

    # The bound alone would not show embeddings that collapse onto each other.
    validation = make_validation_rows(config, data, denoiser)

    def evaluate(model) -> dict[str, float]:
        estimate = estimate_embedding_bound(
            model, scheduler, validation.rows, seed=config.seed, accelerator=accelerator
        )
        return validation.metrics(estimate, model) | word_distances(model, scheduler)

    def make_pipeline(model) -> DiffusionLMPipeline:
        # A codebook begins with the embeddings as they are now; several codes of a word are for users to set.
        if model.config.rounding == "codebook":
            model.set_codebook(
                model.embedding_table().detach(), torch.arange(model.config.vocab_size)
            )
        return DiffusionLMPipeline(data.tokenizer, model, scheduler, data.lengths, names)

    def write(model) -> list[str]:
        return write_texts(
            config, make_pipeline(model), data, config.num_samples, WRITING_STEPS
        ).texts

    # 3. Train
    # The loop owns the optimizer, checkpoints and trackers, and calls the functions above.
    loop = TrainingLoop(
        config,
        accelerator,
        denoiser,
        loss_function,
        row_order(config, data.train_rows, rows_per_step(config, accelerator)),
        evaluate=evaluate,
        write=write if config.num_samples else None,
        on_validation=on_validation,
    )
    losses = loop.run()

    # 4. Save the averaged weights and report. All processes take part in the averages; buffers have none.
    weights = loop.state.averages() | dict(loop.unwrapped.named_buffers())
    if accelerator.is_main_process:
        model = EmbeddingTransformerModel.from_config(denoiser.config)
        model.load_state_dict(weights)
        pipe: Any = make_pipeline(model.eval())
        pipe.save_pretrained(config.output_dir)
        loop.log_pipeline(report(config, pipe.to(accelerator.device), data))
    end_training(accelerator)
    return losses


def word_distances(model: Any, scheduler: Any) -> dict[str, float]:
    """`embedding_health`, and the distance of words in units of the noise at t = 0: near 1 they have collapsed."""
    health = embedding_health(model.embedding_table())
    least_noise = float((1 - scheduler.alphas_cumprod[0]).sqrt())
    return health | {"nearest_in_noise": health["nearest_distance"] / least_noise}


def report(config: DiffusionLMConfig, pipe: Any, data: TextData) -> dict[str, float]:
    """Print, save and return what the model is worth on the held-out split; draw how well it rounds."""
    # 1. The bound of all held-out texts, as the pipeline writes them: packed, or one a row
    rows = data.validation_rows
    if config.packing:
        estimate = estimate_embedding_bound(pipe.denoiser, pipe.scheduler, rows, seed=config.seed)
        metrics = report_rows(estimate, rows, data.validation_documents)
    else:
        metrics = report_texts(config, data, pipe)
    data_lengths = text_lengths(pipe.tokenizer, data.validation_documents, rows, config)

    # 2. Health of the embeddings
    metrics |= word_distances(pipe.denoiser, pipe.scheduler)
    print(
        f"embeddings         norm {metrics['norm']:.2f}, nearest other {metrics['nearest_distance']:.2f} or "
        f"{metrics['nearest_in_noise']:.0f} times the least noise, effective rank {metrics['effective_rank']:.1f} of "
        f"{pipe.denoiser.config.embedding_dim}"
    )

    # 3. How often the model reads the right word off a noisy embedding, from no noise to all of it.
    last = len(pipe.scheduler.alphas_cumprod) - 1
    times = sorted({round(last * i / PLOTTED_TIMES) for i in range(PLOTTED_TIMES + 1)})
    # Few rows are enough for a curve, which costs a forward pass for each time.
    timed_rows = data.spread_validation_rows(TIMED_ROWS)
    accuracies = rounding_accuracy(
        pipe.denoiser, pipe.scheduler, timed_rows, times, seed=config.seed
    )
    for accuracy in accuracies:
        metrics[f"rounding_accuracy/{accuracy.timestep}"] = accuracy.model_accuracy
    print(
        f"rounding by noise  {plot_rounding(accuracies, Path(config.output_dir, 'rounding.png'))}"
    )

    # 4. Lengths of written texts beside those of the data
    if config.num_length_samples:
        written = write_texts(config, pipe, data, config.num_length_samples, WRITING_STEPS)
        metrics |= length_metrics(
            written.tokens, pipe.tokenizer, data_lengths, bool(pipe.config.lengths)
        )

    save_metrics(config, metrics)
    return metrics


if __name__ == "__main__":
    run(main, DiffusionLMConfig)
