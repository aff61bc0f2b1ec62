"""Texts of one language in a step: how likely each token is given the language, and draws of several together.

Shapes: B rows of one automaton, L sequence length, J tokens that are read, N open tokens, M that are drawn,
V vocabulary size, C classes, K sets of classes, S states.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from text_diffusers.common.sampling import sample_tokens
from text_diffusers.guidance.structure.layout import RowLayout, padded_layouts
from text_diffusers.guidance.structure.prospects import (
    IMPOSSIBLE,
    LEAST,
    SCALING,
    OtherRows,
    Reading,
    categorical,
    log_class_masses,
    log_class_prospects,
    log_set_masses,
    sum_of,
)
from text_diffusers.guidance.structure.token_automaton import TokenAutomaton, TokenEdges
from text_diffusers.guidance.structure.token_bytes import LATER

# Shares are scaled unless they are all nothing.
LEAST_SHARE = 1e-300


class StructuredTexts:
    """Rows of a batch whose texts must be in one language.

    Args:
        automaton: of the language.
        rows: their numbers in the batch, ascending.
        layouts: what is read of each.
        state: of the batch.
        log_probs: (N, V) of the open tokens of these rows; `None` if any token may be anything.
    """

    def __init__(
        self,
        automaton: TokenAutomaton,
        rows: Sequence[int],
        layouts: Sequence[RowLayout],
        state: Any,
        log_probs: Tensor | None,
    ):
        device = state.tokens.device
        self.automaton = automaton
        self.log_probs = log_probs
        self.ends = tuple(state.end_token_ids)
        self.rows = torch.tensor(rows, device=device)
        self.columns, self.is_read = padded_layouts(layouts, device)  # (B, J)
        self._all_read = self.is_read.all(dim=0).tolist()

        # The number of each open token among those of these rows; -1 is a known one.
        is_open = state.open[self.rows]
        numbers = torch.full_like(self.columns, -1)
        row_numbers = torch.full(is_open.shape, -1, device=device)
        row_numbers[is_open] = torch.arange(int(is_open.sum()), device=device)
        self.numbers = torch.where(self.is_read, row_numbers.gather(1, self.columns), numbers)
        self.tokens = state.tokens[self.rows].gather(1, self.columns)

        edges = self._edges(LATER)
        self._masses: dict[int, Tensor] = {}
        log_sets = self._log_sets(edges, self.numbers, self.tokens)  # (B, J, K)
        self.reading = Reading(
            automaton, self.is_read.T.contiguous(), edges, log_sets.permute(1, 2, 0).contiguous()
        )
        self._read_otherwise(layouts)
        self._read_given(layouts)
        self.reading.read_backward()

    @property
    def log_accepted(self) -> Tensor:
        """(B,) log-probabilities of the texts being in the language."""
        return self.reading.log_accepted

    def evaluate(
        self,
        selected: Tensor,
        uniforms: Tensor | None = None,
        shape: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What becomes of the selected places (B, J), M of them.

        Args:
            uniforms: (3, B, J) numbers in [0, 1), if tokens are drawn.
            shape: makes logarithms of probabilities (n, V) those that tokens are drawn from; `None` leaves them.

        Returns:
            (M, V) float32 or more, log p(in the language | token) up to a constant, each place by itself; and (M,)
            tokens, drawn together given the language.
        """
        edges = self.reading.edges
        num_sets = len(edges.members)
        # What stands behind the last of the selected ones changes nothing.
        num_places = int(selected.any(dim=0).nonzero().amax()) + 1
        # Shares of the states as they are, and as they are given what was drawn before
        draws = uniforms is not None
        shares = self.reading.start(2 if draws else 1)
        is_any = selected.any(dim=0).tolist()
        of_sets = []
        others = []
        self._classes = torch.zeros_like(self.columns)
        self._drawn = torch.zeros_like(self.columns)
        for place, is_selected in enumerate(selected.T[:num_places]):
            shares = self.reading.behind_jump(shares, place)
            factors = self.reading.factors[place].unsqueeze(1)
            flow = shares.index_select(0, edges.source).mul_(factors)  # (E, 1 or 2, B)
            moved = sum_of(flow, edges.target, edges.num_states)

            # What the selected rows would be accepted by, and the tokens that they draw of it
            if is_any[place]:
                part = self._part(place, is_selected, edges, self.reading.log_sets[place])
                sums = self.reading.sums[place + 1].index_select(1, part.rows)
                accepted = flow.index_select(2, part.rows)
                accepted = accepted.mul_(sums.index_select(0, edges.target).unsqueeze(1))
                of_sets.append(sum_of(accepted[:, 0], edges.edge_set, num_sets))
                # Rows that are read by other edges here are drawn by those alone, below.
                drawn = is_selected.clone()
                for other in self.reading.others.get(place, []):
                    drawn[other.rows] = False
                is_drawn = drawn[part.rows]
                if draws and is_drawn.any():
                    own = self._part(place, drawn, edges, self.reading.log_sets[place])
                    taken = accepted[:, 1][:, is_drawn]
                    moved[:, 1, own.rows] = self._draw(
                        own, shares[:, 1, own.rows], taken, uniforms, shape
                    )

            # The few rows that are read by other edges here, once more
            for other in self.reading.others.get(place, []):
                rows = other.rows
                flow = shares[:, :, rows].index_select(0, other.edges.source)
                flow = flow.mul_(other.factors.unsqueeze(1))

                moved[:, :, rows] = sum_of(flow, other.edges.target, edges.num_states)
                chosen = is_selected[rows]
                if not chosen.any():
                    continue

                part = Place(place, rows[chosen], other.edges, other.log_sets[:, chosen])
                sums = self.reading.sums[place + 1][:, part.rows]
                accepted = flow[:, :, chosen]
                accepted = accepted * sums.index_select(0, other.edges.target).unsqueeze(1)
                sets = sum_of(accepted[:, 0], other.edges.edge_set, len(other.edges.members))
                others.append((part, sets))
                if draws:
                    taken = accepted[:, 1]
                    moved[:, 1, part.rows] = self._draw(
                        part, shares[:, 1, part.rows], taken, uniforms, shape
                    )

            if not self._all_read[place]:
                moved = torch.where(self.reading.is_read[place], moved, shares)
            # A share is a part of what is accepted, so that none is lost by scaling.
            if place % SCALING == 0:
                moved = moved / moved.amax(dim=0).clamp(min=LEAST_SHARE)
            shares = moved

        prospects = self._log_prospects(selected, torch.cat(of_sets, dim=1), others)
        tokens = self._drawn
        if draws and shape is None:
            tokens = self._tokens_of_classes(selected, uniforms[2])
        return prospects, tokens[selected]

    def _part(
        self, place: int, is_selected: Tensor, edges: TokenEdges, log_sets: Tensor
    ) -> "Place":
        rows = is_selected.nonzero().flatten()
        return Place(place, rows, edges, log_sets.index_select(1, rows))

    def _log_prospects(
        self, selected: Tensor, of_sets: Tensor, others: list[tuple["Place", Tensor]]
    ) -> Tensor:
        """(M, V) log p(in the language | token) from shares (K, M) of sets, place after place."""
        assert self.log_probs is not None
        edges = self.reading.edges
        places, rows = selected.T.nonzero(as_tuple=True)
        log_sets = self.reading.log_sets[places, :, rows].T  # (K, M)
        # In the order of rows
        order = (rows * selected.shape[1] + places).argsort()
        of_classes = log_class_prospects(edges, of_sets, log_sets)[order].to(self.log_probs.dtype)
        of_tokens = of_classes.index_select(1, edges.token_class)

        numbers = torch.full(selected.shape, -1, device=selected.device)
        numbers[selected] = torch.arange(len(of_tokens), device=selected.device)
        for part, sets in others:
            values = log_class_prospects(part.edges, sets, part.log_sets).to(of_tokens.dtype)
            values = values.index_select(1, part.edges.token_class)
            of_tokens[numbers[part.rows, part.place]] = values
        return of_tokens

    def _draw(
        self,
        part: "Place",
        shares: Tensor,
        accepted: Tensor,
        uniforms: Tensor,
        shape: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """(S, n) shares of the states behind tokens that are drawn, and noted.

        Args:
            shares: (S, n) before them, given what was drawn before.
            accepted: (E, n) shares of the edges in what is accepted.
        """
        assert self.log_probs is not None
        edges = part.edges
        place = part.place
        rows = part.rows
        numbers = self.numbers[rows, place]
        if shape is None:
            # The edge that is taken, and then the class that is along it; tokens follow from classes.
            taken = categorical(accepted, uniforms[0, rows, place])
            log_masses = self._log_masses(edges)[numbers]
            members = edges.members[edges.edge_set[taken]]
            inside = log_masses.masked_fill(~members, -torch.inf)
            weights = (inside - inside.amax(dim=1, keepdim=True)).exp_()
            classes = categorical(weights.T, uniforms[1, rows, place])
        else:
            sets = sum_of(accepted, edges.edge_set, len(edges.members))
            given = log_class_prospects(edges, sets, part.log_sets)
            log_probs = self.log_probs[numbers].clamp(min=IMPOSSIBLE)
            scores = shape(log_probs + given.to(log_probs).index_select(1, edges.token_class))
            weights = (scores - scores.amax(dim=1, keepdim=True)).exp()
            tokens = sample_tokens(weights, uniforms[0, rows, place])
            self._drawn[rows, place] = tokens
            classes = edges.token_class[tokens]
        self._classes[rows, place] = classes

        # From here on the token is known, and with it where each state leads.
        targets = edges.next_state.index_select(1, classes)  # (S, n), S is nowhere
        here = self.reading.here[place].index_select(1, rows)
        there = self.reading.potentials[place + 1].index_select(1, rows)
        there = torch.cat([there, torch.full_like(there[:1], -torch.inf)])
        ways = there.gather(0, targets).add_(shares.log()).sub_(here.clamp(min=LEAST))
        weights = ways.sub_(ways.amax(dim=0)).exp_()
        return torch.zeros_like(there).scatter_add_(0, targets, weights)[:-1]

    # What is read

    def _edges(self, place: str) -> TokenEdges:
        vocab_size = None if self.log_probs is None else self.log_probs.shape[1]
        return self.automaton.edges(place, self.ends, vocab_size, self.rows.device)

    def _log_sets(self, edges: TokenEdges, numbers: Tensor, tokens: Tensor) -> Tensor:
        """(..., K) log-probabilities of the sets of classes, of tokens (...) with their numbers (...), -1 if known."""
        # A known token is in the sets of its class.
        last = len(edges.token_class) - 1
        classes = edges.token_class[tokens.clamp(max=last)]
        known = torch.where(edges.members.T[classes], 0.0, -torch.inf).double()
        is_open = numbers >= 0
        if self.log_probs is None:
            return torch.where(is_open.unsqueeze(-1), 0.0, known)

        log_masses = self._log_masses(edges)
        log_sets = known
        needed = numbers[is_open]
        log_sets[is_open] = log_set_masses(log_masses[needed], edges.members)
        return log_sets

    def _log_masses(self, edges: TokenEdges) -> Tensor:
        """(N, C) log-probabilities of the classes of open tokens."""
        key = id(edges)
        if key not in self._masses:
            assert self.log_probs is not None
            self._masses[key] = log_class_masses(self.log_probs, edges)
        return self._masses[key]

    def _read_otherwise(self, layouts: Sequence[RowLayout]):
        """Note the tokens that stand elsewhere than behind others."""
        groups: dict[tuple[int, str], list[int]] = {}
        for row, layout in enumerate(layouts):
            for number, place in layout.places.items():
                groups.setdefault((number, place), []).append(row)
        for (number, place), row_list in groups.items():
            edges = self._edges(place)
            # Of many tokenizers a token is the same everywhere.
            if edges is self.reading.edges:
                continue
            rows = torch.tensor(row_list, device=self.rows.device)
            log_sets = self._log_sets(edges, self.numbers[rows, number], self.tokens[rows, number])
            other = OtherRows(rows, edges, log_sets.T)
            self.reading.others.setdefault(number, []).append(other)

    def _read_given(self, layouts: Sequence[RowLayout]):
        """Note the characters that are given."""
        num_places = self.columns.shape[1]
        stay = torch.arange(self.automaton.num_states, device=self.rows.device)
        for row, layout in enumerate(layouts):
            for number, text in layout.given.items():
                # What is given behind a row stands at its end.
                place = num_places if number == len(layout.columns) else number
                if place not in self.reading.jumps:
                    self.reading.jumps[place] = stay.unsqueeze(1).repeat(1, len(layouts))
                self.reading.jumps[place][:, row] = self.automaton.after(text).to(stay.device)

    def _tokens_of_classes(self, selected: Tensor, uniform: Tensor) -> Tensor:
        """(B, J) tokens at the selected places, of the classes that were drawn."""
        tokens = torch.zeros_like(self._classes)
        is_left = selected.clone()
        for place, parts in self.reading.others.items():
            for other in parts:
                chosen = torch.zeros_like(selected)
                chosen[other.rows, place] = selected[other.rows, place]
                tokens[chosen] = self._of_classes(other.edges, chosen, uniform)
                is_left &= ~chosen
        tokens[is_left] = self._of_classes(self.reading.edges, is_left, uniform)
        return tokens

    def _of_classes(self, edges: TokenEdges, chosen: Tensor, uniform: Tensor) -> Tensor:
        """(n,) tokens at the chosen places (B, J), each in proportion to its probability within its class."""
        assert self.log_probs is not None
        classes = self._classes[chosen]
        numbers = self.numbers[chosen]
        numbers_drawn = uniform[chosen]
        tokens = torch.zeros_like(classes)

        # Of each class only its own tokens are looked at.
        for one in classes.unique().tolist():
            where = (classes == one).nonzero().flatten()
            members = edges.tokens_of(one)
            if len(members) == 1:
                tokens[where] = members[0]
                continue
            log_probs = self.log_probs[numbers[where].unsqueeze(1), members].clamp(min=IMPOSSIBLE)
            weights = (log_probs - log_probs.amax(dim=1, keepdim=True)).exp()
            tokens[where] = members[sample_tokens(weights, numbers_drawn[where])]
        return tokens


@dataclass
class Place:
    """Tokens at a place of rows (n,) that are drawn together with those before them.

    Attributes:
        edges: by which they are read.
        log_sets: (K, n) log-probabilities of the sets of classes.
    """

    place: int
    rows: Tensor
    edges: TokenEdges
    log_sets: Tensor
