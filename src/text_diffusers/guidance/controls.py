"""Controls over text that is being written: its length, and words it must hold.

A control is called with the logits of the tokens that are still open and with the state of the texts, and returns
logits that favour what it asks for. Controls are combined by calling one after another. Those that ask a classifier or
an encoder are in `classifiers`, the one of parts of speech is in `patterns`.

Attributes of the state:
    tokens: (B, L) ids.
    open: (B, L) bool, the N tokens to be decided, whose logits a control gets in row-major order.
    attention_mask: (B, L), 1 at real tokens.
    starts: B places where the texts begin.
    timestep: what the denoiser is told.
    progress: share of the steps that are done.
    last: whether this is the last step.
    selected: (B, L) bool, the tokens that this step draws, or None.
    mask_token_id: or None.

Shapes: B rows, L sequence length, V vocabulary size, N open tokens, C classes.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from text_diffusers.common.plain_text import encode_plain, holds_mask
from text_diffusers.common.token_ids import end_ids
from text_diffusers.common.validation import is_int, is_number, require
from text_diffusers.guidance.soft_text import open_log_probs, soft_text, text_places
from text_diffusers.guidance.vocabulary import check_vocabulary, continues_word
from text_diffusers.guidance.word_automaton import CONTINUES, END, MAX_WORDS, WordAutomaton

IMPOSSIBLE = -1e4  # the least log-probability of a token that is forced


class Control:
    """Base of the controls: when they act, and the first-order tilt of predictions towards a higher `log_prob`.

    Subclasses define `log_prob(probs, state)`: the log-probability (B,) of what is asked for, of soft text (B, L, V)
    that is one-hot where a token is not open. A row's value must depend on that row only.

    A control weighs all of a text, which then must be written as a whole; one with `weighs_text = False` changes the
    prediction of each token by itself, and so also acts where a text is written block by block.

    Args:
        scale: weight of the control: 1 is Bayes' rule, 0 changes nothing.
        start, stop: shares of the steps between which it acts, `start <= progress < stop`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> from text_diffusers.guidance import Control
        >>> class Likes(Control):
        ...     '''Favours one token wherever it may stand.'''
        ...     def __init__(self, token: int, scale: float = 1.0):
        ...         super().__init__(scale)
        ...         self.token = token
        ...     def log_prob(self, probs, state):
        ...         return probs[..., self.token].sum(dim=1)
        >>> control = Likes(token=17, scale=3.0)  # for pipe("i think", controls=control)
    """

    acts_on = "prediction"
    weighs_text = True
    temperature = 1.0
    num_gradients = 1

    def __init__(self, scale: float = 1.0, start: float = 0.0, stop: float = 1.0):
        require(is_number(scale), "scale", "a finite number", scale)
        if not (is_number(stop, 0, 1) and is_number(start, 0, stop)):
            raise ValueError(
                f"`start` and `stop` must be shares of the steps, 0 <= start <= stop <= 1, got {start!r} and {stop!r}."
            )
        self.scale = float(scale)
        self.start = float(start)
        self.stop = float(stop)

    def __call__(self, logits: Tensor, state: Any) -> Tensor:
        """Guided logits (N, V), never in place; the very same where the control does not act."""
        return self.guided(logits, state) if self.acts(logits, state) else logits

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability of what is asked for, differentiable in the soft text `probs` (B, L, V)."""
        raise NotImplementedError

    def acts(self, logits: Tensor, state: Any) -> bool:
        """Whether there is anything to do in this step."""
        return self.scale != 0 and len(logits) > 0 and self.start <= state.progress < self.stop

    def guided(self, logits: Tensor, state: Any) -> Tensor:
        """Logits (N, V) after `num_gradients` tilts, each at the logits that the one before it led to."""
        for _ in range(self.num_gradients):
            tilt = self.tilt(logits, state).to(logits.dtype)
            logits = logits + self.scale / self.num_gradients * tilt
        return logits

    def tilt(self, logits: Tensor, state: Any) -> Tensor:
        """(N, V) `log_prob` with a token put in, less its mean, to first order in the probabilities of that place."""
        probs = open_log_probs(logits / self.temperature, state).exp()  # (N, V)
        with torch.enable_grad():
            leaf = probs.detach().requires_grad_()
            total = self.log_prob(soft_text(leaf, state), state).sum()
            (gradient,) = torch.autograd.grad(total, leaf)
        # Less the mean, which would only shift all logits of a place.
        return gradient - (probs * gradient).sum(dim=-1, keepdim=True)


