"""Tiny pipelines over the latents of texts, with random weights."""

import torch

from support.latent_models import decoder_config, encoder_config, make_autoencoder
from text_diffusers import (
    EmbeddingDDIMScheduler,
    LatentFlowEulerScheduler,
    LatentTextDiffusionPipeline,
    LatentTransformerModel,
)
from text_diffusers.models.latent.gaussian_prior import LatentGaussianPrior

WIDTH = 16  # of the encoder's states
FORM = {"latent_dim": 4, "num_latents": 3}


def randomised(model):
    """The model with random weights: layers that begin at zero would hide mistakes."""
    for name, parameter in model.named_parameters():
        # What a prompt says must show.
        torch.nn.init.normal_(parameter, std=0.8 if ".prompt." in name else 0.25)
    return model.eval()


def make_latent_denoiser(**changes):
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2, "prompt_size": WIDTH}
    options = {"prediction_type": "flow", "num_train_timesteps": 100}
    return randomised(LatentTransformerModel(**FORM | sizes | options | changes))


def make_latent_prior(**changes):
    torch.manual_seed(1)
    sizes = {"hidden_size": 8, "prompt_size": WIDTH}
    return randomised(LatentGaussianPrior(**FORM | sizes | changes))


def make_latent_pipe(tokenizer, denoiser=None, scheduler=None, label_names=None, **changes):
    """A pipeline whose encoder and decoder have one tokenizer; `changes` are those of the autoencoder."""
    parts = {
        "encoder_config": encoder_config(len(tokenizer)),
        "decoder_config": decoder_config("llama", len(tokenizer), max_position_embeddings=64),
    }
    autoencoder = make_autoencoder(**parts | changes)
    # What latents say must show in the text.
    for layer in (autoencoder.decoder.prefix_in, autoencoder.mean_out):
        torch.nn.init.normal_(layer.weight, std=2.0)
    # Statistics of a corpus, of which normalised latents and those of the decoder differ
    seeded = torch.Generator().manual_seed(2)
    shape = (2, *autoencoder.latent_mean.shape)
    mean, log_std = torch.randn(shape, generator=seeded)
    autoencoder.set_latent_statistics(mean, log_std.exp())

    denoiser = make_latent_denoiser() if denoiser is None else denoiser
    if scheduler is None and not hasattr(denoiser, "draw"):
        scheduler = scheduler_for(denoiser)
    pipe = LatentTextDiffusionPipeline(
        tokenizer, tokenizer, autoencoder, denoiser, scheduler, label_names
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def scheduler_for(denoiser):
    """One of the straight path for "flow", and of betas for other predictions."""
    config = denoiser.config
    if config.prediction_type == "flow":
        return LatentFlowEulerScheduler(config.num_train_timesteps)
    return EmbeddingDDIMScheduler(
        config.num_train_timesteps,
        beta_schedule="cosine",
        prediction_type=config.prediction_type,
    )
