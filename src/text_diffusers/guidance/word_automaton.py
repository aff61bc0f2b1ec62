"""Which words a text holds, as a finite automaton over its tokens, and how likely independent tokens hold them all.

Tokens fall into classes: each token of a word is one of its own, the end of a text is one, and all others either
continue a word or do not. The states know which words are complete and how much of each other has just been read. An
automaton counts a text once however often it holds a word, so its probabilities are exact.

Shapes: B rows, L sequence length, V vocabulary size, S states, C classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor

OTHER, CONTINUES, END = 0, 1, 2
MAX_WORDS = 8  # the states double with each word


class Reading(NamedTuple):
    """What has been read: started words as (word, spelling, tokens read), sets of words, and where in the text."""

    started: frozenset[tuple[int, tuple[int, ...], int]]
    complete: frozenset[int]
    pending: frozenset[int]  # all of their tokens are read, the next one may still continue the word
    place: str  # "start", "inside" or "after" the text


class WordAutomaton:
    """Reads the tokens of a text and accepts it if all words were in it, each not continued by the token after it.

    Args:
        spellings: of each word, its tokens at the start of a text and its tokens elsewhere.
        continues: (V,) bool, tokens that continue the word before them.
        end_token_id: ends a text: what comes after it does not count.
    """

    def __init__(
        self,
        spellings: list[tuple[tuple[int, ...], tuple[int, ...]]],
        continues: Tensor,
        end_token_id: int | None = None,
    ):
        self.spellings = spellings
        self.ids = sorted({token for pair in spellings for spelling in pair for token in spelling})
        continued = continues.tolist()
        self.opens_word = torch.tensor([True, False, True, *(not continued[token] for token in self.ids)])  # (C,)
        table = torch.where(continues, CONTINUES, OTHER)
        if end_token_id is not None:
            table[end_token_id] = END
        table[self.ids] = torch.arange(len(self.ids)) + END + 1
        self._table = torch.cat([table, torch.tensor([OTHER])])  # the last is what any further id belongs to
        self._build()

    @property
    def num_classes(self) -> int:
        return END + 1 + len(self.ids)

    def classes(self, tokens: Tensor) -> Tensor:
        """The class of each token, same shape."""
        return self._table.to(tokens.device)[tokens.clamp(max=len(self._table) - 1)]

    def masses(self, probs: Tensor) -> Tensor:
        """(..., C) probabilities of the classes from those of tokens, (..., V), float64."""
        members = torch.nn.functional.one_hot(self.classes(torch.arange(probs.shape[-1])), self.num_classes)
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
        found = []
        for place in range(weights.shape[1]):
            found.append(torch.einsum("bs,bsc->bc", reached, after[place + 1][:, step]))
            moved = reached.unsqueeze(-1) * weights[:, place].unsqueeze(1)  # (B, S, C)
            moved = torch.zeros_like(reached).index_add(1, step.flatten(), moved.flatten(1))
            reached = torch.where(in_text[:, place : place + 1], moved, reached)
        return torch.stack(found, dim=1)

    def best_path(self, log_weights: Tensor, in_text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L) classes of the likeliest accepted text, and (B,) bool, whether any is possible."""
        step, accepting = self.next_state.to(log_weights.device), self.accepting.to(log_weights.device)
        after = [torch.where(accepting, 0.0, -torch.inf).to(log_weights).expand(len(log_weights), -1)]
        for place in reversed(range(log_weights.shape[1])):
            best = (after[0][:, step] + log_weights[:, place].unsqueeze(1)).amax(dim=-1)
            after.insert(0, torch.where(in_text[:, place : place + 1], best, after[0]))
        state = torch.zeros(len(log_weights), dtype=torch.long, device=log_weights.device)
        path = []
        for place in range(log_weights.shape[1]):
            to_come = after[place + 1].gather(1, step[state]) + log_weights[:, place]  # (B, C)
            path.append(to_come.argmax(dim=-1))
            moved = step[state].gather(1, path[-1].unsqueeze(1)).squeeze(1)
            state = torch.where(in_text[:, place], moved, state)
        return torch.stack(path, dim=1), after[0][:, 0] > -torch.inf

    def occurrences(self, path: list[int]) -> list[tuple[int, int]]:
        """Where the first occurrence of each word begins and ends, in the classes of an accepted text."""
        number = {token: END + 1 + i for i, token in enumerate(self.ids)}
        found = []
        for at_start, elsewhere in self.spellings:
            spelled = [[number[token] for token in spelling] for spelling in (elsewhere, at_start)]
            for place in range(len(path)):
                ends = [place + len(s) for s in spelled[: 1 + (place == 0)] if path[place : place + len(s)] == s]
                ends = [end for end in ends if end == len(path) or self.opens_word[path[end]]]
                if ends:
                    found.append((place, ends[0]))
                    break
        return found

    def _accepted_from(self, weights: Tensor, in_text: Tensor) -> list[Tensor]:
        """L + 1 tensors (B, S): how likely a text is accepted from each state, before each token and at the end."""
        step = self.next_state.to(weights.device)
        after = [self.accepting.to(weights).expand(len(weights), -1)]
        for place in reversed(range(weights.shape[1])):
            before = torch.einsum("bsc,bc->bs", after[0][:, step], weights[:, place])
            after.insert(0, torch.where(in_text[:, place : place + 1], before, after[0]))
        return after

    def _build(self):
        """Number the states that can be reached, the first being the start of a text, and tabulate their steps."""
        states = [Reading(frozenset(), frozenset(), frozenset(), "start")]
        numbers = {states[0]: 0}
        steps = []
        for state in states:  # grows while it is walked through
            row = [self._read(state, token_class) for token_class in range(self.num_classes)]
            for reached in row:
                if reached not in numbers:
                    numbers[reached] = len(states)
                    states.append(reached)
            steps.append([numbers[reached] for reached in row])
        self.next_state = torch.tensor(steps)  # (S, C)
        everything = frozenset(range(len(self.spellings)))
        self.accepting = torch.tensor([state.complete | state.pending == everything for state in states])  # (S,)

    def _read(self, state: Reading, token_class: int) -> Reading:
        if state.place == "after":
            return state
        complete = state.complete | state.pending if self.opens_word[token_class] else state.complete
        if token_class == END:
            return Reading(frozenset(), complete, frozenset(), "after")
        candidates = set(state.started)
        for word, (at_start, elsewhere) in enumerate(self.spellings):
            candidates |= {(word, spelling, 0) for spelling in (at_start, elsewhere)[state.place == "inside" :]}
        started, pending = set(), set()
        token = self.ids[token_class - END - 1] if token_class > END else None
        for word, spelling, read in candidates:
            if word in complete or spelling[read] != token:
                continue
            if read + 1 == len(spelling):
                pending.add(word)
            else:
                started.add((word, spelling, read + 1))
        return Reading(frozenset(started), complete, frozenset(pending), "inside")
