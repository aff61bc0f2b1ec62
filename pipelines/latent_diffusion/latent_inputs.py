"""Input handling of `LatentTextDiffusionPipeline`: its arguments checked, texts for its encoder, contexts of replies.

Shapes: B rows (texts times `num_return_sequences`), P tokens of a source, S width of the encoder's states, K latents
of a text, E latent width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.token_ids import padding_id
from text_diffusers.common.validation import (
    check_strings,
    is_list,
    is_number,
    require,
    require_int,
    require_key,
    require_number,
)
from text_diffusers.pipelines.chat_inputs import conversations
from text_diffusers.pipelines.guidance import check_interval
from text_diffusers.pipelines.text_batch import lay_out

# How the decoder chooses tokens: the likeliest, or by drawing.
DECODE_STRATEGIES = ("greedy", "sample")

# Texts that the encoder reads together
READ_AT_ONCE = 64


@dataclass
class Decoding:
    """How texts are written from latents; see `LatentTextDiffusionPipeline.__call__`.

    Raises:
        ValueError: if one is out of its range, or shapes draws where nothing is drawn.

    Example:
        >>> from text_diffusers.pipelines.latent_diffusion.latent_inputs import Decoding
        >>> Decoding().draws, Decoding(top_p=0.9).draws
        (False, True)
        >>> Decoding("greedy", temperature=0.7)
        Traceback (most recent call last):
        ValueError: `temperature` must be left out with `decode_strategy`="greedy", got 0.7.
    """

    strategy: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_new_tokens: int | None = None

    def __post_init__(self):
        require_key("decode_strategy", self.strategy, DECODE_STRATEGIES, optional=True)
        require_number("temperature", self.temperature, 0, optional=True)
        require_int("top_k", self.top_k, 1, optional=True)
        # A nucleus without any mass would hold no token.
        is_mass = is_number(self.top_p, 0, 1) and self.top_p != 0
        require(self.top_p is None or is_mass, "top_p", "None or a number in (0, 1]", self.top_p)
        require_int("max_new_tokens", self.max_new_tokens, 1, optional=True)

        # What shapes draws says that there are to be some.
        shaping = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        for name, value in shaping.items():
            is_used = value is None or self.strategy != "greedy"
            require(is_used, name, 'left out with `decode_strategy`="greedy"', value)

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn."""
        if self.strategy is not None:
            return self.strategy == "sample"
        return any(value is not None for value in (self.temperature, self.top_k, self.top_p))


@dataclass
class LatentInputs:
    """The arguments of a call that say what is written; see `LatentTextDiffusionPipeline.__call__`.

    Each is one for all texts, or a list with one a text.

    Raises:
        ValueError: if they exclude each other, or one is out of its range.

    Example:
        >>> from text_diffusers.pipelines.latent_diffusion.latent_inputs import LatentInputs
        >>> LatentInputs(prompt="I think", source=["It rains.", "It snows."]).num_texts
        2
    """

    prompt: str | list[str] | None = None
    source: str | list[str] | None = None
    messages: Any = None
    class_labels: Any = None
    guidance_scale: Any = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    latents: Any = None
    num_return_sequences: int = 1

    def __post_init__(self):
        for name in ("prompt", "source"):
            if getattr(self, name) is not None:
                check_strings(name, getattr(self, name))
        if self.messages is not None:
            limit = "left out with `messages`, which are a source"
            require(self.source is None, "source", limit, self.source)
            self.messages = conversations(self.messages)
        require_int("num_return_sequences", self.num_return_sequences, 1)
        check_interval(self.guidance_interval)

        # Latents that are given are not written.
        if self.latents is not None:
            limit = "left out with `latents`, which are decoded as they are"
            require(self.class_labels is None, "class_labels", limit, self.class_labels)
            require(not self.is_guided, "guidance_scale", f"1, or {limit}", self.guidance_scale)

    @property
    def is_guided(self) -> bool:
        """Whether the scale of any text is another than 1."""
        scales = self.guidance_scale if is_list(self.guidance_scale) else [self.guidance_scale]
        return any(scale != 1 for scale in scales)

    @property
    def num_texts(self) -> int:
        """The number of texts before repeats.

        Raises:
            ValueError: if the arguments disagree.
        """
        sizes = {
            name: len(value)
            for name, value in vars(self).items()
            if name not in ("guidance_interval", "num_return_sequences") and is_list(value)
        }
        # The longest says how many there are.
        count = max(sizes.values(), default=1)
        for name, size in sizes.items():
            # A label or scale in a list of one is the one of a text, as in other pipelines.
            allowed = (count,) if name in ("class_labels", "guidance_scale") else (1, count)
            if size not in allowed:
                raise ValueError(f"`{name}` must be one or {count}, one a text, got {size}.")
        return count

    def sources(self) -> list[str] | None:
        """The sources, or the contexts of replies, one or one a text; `None` without any."""
        if self.messages is not None:
            return [context_text(conversation) for conversation in self.messages]
        return None if self.source is None else as_texts(self.source)


