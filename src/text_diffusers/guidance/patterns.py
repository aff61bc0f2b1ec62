"""A control of parts of speech: texts whose words, one token each, have given tags.

What a tagger says of the tokens of real texts becomes a table p(tag | token), with which predictions are tilted.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens, C tags, n tokens of some texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from text_diffusers.guidance.controls import Control, first_possible, forbid
from text_diffusers.guidance.soft_text import (
    check,
    check_reader,
    check_rows,
    check_vocabulary,
    continues_word,
    is_finite,
    is_index,
    label_names,
    text_places,
    token_embedding,
)


@dataclass(frozen=True)
class TokenTags:
    """What is known of each token by itself.

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
        check(shape == (2, vocab_size), "whole_words", f"of shape (2, {vocab_size})", shape)
        check(len(self.labels) in (0, num_tags), "labels", f"none, or {num_tags} names", self.labels)


@torch.no_grad()
def tag_tokens(
    tagger: Any,
    tokenizer: Any,
    texts: Sequence[str],
    smoothing: float = 0.5,
    max_length: int | None = None,
    batch_size: int = 128,
) -> TokenTags:
    """What a tagger says of each token of real texts, on average, and which of their tokens are whole words.

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
    """
    check(len(texts) > 0 and not isinstance(texts, str), "texts", "a list of at least one text", texts)
    check(is_finite(smoothing) and smoothing > 0, "smoothing", "a number above 0", smoothing)
    check(max_length is None or is_index(max_length, 2), "max_length", "None or an integer of at least 2", max_length)
    check(is_index(batch_size, 1), "batch_size", "an integer of at least 1", batch_size)
    check_reader("tagger", tagger)
    vocab_size = token_embedding("tagger", tagger).weight.shape[0]
    check_vocabulary("tagger", vocab_size, len(tokenizer))
    counts, seen, whole = count_tokens(tagger, tokenizer, texts, vocab_size, max_length, batch_size)
    check(counts.shape[1] > 0, "texts", "texts with tokens", texts[0])
    counts = counts + smoothing * counts.sum(dim=0) / counts.sum()
    log_probs = (counts / counts.sum(dim=1, keepdim=True)).log().float()
    usable = F.pad(may_be_words(tokenizer), (0, vocab_size - len(tokenizer)))
    return TokenTags(log_probs, label_names(tagger), usable & (seen > 0) & (2 * whole >= seen))


