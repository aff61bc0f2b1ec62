"""Classifiers and encoders as readers of text that is being written, in tokens or as soft text.

Shapes: B rows, L sequence length, l the length that a reader is shown, V vocabulary size, D width of an embedding.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from text_diffusers.guidance.vocabulary import check_vocabulary


def shown_rows(values: Tensor, starts: list[int], attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The part of `values` (B, L, ...) that a reader is shown, (B, l, ...), and its attention mask (B, l).

    It is each row from the token before its text on, which every text has: a source before that is left out, and so
    is what is padding in all rows.
    """
    length = values.shape[1]
    firsts = torch.tensor([max(start - 1, 0) for start in starts], device=values.device).unsqueeze(
        1
    )
    numbers = torch.arange(1, length + 1, device=values.device)
    ends = (attention_mask.bool() * numbers).amax(dim=1, keepdim=True)

    # Rows whose text begins late reach beyond L: there they repeat their last place, as padding.
    longest = max(1, int((ends - firsts).max()))
    places = torch.arange(longest, device=values.device) + firsts  # (B, l)
    inside = places.clamp(max=length - 1)
    real = attention_mask.gather(1, inside).long() * (places < length)
    rows = torch.arange(len(values), device=values.device).unsqueeze(1)
    return values[rows, inside], real


def read(reader: Any, values: Tensor, attention_mask: Tensor, timestep: Any = None) -> Any:
    """Output of a reader for tokens (B, L) or embeddings (B, L, D).

    Args:
        timestep: (), or (B,), the time of the noise, told to a reader that takes it; None is clean text.
    """
    # Embeddings are floating-point numbers, tokens are not.
    name = "inputs_embeds" if values.is_floating_point() else "input_ids"
    inputs = {name: values, "attention_mask": attention_mask}
    if timestep is not None and "timestep" in inspect.signature(reader.forward).parameters:
        times = torch.as_tensor(timestep, dtype=torch.float32, device=values.device)
        inputs["timestep"] = times.expand(len(values))
    return reader(**inputs)


def read_soft_text(name: str, reader: Any, probs: Tensor, state: Any, timestep: Any = None) -> Any:
    """Output of a reader for soft text (B, L, V): it is shown the mean embedding of each place.

    Raises:
        ValueError: naming the reader, if it reads no tokens or has another vocabulary than the text.
    """
    weight = token_embedding(name, reader).weight
    # Language models may have logits of ids that no token has.
    if not probs[..., len(weight) :].any():
        probs = probs[..., : len(weight)]
    check_vocabulary(name, len(weight), probs.shape[-1], exactly=True)
    embeds = probs.to(weight.dtype) @ weight  # (B, L, D)
    return read(reader, *shown_rows(embeds, state.starts, state.attention_mask), timestep)


def pad_rows(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """(B, L) tokens of rows of any lengths, padded on the right, and their attention mask."""
    tokens = pad_sequence(rows, batch_first=True)
    real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return tokens.to(device), real.to(device)


def check_reader(name: str, reader: Any):
    """Raise a ValueError if a module would drop units at random, which makes guidance random too."""
    for module in reader.modules():
        # Also Dropout1d, DropoutXd and the like of other libraries.
        is_dropout = module.__class__.__name__.startswith("Dropout") and getattr(module, "p", 0) > 0
        if is_dropout and module.training:
            raise ValueError(
                f"`{name}` must be in evaluation mode, got one that trains with dropout: call `.eval()`."
            )


def token_embedding(name: str, reader: Any) -> nn.Embedding:
    """The embedding of tokens, or a ValueError if the module has none."""
    embedding = reader.get_input_embeddings()
    if embedding is None:
        raise ValueError(f"`{name}` must read tokens, got one that reads latents.")
    return embedding


def label_names(classifier: Any) -> list[str]:
    """The names of a classifier's classes, in the order of their ids; may be none."""
    # `TextClassifierModel` has a list of names, transformers a name for each id.
    config = getattr(classifier, "config", None)
    names = getattr(config, "labels", None)
    if names:
        return list(names)
    name_of_id = getattr(config, "id2label", None) or {}
    return [name_of_id[label] for label in sorted(name_of_id)]
