"""A control of parts of speech: texts whose words, one token each, have given tags.

The predictions of a tagger for the tokens of real texts become a table p(tag | token), which tilts a model's
predictions.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens, C tags, n tokens of some texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.plain_text import encode_plain
from text_diffusers.common.token_ids import start_ids
from text_diffusers.common.validation import is_int, is_number, require
from text_diffusers.guidance.controls import Control, first_possible, for_each_text, forbid
from text_diffusers.guidance.readers import (
    check_reader,
    label_names,
    pad_rows,
    read,
    token_embedding,
)
from text_diffusers.guidance.soft_text import text_places
from text_diffusers.guidance.vocabulary import check_vocabulary, continues_word, may_be_words


@dataclass(frozen=True)
class TokenTags:
    """Tags of the tokens of a vocabulary, each by itself.

    Attributes:
        log_probs: (V, C) log p(tag | token), in nats.
        labels: C names of the tags, or none.
        whole_words: (2, V) bool, the tokens that are whole words, or marks of punctuation: at the start of a text, and
            within one.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    log_probs: Tensor
    labels: list[str]
    whole_words: Tensor

    def __post_init__(self):
        vocab_size, num_tags = self.log_probs.shape
        shape = tuple(self.whole_words.shape)
        require(shape == (2, vocab_size), "whole_words", f"of shape (2, {vocab_size})", shape)
        require(
            len(self.labels) in (0, num_tags), "labels", f"none, or {num_tags} names", self.labels
        )


@torch.no_grad()
def tag_tokens(
    tagger: Any,
    tokenizer: Any,
    texts: Sequence[str],
    smoothing: float = 0.5,
    max_length: int | None = None,
    batch_size: int = 128,
) -> TokenTags:
    """Mean predictions of a tagger for each token of real texts, and which of their tokens are whole words.

    p(tag | token) is the mean of the tagger's probabilities over the occurrences of the token, and over `smoothing`
    more of them, which have the tags of all tokens taken together: a token that is rare is known less well. A token
    that does not occur has these alone.

    A token is a whole word if in at least half of its occurrences it begins a word, which the first token of a text
    always does, and the token after it does not continue that word. What does not occur, is special or blank is none.

    Args:
        tagger: of tokens, `tagger(input_ids=..., attention_mask=...).logits` (B, L, C), such as `TextClassifierModel`
            with `per_token`, in evaluation mode; it shares the tokenizer. It reads each text after the start token.
        tokenizer: a fast tokenizer of transformers.
        texts: such as are to be written, thousands of them: other tokens than theirs are not written.
        smoothing: above 0, in occurrences.
        max_length: the tokens of a text that count, the start token included; `None` counts all.
        batch_size: texts at a time.

    Raises:
        ValueError: if an argument is out of its range, the texts have no tokens, the tagger trains with dropout, its
            vocabulary is too small for the tokenizer, or it is not one of tokens.

    Example:
        >>> from text_diffusers import TextClassifierModel
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.guidance import tag_tokens
        >>> texts = ["the cat sat on the mat and looked at the dog", "a bird sang while the cat slept in the tree"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_attention_heads": 2}
        >>> tagger = TextClassifierModel(len(tokenizer), per_token=True, num_classes=3, **sizes).eval()
        >>> token_tags = tag_tokens(tagger, tokenizer, texts)
        >>> list(token_tags.log_probs.shape) == [len(tokenizer), 3]
        True
    """
    is_length = max_length is None or is_int(max_length, 2)
    require(
        len(texts) > 0 and not isinstance(texts, str), "texts", "a list of at least one text", texts
    )
    require(is_number(smoothing) and smoothing > 0, "smoothing", "a number above 0", smoothing)
    require(is_length, "max_length", "None or an integer of at least 2", max_length)
    require(is_int(batch_size, 1), "batch_size", "an integer of at least 1", batch_size)
    check_reader("tagger", tagger)
    vocab_size = len(token_embedding("tagger", tagger).weight)
    check_vocabulary("tagger", vocab_size, len(tokenizer))

    # 1. Count the tags and the whole words of each token
    start = start_ids(tokenizer)
    num_shown = None if max_length is None else max_length - len(start)
    continues = continues_word(tokenizer)
    tag_counts = torch.zeros(vocab_size, 0, dtype=torch.float64)

    # Occurrences at the start of a text, and behind them those within one.
    num_seen = torch.zeros(2 * vocab_size, dtype=torch.long)
    num_whole = torch.zeros_like(num_seen)
    for first in range(0, len(texts), batch_size):
        batch = list(texts[first : first + batch_size])
        # "[MASK]" in a text is six characters and not a token.
        encoded = encode_plain(tokenizer, batch, "texts")
        full_rows = [torch.tensor(ids) for ids in encoded if ids]
        if not full_rows:
            continue
        rows = [row[:num_shown] for row in full_rows]

        tokens = torch.cat(rows)  # (n,)
        probs = tag_probs(tagger, start, rows)  # (n, C)
        if tag_counts.shape[1] == 0:
            tag_counts = probs.new_zeros(vocab_size, probs.shape[1])
        tag_counts = tag_counts.index_add(0, tokens, probs)

        # The token after a cut tells whether the one before it is a whole word.
        are_whole = torch.cat([whole_words(row, continues)[:num_shown] for row in full_rows])
        within = torch.cat([torch.arange(len(row)) > 0 for row in rows])
        places = within.long() * vocab_size + tokens
        num_seen = num_seen + torch.bincount(places, minlength=2 * vocab_size)
        num_whole = num_whole + torch.bincount(places[are_whole], minlength=2 * vocab_size)

    # 2. Probabilities of the tags, smoothed
    require(tag_counts.shape[1] > 0, "texts", "texts with tokens", texts[0])
    tag_counts = tag_counts + smoothing * tag_counts.sum(dim=0) / tag_counts.sum()
    log_probs = (tag_counts / tag_counts.sum(dim=1, keepdim=True)).log().float()

    # 3. Whole words
    usable = F.pad(may_be_words(tokenizer), (0, vocab_size - len(tokenizer)))
    mostly_whole = (num_seen > 0) & (2 * num_whole >= num_seen)
    return TokenTags(log_probs, label_names(tagger), usable & mostly_whole.view(2, vocab_size))


