"""Train a diffusion model over the latents of texts that `train_text_autoencoder.py` has learned.

    accelerate launch training_scripts/train_latent_diffusion.py --autoencoder runs/latents --dataset my_texts.txt \\
        --output_dir runs/latent_diffusion

With `--source_column` texts are written from sources; of conversations, `--source_column messages` makes each answer a
text, and the turns before it its source. With an autoencoder whose decoder reads the source too this is Dior-CVAE
(https://arxiv.org/abs/2305.15025), and with `--prior gaussian` the plain conditional VAE beside it. Latents are
computed once and kept in a file. Read it from top to bottom: options, models, data, loss, training, report. Shapes:
B batch, K latents of a text, E latent width.
"""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import corpora  # noqa: F401 - names for `--dataset`
import torch
from accelerate.utils import set_seed

from text_diffusers import (
    AutoencoderTextLatentModel,
    EmbeddingDDIMScheduler,
    LatentTransformerModel,
)
from text_diffusers.common.clean_estimate import PREDICTION_PARTS, PREDICTION_TYPES
from text_diffusers.common.token_ids import padding_id
from text_diffusers.common.validation import require
from text_diffusers.data.latent_cache import LatentRows, cached_latents
from text_diffusers.evaluation.latent_bounds import (
    HeldOutLatents,
    estimate_latent_bound,
    hold_out_latents,
)
from text_diffusers.models.latent.gaussian_prior import LatentGaussianPrior
from text_diffusers.pipelines.latent_diffusion.pipeline_latent_text_diffusion import (
    LatentTextDiffusionPipeline,
)
from text_diffusers.schedulers.embedding_noise import EMBEDDING_SCHEDULES
from text_diffusers.schedulers.latent.scheduling_flow import LatentFlowEulerScheduler
from text_diffusers.training.adaptation.starting_models import load_tokenizer
from text_diffusers.training.checkpoints import weights_digest
from text_diffusers.training.config import option
from text_diffusers.training.latent_data import check_sources, prepare_latent_data
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics
from text_diffusers.training.runtime import end_training, make_accelerator
from text_diffusers.training.steps.codes import check_autoencoder_of, note_autoencoder
from text_diffusers.training.steps.latents import (
    TIME_SAMPLINGS,
    WEIGHTINGS,
    LatentLoss,
    gaussian_prior_losses,
    shown_latents,
)
from text_diffusers.training.steps.reflow import latent_pairs
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    check_label_names,
    rows_per_step,
)

PRIORS = ("diffusion", "gaussian")
STRAIGHT = "straight"

# Options that a Gaussian prior has no use for, and that are off by default
DIFFUSION_OPTIONS = ("label_column", "noise_schedule", "optimal_transport", "reflow_from")
# Options that say how noise and latents are put together, which pairs of another model are already
PAIRING_OPTIONS = ("optimal_transport", "draw_latents")


