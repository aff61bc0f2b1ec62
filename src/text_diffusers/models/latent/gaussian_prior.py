"""A Gaussian prior over the latents of texts: the one of a conditional VAE, in the place of a diffusion model.

Latents are normalised, as a denoiser sees them. Learning Structured Output Representation using Deep Conditional
Generative Models (https://papers.nips.cc/paper/5775), and for dialogue https://arxiv.org/abs/1703.10960.

Shapes: B batch, K latents of a text, E latent width, D hidden width, P prompt tokens, S width of the prompt's states.
"""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.common.validation import require
from text_diffusers.models.attention import NORM_EPS
from text_diffusers.models.checks import check_config_types, check_sizes
from text_diffusers.models.transformer_blocks import TransformerModel, init_weights, zero_weights

# Logarithms of variances are kept in this range, in which densities are finite numbers.
SMALLEST_PRIOR_LOGVAR = -10.0
LARGEST_PRIOR_LOGVAR = 10.0


@dataclass
class LatentGaussianOutput(BaseOutput):
    """A normal distribution of latents, independent in each entry.

    Attributes:
        mean: (B, K, E).
        logvar: (B, K, E), the logarithm of its variance.
    """

    mean: Tensor
    logvar: Tensor


def gaussian_nats(latents: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """(B,) -log N(latents; mean, exp(logvar)) in nats, summed over the entries of (B, K, E) each.

    Example:
        >>> import torch
        >>> from text_diffusers.models.latent.gaussian_prior import gaussian_nats
        >>> zeros = torch.zeros(1, 1, 1)
        >>> round(gaussian_nats(zeros, zeros, zeros).item(), 4)  # the logarithm of 2 pi, halved
        0.9189
    """
    squares = (latents - mean).square() * torch.exp(-logvar)
    return 0.5 * (math.log(2 * math.pi) + logvar + squares).sum(dim=(1, 2))


class LatentGaussianPrior(TransformerModel):
    """Mean and variance of the latents of a text, from what is known of it or from nothing.

    The states of a prompt are averaged over its tokens and pass through two layers. Without a prompt the distribution
    is the same for all texts, and learned. A new model is N(0, I), as normalised latents are without any prompt.

    Args:
        latent_dim: E.
        num_latents: K.
        prompt_size: S, the width of the prompt's states; `None` takes no prompt.
        hidden_size: D, width between the two layers.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> import torch
        >>> from text_diffusers.models.latent.gaussian_prior import LatentGaussianPrior
        >>> prior = LatentGaussianPrior(latent_dim=4, num_latents=3, prompt_size=6, hidden_size=8)
        >>> states, mask = torch.randn(2, 5, 6), torch.ones(2, 5)
        >>> prior.draw(states, mask, noise=torch.randn(2, 3, 4)).shape
        torch.Size([2, 3, 4])
    """

    _no_split_modules = []
    _repeated_blocks = []

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 64,
        num_latents: int = 8,
        prompt_size: int | None = None,
        hidden_size: int = 256,
    ):
        super().__init__()
        check_config_types(self)
        check_sizes(self.config, ["latent_dim", "num_latents", "hidden_size"])
        check_sizes(self.config, ["prompt_size"], optional=True)

        # In the place of what a prompt says, for a text without one
        self.no_prompt = nn.Parameter(torch.zeros(hidden_size))
        self.prompt_in = None
        if prompt_size is not None:
            self.prompt_in = nn.Sequential(
                nn.LayerNorm(prompt_size, eps=NORM_EPS), nn.Linear(prompt_size, hidden_size)
            )
        self.distribution_out = nn.Linear(hidden_size, 2 * num_latents * latent_dim)

        self.apply(init_weights)
        nn.init.normal_(self.no_prompt, std=1.0)
        zero_weights(self.distribution_out)

    def forward(
        self,
        prompt_states: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        batch_size: int | None = None,
        return_dict: bool = True,
    ) -> LatentGaussianOutput | tuple[Tensor, Tensor]:
        """The distribution of the latents of each text.

        Args:
            prompt_states: (B, P, S) of an encoder; `None` is no prompt.
            prompt_mask: (B, P), 0 at padding; a row of zeros has no prompt.
            batch_size: B, without prompts.

        Raises:
            ValueError: if shapes do not fit the model or each other.
        """
        # 1. What is known of each text
        if prompt_states is None:
            limit = "given where there are no `prompt_states`"
            require(batch_size is not None, "batch_size", limit, batch_size)
            known = self.no_prompt.expand(batch_size or 0, -1)  # (B, D)
        else:
            known = self._pooled(prompt_states, prompt_mask)

        # 2. The distribution
        values = self.distribution_out(nn.functional.silu(known))
        shape = (2, self.config.num_latents, self.config.latent_dim)
        mean, logvar = values.unflatten(1, shape).unbind(dim=1)  # (B, K, E)
        logvar = logvar.clamp(SMALLEST_PRIOR_LOGVAR, LARGEST_PRIOR_LOGVAR)
        return LatentGaussianOutput(mean, logvar) if return_dict else (mean, logvar)

    def _pooled(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """(B, D) of the prompts with states (B, P, S) and mask (B, P)."""
        width = self.config.prompt_size
        if self.prompt_in is None:
            raise ValueError(
                "`prompt_states` were given, but this model was built with `prompt_size=None`."
            )
        fits = states.ndim == 3 and states.shape[2] == width
        require(fits, "prompt_states", f"(batch, length, {width})", tuple(states.shape))
        if mask is None:
            mask = torch.ones_like(states[..., 0])
        limit = f"{tuple(states.shape[:2])} as `prompt_states`"
        require(mask.shape == states.shape[:2], "prompt_mask", limit, tuple(mask.shape))

        # Padding may hold any number, infinite ones among them.
        real = mask.bool().unsqueeze(-1)  # (B, P, 1)
        counts = real.sum(dim=1)  # (B, 1)
        average = states.masked_fill(~real, 0).sum(dim=1) / counts.clamp(min=1)
        return torch.where(counts > 0, self.prompt_in(average), self.no_prompt)

    def draw(
        self, prompt_states: Tensor | None, prompt_mask: Tensor | None, noise: Tensor
    ) -> Tensor:
        """(B, K, E) normalised latents drawn by standard normal noise (B, K, E); the rest as in `forward`."""
        mean, logvar = self(prompt_states, prompt_mask, len(noise), return_dict=False)
        return mean + torch.exp(0.5 * logvar) * noise
