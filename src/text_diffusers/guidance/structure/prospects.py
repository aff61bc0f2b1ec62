"""Forward-backward over the states of a token automaton, for texts of independent tokens.

One pass from the end tells how likely a text is accepted from each state, and one from the start how likely each state
is. From both follow p(accepted | a token), and draws of several tokens together from p(tokens | accepted).

Shapes: B rows, J tokens that are read, S states, C classes, E edges, K sets of classes, V vocabulary size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from text_diffusers.common.sampling import LARGEST_UNIFORM
from text_diffusers.guidance.structure.token_automaton import TokenAutomaton, TokenEdges

# The least log-probability of a token that the prediction excludes: such are written only if nothing else is left.
IMPOSSIBLE = -1e4
LEAST = -1e300  # below all log-probabilities, and finite

# Places after which sums are scaled
SCALING = 32


@dataclass
class Reading:
    """What is read of some rows, from left to right, and the pass from the end over its states.

    The values of a state are kept in two parts. The potential is the log-probability of the likeliest way to
    acceptance, and what remains, the sum over all ways divided by that one, is at least 1: a plain number, however
    improbable a text is. Likewise the shares of the states on the way are multiplied by their potentials, which makes
    them shares of what is accepted.

    Rows are the last axis, so that what is looked up by state or edge lies together.

    Attributes:
        automaton: of all rows.
        is_read: (J, B) bool; the rows that are shorter are filled up.
        edges: by which tokens are read, but for those of `others`.
        log_sets: (J, K, B) log-probabilities of the sets of classes.
        others: at some places, what is read by other edges.
        jumps: at some places, (S, B) where each state is led to by what is given before it, of rows that have any;
            S is nowhere. Place J is the end.
        potentials, sums: J + 1 tensors (S, B), before each place, what is given there included, and at the end; sums
            up to a constant a row.
        here: J tensors (S, B), potentials before each token, behind what is given there.
        factors: J tensors (E, B), by which shares grow along each edge.
        log_accepted: (B,) log-probabilities of acceptance.
    """

    automaton: TokenAutomaton
    is_read: Tensor
    edges: TokenEdges
    log_sets: Tensor
    others: dict[int, list["OtherRows"]] = field(default_factory=dict)
    jumps: dict[int, Tensor] = field(default_factory=dict)
    potentials: list[Tensor] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    here: list[Tensor] = field(default_factory=list)
    factors: list[Tensor] = field(default_factory=list)
    log_accepted: Tensor = field(default_factory=lambda: torch.zeros(0))

    def read_backward(self):
        """Fill in what the pass from the end says."""
        num_places, num_rows = self.is_read.shape
        all_read = self.is_read.all(dim=1).tolist()

        # 1. At the end: the states in which a text may end, and those that lead there by what is given
        accepting = self.automaton.accepting.to(self.log_sets.device).double()
        total = self._before_jump(accepting.unsqueeze(1).repeat(1, num_rows), num_places, 0.0)
        potential = total.log()
        log_scale = torch.zeros_like(total[0])

        # 2. Backwards, a place after the other
        self.potentials = [potential]
        self.sums = [total]
        for place in reversed(range(num_places)):
            higher, larger, factors = step_back(self.edges, self.log_sets[place], potential, total)
            for other in self.others.get(place, []):
                rows = other.rows
                higher[:, rows], larger[:, rows], other.factors = step_back(
                    other.edges, other.log_sets, potential[:, rows], total[:, rows]
                )

            # Behind the end of a shorter row nothing changes.
            if not all_read[place]:
                higher = torch.where(self.is_read[place], higher, potential)
                larger = torch.where(self.is_read[place], larger, total)

            # Sums grow with the number of ways, and are scaled down in time.
            if place % SCALING == 0:
                scale = larger.amax(dim=0).clamp(min=1.0)
                larger = larger / scale
                log_scale = log_scale + scale.log()

            self.here.append(higher)
            self.factors.append(factors)
            potential = self._before_jump(higher, place, -torch.inf)
            total = self._before_jump(larger, place, 0.0)
            self.potentials.append(potential)
            self.sums.append(total)

        # 3. In the order of the text
        for values in (self.potentials, self.sums, self.here, self.factors):
            values.reverse()
        self.log_accepted = potential[0] + total[0].log() + log_scale

    def start(self, copies: int) -> Tensor:
        """(S, `copies`, B) shares of the states before what is given at the start: all of the first state."""
        num_states, num_rows = self.sums[0].shape
        shares = self.sums[0].new_zeros(num_states, copies, num_rows)
        shares[0] = 1.0
        return shares

    def behind_jump(self, shares: Tensor, place: int) -> Tensor:
        """(S, n, B) shares of the states behind what is given before a place, from those before it."""
        if place not in self.jumps:
            return shares
        # Those that lead to one state are added up; the last one is nowhere.
        jumps = self.jumps[place].unsqueeze(1).expand(shares.shape)
        longer = shares.new_zeros(len(shares) + 1, *shares.shape[1:])
        return longer.scatter_add(0, jumps, shares)[:-1]

    def _before_jump(self, values: Tensor, place: int, nowhere: float) -> Tensor:
        if place not in self.jumps:
            return values
        padded = torch.cat([values, torch.full_like(values[:1], nowhere)])
        return padded.gather(0, self.jumps[place])


@dataclass
class OtherRows:
    """Rows (r,) that are read by other edges at a place.

    Attributes:
        log_sets: (K, r) log-probabilities of the sets of classes.
        factors: (E, r), by which shares grow along each edge.
    """

    rows: Tensor
    edges: TokenEdges
    log_sets: Tensor
    factors: Tensor = field(default_factory=lambda: torch.zeros(0))


def step_back(
    edges: TokenEdges, log_sets: Tensor, potential: Tensor, total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(S, B) potentials and sums before a token, from those behind it; and (E, B) factors of the edges."""
    ways = log_sets.index_select(0, edges.edge_set) + potential.index_select(0, edges.target)
    # The edges of a state stand next to each other.
    higher = torch.segment_reduce(ways, "max", lengths=edges.num_outgoing, axis=0, unsafe=True)

    # Each way relative to the likeliest one of its state, which so counts 1
    factors = ways.sub_(higher.clamp(min=LEAST).index_select(0, edges.source)).exp_()
    flow = total.index_select(0, edges.target).mul_(factors)
    return higher, sum_of(flow, edges.source, edges.num_states), factors


