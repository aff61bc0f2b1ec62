"""Masked language models of transformers as denoisers: a model that predicts masked tokens can undo absorbing noise.

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

# The layers from the encoder's features to logits, by `model_type`; they work position by position.
HEADS = {
    "bert": ("cls",),
    "camembert": ("lm_head",),
    "modernbert": ("head", "decoder"),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
}


@dataclass
class MaskedLMDenoiserOutput(BaseOutput):
    """`logits`: (N, V) at the selected positions, (B, L, V) without a selection."""

    logits: Tensor


def uncompiled(model: Any) -> Any:
    """The model that `torch.compile` was given, if `model` is what came of it; else `model` itself."""
    return getattr(model, "_orig_mod", model)


def runs_compiled(model: Any) -> bool:
    """Whether a call of `model` is compiled, by `torch.compile(model)` or by `model.compile()` in place."""
    # Parts of such a model, called by themselves, are not.
    in_place = getattr(model, "_compiled_call_impl", None) is not None
    return in_place or uncompiled(model) is not model


def is_masked_lm(model: Any) -> bool:
    """Whether `model`, compiled or not, is a transformers model that knows nothing of diffusion."""
    model = uncompiled(model)
    if not isinstance(model, PreTrainedModel):
        return False
    # A denoiser takes the positions whose prediction is asked for.
    return "positions" not in inspect.signature(type(model).forward).parameters


def masked_lm_length(model: Any) -> int:
    """The longest input in tokens; RoBERTa and its kin count positions from the one after their padding id."""
    # Positions that can be embedded, less those that are never given to a token
    limit = model.config.max_position_embeddings
    for name, module in model.named_modules():
        if (
            name.endswith("position_embeddings")
            and getattr(module, "padding_idx", None) is not None
        ):
            return limit - module.padding_idx - 1
    return limit


def ids_never_predicted(model: Any, tokenizer: Any, but: tuple[int | None, ...] = ()) -> list[int]:
    """Special tokens, which a masked LM was not trained to predict, and ids of `model` that no token has.

    Args:
        model: a masked LM.
        tokenizer: its tokenizer, which may have fewer tokens than the model has logits.
        but: ids that are predicted all the same.
    """
    # Vocabularies are often padded to a round number.
    unused_ids = range(len(tokenizer), model.config.vocab_size)
    return sorted({*tokenizer.all_special_ids, *unused_ids} - {*but})


def selected_logits(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None, positions: Tensor | None
) -> Tensor:
    """Logits of a masked LM, (N, V) at `positions` (B, L), or (B, L, V) without.

    The head runs at these positions only, if it is one of `HEADS`, and the model is not compiled as a whole.
    """
    head = None if runs_compiled(model) else HEADS.get(model.config.model_type)
    # A head that cannot be called by itself runs everywhere, and its logits are chosen from.
    if positions is None or head is None:
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits if positions is None else logits[positions]

    # The hook of CPU offloading waits for a call of the model as a whole.
    if hasattr(model, "_hf_hook"):
        model._hf_hook.pre_forward(model)
    x = model.base_model(input_ids=input_ids, attention_mask=attention_mask)[0][positions]  # (N, D)
    for name in head:
        x = getattr(model, name)(x)
    return x


class MaskedLMDenoiser(nn.Module):
    """Calls a transformers masked LM as a denoiser.

    Args:
        masked_lm: any `AutoModelForMaskedLM`.
        excluded_ids: token ids whose logits become -inf.

    Example:
        >>> import torch
        >>> from transformers import BertConfig, BertForMaskedLM
        >>> from text_diffusers.models import MaskedLMDenoiser
        >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        >>> masked_lm = BertForMaskedLM(BertConfig(vocab_size=20, **sizes))
        >>> denoiser = MaskedLMDenoiser(masked_lm, excluded_ids=[0, 1])
        >>> tokens = torch.tensor([[5, 4, 4, 9]])  # 4 is the mask
        >>> logits = denoiser(tokens, positions=tokens == 4).logits
        >>> logits.shape, logits[0, :2].tolist()
        (torch.Size([2, 20]), [-inf, -inf])
    """

    def __init__(self, masked_lm: Any, excluded_ids: list[int]):
        super().__init__()
        self.masked_lm = masked_lm
        self.excluded_ids = list(excluded_ids)

    @property
    def config(self) -> FrozenDict:
        """The arguments of `from_config`, and the entries of a denoiser's configuration that others read."""
        return FrozenDict(
            {
                "vocab_size": self.masked_lm.config.vocab_size,
                "max_length": masked_lm_length(self.masked_lm),
                "masked_lm": self.masked_lm.config.to_dict(),
                "excluded_ids": self.excluded_ids,
                "num_classes": None,
                "block_length": None,
            }
        )

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
        # An id with a logit of -inf is never drawn.
        excluded = torch.tensor(self.excluded_ids, dtype=torch.long, device=logits.device)
        return MaskedLMDenoiserOutput(logits=logits.index_fill(-1, excluded, -torch.inf))

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False) -> Any:
        """As in torch, with each parameter once: tied ones under any of their names; buffers may be left out.

        Raises:
            ValueError: if a parameter is missing.
        """
        # `named_parameters` lists a tied parameter once.
        missing = [name for name, _ in self.named_parameters() if name not in state_dict]
        if strict and missing:
            raise ValueError(
                f"`state_dict` must hold every parameter of the masked LM, but has no {missing[0]!r}."
            )

        # Not strict: buffers and the further names of tied parameters may be missing.
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def enable_gradient_checkpointing(self):
        self.masked_lm.gradient_checkpointing_enable()


def as_denoiser(model: Any, tokenizer: Any) -> Any:
    """`model` itself if it is a denoiser; a masked LM as one that predicts no special token."""
    if is_masked_lm(model):
        return MaskedLMDenoiser(model, ids_never_predicted(model, tokenizer))
    return model
