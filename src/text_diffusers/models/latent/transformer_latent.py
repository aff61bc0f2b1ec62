"""A transformer that denoises the latents of a text, given the time, a label and a prompt.

The latents are those of an autoencoder, a few vectors a text. The prompt, a source to rewrite or a context to reply
to, enters by cross-attention to the states of any encoder.

Shapes: B batch, K latents of a text, E latent width, D hidden width, P prompt tokens, S width of the prompt's states.
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from text_diffusers.common.clean_estimate import PREDICTION_PARTS
from text_diffusers.common.validation import LONGEST_CLOCK, require_key
from text_diffusers.models.attention import NORM_EPS, Rotary, rotary_of
from text_diffusers.models.checks import (
    check_config_types,
    check_sizes,
    check_transformer_sizes,
)
from text_diffusers.models.transformer_blocks import (
    TextTransformerBlock,
    TransformerModel,
    init_weights,
    make_time_layers,
    zero_weights,
)
from text_diffusers.models.transformer_code import PromptAttention, prompt_inputs


@dataclass
class LatentTransformerOutput(BaseOutput):
    """`sample`: (B, K, E) clean latents, noise or velocity, as `prediction_type` says."""

    sample: Tensor


class LatentTransformerBlock(nn.Module):
    """A transformer block whose latents also look at the prompt, if there can be one."""

    def __init__(self, config: Any):
        super().__init__()
        self.prompt = None if config.prompt_size is None else PromptAttention(config)
        self.block = TextTransformerBlock(config, config.dropout, conditioned=True)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        condition: Tensor,
        states: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        """(B, K, D); `condition` is (B, 1, D), states (B, P, S) and mask (B, P) are those of the prompt."""
        # Look at the prompt first, then at the other latents.
        if self.prompt is not None:
            x = x + self.prompt(x, states, mask)
        return self.block(x, rotary, None, condition)


class LatentTransformerModel(TransformerModel):
    """Denoiser over the latents of texts.

    Args:
        latent_dim: E, the space in which diffusion happens; latents are expected to have a variance of about 1.
        num_latents: K, latents of a text. Each place has its own meaning, which is learned.
        hidden_size: D, width of the transformer.
        num_layers: number of transformer blocks.
        num_attention_heads: heads; the head width must be even.
        feed_forward_ratio: width of the feed-forward layer in units of D.
        num_train_timesteps: steps of the clock in which `timestep` counts; of a continuous clock its end.
        prediction_type: "sample" (clean latents), "epsilon" (the noise), "v_prediction" or "flow" (noise minus clean
            latents, as diffusers' flow matching schedulers step by).
        self_conditioning: whether the network also sees its previous estimate (https://arxiv.org/abs/2208.04202).
        num_classes: number of class labels; `None` takes none. Label `num_classes` means "no label".
        prompt_size: S, the width of the prompt's states; `None` takes no prompt.
        dropout: probability, during training.

    Raises:
        ValueError: if an argument makes no sense, with its name and limit.

    Example:
        >>> import torch
        >>> from text_diffusers import LatentTransformerModel
        >>> model = LatentTransformerModel(
        ...     latent_dim=4, num_latents=3, hidden_size=8, num_layers=1, num_attention_heads=2, prompt_size=6
        ... )
        >>> noisy = torch.randn(2, 3, 4)
        >>> model(noisy, timestep=300, prompt_states=torch.randn(2, 5, 6)).sample.shape
        torch.Size([2, 3, 4])
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["LatentTransformerBlock"]
    _repeated_blocks = ["LatentTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        latent_dim: int = 64,
        num_latents: int = 8,
        hidden_size: int = 256,
        num_layers: int = 6,
        num_attention_heads: int = 4,
        feed_forward_ratio: float = 4.0,
        num_train_timesteps: int = 1000,
        prediction_type: str = "v_prediction",
        self_conditioning: bool = True,
        num_classes: int | None = None,
        prompt_size: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_config_types(self)
        check_transformer_sizes(self.config, ["latent_dim", "num_latents", "num_layers"])
        check_sizes(self.config, ["num_train_timesteps"], most=LONGEST_CLOCK)
        check_sizes(self.config, ["num_classes", "prompt_size"], optional=True)
        require_key("prediction_type", prediction_type, PREDICTION_PARTS)

        # 1. What the transformer reads: noisy latents, and all that is known of them
        self.proj_in = nn.Linear(latent_dim, hidden_size)
        # Rotary positions only say how far latents are from each other, not which of them is which.
        self.place_embedding = nn.Embedding(num_latents, hidden_size)
        self.self_condition_in = None
        if self_conditioning:
            self.self_condition_in = nn.Linear(latent_dim, hidden_size, bias=False)
        self.class_embedding = None
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.time_embedding = make_time_layers(hidden_size)

        # 2. The transformer and its head
        self.blocks: Any = nn.ModuleList(
            LatentTransformerBlock(self.config) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=NORM_EPS, elementwise_affine=False)
        self.modulation_out = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj_out = nn.Linear(hidden_size, latent_dim)

        # The head, and what prompt and previous estimate add, start at zero.
        self.apply(init_weights)
        zero_weights(self.modulation_out, self.proj_out, self.self_condition_in)
        if prompt_size is not None:
            zero_weights(*(block.prompt.attn.to_out[0] for block in self.blocks))

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        class_labels: Tensor | None = None,
        prompt_states: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        self_condition: Tensor | None = None,
        return_dict: bool = True,
    ) -> LatentTransformerOutput | tuple[Tensor]:
        """Predict the clean latents, the noise or the velocity.

        Args:
            sample: (B, K, E) noisy latents.
            timestep: () or (B,) of the clock from 0 to `num_train_timesteps`, between whole steps too.
            class_labels: (B,) ids; `None` is "no label".
            prompt_states: (B, P, S) of an encoder; `None` is no prompt.
            prompt_mask: (B, P), 0 at padding; a row of zeros has no prompt.
            self_condition: (B, K, E) the previous clean estimate; `None`, as at the first step, is zeros.

        Raises:
            ValueError: if shapes or labels do not fit the model or each other.
        """
        self._check_shape("sample", sample)

        # 1. Embed what the network is shown
        places = torch.arange(self.config.num_latents, device=sample.device)
        x = self.proj_in(sample) + self.place_embedding(places)  # (B, K, D)
        if self_condition is not None:
            if self.self_condition_in is None:
                raise ValueError(
                    "`self_condition` was given, but this model was built with `self_conditioning=False`."
                )
            self._check_shape("self_condition", self_condition)
            x = x + self.self_condition_in(self_condition)

        # 2. Denoise
        condition = self.embed_clock(timestep, class_labels, x)  # (B, 1, D)
        states, mask = prompt_inputs(x, self.config.prompt_size, prompt_states, prompt_mask)
        rotary = rotary_of(x, self.config)
        for block in self.blocks:
            x = self.run_block(block, x, rotary, condition, states, mask)

        # 3. Predict
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
        prediction = self.proj_out(self.norm_out(x) * (1 + scale) + shift)  # (B, K, E)
        return LatentTransformerOutput(prediction) if return_dict else (prediction,)

    def _check_shape(self, name: str, value: Tensor):
        places = (self.config.num_latents, self.config.latent_dim)
        if value.ndim != 3 or tuple(value.shape[1:]) != places:
            raise ValueError(
                f"`{name}` must be (batch, {places[0]}, {places[1]}) for `num_latents` and `latent_dim`, "
                f"got {tuple(value.shape)}."
            )
