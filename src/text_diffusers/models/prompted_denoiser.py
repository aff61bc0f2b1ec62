"""A denoiser of codes together with the encoder of its prompts, as training and evaluation call them.

Shapes: B batch, L codes of a row, P prompt tokens.
"""

from typing import Any

from torch import Tensor, nn


class PromptedDenoiser(nn.Module):
    """A denoiser of codes and the encoder of the prompts it is told, as one model to train and to bound.

    Args:
        denoiser: a `CodeTransformerModel`.
        prompt_encoder: a `PromptEncoderModel` or an encoder of transformers; `None` without prompts.
        train_prompt_encoder: off keeps its weights, and its dropout out.

    Example:
        >>> import torch
        >>> from text_diffusers import CodeTransformerModel, PromptEncoderModel
        >>> from text_diffusers.models.prompted_denoiser import PromptedDenoiser
        >>> denoiser = CodeTransformerModel(9, 8, num_layers=1, num_attention_heads=2, prompt_size=8)
        >>> encoder = PromptEncoderModel(20, 8, num_layers=1, num_attention_heads=2)
        >>> codes = torch.tensor([[8, 8, 8]])
        >>> prompt = torch.tensor([[1, 2]])
        >>> model = PromptedDenoiser(denoiser, encoder)
        >>> model(codes, prompt_ids=prompt, prompt_mask=torch.ones_like(prompt)).logits.shape
        torch.Size([1, 3, 9])
    """

    def __init__(
        self, denoiser: Any, prompt_encoder: Any = None, train_prompt_encoder: bool = True
    ):
        super().__init__()
        self.denoiser = denoiser
        self.prompt_encoder: Any = prompt_encoder
        self.frozen = prompt_encoder is not None and not train_prompt_encoder
        # Frozen weights take no gradients, and the states of a prompt no dropout.
        if self.frozen:
            self.prompt_encoder.requires_grad_(False).eval()

    @property
    def config(self) -> Any:
        return self.denoiser.config

    def train(self, mode: bool = True) -> "PromptedDenoiser":
        super().train(mode)

        # Training the whole must not switch the dropout of a frozen encoder on.
        if self.frozen:
            self.prompt_encoder.eval()
        return self

    def enable_gradient_checkpointing(self):
        self.denoiser.enable_gradient_checkpointing()

    def forward(
        self,
        input_ids: Tensor,
        timestep: Any = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        positions: Tensor | None = None,
        context_ids: Tensor | None = None,
        prompt_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Any:
        """As the denoiser, with tokens of prompts `prompt_ids` (B, P) in place of their states.

        Raises:
            ValueError: if there are prompts and no encoder.
        """
        prompt_states = None
        if prompt_ids is not None:
            if self.prompt_encoder is None or prompt_mask is None:
                raise ValueError("`prompt_ids` need a `prompt_encoder` and a `prompt_mask`.")
            # Some encoders cannot read an empty prompt; they are shown it, and the denoiser is not.
            empty = prompt_mask.sum(dim=1, keepdim=True) == 0
            encoded = self.prompt_encoder(input_ids=prompt_ids, attention_mask=prompt_mask | empty)
            prompt_states = encoded.last_hidden_state  # (B, P, E)

        # The mask as it was given, so that an empty prompt is none to the denoiser.
        return self.denoiser(
            input_ids,
            timestep,
            attention_mask=attention_mask,
            class_labels=class_labels,
            positions=positions,
            context_ids=context_ids,
            prompt_states=prompt_states,
            prompt_mask=prompt_mask,
        )