def tag_probs(tagger: Any, start: list[int], rows: list[Tensor]) -> Tensor:
    """(n, C) probabilities of the tags of the tokens of some rows, float64; the tagger reads each after `start`."""
    # The start token is read, but has no tag.
    device = token_embedding("tagger", tagger).weight.device
    full_rows = [torch.cat([torch.tensor(start, dtype=torch.long), row]) for row in rows]
    tokens, real = pad_rows(full_rows, device)  # (B, L)
    logits = read(tagger, tokens, real).logits
    require(logits.ndim == 3, "tagger", "of tokens, with logits (B, L, C)", tuple(logits.shape))
    tagged = real[:, len(start) :].bool()
    return logits[:, len(start) :][tagged].double().softmax(dim=-1).cpu()


def whole_words(row: Tensor, continues: Tensor) -> Tensor:
    """(L,) bool: tokens of a text (L,) that are whole words in it; those of `continues` (V,) continue a word."""
    continuing = continues[row]
    is_continued = F.pad(continuing[1:], (0, 1))
    begins = ~continuing
    begins[0] = True  # there is nothing that the first could continue
    return begins & ~is_continued


class PatternControl(Control):
    """Texts whose tokens have given tags, such as parts of speech: one tag a token, and one token a word.

    With independent tokens, as in a prediction, and tags that depend on their own token only, the tilt is exact: a
    token v gains `scale` * log p(tag | v). Tokens that are not whole words are excluded, unless there is no other.

    Args:
        token_tags: of the tokenizer of the texts, see `tag_tokens`.
        pattern: the tags in order, ids or names of `token_tags`; or a list of them for each text, all as long as their
            texts are to be.
        scale: at least 0.
        start, stop: as in `Control`.

    Raises:
        ValueError: if an argument is out of its range or a tag is unknown; when called, if the vocabularies differ, or
            a text is shorter than its pattern.

    Example:
        >>> import torch
        >>> from text_diffusers.guidance import PatternControl, TokenTags
        >>> probs = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])  # of three tokens
        >>> token_tags = TokenTags(probs.log(), ["NOUN", "VERB"], torch.ones(2, 3, dtype=torch.bool))
        >>> control = PatternControl(token_tags, ["NOUN", "VERB", "NOUN"])  # for pipe(controls=control)
        >>> control.patterns
        [[0, 1, 0]]
    """

    def __init__(
        self,
        token_tags: TokenTags,
        pattern: Sequence[Any],
        scale: float = 1.0,
        start: float = 0.0,
        stop: float = 1.0,
    ):
        super().__init__(scale, start, stop)
        require(self.scale >= 0, "scale", "at least 0", scale)
        self.token_tags = token_tags
        # One pattern for all texts, or a list of patterns.
        self._shared = not pattern or not all(isinstance(tags, (list, tuple)) for tags in pattern)
        patterns = [pattern] if self._shared else pattern
        is_pattern = not isinstance(pattern, str) and all(patterns)
        require(is_pattern, "pattern", "a list of tags, or one for each text", pattern)

        self.patterns = [self._tag_ids(tags) for tags in patterns]

        # The first word of a pattern stands at the start of a text, others within one.
        longest = max(len(tags) for tags in self.patterns)
        num_whole = token_tags.whole_words[:longest].sum(dim=1)
        require(
            bool((num_whole > 0).all()),
            "token_tags",
            "of texts with whole words",
            num_whole.tolist(),
        )

    def plan_lengths(self, generators: Sequence[torch.Generator]) -> list[int]:
        """Number of tokens of each text."""
        return [len(tags) for tags in self._patterns_of(len(generators))]

    def guided(self, logits: Tensor, state: Any) -> Tensor:
        """Logits (N, V) tilted towards the tags, -inf at tokens that are not whole words."""
        self._check_vocabulary(logits)
        tags, at_start = self._tags(state)  # (B, L)
        tags = tags[state.open]  # (N,)
        at_start = at_start[state.open].unsqueeze(1)
        tagged = (tags >= 0).unsqueeze(1)

        # First the words, then the tags: neither leaves a place without any token.
        whole_words = self.token_tags.whole_words.to(logits.device)
        excluded = ~torch.where(at_start, whole_words[0], whole_words[1])  # (N, V)
        possible = forbid(logits, excluded & tagged)
        gains = self.token_tags.log_probs.to(logits).T[tags.clamp(min=0)]  # (N, V)
        return first_possible(possible + torch.where(tagged, self.scale * gains, 0.0), possible)

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability of whole words with the tags, exact for independent tokens; see the class."""
        self._check_vocabulary(probs)
        tags, at_start = self._tags(state)  # (B, L)

        # p(whole word and tag) of each place, summed over the tokens.
        whole_words = self.token_tags.whole_words.to(probs).unsqueeze(-1)
        first, within = self.token_tags.log_probs.to(probs).exp() * whole_words  # (V, C)
        masses = torch.where(at_start.unsqueeze(-1), probs @ first, probs @ within)  # (B, L, C)

        wanted = masses.gather(-1, tags.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        log_masses = wanted.clamp(min=torch.finfo(wanted.dtype).tiny).log()
        return torch.where(tags >= 0, log_masses, 0.0).sum(dim=1)

    def _tag_ids(self, tags: Sequence[Any]) -> list[int]:
        """The ids of the tags of a pattern, checked."""
        names = self.token_tags.labels
        num_tags = self.token_tags.log_probs.shape[1]
        ids = [names.index(tag) if tag in names else tag for tag in tags]
        for tag in ids:
            require(is_int(tag, 0), "pattern", f"ids, or among the names {names}", tag)
            require(tag < num_tags, "pattern", f"below the {num_tags} tags", tag)
        return ids

    def _check_vocabulary(self, values: Tensor):
        check_vocabulary(
            "token_tags", len(self.token_tags.log_probs), values.shape[-1], exactly=True
        )

    def _tags(self, state: Any) -> tuple[Tensor, Tensor]:
        """(B, L) tag of each token, -1 where none is asked for, and (B, L) bool, the first tokens of the texts."""
        lengths = text_places(state).sum(dim=1).tolist()
        tags = torch.full_like(state.tokens, -1)
        at_start = torch.zeros_like(tags, dtype=torch.bool)
        for row, pattern in enumerate(self._patterns_of(len(tags))):
            limit = f"at most as long as its text, {lengths[row]} tokens"
            require(len(pattern) <= lengths[row], "pattern", limit, len(pattern))
            start = state.starts[row]
            tags[row, start : start + len(pattern)] = torch.tensor(pattern, device=tags.device)
            at_start[row, start] = True
        return tags, at_start

    def _patterns_of(self, num_texts: int) -> Sequence[list[int]]:
        """The pattern of each text."""
        return for_each_text("pattern", self.patterns, num_texts, self._shared)
