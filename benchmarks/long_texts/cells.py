"""The cells of the table of benchmarks/two_level.py: which texts are compared, and how many steps write them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from long_texts.config import SYSTEMS, TOKENS, TWO_LEVEL, TwoLevelConfig
from long_texts.report import FLOPS, FORWARDS, PLANS_TOLD, Row

# What the fine codes of a text are told: its own plan, that of a real text, a shuffled one, or nothing.
WRITTEN = "written"
ORACLE = "oracle"
SHUFFLED = "shuffled"
UNTOLD = "untold"


@dataclass(frozen=True)
class Steps:
    """Of a call: `fine` are those of the only denoiser where there is one."""

    fine: int
    coarse: int = 0

    def __str__(self) -> str:
        return f"{self.coarse}+{self.fine}" if self.coarse else str(self.fine)


@dataclass(frozen=True)
class Cell:
    """Texts of one system and seed; `plan` says what their fine codes are told."""

    system: str
    seed: int
    length: int
    steps: Steps
    plan: str = WRITTEN

    @property
    def file_name(self) -> str:
        return f"{self.system}-seed{self.seed}-{self.length}-{self.steps}-{self.plan}.json"


@dataclass(frozen=True)
class Cost:
    """FLOPs of a text: `fixed`, and of each step of a level; never less than what a call takes."""

    fixed: int
    fine: int
    coarse: int = 0

    def of(self, steps: Steps) -> int:
        return self.fixed + self.fine * steps.fine + self.coarse * steps.coarse


Costs = dict[tuple[str, int], Cost]  # by system and length


class Comparison(NamedTuple):
    """A row of the table, and how its texts are written; without `steps` it does not fit its budget."""

    row: Row
    steps: Steps | None
    plan: str = WRITTEN

    @property
    def system(self) -> str:
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
    cost: Cost, flops: int, fine_codes: int, coarse_codes: int, coarse_share: float
) -> Steps | None:
    """As many steps as fit into so many FLOPs, but no more of a level than it has codes; None if nothing fits.

    Of what the fixed part leaves, `coarse_share` at most is spent on coarse steps, and more only for their first.
    """
    # What is left for steps
    flops -= cost.fixed
    coarse = 0
    if cost.coarse:
        coarse = min(coarse_codes, max(1, int(coarse_share * flops / cost.coarse)))
        flops -= coarse * cost.coarse
    fine = min(fine_codes, flops // cost.fine)
    return Steps(int(fine), coarse) if fine >= 1 else None


def steps_of(row: Row, options: TwoLevelConfig, costs: Costs) -> Steps | None:
    """The steps of a system that is compared at a budget; None if nothing fits."""
    if row.mode == FORWARDS or row.name == TOKENS:
        return split_forwards(row.name, row.budget, options)

    # The budget is what the token model needs for so many forwards.
    flops = costs[TOKENS, row.length].of(Steps(row.budget))
    fine_codes = row.length // options.patch_length
    coarse_codes = row.length // (options.patch_length * options.coarse_ratio)
    return fitting_steps(
        costs[row.name, row.length], flops, fine_codes, coarse_codes, options.coarse_flops
    )


def comparisons(options: TwoLevelConfig, costs: Costs) -> Iterator[Comparison]:
    """All rows that are compared, in the order of the table."""
    for length in options.lengths:
        for mode in (FLOPS, FORWARDS):
            for budget in options.budgets:
                for system in SYSTEMS:
                    row = Row(mode, length, budget, system)
                    steps = steps_of(row, options, costs)
                    row.steps = str(steps or "")
                    yield Comparison(row, steps)

        # What becomes of two levels with other plans than their own
        steps = split_forwards(TWO_LEVEL, options.ablation_budget, options)
        for plan in (ORACLE, SHUFFLED, UNTOLD):
            yield Comparison(
                Row(PLANS_TOLD, length, options.ablation_budget, plan, str(steps)), steps, plan
            )
