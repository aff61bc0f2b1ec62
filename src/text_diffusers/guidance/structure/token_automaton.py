"""Which tokens lead from which state of a pattern to which, in classes of tokens that do the same.

Shapes: S states, V vocabulary size, C classes, E edges (pairs of states with a token between), K sets of classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch
from torch import Tensor

from text_diffusers.guidance.structure.byte_automaton import ByteAutomaton
from text_diffusers.guidance.structure.token_bytes import FIRST, LATER, TokenBytes

# Entries of a table of states and tokens that is made at a time
BLOCK = 2**22

# The first classes; those of other tokens follow.
NOWHERE = 0  # tokens that lead nowhere in the pattern
END = 1  # tokens that end a text


@dataclass(frozen=True)
class TokenEdges:
    """The steps of a token automaton at one place of a text.

    The states are those of the bytes, and last the one behind the end of a text, in which anything may follow.

    Attributes:
        token_class: (V,) the class of each token.
        next_state: (S, C) where each class leads; S is nowhere.
        source, target: (E,) the states of each edge.
        edge_set: (E,) the set of classes that lead along it.
        members: (K, C) bool, the classes of each set.
        num_outgoing: (S,) how many edges begin in each state; these stand next to each other.
        sorted_classes, sorted_tokens: (V,) all tokens in the order of their classes.
    """

    token_class: Tensor
    next_state: Tensor
    source: Tensor
    target: Tensor
    edge_set: Tensor
    members: Tensor
    num_outgoing: Tensor
    sorted_classes: Tensor = field(init=False)
    sorted_tokens: Tensor = field(init=False)

    def __post_init__(self):
        classes, tokens = self.token_class.sort(stable=True)
        object.__setattr__(self, "sorted_classes", classes)
        object.__setattr__(self, "sorted_tokens", tokens)

    def tokens_of(self, token_class: int) -> Tensor:
        """(n,) the tokens of a class."""
        first, last = torch.searchsorted(
            self.sorted_classes,
            torch.tensor([token_class, token_class + 1], device=self.source.device),
        )
        return self.sorted_tokens[int(first) : int(last)]

    @property
    def num_states(self) -> int:
        return len(self.next_state)

    def fitted(self, vocab_size: int, device: torch.device | str) -> "TokenEdges":
        """The same on a device and for another number of ids; those that are no tokens lead nowhere."""
        missing = vocab_size - len(self.token_class)
        token_class = torch.nn.functional.pad(self.token_class, (0, missing), value=NOWHERE)

        return TokenEdges(
            token_class=token_class.to(device),
            next_state=self.next_state.to(device),
            source=self.source.to(device),
            target=self.target.to(device),
            edge_set=self.edge_set.to(device),
            members=self.members.to(device),
            num_outgoing=self.num_outgoing.to(device),
        )

    @property
    def num_classes(self) -> int:
        return self.next_state.shape[1]


class TokenAutomaton:
    """Reads the tokens of a text and accepts it if its characters are in a language.

    Args:
        automaton: of the language, over bytes.
        tokens: the bytes of the vocabulary.

    Attributes:
        num_states: S, with the one behind the end of a text, which is the last.
        accepting: (S,) bool, states in which a text may end.
    """

    def __init__(self, automaton: ByteAutomaton, tokens: TokenBytes):
        self.automaton = automaton
        self.tokens = tokens
        self.num_states = automaton.num_states + 1
        self.accepting = torch.from_numpy(np.append(automaton.accepting[:-1], True))
        self._edges: dict[Any, TokenEdges] = {}

    def edges(
        self,
        place: str,
        end_ids: Sequence[int] = (),
        vocab_size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> TokenEdges:
        """The steps of tokens at a place, see `TokenBytes`.

        Args:
            end_ids: of the tokens that end a text.
            vocab_size: of the prediction, by default that of the tokenizer; further ids lead nowhere.
        """
        num_tokens = len(self.tokens.later)
        size = num_tokens if vocab_size is None else vocab_size
        key = (place, tuple(end_ids), size, str(device))
        if key not in self._edges:
            self._edges[key] = self._new_edges(place, tuple(end_ids), size, device)
        return self._edges[key]

    def _new_edges(
        self, place: str, end_ids: tuple[int, ...], size: int, device: torch.device | str
    ) -> TokenEdges:
        values = self.tokens.at(place)
        # Where all tokens are the same as elsewhere, so are their steps.
        if place != LATER and values == self.tokens.later:
            return self.edges(LATER, end_ids, size, device)
        # Those of another size or device are made of the first ones.
        if size != len(values) or str(device) != "cpu":
            return self.edges(place, end_ids).fitted(size, device)
        return build_edges(self.automaton, values, end_ids)

    def fewest_tokens(self) -> int | None:
        """The number of tokens of the shortest text; `None` if tokens make up no text."""
        edges = self.edges(LATER)
        first = self.edges(FIRST)
        reached = torch.zeros(self.num_states, dtype=torch.bool)
        reached[0] = True
        for count in range(self.num_states):
            if (reached & self.accepting)[:-1].any():
                return count
            steps = first if count == 0 else edges
            moved = torch.zeros_like(reached)
            moved[steps.target[reached[steps.source]]] = True
            reached = moved
        return None

    def missing_character(self, parts: Sequence[bytes | None]) -> str | None:
        """A character that no token has and that a text needs; `None` if tokens have all characters of some text.

        Of the text that has the fewest of them it is the first.

        Args:
            parts: of a text, the bytes that are given, and `None` where any characters may be written.
        """
        # A character stands for all that lead to the same states.
        alphabet = self.tokens.alphabet()
        examples = [alphabet.example(ranges) for ranges in self.automaton.classes]
        table = TokenTable([character.encode() for character in examples])
        nowhere = self.automaton.num_states
        reached = table.reached(self.automaton, np.arange(nowhere))

        # Dijkstra's algorithm; a node is how many are missing, the first of them, the number of a part, and a state.
        nodes = [(0, "", 0, 0)]
        done = set()
        while nodes:
            num_missing, first_missing, index, state = heappop(nodes)
            if state == nowhere or (index, state) in done:
                continue
            done.add((index, state))

            if index == len(parts):
                if self.automaton.accepting[state]:
                    return first_missing or None
                continue
            part = parts[index]
            if part is not None:
                behind = int(self.automaton.walk(np.array([state]), part)[0])
                heappush(nodes, (num_missing, first_missing, index + 1, behind))
                continue

            heappush(nodes, (num_missing, first_missing, index + 1, state))
            for character, behind in zip(examples, reached[state].tolist(), strict=True):
                if character in alphabet:
                    heappush(nodes, (num_missing, first_missing, index, behind))
                else:
                    first = first_missing or character
                    heappush(nodes, (num_missing + 1, first, index, behind))
        return None

    def after(self, text: str) -> Tensor:
        """(S,) the state after a given text, from each state; S is nowhere."""
        states = np.arange(self.num_states - 1)
        reached = self.automaton.walk(states, text.encode())
        nowhere = self.automaton.num_states
        mapped = np.where(reached == nowhere, self.num_states, reached)
        # Nothing is read behind the end of a text.
        return torch.from_numpy(np.append(mapped, self.num_states - 1)).long()


class TokenTable:
    """The bytes of tokens in one table, to be read from many states at once.

    Args:
        values: the bytes of each token.
    """

    def __init__(self, values: list[bytes]):
        lengths = np.array([len(value) for value in values], dtype=np.int64)
        # The longest come first, so that those with one more byte are a slice.
        self.order = np.argsort(-lengths, kind="stable")
        longest = int(lengths.max(initial=0))
        self.counts = [int((lengths > index).sum()) for index in range(longest)]
        self.bytes = np.zeros((longest, len(values)), dtype=np.int64)
        for column, token in enumerate(self.order):
            value = values[token]
            self.bytes[: len(value), column] = list(value)

    def reached(self, automaton: ByteAutomaton, states: np.ndarray) -> np.ndarray:
        """(s, tokens) where each token leads from each of `states` (s,)."""
        num_tokens = len(self.order)
        current = np.repeat(states.astype(np.int32)[:, None], num_tokens, axis=1)
        flat = automaton.next_state.reshape(-1)
        for count, column in zip(self.counts, self.bytes, strict=True):
            current[:, :count] = flat[current[:, :count] * 256 + column[:count]]
        reached = np.empty_like(current)
        reached[:, self.order] = current
        return reached


def build_edges(
    automaton: ByteAutomaton, values: Sequence[bytes | None], end_ids: tuple[int, ...]
) -> TokenEdges:
    """The edges of tokens with these bytes."""
    num_inner = automaton.num_states
    num_states = num_inner + 1
    nowhere = num_states
    # A token without bytes changes nothing, and one that is no text is not written.
    usable = [token for token, value in enumerate(values) if value and token not in end_ids]

    # 1. The class of each token: what it does in all states, by a sum of random odd numbers of its steps
    table = TokenTable([values[token] or b"" for token in usable])
    factors = np.random.default_rng(0).integers(1, 2**62, size=num_inner, dtype=np.int64) * 2 + 1
    hashes = np.zeros(len(usable), dtype=np.int64)
    leads = np.zeros(len(usable), dtype=bool)
    block = max(1, BLOCK // max(1, len(usable)))
    for first in range(0, num_inner, block):
        states = np.arange(first, min(first + block, num_inner))
        reached = table.reached(automaton, states)  # (s, tokens)
        leads |= (reached != num_inner).any(axis=0)
        with np.errstate(over="ignore"):
            steps = np.where(reached == num_inner, -1, reached).astype(np.int64) + 1
            hashes += (steps * factors[states][:, None]).sum(axis=0)

    leading = np.flatnonzero(leads)
    _, representatives, inverse = np.unique(hashes[leading], return_index=True, return_inverse=True)
    token_class = np.full(len(values), NOWHERE, dtype=np.int64)
    token_class[np.array(usable, dtype=np.int64)[leading]] = inverse.reshape(-1) + END + 1
    token_class[list(end_ids)] = END
    num_classes = END + 1 + len(representatives)

    # 2. Where each class leads
    next_state = np.full((num_states, num_classes), nowhere, dtype=np.int64)
    chosen = TokenTable([values[usable[token]] or b"" for token in leading[representatives]])
    reached = chosen.reached(automaton, np.arange(num_inner))
    next_state[:num_inner, END + 1 :] = np.where(reached == num_inner, nowhere, reached)
    if end_ids:
        next_state[:num_inner, END] = np.where(automaton.accepting[:-1], num_inner, nowhere)
    next_state[num_inner] = num_inner  # behind the end anything may follow

    return edges_of(next_state, torch.from_numpy(token_class))


def edges_of(next_state: np.ndarray, token_class: Tensor) -> TokenEdges:
    """The edges of a table (S, C) of where classes of tokens lead."""
    num_states, num_classes = next_state.shape
    sources, classes = np.nonzero(next_state < num_states)
    targets = next_state[sources, classes]

    # Classes between the same two states are one edge.
    pairs, edge_of = np.unique(sources * num_states + targets, return_inverse=True)
    edge_of = edge_of.reshape(-1)

    # Edges with the same classes have one set.
    factors = np.random.default_rng(1).integers(1, 2**62, size=num_classes, dtype=np.int64) * 2 + 1
    hashes = np.zeros(len(pairs), dtype=np.int64)
    with np.errstate(over="ignore"):
        np.add.at(hashes, edge_of, factors[classes])
    _, first_edges, edge_set = np.unique(hashes, return_index=True, return_inverse=True)
    set_of_first = np.full(len(pairs), -1)
    set_of_first[first_edges] = np.arange(len(first_edges))
    members = np.zeros((len(first_edges), num_classes), dtype=bool)
    owners = set_of_first[edge_of]
    members[owners[owners >= 0], classes[owners >= 0]] = True

    source = torch.from_numpy(pairs // num_states)
    target = torch.from_numpy(pairs % num_states)
    return TokenEdges(
        token_class=token_class,
        next_state=torch.from_numpy(next_state),
        source=source,
        target=target,
        edge_set=torch.from_numpy(edge_set.reshape(-1)),
        members=torch.from_numpy(members),
        num_outgoing=torch.bincount(source, minlength=num_states),
    )
