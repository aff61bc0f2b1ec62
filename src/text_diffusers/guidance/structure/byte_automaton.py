"""Regular languages as deterministic automata over the bytes of UTF-8, which tokens are made of.

From the tree of a language to a non-deterministic automaton over characters (Thompson's construction), to a
deterministic and minimal one over classes of characters, and from it to bytes: a character of several bytes leads
through states between its bytes. Texts are whole characters. What a text must also begin with is an automaton of its
own, and both are read side by side.

Shapes: S states, C classes of characters, Q states between characters.
"""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from text_diffusers.guidance.structure.language import (
    ANY,
    LAST_CHARACTER,
    Anchor,
    Beginning,
    Characters,
    Choice,
    Language,
    Named,
    Ranges,
    Repeat,
    Sequence,
)
from text_diffusers.guidance.structure.regular_expressions import SURROGATES

# The largest automata: above, the tables of tokens would take gigabytes.
MOST_PARTS = 100_000
MOST_STATES = 20_000

# No state: what has been read begins no text of the language.
DEAD = -1

# (Q, C) where each class of characters leads from each state, and (Q,) which accept. State 0 is the start; without any
# text there are no states.
Deterministic: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ByteAutomaton:
    """A deterministic automaton over bytes, in which an accepted text can be reached from each state.

    Attributes:
        next_state: (S + 1, 256) int32, where each byte leads; state 0 is the start of a text, the last one is the dead
            state, and no text leads out of it.
        accepting: (S + 1,) bool.
        classes: the characters that texts may have, in classes that lead to the same state from each one.
    """

    next_state: np.ndarray
    accepting: np.ndarray
    classes: tuple[Ranges, ...]

    @property
    def num_states(self) -> int:
        """S, without the dead state, whose number it is."""
        return len(self.next_state) - 1

    def walk(self, states: np.ndarray, text: bytes) -> np.ndarray:
        """The states after a text, from each of `states`.

        Example:
            >>> import numpy as np
            >>> from text_diffusers.guidance.structure.byte_automaton import compile_language
            >>> from text_diffusers.guidance.structure.language import Named, literal
            >>> automaton = compile_language(Named(literal("tea"), "pattern", "tea"))
            >>> behind = automaton.walk(np.array([0]), b"te")
            >>> automaton.accepting[automaton.walk(behind, b"a")]
            array([ True])
        """
        for byte in text:
            states = self.next_state[states, byte]
        return states

    def accepts(self, text: str) -> bool:
        """Whether a text is in the language."""
        return bool(self.accepting[self.walk(np.array([0]), text.encode())][0])


def compile_language(named: Named) -> ByteAutomaton:
    """The automaton of a language.

    Raises:
        ValueError: if the language is empty, or too large.
    """
    language = named.language
    if not isinstance(language, Beginning):
        language = Beginning(language, (), ())

    # A text that begins with a string goes on as it will.
    anything = Repeat(ANY, 0, None)
    ahead = [*language.required, *language.excluded]
    whole = [language.part, *(Sequence((one, anything)) for one in ahead)]

    # All tell the same classes of characters apart.
    sets: dict[Ranges, int] = {}
    parts = [PartAutomaton(replace(named, language=one), sets) for one in whole]
    atoms = atoms_of(sets)
    automaton, *others = [between_characters(one, atoms, named) for one in parts]
    for number, other in enumerate(others):
        automaton = side_by_side(automaton, other, number < len(language.required), named)

    if not len(automaton[0]):
        raise ValueError(f"`{named.argument}` must match some text, got {named.shown}.")
    return over_bytes(*automaton, atoms, named)


def too_large(named: Named, limit: str) -> ValueError:
    return ValueError(
        f"`{named.argument}` must be smaller: its automaton has {limit}, got {named.shown}."
    )


# --- over characters


