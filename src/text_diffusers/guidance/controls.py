"""Controls over text that is being written: its length, and words it must hold.

A control is called with the logits of the tokens that are still open and with what is known of the texts, and returns
logits that favour what it asks for. Controls are combined by calling one after another. Those that ask a classifier or
an encoder are in `classifier_guidance`, that of parts of speech in `pattern_control`.

Of the texts a control reads the attributes `tokens` (B, L), `open` (B, L) bool: the tokens to be decided, whose logits
it gets in row-major order, `attention_mask` (B, L), `starts`: B places where the texts begin, `timestep`, `progress`:
the share of the steps that are done, `last`, `selected` (B, L) bool or None: what this step draws, and `mask_token_id`
or None.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.guidance.soft_text import (
    check,
    check_rows,
    check_vocabulary,
    continues_word,
    is_finite,
    is_index,
    open_log_probs,
    soft_text,
    text_places,
)
from text_diffusers.guidance.word_automaton import CONTINUES, END, MAX_WORDS, WordAutomaton

IMPOSSIBLE = -1e4  # the least log-probability of a token that is forced


class Control:
    """What controls share: when they act, and the first-order tilt of predictions towards a higher `log_prob`.

    Subclasses define `log_prob(probs, state)`: the log-probability (B,) of what is asked for, of soft text (B, L, V)
    that is one-hot where a token is not open. A row's value must depend on that row only.

    Args:
        scale: weight of the control: 1 is Bayes' rule, 0 changes nothing.
        start, stop: shares of the steps between which it acts, `start <= progress < stop`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    acts_on = "prediction"
    temperature = 1.0
    num_gradients = 1

    def __init__(self, scale: float = 1.0, start: float = 0.0, stop: float = 1.0):
        check(is_finite(scale), "scale", "a finite number", scale)
        if not (is_finite(start) and is_finite(stop) and 0 <= start <= stop <= 1):
            raise ValueError(
                f"`start` and `stop` must be shares of the steps, 0 <= start <= stop <= 1, got {start!r} and {stop!r}."
            )
        self.scale, self.start, self.stop = float(scale), float(start), float(stop)

    def __call__(self, logits: Tensor, state: Any) -> Tensor:
        """Tilted logits (N, V), never in place; the very same where the control does not act."""
        if not self.acts(logits, state):
            return logits
        for _ in range(self.num_gradients):
            logits = logits + self.scale / self.num_gradients * self.tilt(logits, state).to(logits.dtype)
        return logits

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability of what is asked for, differentiable in the soft text `probs` (B, L, V)."""
        raise NotImplementedError

    def acts(self, logits: Tensor, state: Any) -> bool:
        """Whether there is anything to do in this step."""
        return self.scale != 0 and len(logits) > 0 and self.start <= state.progress < self.stop

    def tilt(self, logits: Tensor, state: Any) -> Tensor:
        """(N, V) `log_prob` with a token put in, less its mean, to first order in the probabilities of that place."""
        probs = open_log_probs(logits / self.temperature, state).exp()
        with torch.enable_grad():
            leaf = probs.detach().requires_grad_()
            total = self.log_prob(soft_text(leaf, state), state).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        return gradient - (probs * gradient).sum(dim=-1, keepdim=True)


class LengthControl(Control):
    """Texts of a given length: their number of tokens is fixed, and no `[EOS]` may come before it.

    Args:
        length: number of tokens of each text, or of all.
        tolerance: lengths are drawn uniformly from `length - tolerance` to `length + tolerance`, and are at least 1.
        eos_token_id: the token that ends a text; `None` if the model cannot predict any.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        length: int | Sequence[int],
        tolerance: int = 0,
        eos_token_id: int | None = None,
        start: float = 0.0,
        stop: float = 1.0,
    ):
        super().__init__(1.0, start, stop)
        lengths = length if isinstance(length, Sequence) else [length]
        check(len(lengths) > 0 and all(is_index(n, 1) for n in lengths), "length", "integers of at least 1", length)
        check(is_index(tolerance, 0), "tolerance", "an integer of at least 0", tolerance)
        check(eos_token_id is None or is_index(eos_token_id, 0), "eos_token_id", "a token id or None", eos_token_id)
        self.length, self.tolerance, self.eos_token_id = length, tolerance, eos_token_id

    def plan_lengths(self, generators: Sequence[torch.Generator]) -> list[int]:
        """Number of tokens of each text, by one number of its generator.

        Raises:
            ValueError: if there is not one length a text.
        """
        lengths = self.length if isinstance(self.length, Sequence) else [self.length] * len(generators)
        check_rows("length", len(lengths), len(generators))
        planned = []
        for length, generator in zip(lengths, generators, strict=True):
            uniform = float(torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64))
            shortest = max(1, length - self.tolerance)
            planned.append(shortest + int(uniform * (length + self.tolerance - shortest + 1)))
        return planned

    def __call__(self, logits: Tensor, state: Any) -> Tensor:
        """Logits (N, V) without `[EOS]`."""
        if self.eos_token_id is None or not self.acts(logits, state):
            return logits
        check(self.eos_token_id < logits.shape[-1], "eos_token_id", f"below {logits.shape[-1]}", self.eos_token_id)
        return forbid(logits, torch.arange(logits.shape[-1], device=logits.device) == self.eos_token_id)

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability that no open token is `[EOS]`."""
        if self.eos_token_id is None:
            return probs.sum(dim=(1, 2)) * 0
        early = probs[..., self.eos_token_id].clamp(max=1 - torch.finfo(probs.dtype).eps)
        return (torch.log1p(-early) * state.open).sum(dim=1)


class WordsControl(Control):
    """The text must hold these words.

    The tilt is exact for the prediction, in which the tokens are independent: log p(all words are in the text | this
    token is v), up to a constant. A word is what the tokenizer makes of it after a space, or at the start of the text;
    the token after it must not continue it, and it must come before the end of the text.

    Where the tokens that this step does not draw could not hold the missing words, whatever it draws, the words are
    forced: their likeliest places get their tokens with certainty. So no text is finished without them, provided that
    the control acts from the first step to the last, and the last step draws all that is open. A kernel that revises
    tokens must be shown all of them as `selected`, or None, in the last step.

    Args:
        tokenizer: a fast tokenizer of transformers.
        words: the words, at most 8, as they are written within a text; phrases are allowed.
        scale: at least 0.

    Raises:
        ValueError: if a word is empty or unknown to the tokenizer, or there are too many; when called, if a text is
            too short for the words, or what is given of it leaves them no room.
    """

    def __init__(
        self, tokenizer: Any, words: str | Sequence[str], scale: float = 1.0, start: float = 0.0, stop: float = 1.0
    ):
        super().__init__(scale, start, stop)
        check(self.scale >= 0, "scale", "at least 0", scale)
        self.words = [words] if isinstance(words, str) else list(words)
        usable = [isinstance(word, str) and bool(word.strip()) for word in self.words]
        check(0 < len(usable) <= MAX_WORDS and all(usable), "words", f"1 to {MAX_WORDS} words", words)
        self.words = list(dict.fromkeys(word.strip() for word in self.words))
        spellings = []
        for word in self.words:
            at_start, elsewhere = (
                tokenizer(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}")
            )
            known = at_start and elsewhere and not set(at_start + elsewhere) & set(tokenizer.all_special_ids)
            check(bool(known), "words", "made of tokens of the tokenizer, none of them special", word)
            spellings.append((tuple(at_start), tuple(elsewhere)))
        end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.automaton = WordAutomaton(spellings, continues_word(tokenizer), end)

    def __call__(self, logits: Tensor, state: Any) -> Tensor:
        """Tilted logits (N, V); -inf at tokens with which a text could not have the words."""
        if not self.acts(logits, state):
            return logits
        check_vocabulary("logits", logits.shape[-1], max(self.automaton.ids) + 1)
        in_text, classes = text_places(state), self.automaton.classes(state.tokens)
        known = F.one_hot(classes, self.automaton.num_classes).double().log()  # (B, L, C)
        open_log_masses = self._log_masses(logits, state)
        log_weights = known.index_put((state.open,), open_log_masses)
        given = self.automaton.accepted_given(log_weights.exp(), in_text)[state.open]  # (N, C)
        mean = (open_log_masses.exp() * given).sum(dim=-1, keepdim=True)
        allowed, forced = self._allowed(known, log_weights, in_text, state)
        # Where the words are certain, no other token has to care for them.
        useful = (mean > 0) & ~forced[state.open.nonzero()[:, 0]].unsqueeze(1)
        tilt = torch.where(useful, self.scale * (given.log() - mean.log()), 0.0)
        excluded = ~allowed[state.open]  # (N, C)
        predicted = open_log_masses > -torch.inf
        bare = torch.zeros_like(tilt).masked_fill(excluded, -torch.inf)
        tilt = tilt.masked_fill(excluded, -torch.inf)
        for instead in (bare, torch.zeros_like(tilt)):
            tilt = torch.where(((tilt > -torch.inf) & predicted).any(dim=-1, keepdim=True), tilt, instead)
        own_classes = self.automaton.classes(torch.arange(logits.shape[-1], device=logits.device))
        tilted = logits + tilt.to(logits.dtype).index_select(1, own_classes)
        # What is forced is so even where the prediction excludes it.
        overruled = ((~excluded).sum(dim=-1) == 1) & ~(predicted & ~excluded).any(dim=-1)
        tilted[overruled] = bare[overruled].to(logits.dtype).index_select(1, own_classes)
        return tilted

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability that the text holds all words, exact for independent tokens."""
        check_vocabulary("probs", probs.shape[-1], max(self.automaton.ids) + 1)
        accepted = self.automaton.accepted(self.automaton.masses(probs), text_places(state))
        return accepted.clamp(min=torch.finfo(accepted.dtype).tiny).log().to(probs.dtype)

    def _log_masses(self, logits: Tensor, state: Any) -> Tensor:
        """(N, C) log-probabilities of the classes, float64; those of single tokens are exact however small."""
        log_probs = open_log_probs(logits, state)
        single = log_probs[:, torch.tensor(self.automaton.ids, device=logits.device)].double()
        return torch.cat([self.automaton.masses(log_probs.exp()).log()[:, : END + 1], single], dim=-1)

    def _allowed(self, known: Tensor, log_weights: Tensor, in_text: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """What classes of open tokens leave the words their places (B, L, C), and where the words are forced (B,)."""
        now = torch.ones_like(state.open) if state.last else state.selected
        now = state.open & (torch.zeros_like(state.open) if now is None else now)
        # Whatever this step draws, nothing is worse than a token that only breaks off the word before it, or the end.
        worst = torch.full_like(known[0, 0], -torch.inf)
        worst[CONTINUES] = 0.0
        sure = torch.where((state.open & ~now).unsqueeze(-1), 0.0, known)
        sure = torch.where(now.unsqueeze(-1), worst, sure).softmax(dim=-1)
        given = self.automaton.accepted_given(sure, in_text)  # (B, L, C)
        first = (sure * given)[torch.arange(len(given)), state.starts]
        forced = (first == 0).all(dim=-1) & state.open.any(dim=1)
        allowed = torch.ones_like(given, dtype=torch.bool)
        allowed[..., END] = (given[..., END] > 0) | ~now
        for row in forced.nonzero().flatten().tolist():
            allowed[row] = self._forced(row, known, log_weights, in_text, state)
        return allowed, forced

    def _forced(self, row: int, known: Tensor, log_weights: Tensor, in_text: Tensor, state: Any) -> Tensor:
        """(L, C) bool: what the tokens of a row may be for its words to stand at their likeliest places."""
        allowed = torch.ones_like(known[row], dtype=torch.bool)
        likely = torch.where(state.open[row].unsqueeze(-1), log_weights[row].clamp(min=IMPOSSIBLE), known[row])
        plans = [likely]
        if state.last and state.selected is not None:  # what is open but not drawn stays as it is
            plans.insert(0, torch.where(state.selected[row].unsqueeze(-1), likely, known[row]))
        paths, found = self.automaton.best_path(torch.stack(plans), in_text[[row] * len(plans)])
        if not found.any():
            self._refuse(row, known, in_text, state)
            return allowed
        start = state.starts[row]
        path = paths[int(found.long().argmax())][in_text[row]].tolist()
        path = path[: path.index(END)] if END in path else path
        occurrences = self.automaton.occurrences(path)
        for first, end in occurrences:
            for place in range(first, end):
                allowed[start + place] = torch.arange(allowed.shape[1], device=allowed.device) == path[place]
        for _, end in occurrences:
            if start + end < len(allowed):
                allowed[start + end] &= self.automaton.opens_word.to(allowed.device)
        last = max(end for _, end in occurrences)
        allowed[start : start + last, END] = False
        return allowed

    def _refuse(self, row: int, known: Tensor, in_text: Tensor, state: Any):
        """Raise an error if the words never had room, rather than lost it while the control did not act."""
        anything = torch.zeros_like(known[row : row + 1])
        room = bool(self.automaton.best_path(anything, in_text[row : row + 1])[1])
        if not room or state.progress == 0:
            raise ValueError(
                f"`words` must fit into the text: {self.words} cannot all be put where text {row} is open, "
                f"{int(state.open[row].sum())} of its {int(in_text[row].sum())} tokens."
            )


def forbid(logits: Tensor, excluded: Tensor) -> Tensor:
    """Logits (N, V) with -inf at the `excluded` tokens (N, V) or (V,), but of rows that would have no token left."""
    return first_possible(logits.masked_fill(excluded, -torch.inf), logits)


def first_possible(*choices: Tensor) -> Tensor:
    """(N, V), each row from the first of the `choices` (N, V) that leaves it a token."""
    chosen = choices[-1]
    for choice in reversed(choices[:-1]):
        chosen = torch.where((choice > -torch.inf).any(dim=-1, keepdim=True), choice, chosen)
    return chosen