def count_tokens(
    tagger: Any, tokenizer: Any, texts: Sequence[str], vocab_size: int, max_length: int | None, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(V, C) sums of the probabilities of tags; (2, V) how often each token occurs at the start of a text and within
    one, and (2, V) how often it is a whole word there.
    """
    start = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    begin = [] if start is None else [start]
    shown = None if max_length is None else max_length - len(begin)
    continues, options = continues_word(tokenizer), {"add_special_tokens": False, "split_special_tokens": True}
    counts = torch.zeros(vocab_size, 0, dtype=torch.float64)
    seen, whole = (torch.zeros(2, vocab_size, dtype=torch.long) for _ in range(2))
    for first in range(0, len(texts), batch_size):
        encoded = tokenizer(list(texts[first : first + batch_size]), **options)["input_ids"]
        rows = [torch.tensor(ids) for ids in encoded if ids]
        if not rows:
            continue
        tokens = torch.cat([row[:shown] for row in rows])  # (n,)
        probs = tag_probs(tagger, begin, [row[:shown] for row in rows])  # (n, C)
        counts = counts if counts.shape[1] else probs.new_zeros(vocab_size, probs.shape[1])
        counts = counts.index_add(0, tokens, probs)
        within = torch.cat([torch.arange(len(row))[:shown] > 0 for row in rows])
        words = torch.cat([are_words(row, continues)[:shown] for row in rows])
        seen = seen + count(within, tokens, torch.ones_like(words), vocab_size)
        whole = whole + count(within, tokens, words, vocab_size)
    return counts, seen, whole


def tag_probs(tagger: Any, begin: list[int], rows: list[Tensor]) -> Tensor:
    """(n, C) probabilities of the tags of the tokens of some rows, float64; the tagger reads each after `begin`."""
    device = token_embedding("tagger", tagger).weight.device
    full = [torch.cat([torch.tensor(begin, dtype=torch.long), row]) for row in rows]
    ids = pad_sequence(full, batch_first=True).to(device)  # (B, L)
    real = pad_sequence([torch.ones_like(row) for row in full], batch_first=True).to(device)
    logits = tagger(input_ids=ids, attention_mask=real).logits
    check(logits.ndim == 3, "tagger", "of tokens, with logits (B, L, C)", tuple(logits.shape))
    asked = real[:, len(begin) :].bool()
    return logits[:, len(begin) :][asked].double().softmax(dim=-1).cpu()


def are_words(row: Tensor, continues: Tensor) -> Tensor:
    """(L,) bool: tokens of a text (L,) that are whole words in it; those of `continues` (V,) continue a word."""
    inside = continues[row].index_fill(0, torch.tensor([0]), False)  # there is nothing that the first could continue
    return ~inside & ~F.pad(continues[row[1:]], (0, 1))


def may_be_words(tokenizer: Any) -> Tensor:
    """(V,) bool: tokens with characters other than blanks, which are not special."""
    special, texts = set(tokenizer.all_special_ids), tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return torch.tensor([i not in special and bool(text.strip()) for i, text in enumerate(texts)])


def count(within: Tensor, tokens: Tensor, what: Tensor, vocab_size: int) -> Tensor:
    """(2, V) how many of n tokens `what` (n,) is true of, at the start of a text and `within` (n,) one."""
    places = (within.long() * vocab_size + tokens)[what]
    return torch.bincount(places, minlength=2 * vocab_size).view(2, vocab_size)


class PatternControl(Control):
    """Texts whose tokens have given tags, such as parts of speech: one tag a token, and one token a word.

    With independent tokens, as in a prediction, and tags that depend on their own token only, the tilt is exact: a
    token v gains `scale` * log p(tag | v). Tokens that are not whole words are excluded, unless there is no other.

    Args:
        token_tags: of the tokenizer of the texts, see `tag_tokens`.
        pattern: the tags in order, ids or names of `token_tags`; or a list of them for each text, all as long as their
            texts are to be.
        scale: at least 0.

    Raises:
        ValueError: if an argument is out of its range or a tag is unknown; when called, if the vocabularies differ, or
            a text is shorter than its pattern.
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
        check(self.scale >= 0, "scale", "at least 0", scale)
        self.token_tags, names = token_tags, token_tags.labels
        self._by_row = bool(pattern) and all(isinstance(tags, (list, tuple)) for tags in pattern)
        rows = [list(tags) for tags in (pattern if self._by_row else [pattern])]
        check(all(rows) and not isinstance(pattern, str), "pattern", "a list of tags, or one for each text", pattern)
        self.patterns = [[names.index(tag) if tag in names else tag for tag in row] for row in rows]
        num_tags = token_tags.log_probs.shape[1]
        for tag in (tag for row in self.patterns for tag in row):
            check(is_index(tag, 0), "pattern", f"ids, or among the names {names}", tag)
            check(tag < num_tags, "pattern", f"below the {num_tags} tags", tag)
        places = token_tags.whole_words[: max(map(len, self.patterns))]
        check(bool(places.any(dim=1).all()), "token_tags", "of texts with whole words", places.sum(dim=1).tolist())

    def plan_lengths(self, generators: Sequence[torch.Generator]) -> list[int]:
        """Number of tokens of each text."""
        return [len(tags) for tags in self._rows(len(generators))]

    def __call__(self, logits: Tensor, state: Any) -> Tensor:
        """Logits (N, V), never in place: tilted towards the tags, -inf at tokens that are not whole words."""
        if not self.acts(logits, state):
            return logits
        check_vocabulary("token_tags", len(self.token_tags.log_probs), logits.shape[-1], exactly=True)
        tags, at_start = (values[state.open] for values in self._tags(state))  # (N,)
        tagged = (tags >= 0).unsqueeze(1)
        whole_words = self.token_tags.whole_words.to(logits.device)
        excluded = ~torch.where(at_start.unsqueeze(1), whole_words[0], whole_words[1])  # (N, V)
        possible = forbid(logits, excluded & tagged)
        gains = self.token_tags.log_probs.to(logits).T[tags.clamp(min=0)]  # (N, V)
        return first_possible(possible + torch.where(tagged, self.scale * gains, 0.0), possible)

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability of whole words with the tags, exact for independent tokens; see the class."""
        check_vocabulary("token_tags", len(self.token_tags.log_probs), probs.shape[-1], exactly=True)
        tags, at_start = self._tags(state)  # (B, L)
        whole_words = self.token_tags.whole_words.to(probs).unsqueeze(-1)
        first, within = self.token_tags.log_probs.to(probs).exp() * whole_words  # (V, C)
        masses = torch.where(at_start.unsqueeze(-1), probs @ first, probs @ within)  # (B, L, C)
        wanted = masses.gather(-1, tags.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        found = wanted.clamp(min=torch.finfo(wanted.dtype).tiny).log()
        return torch.where(tags >= 0, found, 0.0).sum(dim=1)

    def _tags(self, state: Any) -> tuple[Tensor, Tensor]:
        """(B, L) tag of each token, -1 where none is asked for, and (B, L) bool, the first tokens of the texts."""
        room = text_places(state).sum(dim=1).tolist()
        tags = torch.full_like(state.tokens, -1)
        at_start = torch.zeros_like(tags, dtype=torch.bool)
        for row, (pattern, first) in enumerate(zip(self._rows(len(tags)), state.starts, strict=True)):
            check(
                len(pattern) <= room[row], "pattern", f"at most as long as its text, {room[row]} tokens", len(pattern)
            )
            tags[row, first : first + len(pattern)] = torch.tensor(pattern, device=tags.device)
            at_start[row, first] = True
        return tags, at_start

    def _rows(self, num_rows: int) -> list[list[int]]:
        if not self._by_row:
            return self.patterns * num_rows
        check_rows("pattern", len(self.patterns), num_rows)
        return self.patterns
