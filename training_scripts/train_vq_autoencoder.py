"""Train the autoencoder of two-level diffusion: text to coarse and fine codes, and back.

    accelerate launch training_scripts/train_vq_autoencoder.py --dataset my_texts.txt --output_dir runs/vq_autoencoder

`train_two_level.py` then trains the diffusion models that write such codes. Read it from top to bottom: options, data,
model, loss, training, report. Shapes: B batch, L row length in tokens.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import corpora  # noqa: F401 - names for `--dataset`
from accelerate.utils import set_seed

from text_diffusers import AutoencoderVQTextModel
from text_diffusers.data.rows import text_ends
from text_diffusers.evaluation.estimates import count_tokens
from text_diffusers.evaluation.held_out import count_characters
from text_diffusers.evaluation.likelihood import unigram_entropy
from text_diffusers.evaluation.reconstruction import evaluate_reconstruction, reconstructions
from text_diffusers.training.config import option
from text_diffusers.training.loop import TrainingLoop
from text_diffusers.training.recipes import ValidationCallback, run, save_metrics
from text_diffusers.training.runtime import end_training, make_accelerator, refuse_shards
from text_diffusers.training.steps.autoencoder import CodeNoise, autoencoder_loss
from text_diffusers.training.text_options import (
    TextData,
    TextTrainingConfig,
    prepare_data,
    row_order,
    rows_per_step,
)


@dataclass
class AutoencoderConfig(TextTrainingConfig):
    """Options of this recipe; those of every recipe are in `TextTrainingConfig` and `TrainingConfig`."""

    # Codes: how many, and of how many tokens
    levels: int = option(2, "2, coarse and fine codes, or 1, fine codes only")
    patch_length: int = option(2, "tokens of a fine code")
    coarse_ratio: int = option(4, "fine codes of a coarse one")
    num_fine_codes: int = option(1_024, "size of the fine codebook")
    num_coarse_codes: int = option(256, "size of the coarse codebook")

    # Quantizers and windows
    quantizer: str = option("ema", "ema, gumbel or fsq")
    fine_levels: list[int] | None = option(None, "of fsq, such as 8 5 5 5 for 1,000 codes")
    coarse_levels: list[int] | None = option(None, "of fsq")
    codebook_dim: int = option(16, "width at which codes are compared")
    window_length: int = option(128, "tokens that are encoded and decoded together")

    # Learning of the codebooks
    decay: float = option(
        0.95, "of the averages that the codebooks follow, a step", limit="in [0, 1)"
    )
    commitment_weight: float = option(0.25, "keeps features near their codes")
    dead_code_threshold: float = option(
        0.1, "codes used less than this part of an even share are replaced; 0: none"
    )
    rotation_trick: bool = option(True, "gradients through codes by rotation")

    # Mistakes in training: the diffusion models that write codes will make some
    input_masking: float = option(
        0.05, "share of tokens that the encoder does not see", limit="in [0, 1)"
    )
    fine_dropout: float = option(
        0.15, "share of rows decoded from coarse codes alone", limit="in [0, 1)"
    )
    code_corruption: float = option(
        0.02, "share of codes replaced by random ones", limit="in [0, 1)"
    )

    # What coarse codes are for
    topic_weight: float = option(
        2.0, "of telling a window's tokens from one coarse code", limit="at least 0"
    )

    # Transformers
    hidden_size: int = option(128, "width of encoder and decoder")
    num_encoder_layers: int = option(1, "blocks before the fine codes")
    num_coarse_layers: int = option(1, "blocks before the coarse codes")
    num_decoder_layers: int = option(3, "blocks after the codes")
    num_attention_heads: int = option(4, "heads")

    # Optimizer: defaults that suit codebooks, unlike those of other recipes
    learning_rate: float = option(3e-3, "peak learning rate", limit="above 0")

    # Codebooks follow the last weights, so averages of weights would not fit them.
    ema_decay: float = option(
        0.0, "of averaged weights; codebooks belong to the last ones", limit="in [0, 1)"
    )

    def __post_init__(self):
        super().__post_init__()
        if self.levels not in (1, 2):
            raise ValueError(f"`levels` must be 1 or 2, got {self.levels!r}.")
        if self.label_column:
            raise ValueError("`label_column` is not used by an autoencoder; leave it out.")


def build_model(
    config: AutoencoderConfig, vocab_size: int, mask_token_id: int
) -> AutoencoderVQTextModel:
    """The autoencoder of this configuration, checked to take rows of all lengths that are read."""
    set_seed(config.seed)
    # With one level everything coarse is left out of the architecture.
    coarse = config.levels == 2
    model = AutoencoderVQTextModel(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        num_encoder_layers=config.num_encoder_layers,
        num_coarse_layers=config.num_coarse_layers,
        num_decoder_layers=config.num_decoder_layers,
        num_attention_heads=config.num_attention_heads,
        patch_length=config.patch_length,
        coarse_ratio=config.coarse_ratio if coarse else None,
        num_fine_codes=config.num_fine_codes,
        num_coarse_codes=config.num_coarse_codes if coarse else None,
        fine_levels=config.fine_levels,
        coarse_levels=config.coarse_levels if coarse else None,
        codebook_dim=config.codebook_dim,
        quantizer=config.quantizer,
        window_length=config.window_length,
        # Codebooks follow each micro-batch, so that a step's decay is spread over several.
        decay=config.decay ** (1 / config.gradient_accumulation_steps),
        commitment_weight=config.commitment_weight,
        dead_code_threshold=config.dead_code_threshold,
        rotation_trick=config.rotation_trick,
        mask_token_id=mask_token_id,
    )

    # With `min_length` rows are also read in halves, each of which must be a whole number of codes.
    length = config.length
    while length >= (config.min_length or config.length):
        full_length = model.full_length(length)
        if full_length != length:
            raise ValueError(
                f"`length`, and its halves down to `min_length`, must be multiples of {model.code_length}, the tokens "
                f"of a code, and of `window_length` if they are longer, such as {full_length}, got {length}."
            )
        length //= 2
    return model


def main(config: AutoencoderConfig, on_validation: ValidationCallback | None = None) -> list[float]:
    """Train, save the autoencoder and its figures; returns the loss of each step in nats per token."""
    # 1. Refuse what makes no sense before the texts are read
    # The vocabulary, which is made from the texts, changes none of these checks.
    trial_model = build_model(config, config.vocab_size, mask_token_id=0)
    if config.gradient_checkpointing:
        trial_model.enable_gradient_checkpointing()

    # 2. Data and model
    accelerator = make_accelerator(config)
    # Codebooks follow averages of features, for which the model must be whole.
    refuse_shards(accelerator)
    data = prepare_data(config, accelerator)
    model = build_model(config, len(data.tokenizer), data.tokenizer.mask_token_id)
    _, end = text_ends(data.tokenizer)
    accelerator.print(
        f"{model.num_parameters():,} parameters, {len(data.tokenizer):,} tokens in the vocabulary"
    )

    # 3. The loss of a batch, and what is watched on the way
    noise = CodeNoise(
        input_masking=config.input_masking,
        # Without fine codes, one level would leave nothing to decode from.
        fine_dropout=config.fine_dropout if config.levels == 2 else 0.0,
        code_corruption=config.code_corruption,
    )

    def loss_function(model, batch, uniform, generators):
        # Reconstruction by noisy codes, commitment, and what a coarse code tells of its window.
        return autoencoder_loss(model, batch, noise, generators, end, config.topic_weight)

    # Accuracy of the reconstruction, and how many codes are in use
    def evaluate(model) -> dict[str, float]:
        rows = data.spread_validation_rows(config.validation_rows)
        return evaluate_reconstruction(model, rows, end).metrics()

    # An autoencoder has nothing to write from noise: held-out texts are shown after the way back.
    def write(model) -> list[str]:
        return reconstructions(model, data.tokenizer, data.validation_rows, config.num_samples, end)

    # 4. Train
    loop = TrainingLoop(
        config,
        accelerator,
        model,
        loss_function,
        row_order(config, data.train_rows, rows_per_step(config, accelerator)),
        evaluate=evaluate,
        write=write if config.num_samples else None,
        on_validation=on_validation,
    )
    losses = loop.run()

    # 5. Save the averaged weights and the last codebooks, and report. All processes take part in the averages.
    averages = loop.state.averages()
    if accelerator.is_main_process:
        # Averages of trained weights over the buffers of the last step, codebooks among them.
        saved_model = AutoencoderVQTextModel.from_config(model.config)
        saved_model.load_state_dict(loop.unwrapped.state_dict() | averages)
        saved_model.eval().save_pretrained(Path(config.output_dir, "autoencoder"))
        loop.log_pipeline(report(config, saved_model.to(accelerator.device), data, end))
    end_training(accelerator)
    return losses


def report(
    config: AutoencoderConfig, model: AutoencoderVQTextModel, data: TextData, end: int
) -> dict[str, float]:
    """Print, save and return what the codes keep of the held-out split."""
    metrics = evaluate_reconstruction(model, data.validation_rows, end).metrics()
    # What guessing by frequency would cost, as a yardstick
    rows = data.validation_rows
    metrics["unigram_entropy"] = unigram_entropy(rows)
    tokens_per_character = count_tokens(rows) / count_characters(rows, data.tokenizer)
    bits = metrics["cross_entropy"] * tokens_per_character / math.log(2)
    metrics["bits_per_character"] = bits

    print(f"\nunigram entropy    {metrics['unigram_entropy']:.3f} nats per token")
    print(
        f"reconstruction     {metrics['cross_entropy']:.3f} nats per token, {bits:.3f} bits per character, "
        f"{metrics['accuracy']:.1%} of the tokens"
    )
    if config.levels == 2:
        print(
            f"coarse codes alone {metrics['coarse_cross_entropy']:.3f} nats per token, "
            f"{metrics['coarse_accuracy']:.1%} of the tokens"
        )
    for level in ("fine", "coarse")[: config.levels]:
        print(
            f"{level:<6} codebook    {metrics[f'{level}_usage']:.1%} of its codes are used, "
            f"perplexity {metrics[f'{level}_perplexity']:.0f}"
        )

    save_metrics(config, metrics)
    return metrics


if __name__ == "__main__":
    run(main, AutoencoderConfig)