@dataclass
class PartAutomaton:
    """Thompson's automaton of a language: states with empty steps, and steps that read a character.

    Attributes:
        sets: the sets of characters that are read, those of other automata among them.
        empty: of each state, the states that it leads to, each with the anchor that must hold, or None.
        reads: of each state, the number of a set of characters and the state behind it, or None.
    """

    named: Named
    sets: dict[Ranges, int]
    empty: list[list[tuple[int, str | None]]] = field(default_factory=list)
    reads: list[tuple[int, int] | None] = field(default_factory=list)
    first: int = 0
    last: int = 0

    def __post_init__(self):
        self.first = self.state()
        self.last = self.add(self.named.language, self.first)

    def state(self) -> int:
        if len(self.empty) >= MOST_PARTS:
            raise too_large(self.named, f"more than {MOST_PARTS:,} parts")
        self.empty.append([])
        self.reads.append(None)
        return len(self.empty) - 1

    def add(self, language: Language, first: int) -> int:
        """Add the states of a language that begins at state `first`; the state behind it."""
        if isinstance(language, Characters):
            number = self.sets.setdefault(language.ranges, len(self.sets))
            last = self.state()
            # A state reads one set of characters only.
            reader = self.state()
            self.empty[first].append((reader, None))
            self.reads[reader] = (number, last)
            return last
        if isinstance(language, Sequence):
            for part in language.parts:
                first = self.add(part, first)
            return first
        if isinstance(language, Choice):
            last = self.state()
            for option in language.options:
                begin = self.state()
                self.empty[first].append((begin, None))
                self.empty[self.add(option, begin)].append((last, None))
            return last
        if isinstance(language, Repeat):
            return self.add_repeat(language, first)
        assert isinstance(language, Anchor)
        last = self.state()
        self.empty[first].append((last, language.place))
        return last

    def add_repeat(self, language: Repeat, first: int) -> int:
        for _ in range(language.least):
            first = self.add(language.part, first)

        # Any number: a loop
        if language.most is None:
            loop = self.state()
            self.empty[first].append((loop, None))
            self.empty[self.add(language.part, loop)].append((loop, None))
            return loop

        # Each of the others may be the last one.
        last = self.state()
        for _ in range(language.most - language.least):
            self.empty[first].append((last, None))
            first = self.add(language.part, first)
        self.empty[first].append((last, None))
        return last

    def closure(self, states: frozenset[int], anchors: frozenset[str]) -> frozenset[int]:
        """All states that empty steps lead to; those of an anchor if it holds."""
        reached = set(states)
        waiting = list(states)
        while waiting:
            for target, anchor in self.empty[waiting.pop()]:
                if target not in reached and (anchor is None or anchor in anchors):
                    reached.add(target)
                    waiting.append(target)
        return frozenset(reached)


@dataclass(frozen=True)
class Atoms:
    """All characters in classes, such that each set of an automaton is a union of classes.

    Attributes:
        starts: first code points of the intervals of one class, ascending.
        classes: the class of each interval; DEAD is in no set.
        of_set: of each set, its classes.
    """

    starts: list[int]
    classes: list[int]
    of_set: list[list[int]]

    @property
    def num_classes(self) -> int:
        return max(self.classes) + 1

    def ranges(self) -> tuple[Ranges, ...]:
        """The characters of each class."""
        ranges: list[list[tuple[int, int]]] = [[] for _ in range(self.num_classes)]
        ends = [*self.starts[1:], LAST_CHARACTER + 1]
        for first, end, number in zip(self.starts, ends, self.classes, strict=True):
            if number != DEAD:
                ranges[number].append((first, end - 1))
        return tuple(tuple(own) for own in ranges)


