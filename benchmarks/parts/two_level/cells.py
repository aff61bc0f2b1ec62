"""The cells of the table of benchmarks/two_level.py: which texts are compared, and how many steps write them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from parts.two_level.config import SYSTEMS, TOKENS, TWO_LEVEL, TwoLevelConfig
from parts.two_level.report import FLOPS, FORWARDS, PLANS_TOLD, Row

# The plan that the fine denoiser sees: the text's own, that of a real text, a shuffled one, or none.
WRITTEN = "written"
ORACLE = "oracle"
SHUFFLED = "shuffled"
UNTOLD = "untold"


@dataclass(frozen=True)
class Steps:
    """Numbers of steps of a call; a system with one denoiser has fine steps only."""

    fine: int
    coarse: int = 0

    def __str__(self) -> str:
        return f"{self.coarse}+{self.fine}" if self.coarse else str(self.fine)


@dataclass(frozen=True)
class Cell:
    """Texts that are written together: of one system, seed, length, number of steps and plan."""

    system: str
    seed: int
    length: int
    steps: Steps
    plan: str = WRITTEN

    @property
    def file_name(self) -> str:
        """Holds all fields, so that an option that changes the table leaves finished texts as they are."""
        return f"{self.system}-seed{self.seed}-{self.length}-{self.steps}-{self.plan}.json"


@dataclass(frozen=True)
class Cost:
    """FLOPs of a text: a `fixed` part, such as the decoder's, and those of each step of a level.

    All rows are taken to be shown to the model in each step, so that a call takes at most that.
    """

    fixed: int
    fine: int
    coarse: int = 0

    def of(self, steps: Steps) -> int:
        """FLOPs of a text that is written in these steps."""
        return self.fixed + self.fine * steps.fine + self.coarse * steps.coarse


Costs = dict[tuple[str, int], Cost]  # by system and length


class Comparison(NamedTuple):
    """A row of the table, and the steps that write its texts; they are None if none fit into its budget."""

    row: Row
    steps: Steps | None
    plan: str = WRITTEN

    @property
    def system(self) -> str:
        # Rows of ablations are named after their plan.
        return self.row.name if self.row.name in SYSTEMS else TWO_LEVEL

    def cell(self, seed: int) -> Cell | None:
        if self.steps is None:
            return None
        return Cell(self.system, seed, self.row.length, self.steps, self.plan)


def split_forwards(system: str, forwards: int, options: TwoLevelConfig) -> Steps:
    """The steps of so many forwards; of two levels both take at least one."""
    if system != TWO_LEVEL:
        return Steps(forwards)

    coarse = min(forwards - 1, max(1, round(options.coarse_forwards * forwards)))
    return Steps(forwards - coarse, coarse)


def fitting_steps(
    cost: Cost,
    flops: int,
    fine_codes: int,
    coarse_codes: int,
    coarse_share: float,
) -> Steps | None:
    """As many steps as fit into so many FLOPs, but no more of a level than it has codes; None if nothing fits.

    Of what the fixed part leaves, `coarse_share` at most is spent on coarse steps, and more only for their first.
    """
    # 1. FLOPs that are left for steps
    flops -= cost.fixed

    # 2. Coarse steps first; a level has no use for more steps than it has codes.
    coarse = 0
    if cost.coarse:
        coarse = min(coarse_codes, max(1, int(coarse_share * flops / cost.coarse)))
        flops -= coarse * cost.coarse

    # 3. Fine steps take the rest.
    fine = min(fine_codes, flops // cost.fine)
    return Steps(int(fine), coarse) if fine >= 1 else None


def steps_of(row: Row, options: TwoLevelConfig, costs: Costs) -> Steps | None:
    """The steps of a system that is compared at a budget; None if nothing fits."""
    # A budget is a number of forwards; those of the token model are also the unit of FLOPs.
    if row.mode == FORWARDS or row.name == TOKENS:
        return split_forwards(row.name, row.budget, options)

    # The budget is what the token model needs for so many forwards.
    flops = costs[TOKENS, row.length].of(Steps(row.budget))
    fine_codes = row.length // options.patch_length
    coarse_codes = fine_codes // options.coarse_ratio
    cost = costs[row.name, row.length]
    return fitting_steps(cost, flops, fine_codes, coarse_codes, options.coarse_flops)


def comparisons(options: TwoLevelConfig, costs: Costs) -> Iterator[Comparison]:
    """All rows that are compared, in the order of the table."""
    for length in options.lengths:
        # Systems at equal FLOPs, and at equal forwards
        for mode in (FLOPS, FORWARDS):
            for budget in options.budgets:
                for system in SYSTEMS:
                    row = Row(mode, length, budget, system)
                    steps = steps_of(row, options, costs)
                    row.steps = str(steps or "")
                    yield Comparison(row, steps)

        # Ablations: two levels with other plans than their own
        steps = split_forwards(TWO_LEVEL, options.ablation_budget, options)
        for plan in (ORACLE, SHUFFLED, UNTOLD):
            row = Row(PLANS_TOLD, length, options.ablation_budget, plan, str(steps))
            yield Comparison(row, steps, plan)
