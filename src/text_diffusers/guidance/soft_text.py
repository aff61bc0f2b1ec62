"""Text whose tokens are distributions: what classifiers and encoders read instead of tokens, so that they can guide.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens, D width of an embedding.
"""

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def open_log_probs(logits: Tensor, state: Any) -> Tensor:
    """Log-probabilities (N, V) of the open tokens, at least float32; that of the mask is -inf."""
    scores = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    if state.mask_token_id is not None and state.mask_token_id < scores.shape[-1]:
        scores = scores.index_fill(-1, torch.tensor(state.mask_token_id, device=scores.device), -math.inf)
    return scores.log_softmax(dim=-1)


def soft_text(probs: Tensor, state: Any) -> Tensor:
    """(B, L, V) with `probs` (N, V) at the open tokens and one-hot rows elsewhere."""
    vocab_size, largest = probs.shape[-1], int(state.tokens.masked_fill(state.open, 0).max())
    check_vocabulary("logits", vocab_size, largest + 1)
    known = F.one_hot(state.tokens.masked_fill(state.open, 0), vocab_size).to(probs.dtype)
    return known.index_put((state.open,), probs)


def text_places(state: Any) -> Tensor:
    """(B, L) bool: the real tokens from the first of the text on."""
    starts = torch.tensor(state.starts, device=state.tokens.device).unsqueeze(1)
    return state.attention_mask.bool() & (torch.arange(state.tokens.shape[1], device=starts.device) >= starts)


def shown_rows(values: Tensor, starts: list[int], attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """What a classifier is shown of `values` (B, L, ...), and its attention mask (B, l).

    It is each row from the token before its text on, which every text has: a source before that is left out, and so
    is what is padding in all rows.
    """
    first = torch.tensor([max(start - 1, 0) for start in starts], device=values.device).unsqueeze(1)
    length = values.shape[1]
    ends = (attention_mask.bool() * torch.arange(1, length + 1, device=values.device)).amax(dim=1, keepdim=True)
    longest = max(1, int((ends - first).max()))
    places = torch.arange(longest, device=values.device) + first  # (B, l)
    inside = places.clamp(max=length - 1)
    real = attention_mask.gather(1, inside).long() * (places < length)
    return values[torch.arange(len(values), device=values.device).unsqueeze(1), inside], real


def read_soft_text(reader: Any, probs: Tensor, state: Any, timestep: Any = None) -> Any:
    """What a classifier or encoder says of soft text (B, L, V), told the time of its noise if it asks for it."""
    weight = reader.get_input_embeddings().weight
    embeds, real = shown_rows(probs.to(weight.dtype) @ weight, state.starts, state.attention_mask)
    return reader(inputs_embeds=embeds, attention_mask=real, **time_argument(reader, timestep, embeds))


def time_argument(reader: Any, timestep: Any, like: Tensor) -> dict[str, Tensor]:
    """`timestep` (B,), float32, of a reader that takes it; None is clean text, as it is to the reader."""
    if timestep is None or "timestep" not in inspect.signature(reader.forward).parameters:
        return {}
    return {"timestep": torch.as_tensor(timestep, dtype=torch.float32, device=like.device).expand(len(like))}


def check_reader(name: str, reader: Any):
    """Raise a ValueError if a module would drop units at random, which makes guidance random too."""
    for module in reader.modules():
        if module.training and module.__class__.__name__.startswith("Dropout") and getattr(module, "p", 0) > 0:
            raise ValueError(f"`{name}` must be in evaluation mode, got one that trains with dropout: call `.eval()`.")


def token_embedding(name: str, reader: Any) -> nn.Embedding:
    """The embedding of tokens, or a ValueError if the module has none."""
    embedding = reader.get_input_embeddings()
    if embedding is None:
        raise ValueError(f"`{name}` must read tokens, got one that reads latents.")
    return embedding


def check_vocabulary(name: str, size: int, wanted: int, exactly: bool = False):
    """Raise a ValueError, naming both, if a vocabulary is too small, or not exactly as large as that of the text."""
    if size < wanted or exactly and size != wanted:
        limit = (
            f"{wanted} tokens, those of the text" if exactly else f"at least {wanted} tokens, for those of the text"
        )
        raise ValueError(f"`{name}` must have {limit}, got {size}.")


def continues_word(tokenizer: Any) -> Tensor:
    """(V,) bool: tokens that continue the word before them.

    In a WordPiece vocabulary they begin with "##"; in others they begin without a space, with a letter, a digit, an
    underscore, an apostrophe that is followed by more, or within a character.
    """
    size = len(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
    special = set(tokenizer.all_special_ids)
    if any(piece.startswith("##") for piece in pieces):
        return torch.tensor([piece.startswith("##") and i not in special for i, piece in enumerate(pieces)])
    texts = tokenizer.batch_decode([[i] for i in range(size)])
    continuing = []
    for i, (piece, text) in enumerate(zip(pieces, texts, strict=True)):
        inside = text[:1].isalnum() or text[:1] in ("_", "\ufffd") or text[:1] in "'’" and text[1:2].isalnum()
        continuing.append(i not in special and not piece.startswith(("Ġ", "▁")) and inside)
    return torch.tensor(continuing)


def label_names(classifier: Any) -> list[str]:
    """The names of a classifier's classes, in the order of their ids; may be none."""
    config = getattr(classifier, "config", None)
    names, by_id = getattr(config, "labels", None), getattr(config, "id2label", None) or {}
    return list(names) if names else [by_id[i] for i in sorted(by_id)]


def check(condition: bool, name: str, limit: str, value: Any):
    if not condition:
        raise ValueError(f"`{name}` must be {limit}, got {value!r}.")


def check_rows(name: str, count: int, num_rows: int):
    check(count == num_rows, name, f"one for each of the {num_rows} texts", count)


def is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_index(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
