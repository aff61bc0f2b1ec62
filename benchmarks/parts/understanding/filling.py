"""How a pipeline fills the gaps of texts, and how a tagger tags words."""

from collections.abc import Sequence
from typing import Any

import torch

from text_diffusers.data.detokenization import detokenise
from text_diffusers.data.rows import text_ends
from text_diffusers.samplers import with_sampler


def fill_gaps(
    pipe: Any,
    texts: Sequence[str],
    num_inference_steps: int,
    batch_size: int,
    suppress_tokens: Sequence[int] = (),
    **call: Any,
) -> list[list[str]]:
    """What a pipeline writes into the gaps of each text, the likeliest tokens, without spaces around them.

    Args:
        texts: with "[MASK]" for every gap of one token.
        num_inference_steps: 1 fills all gaps at once; with more the surest come first, and the others see them.
        suppress_tokens: ids that are never written, besides those of special tokens.
        call: further arguments of the pipeline.
    """
    writer = with_sampler(pipe, "confidence", temperature=0.0)
    writer.set_progress_bar_config(disable=True)
    tokenizer = pipe.tokenizer
    # No special token is an answer.
    suppressed = sorted({*suppress_tokens, *tokenizer.all_special_ids})

    answers = []
    for first in range(0, len(texts), batch_size):
        batch = list(texts[first : first + batch_size])
        output = writer(
            text=batch,
            num_inference_steps=num_inference_steps,
            suppress_tokens=suppressed,
            generator=torch.Generator().manual_seed(0),
            return_history=True,
            **call,
        )
        # The history begins with the gaps, and its rows hold what `tokens` leaves out, such as a prompt of the label.
        is_gap = output.history[0] == tokenizer.mask_token_id
        for gaps, written in zip(is_gap, output.history[-1], strict=True):
            answers.append([tokenizer.decode([token]).strip() for token in written[gaps].tolist()])
    return answers


def rewrite(
    pipe: Any,
    sources: Sequence[str],
    num_inference_steps: int,
    batch_size: int,
    **call: Any,
) -> list[str]:
    """What a pipeline writes from each source: a length that it draws, and the likeliest tokens, the surest first.

    The draw of a text depends on its place among the sources only, and not on `batch_size`.

    Args:
        call: further arguments of the pipeline, the same for all sources.
    """
    writer = with_sampler(pipe, "confidence", temperature=0.0)
    writer.set_progress_bar_config(disable=True)

    texts: list[str] = []
    for first in range(0, len(sources), batch_size):
        batch = list(sources[first : first + batch_size])
        texts += writer(
            source=batch,
            num_inference_steps=num_inference_steps,
            generator=[
                torch.Generator().manual_seed(first + number) for number in range(len(batch))
            ],
            **call,
        ).texts
    return texts


def size_of(pipe: Any) -> int:
    """Parameters of the denoiser of a pipeline."""
    return sum(weight.numel() for weight in pipe.denoiser.parameters())


@torch.no_grad()
def tag_words(model: Any, tokenizer: Any, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    """The tags that a classifier of tokens gives words: each has that of the token in which it begins.

    Args:
        model: a `TextClassifierModel` with `per_token` and `labels`.
        sentences: lists of words.
    """
    start, end = text_ends(tokenizer)
    tags = []
    for words in sentences:
        text, owners = detokenise(words)
        encoded = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        logits = model(torch.tensor([[start, *encoded["input_ids"], end]])).logits[0]
        token_tags = logits.argmax(dim=-1).tolist()[1:-1]

        # Two words may share a token, such as the marks `."`.
        owner_of_character = {}
        for token, (first, last) in enumerate(encoded["offset_mapping"]):
            owner_of_character |= dict.fromkeys(range(first, last), token)
        row = []
        for word in range(len(words)):
            # The space before a word belongs to it, and may be no token's.
            places = [place for place, owner in enumerate(owners) if owner == word]
            known = [place for place in places if place in owner_of_character]
            row.append(model.config.labels[token_tags[owner_of_character[known[0]]]])
        tags.append(row)
    return tags
