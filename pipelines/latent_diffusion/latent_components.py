"""Whether the parts of `LatentTextDiffusionPipeline` fit each other, and what they can be told."""

from typing import Any

from text_diffusers.common.token_ids import end_ids
from text_diffusers.common.validation import require
from text_diffusers.pipelines.component_checks import check_label_names, check_words
from text_diffusers.pipelines.latent_diffusion.latent_inputs import LatentInputs
from text_diffusers.pipelines.latent_diffusion.latent_steps import latent_scheduler


def is_prior(denoiser: Any) -> bool:
    """Whether latents are drawn by one call, as a `LatentGaussianPrior` does, and not step by step."""
    return hasattr(denoiser, "draw")


def reads_prompts(denoiser: Any) -> bool:
    """Whether a denoiser is told the states of a source."""
    return getattr(denoiser.config, "prompt_size", None) is not None


def check_latent_components(
    tokenizer: Any,
    encoder_tokenizer: Any,
    autoencoder: Any,
    denoiser: Any,
    scheduler: Any,
    label_names: Any = None,
):
    """Raise a `ValueError` unless the components of a pipeline over latents fit each other.

    Args:
        scheduler: `None` is none.
        label_names: a name for each class label.
    """
    # 1. Both tokenizers
    check_words(tokenizer, "autoencoder", autoencoder.decoder.vocab_size)
    require(bool(end_ids(tokenizer)), "tokenizer", "one with an end token", tokenizer)
    vocab_size = autoencoder.encoder.config.vocab_size
    limit = f"one of at most {vocab_size} tokens, as the encoder of `autoencoder` knows"
    num_tokens = len(encoder_tokenizer)
    require(num_tokens <= vocab_size, "encoder_tokenizer", limit, num_tokens)

    # 2. Latents of the same form, and sources as the encoder reads them
    latent_config = autoencoder.config
    sizes = {"num_latents": latent_config.num_latents, "latent_dim": latent_config.latent_size}
    if reads_prompts(denoiser):
        sizes["prompt_size"] = autoencoder.encoder.config.hidden_size
    for name, size in sizes.items():
        own = getattr(denoiser.config, name, None)
        if own != size:
            raise ValueError(
                f"`denoiser` must have `{name}`={size}, that of the autoencoder, got {own}."
            )
    check_label_names(label_names, getattr(denoiser.config, "num_classes", None))

    # 3. The noise. Without it a pipeline decodes latents that are given.
    if scheduler is None:
        return
    if is_prior(denoiser):
        raise ValueError(
            f"`scheduler` must be None for a {type(denoiser).__name__}, which takes no steps, got "
            f"{type(scheduler).__name__}."
        )
    latent_scheduler(scheduler, denoiser)


def check_what_is_told(inputs: LatentInputs, autoencoder: Any, denoiser: Any, scheduler: Any):
    """Refuse a call that these components cannot take.

    Raises:
        ValueError: that names the argument.
    """
    # Latents that are given are not written, and the denoiser is told nothing.
    is_told = reads_prompts(denoiser) and inputs.latents is None
    for name in ("source", "messages"):
        value = getattr(inputs, name)
        if value is not None and not (is_told or autoencoder.config.reads_source):
            raise ValueError(
                f"`{name}` needs a denoiser with a `prompt_size`, or an autoencoder with `reads_source`, got "
                f"{value!r}."
            )
    has_labels = getattr(denoiser.config, "num_classes", None) is not None
    if inputs.class_labels is not None and not has_labels:
        raise ValueError(
            f"`class_labels` need a denoiser that was trained with labels, got {inputs.class_labels!r}."
        )
    if is_prior(denoiser) and inputs.is_guided:
        raise ValueError(
            f"`guidance_scale` must be 1 for a {type(denoiser).__name__}, which draws without steps, got "
            f"{inputs.guidance_scale}."
        )
    if inputs.latents is None and scheduler is None and not is_prior(denoiser):
        raise ValueError(
            f"`scheduler` must be given for a {type(denoiser).__name__}: without one only `latents` can be decoded."
        )