class LengthControl(Control):
    """Texts of a given length: their number of tokens is fixed, and no `[EOS]` may come before it.

    Args:
        length: number of tokens of each text, or of all.
        tolerance: lengths are drawn uniformly from `length - tolerance` to `length + tolerance`, and are at least 1.
        eos_token_id: the token that ends a text; `None` if the model cannot predict any.
        start, stop: shares of the steps between which `[EOS]` is forbidden.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> import torch
        >>> from text_diffusers.guidance import LengthControl
        >>> control = LengthControl(12, tolerance=2)  # for pipe("i think", controls=control)
        >>> control.plan_lengths([torch.Generator().manual_seed(seed) for seed in range(3)])
        [14, 10, 14]
    """

    weighs_text = False

    def __init__(
        self,
        length: int | Sequence[int],
        tolerance: int = 0,
        eos_token_id: int | None = None,
        start: float = 0.0,
        stop: float = 1.0,
    ):
        super().__init__(1.0, start, stop)
        self._shared = not isinstance(length, Sequence)
        self.lengths: Any = [length] if self._shared else length
        are_lengths = len(self.lengths) > 0 and all(is_int(number, 1) for number in self.lengths)
        is_token = eos_token_id is None or is_int(eos_token_id, 0)
        require(are_lengths, "length", "integers of at least 1", length)
        require(is_int(tolerance, 0), "tolerance", "an integer of at least 0", tolerance)
        require(is_token, "eos_token_id", "a token id or None", eos_token_id)
        self.tolerance = tolerance
        self.eos_token_id = eos_token_id

    def plan_lengths(self, generators: Sequence[torch.Generator]) -> list[int]:
        """Number of tokens of each text, by one number of its generator.

        Raises:
            ValueError: if there is not one length a text.
        """
        # A length takes one number even without tolerance: later draws do not depend on it.
        lengths = for_each_text("length", self.lengths, len(generators), self._shared)
        planned = []
        for length, generator in zip(lengths, generators, strict=True):
            uniform = float(
                torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64)
            )
            shortest = max(1, length - self.tolerance)
            num_lengths = length + self.tolerance - shortest + 1
            planned.append(shortest + int(uniform * num_lengths))
        return planned

    def guided(self, logits: Tensor, state: Any) -> Tensor:
        """Logits (N, V) without `[EOS]`."""
        if self.eos_token_id is None:
            return logits
        vocab_size = logits.shape[-1]
        require(
            self.eos_token_id < vocab_size, "eos_token_id", f"below {vocab_size}", self.eos_token_id
        )
        return forbid(logits, torch.arange(vocab_size, device=logits.device) == self.eos_token_id)

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability that no open token is `[EOS]`."""
        if self.eos_token_id is None:
            return probs.sum(dim=(1, 2)) * 0
        # A token that is `[EOS]` for certain would make the logarithm infinite.
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
        start, stop: as in `Control`.

    Raises:
        ValueError: if a word is empty or unknown to the tokenizer, or there are too many; when called, if a text is
            too short for the words, or what is given of it leaves them no room.

    Example:
        >>> from text_diffusers.data.tokenizers import train_tokenizer
        >>> from text_diffusers.guidance import WordsControl
        >>> texts = ["the cat sat on the mat and looked at the dog", "a bird sang while the cat slept in the tree"]
        >>> tokenizer = train_tokenizer(texts * 9, vocab_size=300)
        >>> control = WordsControl(tokenizer, ["cat", "the mat"])  # for pipe("i think", controls=control)
        >>> control.words
        ['cat', 'the mat']
    """

    def __init__(
        self,
        tokenizer: Any,
        words: str | Sequence[str],
        scale: float = 1.0,
        start: float = 0.0,
        stop: float = 1.0,
    ):
        super().__init__(scale, start, stop)
        require(self.scale >= 0, "scale", "at least 0", scale)
        given_words = [words] if isinstance(words, str) else list(words)
        are_words = all(isinstance(word, str) and word.strip() for word in given_words)
        require(
            0 < len(given_words) <= MAX_WORDS and are_words,
            "words",
            f"1 to {MAX_WORDS} words",
            words,
        )
        self.words = list(dict.fromkeys(word.strip() for word in given_words))

        # A word after a space is spelled in other tokens than at the start of a text.
        special = set(tokenizer.all_special_ids)
        spellings = []
        for word in self.words:
            at_start, elsewhere = encode_plain(tokenizer, [word, f" {word}"], "words")
            is_spelled = bool(at_start and elsewhere) and special.isdisjoint(at_start + elsewhere)
            is_spelled = is_spelled and not holds_mask(tokenizer, word)
            require(
                is_spelled, "words", "made of tokens of the tokenizer, none of them special", word
            )
            spellings.append((at_start, elsewhere))
        end = next(iter(end_ids(tokenizer)), None)
        self.automaton = WordAutomaton(spellings, continues_word(tokenizer), end)

    def guided(self, logits: Tensor, state: Any) -> Tensor:
        """Tilted logits (N, V); -inf at tokens with which a text could not have the words."""
        vocab_size = logits.shape[-1]
        check_vocabulary("logits", vocab_size, max(self.automaton.ids) + 1)

        # 1. The classes of all tokens: certain where they are known, predicted where they are open
        in_text = text_places(state)
        token_classes = self.automaton.classes(state.tokens)
        known = F.one_hot(token_classes, self.automaton.num_classes).double().log()  # (B, L, C)
        open_log_masses = self._log_masses(logits, state)  # (N, C)
        log_weights = known.index_put((state.open,), open_log_masses)

        # 2. Bayes' rule: p(all words | this token's class) / p(all words)
        given = self.automaton.accepted_given(log_weights.exp(), in_text)[state.open]  # (N, C)
        mean = (open_log_masses.exp() * given).sum(dim=-1, keepdim=True)
        allowed, forced = self._allowed(known, log_weights, in_text, state)
        # Where the words are certain, no other token has to care for them.
        useful = (mean > 0) & ~forced[state.open.nonzero()[:, 0]].unsqueeze(1)
        tilt = torch.where(useful, self.scale * (given.log() - mean.log()), 0.0)

        # 3. No tokens that would leave the words no room; if no other is left, the tilt gives way, then the exclusion
        allowed = allowed[state.open]  # (N, C)
        predicted = open_log_masses > -torch.inf
        exclusion = torch.where(allowed, 0.0, -torch.inf).to(tilt)
        tilt = first_possible(tilt + exclusion, exclusion, torch.zeros_like(tilt), among=predicted)

        # 4. From classes to tokens
        classes = self.automaton.classes(torch.arange(vocab_size, device=logits.device))  # (V,)
        tilted = logits + tilt.to(logits.dtype).index_select(1, classes)
        # What is forced is so even where the prediction excludes it.
        overruled = (allowed.sum(dim=-1) == 1) & ~(predicted & allowed).any(dim=-1)
        tilted[overruled] = exclusion[overruled].to(logits.dtype).index_select(1, classes)
        return tilted

    def log_prob(self, probs: Tensor, state: Any) -> Tensor:
        """(B,) log-probability that the text holds all words, exact for independent tokens."""
        check_vocabulary("probs", probs.shape[-1], max(self.automaton.ids) + 1)
        # An impossible text has the least number there is, for the gradient to be finite.
        accepted = self.automaton.accepted(self.automaton.masses(probs), text_places(state))
        return accepted.clamp(min=torch.finfo(accepted.dtype).tiny).log().to(probs.dtype)

    def _log_masses(self, logits: Tensor, state: Any) -> Tensor:
        """(N, C) log-probabilities of the classes, float64; those of single tokens are exact however small."""
        log_probs = open_log_probs(logits, state)
        # A class of one token has the token's own log-probability, which a sum over tokens may round to 0.
        single = log_probs[:, torch.tensor(self.automaton.ids, device=logits.device)].double()
        shared = self.automaton.masses(log_probs.exp()).log()[:, : END + 1]
        return torch.cat([shared, single], dim=-1)

    def _allowed(
        self, known: Tensor, log_weights: Tensor, in_text: Tensor, state: Any
    ) -> tuple[Tensor, Tensor]:
        """Classes of open tokens that leave the words their places, (B, L, C), and rows with forced words, (B,)."""
        # 1. The open tokens that this step draws
        if state.last:
            drawn = state.open
        elif state.selected is None:
            drawn = torch.zeros_like(state.open)
        else:
            drawn = state.open & state.selected

        # 2. The prospects of the words
        # Whatever this step draws, nothing is worse than a token that only breaks off the word before it, or the end.
        worst = torch.full_like(known[0, 0], -torch.inf)
        worst[CONTINUES] = 0.0
        outlook = torch.where((state.open & ~drawn).unsqueeze(-1), 0.0, known)
        outlook = torch.where(drawn.unsqueeze(-1), worst, outlook).softmax(dim=-1)
        given = self.automaton.accepted_given(outlook, in_text)  # (B, L, C)

        # 3. Words are forced where no reading of the text could have them, in any class of its first token
        first = (outlook * given)[torch.arange(len(given)), state.starts]
        forced = (first == 0).all(dim=-1) & state.open.any(dim=1)
        allowed = torch.ones_like(given, dtype=torch.bool)
        allowed[..., END] = (given[..., END] > 0) | ~drawn
        for row in forced.nonzero().flatten().tolist():
            allowed[row] = self._forced(row, known, log_weights, in_text, state)
        return allowed, forced

    def _forced(
        self, row: int, known: Tensor, log_weights: Tensor, in_text: Tensor, state: Any
    ) -> Tensor:
        """(L, C) bool: what the tokens of a row may be for its words to stand at their likeliest places."""
        # 1. The likeliest text that has the words
        allowed = torch.ones_like(known[row], dtype=torch.bool)
        likely = log_weights[row].clamp(min=IMPOSSIBLE)
        plans = [torch.where(state.open[row].unsqueeze(-1), likely, known[row])]
        if state.last and state.selected is not None:
            # Better a plan in which what is open but not drawn stays as it is.
            plans.insert(0, torch.where(state.selected[row].unsqueeze(-1), plans[0], known[row]))
        paths, are_possible = self.automaton.best_path(
            torch.stack(plans), in_text[[row] * len(plans)]
        )
        if not are_possible.any():
            # The words may lose their room while the control does not act, but they must have had it.
            anything = torch.zeros_like(known[row : row + 1])
            _, has_room = self.automaton.best_path(anything, in_text[row : row + 1])
            if not has_room or state.progress == 0:
                raise ValueError(
                    f"`words` must fit into the text: {self.words} cannot all be put where text {row} is open, "
                    f"{int(state.open[row].sum())} of its {int(in_text[row].sum())} tokens."
                )
            return allowed

        # 2. The places of the words in it
        start = state.starts[row]
        path = paths[int(are_possible.long().argmax())][in_text[row]].tolist()
        if END in path:
            path = path[: path.index(END)]
        occurrences = [
            self.automaton.first_occurrence(word, path) for word in range(len(self.words))
        ]

        # 3. The tokens of the words are certain, the ones after them open another word, and no end comes before.
        for first, end in occurrences:
            for place in range(first, end):
                allowed[start + place] = False
                allowed[start + place, path[place]] = True
        for _, end in occurrences:
            if start + end < len(allowed):
                allowed[start + end] &= self.automaton.opens_word.to(allowed.device)
        last = max(end for _, end in occurrences)
        allowed[start : start + last, END] = False
        return allowed


def for_each_text(name: str, values: Any, num_texts: int, shared: bool = False) -> Any:
    """One value a text: a single one that all of them share, or `values`, checked to be as many as the texts."""
    if shared:
        return values * num_texts
    require(len(values) == num_texts, name, f"one for each of the {num_texts} texts", len(values))
    return values


def forbid(logits: Tensor, excluded: Tensor) -> Tensor:
    """Logits (N, V) with -inf at the `excluded` tokens (N, V) or (V,), but of rows that would have no token left."""
    return first_possible(logits.masked_fill(excluded, -torch.inf), logits)


def first_possible(*choices: Tensor, among: Tensor | bool = True) -> Tensor:
    """(N, V), each row from the first of the `choices` (N, V) that leaves it a token, or the last one.

    Args:
        among: (N, V) bool, the tokens that count; by default all.
    """
    chosen = choices[-1]
    for choice in reversed(choices[:-1]):
        is_possible = ((choice > -torch.inf) & among).any(dim=-1, keepdim=True)
        chosen = torch.where(is_possible, choice, chosen)
    return chosen
