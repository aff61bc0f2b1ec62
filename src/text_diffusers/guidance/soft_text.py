"""Text whose tokens are distributions: probabilities where a token is still open, one-hot rows elsewhere.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.guidance.vocabulary import check_vocabulary


def open_log_probs(logits: Tensor, state: Any) -> Tensor:
    """Log-probabilities (N, V) of the open tokens, at least float32; that of the mask is -inf."""
    # A soft text is a text: the mask is no part of it.
    scores = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    if state.mask_token_id is not None and state.mask_token_id < scores.shape[-1]:
        mask = torch.tensor(state.mask_token_id, device=scores.device)
        scores = scores.index_fill(-1, mask, -math.inf)
    return scores.log_softmax(dim=-1)


def soft_text(probs: Tensor, state: Any) -> Tensor:
    """(B, L, V) with `probs` (N, V) at the open tokens and one-hot rows elsewhere."""
    vocab_size = probs.shape[-1]
    known_tokens = state.tokens.masked_fill(state.open, 0)
    check_vocabulary("logits", vocab_size, int(known_tokens.max()) + 1)

    known = F.one_hot(known_tokens, vocab_size).to(probs.dtype)
    return known.index_put((state.open,), probs)


def text_places(state: Any) -> Tensor:
    """(B, L) bool: the real tokens from the first of the text on."""
    places = torch.arange(state.tokens.shape[1], device=state.tokens.device)
    starts = torch.tensor(state.starts, device=places.device).unsqueeze(1)
    return state.attention_mask.bool() & (places >= starts)
