"""Masked language models of transformers as denoisers: whoever predicts masked tokens can undo absorbing noise.

A masked LM is not told the time, and under absorbing noise the prediction of clean tokens does not depend on it (RADD,
https://arxiv.org/abs/2406.03736). It read texts with a token at both ends, such as `[CLS]` and `[SEP]`, and was never
asked for these.

Shapes: B batch, L sequence length, D width, V vocabulary size, N selected positions.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.utils import BaseOutput
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedModel

# What turns the encoder's features into logits, by `model_type`, position by position.
HEADS = {"bert": ("cls",), "modernbert": ("head", "decoder")}
HEADS |= dict.fromkeys(("camembert", "roberta", "xlm-roberta"), ("lm_head",))


@dataclass
class MaskedLMDenoiserOutput(BaseOutput):
    """`logits`: (N, V) at the selected positions, (B, L, V) without a selection."""

    logits: Tensor


def is_masked_lm(model: Any) -> bool:
    """Whether `model` is a transformers model that knows nothing of diffusion."""
    return isinstance(model, PreTrainedModel) and "positions" not in inspect.signature(type(model).forward).parameters


def masked_lm_length(model: Any) -> int:
    """The longest input in tokens; RoBERTa and its kin count positions from the one after their padding id."""
    limit = model.config.max_position_embeddings
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return limit


def ids_never_predicted(model: Any, tokenizer: Any, but: tuple[int | None, ...] = ()) -> list[int]:
    """Special tokens, which a masked LM was not trained to predict, and ids of `model` that no token has."""
    return sorted({*tokenizer.all_special_ids, *range(len(tokenizer), model.config.vocab_size)} - {*but})


def selected_logits(model: Any, input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor | None) -> Tensor:
    """Logits of a masked LM, (N, V), the head running at `positions` (B, L) only where it is known; else (B, L, V)."""
    names = HEADS.get(model.config.model_type)
    if positions is None or names is None:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits if positions is None else logits[positions]
    if hasattr(model, "_hf_hook"):  # of CPU offloading, which waits for a call of the model as a whole
        model._hf_hook.pre_forward(model)
    x = model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0][positions]  # (N, D)
    for name in names:
        x = getattr(model, name)(x)
    return x


class MaskedLMDenoiser(nn.Module):
    """Calls a transformers masked LM as a denoiser.

    Args:
        masked_lm: any `AutoModelForMaskedLM`.
        excluded_ids: token ids whose logits become -inf.
    """

    def __init__(self, masked_lm: Any, excluded_ids: list[int]):
        super().__init__()
        self.masked_lm, self.excluded_ids = masked_lm, list(excluded_ids)

    @property
    def config(self) -> FrozenDict:
        """What `from_config` needs, and what others ask of a denoiser."""
        sizes = {"vocab_size": self.masked_lm.config.vocab_size, "max_length": masked_lm_length(self.masked_lm)}
        parts = {"masked_lm": self.masked_lm.config.to_dict(), "excluded_ids": self.excluded_ids}
        return FrozenDict(sizes | parts | {"num_classes": None, "block_length": None})

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MaskedLMDenoiser":
        """One of the same architecture, with random weights."""
        masked_lm = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**config["masked_lm"]))
        return cls(masked_lm, config["excluded_ids"])

    def forward(
        self,
        input_ids: Tensor,
        timestep: float | Tensor | None = None,
        attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> MaskedLMDenoiserOutput:
        """Predict the clean token at each position.

        Args:
            input_ids: (B, L) corrupted tokens.
            timestep: ignored.
            attention_mask: (B, L), 0 at padding.
            class_labels: must be `None`.
            positions: (B, L) bool; the head runs there only.

        Raises:
            ValueError: if there are labels.
        """
        if class_labels is not None:
            raise ValueError("`class_labels` were given, but a masked LM takes no labels.")
        logits = selected_logits(self.masked_lm, input_ids, attention_mask, positions)
        excluded = torch.tensor(self.excluded_ids, dtype=torch.long, device=logits.device)
        return MaskedLMDenoiserOutput(logits=logits.index_fill(-1, excluded, -torch.inf))

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, with each parameter once: tied ones under any of their names; buffers may be left out.

        Raises:
            ValueError: if a parameter is missing.
        """
        missing = [name for name, _ in self.named_parameters() if name not in state_dict]
        if strict and missing:
            raise ValueError(f"`state_dict` must hold every parameter of the masked LM, but has no {missing[0]!r}.")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def enable_gradient_checkpointing(self):
        self.masked_lm.gradient_checkpointing_enable()


def as_denoiser(model: Any, tokenizer: Any) -> Any:
    """`model` itself if it is a denoiser; a masked LM as one that predicts no special token."""
    return MaskedLMDenoiser(model, ids_never_predicted(model, tokenizer)) if is_masked_lm(model) else model
