"""Train the autoencoder of two-level diffusion: text to coarse and fine codes, and back.

    accelerate launch training_scripts/train_vq_autoencoder.py --dataset my_texts.txt --output_dir runs/vq_autoencoder

`train_two_level.py` then trains the diffusion models that write such codes. Read it from top to bottom: options, data,
model, loss, training, report. Shapes: B batch, L row length in tokens.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import corpora  # noqa: F401 - names for `--dataset`
from accelerate.utils import set_seed
from transformers import HfArgumentParser

from text_diffusers import AutoencoderVQTextModel
from text_diffusers.data.rows import text_ends
from text_diffusers.evaluation.likelihood import unigram_entropy
from text_diffusers.training.autoencoder import (
    CodeNoise,
    autoencoder_loss,
    evaluate_reconstruction,
    reconstructions,
)
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.runtime import end_training, make_accelerator, refuse_shards
from text_diffusers.training.text_options import TextData, TextTrainingConfig, prepare_data, row_order, rows_per_step


@dataclass
class AutoencoderConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    levels: int = field(default=2, metadata={"help": "2, coarse and fine codes, or 1, fine codes only"})
    patch_length: int = field(default=2, metadata={"help": "tokens of a fine code"})
    coarse_ratio: int = field(default=4, metadata={"help": "fine codes of a coarse one"})
    num_fine_codes: int = field(default=1_024, metadata={"help": "size of the fine codebook"})
    num_coarse_codes: int = field(default=256, metadata={"help": "size of the coarse codebook"})
    quantizer: str = field(default="ema", metadata={"help": "ema, gumbel or fsq"})
    fine_levels: list[int] | None = field(default=None, metadata={"help": "of fsq, such as 8 5 5 5 for 1,000 codes"})
    coarse_levels: list[int] | None = field(default=None, metadata={"help": "of fsq"})
    codebook_dim: int = field(default=16, metadata={"help": "width at which codes are compared"})
    window_length: int = field(default=128, metadata={"help": "tokens that are encoded and decoded together"})
    decay: float = field(default=0.95, metadata={"help": "of the averages that the codebooks follow, a step"})
    commitment_weight: float = field(default=0.25, metadata={"help": "keeps features near their codes"})
    dead_code_threshold: float = field(
        default=0.1, metadata={"help": "codes used less than this part of an even share are replaced; 0: none"}
    )
    rotation_trick: bool = field(default=True, metadata={"help": "gradients through codes by rotation"})
    input_masking: float = field(default=0.05, metadata={"help": "share of tokens that the encoder does not see"})
    fine_dropout: float = field(default=0.15, metadata={"help": "share of rows decoded from coarse codes alone"})
    code_corruption: float = field(default=0.02, metadata={"help": "share of codes replaced by random ones"})
    topic_weight: float = field(default=2.0, metadata={"help": "of telling a window's tokens from one coarse code"})
    hidden_size: int = field(default=128, metadata={"help": "width of encoder and decoder"})
    num_encoder_layers: int = field(default=1, metadata={"help": "blocks before the fine codes"})
    num_coarse_layers: int = field(default=1, metadata={"help": "blocks before the coarse codes"})
    num_decoder_layers: int = field(default=3, metadata={"help": "blocks after the codes"})
    num_attention_heads: int = field(default=4, metadata={"help": "heads"})
    learning_rate: float = field(default=3e-3, metadata={"help": "peak learning rate"})
    # Codebooks follow the last weights, so averages of weights would not fit them.
    ema_decay: float = field(default=0.0, metadata={"help": "of averaged weights; codebooks belong to the last ones"})

    def __post_init__(self):
        super().__post_init__()
        if self.levels not in (1, 2):
            raise ValueError(f"`levels` must be 1 or 2, got {self.levels!r}.")
        if self.label_column:
            raise ValueError("`label_column` is not used by an autoencoder; leave it out.")
        for name in ("input_masking", "fine_dropout", "code_corruption", "decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)!r}.")
        if not self.topic_weight >= 0:
            raise ValueError(f"`topic_weight` must be at least 0, got {self.topic_weight!r}.")


def build_model(config: AutoencoderConfig, vocab_size: int, mask_token_id: int) -> AutoencoderVQTextModel:
    """The autoencoder of this configuration, checked to take rows of all lengths that are read."""
    set_seed(config.seed)
    two = config.levels == 2
    model = AutoencoderVQTextModel(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_encoder_layers=config.num_encoder_layers,
        num_coarse_layers=config.num_coarse_layers,
        num_decoder_layers=config.num_decoder_layers,
        num_attention_heads=config.num_attention_heads,
        patch_length=config.patch_length,
        coarse_ratio=config.coarse_ratio if two else None,
        num_fine_codes=config.num_fine_codes,
        num_coarse_codes=config.num_coarse_codes if two else None,
        fine_levels=config.fine_levels,
        coarse_levels=config.coarse_levels if two else None,
        codebook_dim=config.codebook_dim,
        quantizer=config.quantizer,
        window_length=config.window_length,
        decay=config.decay ** (1 / config.gradient_accumulation_steps),  # codebooks follow each micro-batch
        commitment_weight=config.commitment_weight,
        dead_code_threshold=config.dead_code_threshold,
        rotation_trick=config.rotation_trick,
        mask_token_id=mask_token_id,
    )
    length = config.length
    while length >= (config.min_length or config.length):
        if model.full_length(length) != length:
            raise ValueError(
                f"`length`, and its halves down to `min_length`, must be multiples of {model.code_length}, the tokens "
                f"of a code, and of `window_length` if they are longer, such as {model.full_length(length)}, "
                f"got {length}."
            )
        length //= 2
    return model


def main(config: AutoencoderConfig, on_validation: Callable[[int, dict[str, float]], None] | None = None):
    """Train, save the autoencoder and its figures; returns the loss of each step in nats per token."""
    trial = build_model(config, config.vocab_size, 0)  # refuses what makes no sense before the texts are read
    if config.gradient_checkpointing:
        trial.enable_gradient_checkpointing()
    accelerator = make_accelerator(config)
    refuse_shards(accelerator)
    data = prepare_data(config, accelerator)
    model = build_model(config, len(data.tokenizer), data.tokenizer.mask_token_id)
    _, end = text_ends(data.tokenizer)
    accelerator.print(f"{model.num_parameters():,} parameters, {len(data.tokenizer):,} tokens in the vocabulary")
    noise = CodeNoise(config.input_masking, config.fine_dropout if config.levels == 2 else 0.0, config.code_corruption)

    def loss_function(model, batch, uniform, generators):
        return autoencoder_loss(model, batch, noise, generators, end, config.topic_weight)

    def evaluate(model) -> dict[str, float]:
        rows = data.spread_validation_rows(config.validation_rows)
        return evaluate_reconstruction(model, rows, end).metrics()

    def show(model) -> list[str]:
        return reconstructions(model, data.tokenizer, data.validation_rows, config.num_samples, end)

    order = row_order(config, data.train_rows, rows_per_step(config, accelerator))
    writer = show if config.num_samples else None
    loop = TrainingLoop(config, accelerator, model, loss_function, order, evaluate, writer, on_validation)
    losses = loop.run()
    averages = loop.state.averages()  # of all processes
    if accelerator.is_main_process:
        saved = AutoencoderVQTextModel.from_config(model.config)
        saved.load_state_dict(loop.unwrapped.state_dict() | averages)
        saved.eval().save_pretrained(Path(config.output_dir, "autoencoder"))
        loop.log_pipeline(report(config, saved.to(accelerator.device), data, end))
    end_training(accelerator)
    return losses


def report(config: AutoencoderConfig, model: AutoencoderVQTextModel, data: TextData, end: int) -> dict[str, float]:
    """Print, save and return what the codes keep of the held-out split."""
    metrics = evaluate_reconstruction(model, data.validation_rows, end).metrics()
    metrics["unigram_entropy"] = unigram_entropy(data.validation_rows)
    print(f"\nunigram entropy    {metrics['unigram_entropy']:.3f} nats per token")
    print(f"reconstruction     {metrics['cross_entropy']:.3f} nats per token, {metrics['accuracy']:.1%} of the tokens")
    if config.levels == 2:
        alone = metrics["coarse_cross_entropy"], metrics["coarse_accuracy"]
        print(f"coarse codes alone {alone[0]:.3f} nats per token, {alone[1]:.1%} of the tokens")
    for level in ("fine", "coarse")[: config.levels]:
        usage, perplexity = metrics[f"{level}_usage"], metrics[f"{level}_perplexity"]
        print(f"{level:<6} codebook    {usage:.1%} of its codes are used, perplexity {perplexity:.0f}")
    Path(config.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"saved in           {config.output_dir}")
    return metrics


if __name__ == "__main__":
    try:
        main(HfArgumentParser(AutoencoderConfig).parse_args_into_dataclasses()[0])
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"train_vq_autoencoder.py: {error}")