@dataclass
class LatentDiffusionConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    # Latents
    autoencoder: str | None = option(None, "folder that train_text_autoencoder.py made")
    latent_cache: str | None = option(
        None,
        "folder where latents are kept; default: beside the cache of `datasets`",
        may_change_on_resume=True,
    )
    draw_latents: bool = option(False, "learn latents drawn from their posteriors, not the means")

    # Rows: one text each, as the autoencoder learned them
    packing: bool = option(False, "must be off: latents are of one text")
    length: int = option(64, "tokens in a row of the decoder, as in the autoencoder's training")
    encoder_length: int | None = option(
        None, "tokens that the encoder reads; default: `length`", limit="at least 1"
    )

    # Conditions
    source_column: str | None = option(
        None, "column of the texts, or of the conversations, from which a text is to be written"
    )
    source_length: int | None = option(
        None,
        "tokens of such a source, of which the last ones are read; default: `length`",
        limit="at least 1",
    )
    context_turns: int = option(
        3, "turns before an answer that are its source, in conversations", limit="at least 1"
    )
    label_names: list[str] | None = option(
        None, "names of the labels, in their order; default: labels that are words"
    )
    condition_dropout: float = option(
        0.1, "share of rows without their label or source, for guidance", limit="in [0, 1)"
    )

    # What is learned
    prior: str = option(
        "diffusion", "diffusion, or gaussian: that of a plain conditional VAE", one_of=PRIORS
    )
    prediction_type: str = option("flow", f"{', '.join(PREDICTION_PARTS)}", one_of=PREDICTION_PARTS)
    noise_schedule: str | None = option(
        None,
        f"{STRAIGHT}, the path of flow matching, or betas: {', '.join(EMBEDDING_SCHEDULES)}; default: "
        f"{STRAIGHT} for flow, else cosine",
        one_of=(STRAIGHT, *EMBEDDING_SCHEDULES),
    )
    num_train_timesteps: int = option(1_000, "the clock: steps from latents to noise")

    # Loss
    self_conditioning: float = option(
        0.5, "share of rows shown a first estimate; 0: off", limit="between 0 and 1"
    )
    time_sampling: str = option("uniform", f"{', '.join(TIME_SAMPLINGS)}", one_of=TIME_SAMPLINGS)
    weighting: str = option("none", f"{', '.join(WEIGHTINGS)}", one_of=WEIGHTINGS)
    optimal_transport: bool = option(
        False, "deal noise out within a batch, so that paths are straighter"
    )

    # Straighter paths
    reflow_from: str | None = option(
        None,
        "pipeline of this recipe whose own pairs of noise and latents are learned, from its weights on: fewer steps",
    )
    reflow_steps: int = option(20, "steps by which it makes a pair", limit="at least 1")

    # Transformer; of a Gaussian prior only the width
    hidden_size: int = option(256, "width of the transformer")
    num_layers: int = option(6, "blocks")
    num_attention_heads: int = option(4, "heads")
    dropout: float = option(0.0, "in training")

    # Texts
    num_inference_steps: int = option(
        50, "with which texts are written, as the pipeline does by default", limit="at least 1"
    )
    validation_rows: int = option(
        200,
        "at most, of a validation during training",
        limit="at least 1",
        may_change_on_resume=True,
    )
    report_rows: int = option(
        500,
        "held-out texts of the figures at the end, spread over all",
        limit="at least 1",
        may_change_on_resume=True,
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.autoencoder:
            raise ValueError(
                "`autoencoder` must be given, the folder that train_text_autoencoder.py made."
            )
        if self.tokenizer:
            raise ValueError("`tokenizer` is that of the `autoencoder`; leave it out.")
        if self.packing:
            raise ValueError("`packing` must be false for latents of single texts, got True.")
        if self.streaming:
            raise ValueError("`streaming` must be false: latents are kept of all texts, got True.")
        check_sources(self)
        check_label_names(self)

        # 1. A Gaussian has no noise to be removed.
        if self.prior == "gaussian":
            for name in DIFFUSION_OPTIONS:
                if getattr(self, name):
                    raise ValueError(
                        f"`{name}` goes with `--prior diffusion`, got {getattr(self, name)!r}."
                    )

        # 2. The path to noise, which goes with what is predicted
        of_straight = [name for name in PREDICTION_PARTS if name != "epsilon"]
        allowed = of_straight if self.path == STRAIGHT else [*PREDICTION_TYPES]
        limit = f"one of {allowed} with `noise_schedule`={self.path!r}"
        is_allowed = self.prediction_type in allowed
        require(is_allowed, "prediction_type", limit, self.prediction_type, allowed)
        if self.reflow_from and self.path != STRAIGHT:
            raise ValueError(
                f"`noise_schedule` must be {STRAIGHT!r} with `reflow_from`, got {self.path!r}."
            )
        for name in PAIRING_OPTIONS:
            if self.reflow_from and getattr(self, name):
                raise ValueError(f"`{name}` cannot be used with `reflow_from`.")

        # Of rows with sources no two are alike, among which noise could be dealt out.
        if self.optimal_transport and self.source_column:
            raise ValueError("`optimal_transport` cannot be used with a `source_column`.")

    @property
    def path(self) -> str:
        """The name of the path from latents to noise."""
        if self.noise_schedule is not None:
            return self.noise_schedule
        return STRAIGHT if self.prediction_type == "flow" else "cosine"

    @property
    def read_length(self) -> int:
        """Tokens that the encoder reads."""
        return self.encoder_length or self.length


# Models


def load_autoencoder(config: LatentDiffusionConfig) -> tuple[Any, Any]:
    """`(autoencoder, encoder_tokenizer)` of the folder, frozen, checked to read as many tokens as are asked for."""
    folder = Path(str(config.autoencoder))
    for name in ("autoencoder", "tokenizer", "encoder_tokenizer"):
        if not (folder / name).is_dir():
            raise FileNotFoundError(
                f"`autoencoder`={config.autoencoder!r} holds no {name} that train_text_autoencoder.py made."
            )
    autoencoder: Any = AutoencoderTextLatentModel.from_pretrained(folder, subfolder="autoencoder")

    lengths = {"encoder_length": config.read_length}
    if config.source_column:
        lengths["source_length"] = config.source_length or config.length
    longest = autoencoder.longest_source
    for name, length in lengths.items():
        if longest is not None and length > longest:
            raise ValueError(
                f"`{name}` must be at most {longest} for the encoder in `autoencoder`, got {length}."
            )
    tokenizer = load_tokenizer(str(folder / "encoder_tokenizer"), "autoencoder")
    return autoencoder.eval().requires_grad_(False), tokenizer


def build_prior(config: LatentDiffusionConfig, autoencoder: Any, num_classes: int | None) -> Any:
    """The model of latents, with random weights."""
    set_seed(config.seed)
    sizes = {
        "latent_dim": autoencoder.config.latent_size,
        "num_latents": autoencoder.config.num_latents,
        "hidden_size": config.hidden_size,
        "prompt_size": autoencoder.encoder.config.hidden_size if config.source_column else None,
    }
    if config.prior == "gaussian":
        return LatentGaussianPrior(**sizes)
    return LatentTransformerModel(
        **sizes,
        num_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_train_timesteps=config.num_train_timesteps,
        prediction_type=config.prediction_type,
        self_conditioning=config.self_conditioning > 0,
        num_classes=num_classes,
        dropout=config.dropout,
    )


def start_from_teacher(config: LatentDiffusionConfig, prior: Any, weights: str):
    """Give a prior the weights of the pipeline in `reflow_from`, of the same kind and over the same latents.

    Args:
        weights: digest of the weights of the autoencoder.

    Raises:
        ValueError: if it is of another kind, or of another autoencoder.
    """
    teacher: Any = LatentTextDiffusionPipeline.from_pretrained(config.reflow_from)
    if weights_digest(teacher.autoencoder) != weights:
        raise ValueError(
            f"`reflow_from` must be over the latents of `autoencoder`={config.autoencoder!r}, got another one in "
            f"{config.reflow_from!r}."
        )
    own = teacher.denoiser.config
    for name in inspect.signature(type(prior)).parameters:
        if own.get(name) != prior.config[name]:
            raise ValueError(
                f"`{name}` must be {own.get(name)!r} as in `reflow_from`, got {prior.config[name]!r}."
            )
    prior.load_state_dict(teacher.denoiser.state_dict())


def make_scheduler(config: LatentDiffusionConfig) -> Any:
    """The scheduler whose noise is learned, and by which the pipeline writes; `None` for a Gaussian prior."""
    if config.prior == "gaussian":
        return None
    options: dict[str, Any] = {
        "num_train_timesteps": config.num_train_timesteps,
        "prediction_type": config.prediction_type,
    }
    if config.path == STRAIGHT:
        return LatentFlowEulerScheduler(**options)
    return EmbeddingDDIMScheduler(beta_schedule=config.path, **options)


def main(
    config: LatentDiffusionConfig, on_validation: ValidationCallback | None = None
) -> list[float]:
    """Train, save the pipeline and its figures; returns the loss of each step, by the text."""
    # 1. Refuse what makes no sense before the texts are read
    scheduler = make_scheduler(config)
    autoencoder, encoder_tokenizer = load_autoencoder(config)
    build_prior(config, autoencoder, num_classes=1 if config.label_column else None)
    if config.resume_from_checkpoint:
        check_autoencoder_of(Path(config.output_dir), autoencoder)

    # 2. Data and model
    accelerator = make_accelerator(config)
    data = prepare_latent_data(
        config,
        accelerator,
        pretrained=f"{config.autoencoder}/tokenizer",
        encoder_tokenizer=encoder_tokenizer,
        label_names=config.label_names,
        source_encoder_length=config.source_length or config.length,
    )
    names = config.label_names or data.label_names
    limit = f"as many as the {data.num_classes} labels of the data"
    require(names is None or len(names) == data.num_classes, "label_names", limit, names)
    prior = build_prior(config, autoencoder, data.num_classes)
    autoencoder.to(accelerator.device)
    accelerator.print(f"{prior.num_parameters():,} parameters, beside those of the autoencoder")

    # Latents of the corpus, or those that another model makes of noise
    weights = weights_digest(autoencoder)
    if config.reflow_from:
        start_from_teacher(config, prior, weights)
        prior.to(accelerator.device)
        cache: Any = latent_pairs(
            autoencoder, prior, data.train_rows, config.reflow_steps, config.seed
        )
    else:
        # The other processes read what the first one left.
        with accelerator.main_process_first():
            cache = cached_latents(autoencoder, data.train_rows, weights, config.latent_cache)
    rows = LatentRows(data.train_rows, cache, rows_per_step(config, accelerator), config.seed)
    if accelerator.is_main_process:
        note_autoencoder(Path(config.output_dir), autoencoder)

    # 3. The loss of a batch, and what is watched on the way
    latent_loss = None
    if scheduler is not None:
        latent_loss = LatentLoss(
            scheduler,
            prior,
            self_conditioning=config.self_conditioning,
            dropout=config.condition_dropout,
            time_sampling=config.time_sampling,
            weighting=config.weighting,
            optimal_transport=config.optimal_transport,
        )

    def loss_function(model, batch, uniform, generators):
        # Latents as the denoiser will meet them, and the states of their sources
        batch = shown_latents(autoencoder, batch, generators, config.draw_latents)
        if latent_loss is None:
            dropout = config.condition_dropout
            return gaussian_prior_losses(model, batch, generators, dropout).sum()

        times = latent_loss.draw_times(uniform.cpu())  # (B,)
        losses = latent_loss(model, batch, times, generators)  # (B,)
        return losses.sum()

    # What texts cost by this prior, which compares across predictions and schedules
    held_out = hold_out_latents(
        autoencoder, data.spread_validation_rows(config.validation_rows), config.seed
    )

    def evaluate(model) -> dict[str, float]:
        return estimate_latent_bound(model, scheduler, held_out, config.seed).metrics()

    def make_pipeline(model) -> LatentTextDiffusionPipeline:
        defaults = {"max_new_tokens": config.length - 1}
        if scheduler is not None:
            defaults["num_inference_steps"] = config.num_inference_steps
        return LatentTextDiffusionPipeline(
            data.tokenizer,
            encoder_tokenizer,
            autoencoder,
            model,
            scheduler,
            label_names=names,
            generation_defaults=defaults,
        )

    def write(model) -> list[str]:
        return write_texts(config, make_pipeline(model), data, config.num_samples)

    # 4. Train
    loop = TrainingLoop(
        config,
        accelerator,
        prior,
        loss_function,
        rows,
        evaluate=evaluate,
        write=write if config.num_samples else None,
        on_validation=on_validation,
    )
    losses = loop.run()

    # 5. Save the averaged weights and report. All processes take part in the averages.
    averages = loop.state.averages()
    if accelerator.is_main_process:
        model = type(prior).from_config(prior.config)
        model.load_state_dict(averages)
        pipe: Any = make_pipeline(model.eval())
        pipe.save_pretrained(config.output_dir)
        loop.log_pipeline(report(config, pipe.to(accelerator.device), data))
    end_training(accelerator)
    return losses


def write_texts(config: LatentDiffusionConfig, pipe: Any, data: TextData, count: int) -> list[str]:
    """Seeded texts of the pipeline: for the first held-out sources, or of the first label."""
    inputs: dict[str, Any] = {"num_return_sequences": count}
    if config.source_column:
        inputs = {"source": held_out_sources(data, count)}
    if data.num_classes is not None:
        inputs["class_labels"] = 0
    pipe.set_progress_bar_config(disable=True)
    return pipe(**inputs, generator=torch.Generator().manual_seed(config.seed)).texts


def held_out_sources(data: TextData, count: int) -> list[str]:
    """The sources of the first held-out rows, as the decoder reads them."""
    rows = data.validation_rows.select(range(min(count, len(data.validation_rows))))
    filling = padding_id(data.tokenizer)
    sources = []
    for ids, given in zip(rows["input_ids"], rows["given"], strict=True):
        tokens = [
            token if is_given else filling for token, is_given in zip(ids, given, strict=True)
        ]
        sources.append(data.tokenizer.decode(tokens, skip_special_tokens=True))
    return sources


def report(config: LatentDiffusionConfig, pipe: Any, data: TextData) -> dict[str, float]:
    """Print, save and return what the model is worth on the held-out split, in nats per token."""
    # 1. The bound of texts, and where it would be without a prior that knows anything
    rows = data.spread_validation_rows(config.report_rows)
    held_out: HeldOutLatents = hold_out_latents(pipe.autoencoder, rows, config.seed)
    bound = estimate_latent_bound(pipe.denoiser, pipe.scheduler, held_out, config.seed)
    metrics = bound.metrics()
    standard = LatentGaussianPrior(
        pipe.autoencoder.config.latent_size, pipe.autoencoder.config.num_latents
    )
    unconditional = replace(held_out, conditions={})
    standard = standard.to(held_out.latents.device)
    metrics["standard_rate"] = estimate_latent_bound(standard, None, unconditional).rate
    print(f"\nbound              {bound.bound:.3f} nats per token")
    print(f"reconstruction     {bound.reconstruction:.3f}, from drawn latents")
    print(
        f"rate               {bound.rate:.3f}, of a standard normal prior {metrics['standard_rate']:.3f}"
    )

    # 2. Whether what is written has the variance of what is read
    if config.num_length_samples:
        inputs: dict[str, Any] = {"num_return_sequences": config.num_length_samples}
        if config.source_column:
            inputs = {"source": held_out_sources(data, config.num_length_samples)}
        if data.num_classes is not None:
            inputs["class_labels"] = 0
        generator = torch.Generator().manual_seed(config.seed)
        drawn = pipe(**inputs, generator=generator, output_type="latents").latents
        normalised = pipe.autoencoder.normalize(drawn)
        metrics["drawn_mean"] = float(normalised.mean(dim=0).square().mean().sqrt())
        metrics["drawn_std"] = float(normalised.std(dim=0, correction=0).mean())
        print(
            f"drawn latents      have a deviation of {metrics['drawn_std']:.3f}, those of texts 1"
        )

    save_metrics(config, metrics)
    return metrics


if __name__ == "__main__":
    run(main, LatentDiffusionConfig)