def atoms_of(sets: dict[Ranges, int]) -> Atoms:
    """The coarsest classes of characters that `sets` tell apart."""
    borders = {0, SURROGATES[0], SURROGATES[1] + 1}
    for ranges in sets:
        for first, last in ranges:
            borders |= {first, last + 1}
    starts = sorted(border for border in borders if border <= LAST_CHARACTER)

    # (sets, intervals) whether an interval is in a set
    inside = np.zeros((len(sets) + 1, len(starts)), dtype=bool)
    for ranges, number in sets.items():
        for first, last in ranges:
            inside[number, bisect_right(starts, first) - 1 : bisect_right(starts, last)] = True
    inside[:, bisect_right(starts, SURROGATES[0]) - 1] = False

    # A class for each combination of sets, but for none of them.
    numbers = {bytes(len(sets) + 1): DEAD}
    classes = [
        numbers.setdefault(column.tobytes(), len(numbers) - 1)
        for column in np.ascontiguousarray(inside.T)
    ]
    of_set: list[list[int]] = [[] for _ in sets]
    for key, atom in numbers.items():
        for number, is_inside in enumerate(key[: len(sets)]):
            if is_inside:
                of_set[number].append(atom)
    return Atoms(starts, classes, of_set)


def between_characters(parts: PartAutomaton, atoms: Atoms, named: Named) -> Deterministic:
    """The deterministic and minimal automaton of the same language."""
    none: frozenset[str] = frozenset()
    begin = frozenset({"begin"})
    end = frozenset({"end", "line_end"})

    start = parts.closure(frozenset({parts.first}), begin)
    # The same parts may be reached again by reading, where no text begins: that is another state.
    states = [start]
    numbers: dict[frozenset[int], int] = {}
    rows = []
    accepts = []
    for state in states:  # grows while it is walked through
        anchors = begin if len(rows) == 0 else none
        at_end = parts.closure(state, anchors | end)
        accepts.append(parts.last in at_end)
        check_line_ends(parts, state, at_end, anchors, named)

        # The sets that are read, and where each class of characters leads
        targets: dict[int, set[int]] = {}
        for part in state:
            read = parts.reads[part]
            if read is not None:
                for atom in atoms.of_set[read[0]]:
                    targets.setdefault(atom, set()).add(read[1])
        row = np.full(max(atoms.num_classes, 1), DEAD, dtype=np.int64)
        reached_by: dict[frozenset[int], int] = {}
        for atom, reached in targets.items():
            key = frozenset(reached)
            if key not in reached_by:
                closed = parts.closure(key, none)
                if closed not in numbers:
                    if len(states) >= MOST_STATES:
                        raise too_large(named, f"more than {MOST_STATES:,} states")
                    numbers[closed] = len(states)
                    states.append(closed)
                reached_by[key] = numbers[closed]
            row[atom] = reached_by[key]
        rows.append(row)

    return minimal(np.stack(rows), np.array(accepts))


