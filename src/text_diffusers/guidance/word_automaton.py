"""Which words a text holds, as a finite automaton over its tokens, and how likely independent tokens hold them all.

Tokens fall into classes: each token of a word is one of its own, the end of a text is one, and all others either
continue a word or do not. The states know which words are complete and how much of each other has just been read. An
automaton counts a text once however often it holds a word, so its probabilities are exact.

Shapes: B rows, L sequence length, V vocabulary size, S states, C classes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

# The first classes; those of single tokens follow.
OTHER = 0
CONTINUES = 1
END = 2

MAX_WORDS = 8  # the states double with each word


class Reading(NamedTuple):
    """State of the automaton: what of the words has been read, and where in the text.

    Attributes:
        started: words of which a part has just been read, as (word, spelling, number of tokens read).
        complete: words that the text holds.
        pending: words that have just been read to their end; the next token may still continue them.
        place: "start", "inside" or "after" the text.
    """

    started: frozenset[tuple[int, tuple[int, ...], int]]
    complete: frozenset[int]
    pending: frozenset[int]
    place: str


class WordAutomaton:
    """Reads the tokens of a text and accepts it if all words were in it, each not continued by the token after it.

    Args:
        spellings: of each word, its tokens at the start of a text and its tokens elsewhere.
        continues: (V,) bool, tokens that continue the word before them.
        end_token_id: ends a text: what comes after it does not count.

    Attributes:
        ids: tokens with a class of their own.
        opens_word: (C,) bool, classes that do not continue the word before them.
        next_state: (S, C) where each class leads from each state; state 0 is the start of a text.
        accepting: (S,) bool, states in which a text may end.

    Example:
        >>> import torch
        >>> from text_diffusers.guidance.word_automaton import WordAutomaton
        >>> automaton = WordAutomaton([([3], [3])], continues=torch.zeros(4, dtype=torch.bool))
        >>> probs = torch.full((1, 2, 4), 1 / 4)  # a text of two tokens out of four
        >>> in_text = torch.ones(1, 2, dtype=torch.bool)
        >>> automaton.accepted(automaton.masses(probs), in_text)  # 1 - (3 / 4)^2
        tensor([0.4375], dtype=torch.float64)
    """

    def __init__(
        self,
        spellings: list[tuple[list[int], list[int]]],
        continues: Tensor,
        end_token_id: int | None = None,
    ):
        self.ids = sorted({token for word in spellings for spelling in word for token in spelling})
        self.num_classes = END + 1 + len(self.ids)

        # The class of each token.
        table = torch.where(continues, CONTINUES, OTHER)  # (V,)
        if end_token_id is not None:
            table[end_token_id] = END
        table[self.ids] = torch.arange(len(self.ids)) + END + 1

        # From here on a word is spelled in classes.
        self.spellings = []
        for at_start, elsewhere in spellings:
            self.spellings.append(
                (tuple(table[at_start].tolist()), tuple(table[elsewhere].tolist()))
            )

        self.opens_word = torch.cat([torch.tensor([True, False, True]), ~continues[self.ids]])
        # The last is the class of any further id.
        self._table = torch.cat([table, torch.tensor([OTHER])])
        self._build()

    def classes(self, tokens: Tensor) -> Tensor:
        """The class of each token, same shape."""
        return self._table.to(tokens.device)[tokens.clamp(max=len(self._table) - 1)]

    def masses(self, probs: Tensor) -> Tensor:
        """(..., C) probabilities of the classes from those of tokens, (..., V), float64."""
        classes = self.classes(torch.arange(probs.shape[-1]))
        members = torch.nn.functional.one_hot(classes, self.num_classes)
        return (probs @ members.to(probs)).double()

    def accepted(self, weights: Tensor, in_text: Tensor) -> Tensor:
        """(B,) probability that a text is accepted whose token classes are independent, with `weights` (B, L, C).

        Tokens outside `in_text` (B, L) are not read.
        """
        return self._accepted_from(weights, in_text)[0][:, 0]

    def accepted_given(self, weights: Tensor, in_text: Tensor) -> Tensor:
        """(B, L, C) probability that a text is accepted given the class of one token; arguments as in `accepted`."""
        after = self._accepted_from(weights, in_text)
        step = self.next_state.to(weights.device)
        reached = torch.zeros_like(after[0])  # (B, S) probability of each state before a token
        reached[:, 0] = 1.0

        conditionals = []
        for place in range(weights.shape[1]):
            # p(accepted | class of this token): sum over the states before it.
            conditionals.append(torch.einsum("bs,bsc->bc", reached, after[place + 1][:, step]))
            moved = reached.unsqueeze(-1) * weights[:, place].unsqueeze(1)  # (B, S, C)
            moved = torch.zeros_like(reached).index_add(1, step.flatten(), moved.flatten(1))
            reached = torch.where(in_text[:, place : place + 1], moved, reached)
        return torch.stack(conditionals, dim=1)

    def best_path(self, log_weights: Tensor, in_text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) classes of the likeliest accepted text, and (B,) bool, whether any is possible."""
        step = self.next_state.to(log_weights.device)
        last = torch.where(self.accepting, 0.0, -torch.inf).to(log_weights)

        # Backwards: the log-probability of the best rest of the text, from each state.
        def best(to_come: Tensor, weights: Tensor) -> Tensor:
            return (to_come + weights.unsqueeze(1)).amax(dim=-1)

        after = self._backward(last, log_weights, in_text, best)

        # Forwards: the class that leads to it.
        state = torch.zeros(len(log_weights), dtype=torch.long, device=log_weights.device)
        path = []
        for place in range(log_weights.shape[1]):
            to_come = after[place + 1].gather(1, step[state]) + log_weights[:, place]  # (B, C)
            path.append(to_come.argmax(dim=-1))
            moved = step[state].gather(1, path[-1].unsqueeze(1)).squeeze(1)
            state = torch.where(in_text[:, place], moved, state)
        return torch.stack(path, dim=1), after[0][:, 0] > -torch.inf

    def first_occurrence(self, word: int, path: list[int]) -> tuple[int, int]:
        """The places where a word begins and ends (exclusive) first, in the classes of an accepted text."""
        at_start, elsewhere = self.spellings[word]
        for place in range(len(path)):
            # Both spellings may stand at the start, the one after a space goes first.
            for spelling in (elsewhere, at_start) if place == 0 else (elsewhere,):
                end = place + len(spelling)
                # The token after a word must not continue it.
                is_spelled = tuple(path[place:end]) == spelling
                if is_spelled and (end == len(path) or self.opens_word[path[end]]):
                    return place, end
        raise AssertionError(f"an accepted text holds each word, but not word {word}")

    def _accepted_from(self, weights: Tensor, in_text: Tensor) -> list[Tensor]:
        """L + 1 tensors (B, S): how likely a text is accepted from each state, before each token and at the end."""
        mean = partial(torch.einsum, "bsc,bc->bs")
        return self._backward(self.accepting.to(weights), weights, in_text, mean)

    def _backward(
        self,
        last: Tensor,
        weights: Tensor,
        in_text: Tensor,
        combine: Callable[[Tensor, Tensor], Tensor],
    ) -> list[Tensor]:
        """L + 1 tensors (B, S), the values of the states before each token and at the end.

        Args:
            last: (S,) values at the end.
            combine: of the values (B, S, C) of the states that each class leads to and the weights (B, C) of the
                classes; the values (B, S) before the token.
        """
        step = self.next_state.to(weights.device)
        after = [last.expand(len(weights), -1)]
        for place in reversed(range(weights.shape[1])):
            before = combine(after[-1][:, step], weights[:, place])
            after.append(torch.where(in_text[:, place : place + 1], before, after[-1]))
        return after[::-1]

    def _build(self):
        """Number the states that can be reached, the first being the start of a text, and tabulate their steps."""
        states = [Reading(frozenset(), frozenset(), frozenset(), "start")]
        numbers = {states[0]: 0}
        steps = []
        for state in states:  # grows while it is walked through
            row = []
            for token_class in range(self.num_classes):
                reached = self._read(state, token_class)
                if reached not in numbers:
                    numbers[reached] = len(states)
                    states.append(reached)
                row.append(numbers[reached])
            steps.append(row)
        self.next_state = torch.tensor(steps)  # (S, C)

        # A word that has just been read to its end is held, as no token continues it.
        num_words = len(self.spellings)
        num_held = [len(state.complete | state.pending) for state in states]
        self.accepting = torch.tensor(num_held) == num_words  # (S,)

    def _read(self, state: Reading, token_class: int) -> Reading:
        """The state after a token of some class."""
        if state.place == "after":
            return state
        # Words that were read to their end are complete if this token does not continue them.
        complete = state.complete
        if self.opens_word[token_class]:
            complete = complete | state.pending
        if token_class == END:
            return Reading(frozenset(), complete, frozenset(), "after")

        # Every word may go on, or begin here; the first token of a text has no space before it.
        candidates = set(state.started)
        for word, (at_start, elsewhere) in enumerate(self.spellings):
            candidates.add((word, elsewhere, 0))
            if state.place == "start":
                candidates.add((word, at_start, 0))

        # Those whose next token it is have been read one token further.
        started = set()
        pending = set()
        for word, spelling, num_read in candidates:
            if word in complete or spelling[num_read] != token_class:
                continue
            if num_read + 1 == len(spelling):
                pending.add(word)
            else:
                started.add((word, spelling, num_read + 1))
        return Reading(frozenset(started), complete, frozenset(pending), "inside")