def sum_of(values: Tensor, index: Tensor, size: int) -> Tensor:
    """(size, ...) sums of the values (E, ...) with the same index (E,)."""
    return values.new_zeros(size, *values.shape[1:]).index_add_(0, index, values)


def logsumexp(values: Tensor) -> Tensor:
    """Over the last axis; -inf of nothing but -inf."""
    peak = values.amax(dim=-1, keepdim=True).clamp(min=LEAST)
    return ((values - peak).exp().sum(dim=-1)).log() + peak.squeeze(-1)


def categorical(weights: Tensor, uniform: Tensor) -> Tensor:
    """(n,) indices drawn in proportion to weights (m, n), by one uniform number each."""
    mass = weights.cumsum(dim=0)
    # A number of almost 1 must not lead behind the last one.
    target = uniform.clamp(max=LARGEST_UNIFORM) * mass[-1]
    return (mass <= target).sum(dim=0).clamp(max=len(mass) - 1)


# --- masses of classes


def log_class_masses(log_probs: Tensor, edges: TokenEdges) -> Tensor:
    """(N, C) log-probabilities, float64, of the classes of tokens, from those of tokens (N, V); see `IMPOSSIBLE`."""
    masses = log_probs.new_zeros(len(log_probs), edges.num_classes)
    masses = masses.index_add(1, edges.token_class, log_probs.exp()).double()
    logs = masses.log()

    # Where a sum is too small for the precision, it is made again in logarithms, of its own tokens.
    is_small = masses < 1e3 * torch.finfo(log_probs.dtype).tiny
    for one in is_small.any(dim=0).nonzero().flatten().tolist():
        rows = is_small[:, one].nonzero()
        tokens = edges.tokens_of(one)
        if len(tokens):
            logs[rows.flatten(), one] = logsumexp(log_probs[rows, tokens].double())
    return logs.clamp(min=IMPOSSIBLE)


def log_set_masses(log_masses: Tensor, members: Tensor) -> Tensor:
    """(N, K) log-probabilities of sets (K, C) of classes, from those of the classes (N, C)."""
    peak = log_masses.amax(dim=1, keepdim=True)
    sums = (log_masses - peak).exp() @ members.to(log_masses).T
    logs = sums.log() + peak

    # A set so much less likely than the rest is added up by itself.
    rows, sets = (sums == 0).nonzero(as_tuple=True)
    for part in torch.arange(len(rows), device=rows.device).split(4_096):
        inside = torch.where(members[sets[part]], log_masses[rows[part]], -torch.inf)
        logs[rows[part], sets[part]] = logsumexp(inside)
    return logs


def log_class_prospects(edges: TokenEdges, accepted: Tensor, log_sets: Tensor) -> Tensor:
    """(n, C) log p(accepted | class), up to a constant a row.

    Args:
        accepted: (K, n) shares of the sets in what is accepted.
        log_sets: (K, n) log-probabilities of the sets.
    """
    given = torch.where(accepted > 0, accepted.log() - log_sets, -torch.inf)
    shares = (given - given.amax(dim=0).clamp(min=LEAST)).exp()
    return (shares.T @ edges.members.to(shares)).log()