def side_by_side(
    first: Deterministic, second: Deterministic, wanted: bool, named: Named
) -> Deterministic:
    """The texts of `first` that are also texts of `second`, or with `wanted` off that are not."""
    if not len(first[0]) or not len(second[0]):
        return first if len(second[0]) or not wanted else (first[0][:0], first[1][:0])

    # The dead states come last, where the number DEAD finds them.
    tables = [
        np.vstack([table, np.full((1, table.shape[1]), DEAD)]) for table, _ in (first, second)
    ]
    accepts = [np.append(accepting, False) for _, accepting in (first, second)]
    width = len(tables[1])

    # A pair of states by one number; the pair of both starts is 0.
    found = np.zeros(1, dtype=np.int64)
    unread = found
    while len(unread):
        behind = pairs_behind(unread, tables, wanted)
        unread = np.setdiff1d(behind[behind != DEAD], found)
        found = np.union1d(found, unread)
        if len(found) > MOST_STATES:
            raise too_large(named, f"more than {MOST_STATES:,} states")

    behind = pairs_behind(found, tables, wanted)
    next_state = np.where(behind == DEAD, DEAD, np.searchsorted(found, behind))
    accepting = accepts[0][found // width] & (accepts[1][found % width] == wanted)
    return minimal(next_state, accepting)


def pairs_behind(pairs: np.ndarray, tables: list[np.ndarray], wanted: bool) -> np.ndarray:
    """(pairs, C) the pair that each class of characters leads to; DEAD where no text can end as it should."""
    width = len(tables[1])
    first = tables[0][pairs // width]
    second = tables[1][pairs % width]
    # A text that has left a language which it must not be in may end anywhere.
    is_dead = (first == DEAD) | ((second == DEAD) & wanted)
    return np.where(is_dead, DEAD, first * width + second % width)


def check_line_ends(
    parts: PartAutomaton,
    state: frozenset[int],
    at_end: frozenset[int],
    anchors: frozenset[str],
    named: Named,
):
    """Refuse `$` before more of a pattern: it would also hold before a line break that is read after it."""
    behind = parts.closure(state, anchors | {"line_end"}) - parts.closure(state, anchors)
    if any(parts.reads[part] is not None for part in behind):
        raise ValueError(
            f"`{named.argument}` must have nothing behind `$` (`\\Z` is the end alone), got {named.shown}."
        )


def minimal(next_state: np.ndarray, accepting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same automaton with as few states as there can be, without those that lead to no text.

    Moore's algorithm, which begins with the distance to the nearest accepting state.
    """
    num_states = len(next_state)
    distances = distances_to(accepting, next_state)
    labels = np.append(distances, -1)  # the dead state is like those without a way
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 2**62, size=next_state.shape[1], dtype=np.int64)
    factors = factors * 2 + 1

    num_labels = len(np.unique(labels))
    while True:
        # Sums of random odd multiples tell rows apart but for a chance of 2^-60.
        with np.errstate(over="ignore"):
            hashes = ((labels[next_state] + 2) * factors).sum(axis=1)
        keys = np.stack([labels[:-1], hashes])
        _, refined = np.unique(keys, axis=1, return_inverse=True)
        refined = refined.reshape(-1)
        refined[labels[:-1] == -1] = -1
        labels = np.append(refined, -1)
        if len(np.unique(labels)) == num_labels:
            break
        num_labels = len(np.unique(labels))

    if labels[0] == -1:
        return next_state[:0], accepting[:0]
    # One state of each label, that of the start first
    kept, firsts = np.unique(labels[:num_states], return_index=True)
    firsts = firsts[kept != -1]
    firsts = np.concatenate(
        [firsts[labels[firsts] == labels[0]], firsts[labels[firsts] != labels[0]]]
    )
    numbers = np.full(labels.max() + 2, DEAD)
    numbers[labels[firsts]] = np.arange(len(firsts))
    return numbers[labels[next_state[firsts]]], accepting[firsts]


def distances_to(accepting: np.ndarray, next_state: np.ndarray) -> np.ndarray:
    """(S,) how many steps from each state lead to an accepting one at least; -1 where none do."""
    distances = np.where(accepting, 0, -1)
    while True:
        reached = np.append(distances >= 0, False)
        nearer = reached[next_state].any(axis=1) & (distances < 0)
        if not nearer.any():
            return distances
        distances[nearer] = distances.max() + 1


# --- over bytes


class CharacterBytes:
    """The classes of characters by their bytes: a graph of nodes, which are places between bytes of a character.

    Each node has 64 children, by the next byte: DEAD, a node, or the class c of a character as -2 - c.

    Attributes:
        nodes: their children; those of a node come before it.
        lead: children of the first byte, 256.
    """

    def __init__(self, atoms: Atoms):
        self.atoms = atoms
        self.nodes: list[tuple[int, ...]] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self.lead = [DEAD] * 256
        for byte in range(0x80):
            self.lead[byte] = self._leaf(byte)
        # Lead bytes of two, three and four; shorter characters have no longer spelling.
        for first, last, bits, depth, least in (
            (0xC2, 0xDF, 0x1F, 1, 0x80),
            (0xE0, 0xEF, 0x0F, 2, 0x800),
            (0xF0, 0xF4, 0x07, 3, 0x10000),
        ):
            for byte in range(first, last + 1):
                base = (byte & bits) << (6 * depth)
                self.lead[byte] = self._node(base, depth, least)

    def _interval(self, character: int) -> int:
        return bisect_right(self.atoms.starts, character) - 1

    def _leaf(self, character: int) -> int:
        if character > LAST_CHARACTER:
            return DEAD
        atom = self.atoms.classes[self._interval(character)]
        return DEAD if atom == DEAD else -2 - atom

    def _node(self, base: int, depth: int, least: int) -> int:
        """The node of the characters from `base` on that `depth` more bytes tell apart."""
        size = 64 ** (depth - 1)
        children = []
        for index in range(64):
            low = base + index * size
            if low < least or low > LAST_CHARACTER:
                children.append(DEAD)
            elif depth == 1:
                children.append(self._leaf(low))
            elif self._interval(low) == self._interval(low + size - 1):
                children.append(self._uniform(self._leaf(low), depth - 1))
            else:
                children.append(self._node(low, depth - 1, least))
        return self._number(tuple(children))

    def _uniform(self, leaf: int, depth: int) -> int:
        """The node that leads to one class whatever comes."""
        if leaf == DEAD:
            return DEAD
        for _ in range(depth):
            leaf = self._number((leaf,) * 64)
        return leaf

    def _number(self, children: tuple[int, ...]) -> int:
        if children == (DEAD,) * 64:
            return DEAD
        if children not in self._numbers:
            self._numbers[children] = len(self.nodes)
            self.nodes.append(children)
        return self._numbers[children]


def told_apart(between: np.ndarray, atoms: Atoms) -> tuple[np.ndarray, Atoms]:
    """The same automaton with the classes that it tells apart, each of which begins some text."""
    columns, numbers = np.unique(between, axis=1, return_inverse=True)
    is_read = (columns != DEAD).any(axis=0)
    # Of the empty text, which reads none, one stays.
    is_read[0] |= not is_read.any()
    # (C + 1,) the new class of each one; the last entry is that of the characters in no set.
    renumbered = np.append(np.where(is_read, is_read.cumsum() - 1, DEAD)[numbers.reshape(-1)], DEAD)
    classes = renumbered[np.array(atoms.classes)].tolist()
    return columns[:, is_read], replace(atoms, classes=classes)


def over_bytes(
    between: np.ndarray, accepting: np.ndarray, atoms: Atoms, named: Named
) -> ByteAutomaton:
    """The automaton over bytes of one over classes of characters (Q, C)."""
    between, atoms = told_apart(between, atoms)
    graph = CharacterBytes(atoms)
    num_between = len(between)
    children = np.array(graph.nodes, dtype=np.int64).reshape(-1, 64)
    lead = np.array(graph.lead, dtype=np.int64)

    # States between bytes that lead to the same are one, from whatever character they come.
    numbers: dict[bytes, int] = {}
    inner_rows: list[np.ndarray] = []
    lead_rows = []
    for row in between:
        # What a child is in this state: the dead state, a state behind a character, or one between bytes.
        states = np.full(len(children), DEAD, dtype=np.int64)

        def resolved(codes: np.ndarray, row: np.ndarray = row, states: np.ndarray = states):
            behind = row[np.where(codes <= -2, -2 - codes, 0)]
            inner = states[np.where(codes >= 0, codes, 0)] if len(states) else codes
            return np.where(codes <= -2, behind, np.where(codes >= 0, inner, DEAD))

        # Children come before their nodes.
        for node, codes in enumerate(children):
            targets = resolved(codes)
            if (targets == DEAD).all():
                continue
            key = targets.tobytes()
            if key not in numbers:
                numbers[key] = num_between + len(inner_rows)
                inner_rows.append(targets)
                if len(inner_rows) > MOST_STATES:
                    raise too_large(named, f"more than {MOST_STATES:,} states")
            states[node] = numbers[key]
        lead_rows.append(resolved(lead))

    num_states = num_between + len(inner_rows)
    table = np.full((num_states + 1, 256), DEAD, dtype=np.int32)
    table[:num_between] = np.stack(lead_rows)
    if inner_rows:
        table[num_between:num_states, 0x80:0xC0] = np.stack(inner_rows)
    table[table == DEAD] = num_states

    accepts = np.zeros(num_states + 1, dtype=bool)
    accepts[:num_between] = accepting
    return ByteAutomaton(table, accepts, atoms.ranges())