def as_texts(texts: str | list[str]) -> list[str]:
    """One text or several as a list."""
    return [texts] if isinstance(texts, str) else list(texts)


def each_text(values: list, count: int) -> list:
    """As many values as there are texts, from one for all of them or one each."""
    return list(values) * count if len(values) == 1 else list(values)


def context_text(conversation: list[dict[str, Any]]) -> str:
    """A conversation as the text to which is replied, a turn a line, as training lays it out.

    Args:
        conversation: turns `{"role": ..., "content": ...}`.

    Example:
        >>> from text_diffusers.pipelines.latent_diffusion.latent_inputs import context_text
        >>> context_text([{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "How are you?"}])
        'Hi!\\nHow are you?'
    """
    return "\n".join(turn["content"] for turn in conversation)


def latent_rows(latents: Any, num_latents: int, width: int, device: torch.device) -> Tensor:
    """(texts, K, E) latents that are given, in float32.

    Raises:
        ValueError: if they have another shape, or are not finite.
    """
    try:
        rows = torch.as_tensor(latents, dtype=torch.float32, device=device)
    except (TypeError, ValueError, RuntimeError):
        rows = torch.zeros(0)  # such as rows of different lengths
    fits = rows.ndim == 3 and len(rows) > 0 and tuple(rows.shape[1:]) == (num_latents, width)
    shape = tuple(rows.shape) if rows.numel() else latents
    require(fits, "latents", f"(texts, {num_latents}, {width}), as the decoder reads them", shape)
    require(bool(rows.isfinite().all()), "latents", "finite numbers", latents)
    return rows


# The encoder


def encoder_rows(tokenizer: Any, texts: list[str], name: str, limit: int | None) -> list[list[int]]:
    """Token ids of texts for the encoder, with what its tokenizer puts around a text.

    Args:
        tokenizer: of the encoder.
        name: of the argument that the texts come from, for errors.
        limit: tokens that the encoder takes at most; `None` is any number.

    Raises:
        ValueError: if a text is longer.
    """
    rows = encode_plain(tokenizer, texts, name, with_ends=True)
    longest = max(len(row) for row in rows)
    if limit is not None and longest > limit:
        raise ValueError(
            f"`{name}` must fit into the encoder's {limit} tokens, got {longest}: shorten it."
        )
    return rows


def read_texts(
    autoencoder: Any, tokenizer: Any, texts: list[str], name: str, device: torch.device
) -> Tensor:
    """(texts, K, E) means of the posterior of texts, as the decoder reads them."""
    rows: Any = encoder_rows(tokenizer, texts, name, autoencoder.longest_source)
    latents = []
    for first in range(0, len(rows), READ_AT_ONCE):
        batch = lay_out(rows[first : first + READ_AT_ONCE], padding_id(tokenizer), device)
        latents.append(autoencoder.encode(batch.tokens, batch.attention_mask).latents)
    return torch.cat(latents)


def read_sources(
    autoencoder: Any, tokenizer: Any, sources: list[str], name: str, device: torch.device
) -> dict[str, Tensor]:
    """What a denoiser is told of sources: `prompt_states` (texts, P, S) and `prompt_mask` (texts, P); empty without.

    An empty source is none: its mask has zeros only.

    Args:
        tokenizer: of the encoder.
        name: of the argument that the sources come from, for errors.
    """
    told = [place for place, source in enumerate(sources) if source]
    if not told:
        return {}
    texts = [sources[place] for place in told]
    rows: Any = encoder_rows(tokenizer, texts, name, autoencoder.longest_source)
    batch = lay_out(rows, padding_id(tokenizer), device)
    encoded, mask = autoencoder.encode_states(batch.tokens, batch.attention_mask)

    states = encoded.new_zeros(len(sources), *encoded.shape[1:])
    states[told] = encoded
    masks = mask.new_zeros(len(sources), mask.shape[1])
    masks[told] = mask
    return {"prompt_states": states, "prompt_mask": masks}
