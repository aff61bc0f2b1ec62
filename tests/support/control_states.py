"""States and logits that the tests of controls share."""

import re

import torch

from text_diffusers.pipelines.guidance import TextState


def make_state(tokens, is_open, starts=None, **changes):
    """Rows of tokens, 0 where open unless given; everything is real unless an attention mask says otherwise."""
    tokens, is_open = torch.tensor(tokens), torch.tensor(is_open, dtype=torch.bool)
    real = changes.pop("attention_mask", torch.ones_like(tokens))
    fields = {"timestep": 0.5, "progress": 0.0, "last": False} | changes
    return TextState(
        tokens, is_open, ~is_open & real.bool(), real, starts or [1] * len(tokens), **fields
    )


def random_logits(state, vocab_size, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(int(state.open.sum()), vocab_size, generator=generator, dtype=dtype)


def generators(count, seed=0):
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def holds(tokenizer, ids, words) -> bool:
    """Whether the text of the ids, up to its first `[EOS]`, has each of the words, by its characters."""
    ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
    text = tokenizer.decode(ids)
    return all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) for word in words)


def ids_of(tokenizer, *pieces):
    return [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]
