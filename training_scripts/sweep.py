"""Search the hyper-parameters of a recipe with Optuna, on one machine, in as many sittings and terminals as you like.

    python training_scripts/sweep.py --output_dir runs/sweep --num_trials 20 --dataset chitchat --max_train_minutes 1

All options of the recipe are options here and the same in every trial; one that is given is not searched. A trial is
worth its last validation bound in nats per token. Bounds compare across widths, schedules and optimizers, but only on
the same texts cut by the same vocabulary: so `vocab_size` is not searched, and a study refuses changed options. The
noise of an estimated bound is that of its schedule and of `validation_rows`: mind the standard errors.

The study is `output_dir`/study.db; the same command goes on with it until `num_trials` trials are complete or pruned.
A trial that diverges or runs out of memory counts as pruned, so that the sampler learns to avoid its options. One that
was interrupted does not count and is not repeated: what the system killed for its memory, it would kill again. A trial
that runs holds a file lock; the system frees it however the process ends, so that a dead trial is known at once.

A trial keeps its pipeline and metrics in `output_dir`/trial-0007, but no checkpoints; it writes no texts and has no
tracker unless asked to. The table, trials.csv and sweep.png are made after each trial, or alone by `--num_trials 0`.
"""

import csv
import gc
import importlib
import math
import os
import shlex
import shutil
import sys
from argparse import ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import optuna
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from text_diffusers.evaluation.plots import plot_trials
from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER
from text_diffusers.training.config import (
    OptionParser,
    TrainingConfig,
    check_options,
    marked_options,
    option,
)

# Least and most, on a logarithmic scale.
LEARNING_RATES = {"adamw": (1e-4, 1e-2), "sgd": (1e-2, 1.0)}
# What may be searched, in this order: an optimizer is chosen before its learning rate. Choices that are left open here
# are those of the command line. Estimates under the schedule sqrt are several times as noisy as under the others.
SPACE: dict[str, list] = {
    "optimizer": list(LEARNING_RATES),
    "learning_rate": [],
    "hidden_size": [],
    "num_layers": [],
    "schedule": ["linear", "cosine", "sigmoid", "geometric"],
    "beta_schedule": ["sqrt", "cosine", "sigmoid"],
    "self_conditioning": [0.0, 0.5],
}

# A trial leaves out what only a reader of a single run looks at.
TRIAL_DEFAULTS = {
    "checkpointing_steps": 0,
    "num_samples": 0,
    "num_length_samples": 0,
    "report_to": ["none"],
}
BUDGET = ("max_train_steps", "max_train_minutes")
# Bounds do not depend on these, so a study goes on with others.
MAY_CHANGE = {
    *TRIAL_DEFAULTS,
    "output_dir",
    "checkpoints_total_limit",
    "project",
    "num_cpu_threads",
}
# Trials are compared by share of the budget: equal steps are unequal progress for unlike models.
PRUNING_POINTS = 10

# Trials that `num_trials` counts; a failed one says nothing of its options.
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
# How a training ends, and whether that is due to the trial's options.
OUTCOMES = {
    optuna.TrialPruned: ("pruned", True),
    FloatingPointError: ("diverged", True),
    (SystemExit, KeyboardInterrupt): ("interrupted", False),
    BaseException: ("error", False),
}
COLUMNS = ("trial", "outcome", "bound", "standard_error", "steps", "minutes")
SQLITE_SECONDS = 60  # that a process waits for the others


@dataclass
class SweepConfig:
    """Options of the search; those of the trials are the recipe's."""

    # The study
    num_trials: int = option(
        20, "complete or pruned trials that are wanted; 0: only report", limit="at least 0"
    )
    recipe: str = option("train_d3pm", "training script beside this one")
    search: list[str] | None = option(
        None, f"among {', '.join(SPACE)}; default: all that the recipe has"
    )

    # Choices of the sizes, which depend on the machine
    widths: list[int] = option([128, 256, 384], "choices of hidden_size")
    depths: list[int] = option([2, 4, 6, 8], "choices of num_layers")

    # Pruning
    prune_after_trials: int = option(
        5,
        "complete trials that reached a share of the budget before any is pruned there",
        limit="at least 1",
    )
    prune_warmup: float = option(
        0.3, "share of the budget before which none is pruned", limit="between 0 and 1"
    )

    def __post_init__(self):
        check_options(self)
        for name in ("widths", "depths"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


class Manual(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Prints the text above as it stands, and the defaults."""


@dataclass
class Sweep:
    """The search that a command line asks for.

    Attributes:
        config: options of the search.
        recipe: module of the training script.
        base: options of every trial, apart from its folder and what is searched.
        given: the recipe's options on the command line.
        space: the searched options with their choices.
    """

    config: SweepConfig
    recipe: ModuleType
    base: TrainingConfig
    given: dict[str, Any]
    space: dict[str, list]

    @property
    def folder(self) -> Path:
        return Path(self.base.output_dir)

    @property
    def options(self) -> dict[str, Any]:
        """Everything on which the bounds of a study depend."""
        varying = {*MAY_CHANGE, *self.space}
        fixed = {name: value for name, value in asdict(self.base).items() if name not in varying}
        return {"recipe": self.config.recipe, "search": self.space} | fixed


# The command line


def load_recipe(name: str) -> tuple[ModuleType, type]:
    """The training script of this name, a module beside this one, and its class of options."""
    path = Path(__file__).with_name(f"{name}.py")
    recipes = ", ".join(sorted(script.stem for script in path.parent.glob("train_*.py")))
    if not path.is_file():
        raise ValueError(
            f"`recipe` must be a script beside sweep.py, such as {recipes}; got {name!r}."
        )

    module = importlib.import_module(name)
    hints = get_type_hints(module.main) if hasattr(module, "main") else {}
    if not {"config", "on_validation"} <= hints.keys():
        raise ValueError(
            f"`recipe` must have a `main(config, on_validation)`, such as {recipes}; got {name!r}."
        )
    return module, hints["config"]


def parse(arguments: list[str] | None) -> Sweep:
    """Read and check the whole command line, before anything is written."""
    # The recipe says which other options there are, so it is read first.
    search_options, _ = OptionParser(
        SweepConfig, add_help=False, allow_abbrev=False
    ).parse_known_args(arguments)
    recipe, recipe_config = load_recipe(search_options.recipe)
    parser = OptionParser(
        (SweepConfig, recipe_config),
        usage="%(prog)s --output_dir FOLDER [--option VALUE ...]",
        description=__doc__,
        formatter_class=Manual,
        allow_abbrev=False,
    )

    # Options that are not given stay None: they are searched, or take the default of a trial instead of the recipe's.
    search_names = [option.name for option in fields(SweepConfig)]
    recipe_names = [option.name for option in fields(recipe_config)]
    nothing_given = Namespace(**dict.fromkeys([*search_names, *recipe_names]))
    parsed = parser.parse_args(arguments, nothing_given)
    given = {name: value for name, value in vars(parsed).items() if value is not None}

    # Trials run one after the other, so what belongs to a single start has no place here.
    if (processes := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ValueError(
            f"A sweep is 1 process, got {processes}: start it in several terminals instead."
        )
    for name in marked_options(recipe_config, "of_one_start"):
        if name in given:
            raise ValueError(f"`{name}` is for single runs: the same command goes on with a sweep.")

    config = SweepConfig(**{name: given[name] for name in search_names if name in given})
    recipe_given = {name: given[name] for name in recipe_names if name in given}
    base = recipe_config(**TRIAL_DEFAULTS | recipe_given)
    return Sweep(config, recipe, base, given=recipe_given, space=search_space(config, base, given))


def search_space(
    config: SweepConfig, base: TrainingConfig, given: dict[str, Any]
) -> dict[str, list]:
    """The searched options with their choices, each of which every trial can begin with."""
    existing = [name for name in SPACE if hasattr(base, name)]
    for name in config.search or []:
        if name not in existing:
            raise ValueError(
                f"`search` must name options among {', '.join(existing)}; got {name!r}."
            )
        if name in given:
            raise ValueError(
                f"`{name}` is in `search` and given as {given[name]!r}: search it or fix it."
            )

    searched = [
        name for name in existing if name in (config.search or existing) and name not in given
    ]
    if not searched:
        raise ValueError("`search` has nothing left: all that could be searched is given.")

    # The least and the most of every optimizer stand for its range of learning rates.
    optimizers = LEARNING_RATES if "optimizer" in searched else [base.optimizer]
    choices = SPACE | {
        "hidden_size": config.widths,
        "num_layers": config.depths,
        "learning_rate": [rate for optimizer in optimizers for rate in LEARNING_RATES[optimizer]],
    }
    for choice_list, name in (("widths", "hidden_size"), ("depths", "num_layers")):
        if choice_list in given and name not in searched:
            raise ValueError(
                f"`{choice_list}`={given[choice_list]} are choices of `{name}`, which is not searched."
            )

    # Rotary positions turn the features of a head in pairs.
    multiple = 2 * getattr(base, "num_attention_heads", 1)
    if "hidden_size" in searched and any(width % multiple for width in config.widths):
        raise ValueError(
            f"`widths` must be multiples of 2 `num_attention_heads`={multiple}, got {config.widths}."
        )

    # Better refused here, by the recipe's own checks, than in the middle of the night.
    for name in searched:
        for choice in choices[name]:
            replace(base, **{name: choice})
    return {name: choices[name] for name in searched}


# The study, which several processes share


def lock_of(folder: Path, name: str) -> FileLock:
    """A lock among the processes that work on a study: of the study itself, or of a trial."""
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "locks" / name)


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


def open_study(sweep: Sweep) -> optuna.Study:
    """The study of the output folder, new or with the same options as before."""
    folder = sweep.folder
    database = folder / "study.db"
    # Nothing to report on, or trials without the study that they belong to
    if not database.exists() and (sweep.config.num_trials == 0 or any(folder.glob("trial-*"))):
        raise ValueError(
            f"`output_dir`={str(folder)!r} has no study.db to report on or to go with its trials."
        )

    # A trial is compared with the median of others at the same point, once there are enough of them.
    min_trials = sweep.config.prune_after_trials
    warmup = math.ceil(sweep.config.prune_warmup * PRUNING_POINTS)
    pruner = optuna.pruners.MedianPruner(min_trials, warmup, n_min_trials=min_trials)

    # Only one process at a time creates the study or compares its options.
    with lock_of(folder, "study"):
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{database}", {"connect_args": {"timeout": SQLITE_SECONDS}}
        )
        study = optuna.create_study(
            storage=storage, study_name="sweep", pruner=pruner, load_if_exists=True
        )
        fail_dead_trials(study, folder)

        if sweep.config.num_trials:
            keep_options(study, sweep)
        elif not study.get_trials(deepcopy=False):
            raise ValueError(
                f"`output_dir`={str(folder)!r} has a study without trials: `num_trials` must be above 0."
            )
    return study


def keep_options(study: optuna.Study, sweep: Sweep):
    """Note the options of the sweep in its study, which must be the same as those of its trials."""
    if study.get_trials(deepcopy=False, states=COUNTED):
        noted = study.user_attrs["options"]
        for name, value in sweep.options.items():
            if noted.get(name) != value:
                raise ValueError(
                    f"`{name}` must stay {noted.get(name)!r} in the study of `output_dir`={str(sweep.folder)!r}, got "
                    f"{value!r}: bounds compare under the same options only. Choose another folder."
                )

    # A study without trials that count takes the options of this command line.
    study.set_user_attr("options", sweep.options)
    study.set_user_attr("given", sweep.given)


def fail_dead_trials(study: optuna.Study, folder: Path):
    """Mark running trials whose process is gone as failed. The caller holds the lock of the study."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = trial_name(trial.number)
        try:
            # A lock that can be taken has lost its process; the system freed it.
            with lock_of(folder, name).acquire(blocking=False):
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                shutil.rmtree(folder / name / CHECKPOINT_FOLDER, ignore_errors=True)
        except Timeout:
            continue  # its process lives


def claim_trial(
    sweep: Sweep, study: optuna.Study
) -> tuple[optuna.Trial, TrainingConfig, Any] | None:
    """The next trial, its configuration and its lock, held; `None` if enough trials are finished or running."""
    # Counted and claimed under one lock, so that two processes never run one trial too many.
    with lock_of(sweep.folder, "study"):
        fail_dead_trials(study, sweep.folder)
        if len(study.get_trials(deepcopy=False, states=COUNTED)) >= sweep.config.num_trials:
            return None

        # A seed for each trial: with one for each session, all sessions would begin with the same draws.
        study.sampler = optuna.samplers.TPESampler(
            seed=sweep.base.seed + len(study.get_trials(deepcopy=False))
        )
        trial = study.ask()
        name = trial_name(trial.number)
        # Held while the trial runs: it tells the others that the trial lives.
        lock = lock_of(sweep.folder, name).acquire(blocking=False)

        chosen = {}
        for option, choices in sweep.space.items():
            if option == "learning_rate":
                # Each optimizer has its own range, so to Optuna these are different options.
                optimizer = chosen.get("optimizer", sweep.base.optimizer)
                low, high = LEARNING_RATES[optimizer]
                chosen[option] = trial.suggest_float(f"{option} ({optimizer})", low, high, log=True)
            else:
                chosen[option] = trial.suggest_categorical(option, choices)

    print(f"\n{name}: " + ", ".join(f"{option} {cell(value)}" for option, value in chosen.items()))
    return trial, replace(sweep.base, output_dir=str(sweep.folder / name), **chosen), lock


# A trial


def run_trial(recipe: ModuleType, study: optuna.Study, trial: optuna.Trial, config: TrainingConfig):
    """Train, and tell the study how it ended; an end that says nothing about the trial's options is raised again."""
    # The recipe may change the threads of this process, which the next trial needs again.
    threads = torch.get_num_threads()
    latest = {}

    def on_validation(step: int, metrics: dict[str, float]):
        # A bound that is no number ends the trial, and teaches the sampler to keep away.
        bound = metrics["bound"]
        trial.set_user_attr("steps", step)
        trial.set_user_attr("standard_error", metrics.get("standard_error"))
        if not math.isfinite(bound):
            raise FloatingPointError(f"Step {step}: the validation bound is {bound}.")

        share = metrics["progress"]
        point = int(share * PRUNING_POINTS)
        # Validations may be many more than points; the first of each is reported.
        reported = point == latest.get("point")
        latest.update(bound=bound, point=point)
        if reported:
            return

        # At the end there is nothing left to save.
        trial.report(bound, point)
        if share < 1 and trial.should_prune():
            raise optuna.TrialPruned(
                f"{bound:.4f} at {share:.0%} of the budget is worse than the median."
            )

    try:
        # A trial is worth its last bound, that of the whole budget.
        recipe.main(config, on_validation)
        study.tell(trial, latest["bound"])
    except BaseException as error:
        outcome, counts = judge(error)
        trial.set_user_attr("outcome", outcome)
        trial.set_user_attr("reason", " ".join(str(error).split()) or type(error).__name__)
        study.tell(trial, state=TrialState.PRUNED if counts else TrialState.FAIL)
        finish_trackers()

        print(f"{trial_name(trial.number)}: {outcome}. {error}")
        if not counts:
            print("This trial will not be continued; the same command goes on with the sweep.")
            raise
    finally:
        clean_up(config, threads)


def judge(error: BaseException) -> tuple[str, bool]:
    """The name of a training's end by this exception, and whether it is due to the trial's options."""
    # An error may have been raised from another, which tells that the memory was too small.
    for link in (error, error.__cause__):
        if isinstance(link, MemoryError) or should_reduce_batch_size(link):
            return "out of memory", True
    # The kinds stand from the narrow to the wide, so the first that fits is the one.
    return next(outcome for kind, outcome in OUTCOMES.items() if isinstance(error, kind))


def finish_trackers():
    """Close the trackers of a broken run, which nobody else can reach."""
    # A failed recipe returns nothing, so its trackers are searched among all objects.
    for candidate in gc.get_objects():
        if issubclass(type(candidate), GeneralTracker):
            candidate.finish()


def clean_up(config: TrainingConfig, threads: int):
    """Leave nothing of a training in this process, and no checkpoints on the disk."""
    # Accelerate keeps its state in class attributes, which would outlive the trial.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(threads)
    clear_device_cache(garbage_collection=True)
    shutil.rmtree(Path(config.output_dir, CHECKPOINT_FOLDER), ignore_errors=True)


# The report


def settings_of(trial: FrozenTrial) -> dict[str, Any]:
    """The searched options of a trial: "learning_rate (sgd)" is a `learning_rate`."""
    return {name.split()[0]: value for name, value in trial.params.items()}


def outcome_of(trial: FrozenTrial) -> str:
    """How a trial ended; of one that was killed, nobody could take a note."""
    if trial.state in (TrialState.PRUNED, TrialState.FAIL):
        return trial.user_attrs.get("outcome", "killed")
    return trial.state.name.lower()


def table(study: optuna.Study) -> list[dict[str, Any]]:
    """A row a trial: first the complete ones, then the pruned ones, each by their bound, then the rest."""
    columns = (*COLUMNS, *study.user_attrs["options"]["search"], "reason")
    rows = []
    for trial in study.get_trials(deepcopy=False):
        row = dict.fromkeys(columns) | trial.user_attrs | settings_of(trial)
        row |= {"trial": trial.number, "outcome": outcome_of(trial)}
        if trial.state.is_finished():
            row["bound"] = trial.value
            row["minutes"] = trial.duration.total_seconds() / 60
        # A standard error without its bound says nothing.
        if row["bound"] is None:
            row["standard_error"] = None
        rows.append(row)

    def rank(row: dict[str, Any]) -> tuple[int, float]:
        order = {"complete": 0, "pruned": 1}.get(row["outcome"], 2)
        return order, math.inf if row["bound"] is None else row["bound"]

    return sorted(rows, key=rank)


def cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(study: optuna.Study, folder: Path):
    """Write trials.csv and sweep.png; print the table and the command that trains the best configuration."""
    with lock_of(folder, "study"):
        rows = table(study)
        names = list(rows[0])
        with open(folder / "trials.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        draw(study, folder / "sweep.png")

    # The reasons, which come last, are too long for the screen.
    shown_names = names[:-1]
    lines = [shown_names, *([cell(row[name]) for name in shown_names] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print("  ".join(map(str.rjust, line, widths)))
    print(
        f"Bounds in nats per token. With reasons: {folder / 'trials.csv'}. Drawn: {folder / 'sweep.png'}."
    )

    complete = [row for row in rows if row["outcome"] == "complete"]
    if not complete:
        return

    # Differences of noisy estimates that may be chance.
    best, *others = complete
    num_close = 0
    for row in others:
        deviation = math.hypot(best["standard_error"] or 0, row["standard_error"] or 0)
        num_close += row["bound"] - best["bound"] < 2 * deviation
    print(
        f"Of {len(others)} other complete trials, {num_close} are within two standard errors of the best."
    )
    print(f"The best, at the recipe's length unless you add --{' or --'.join(BUDGET)}:")
    print(f"  {best_command(study, folder)}")


def draw(study: optuna.Study, path: Path):
    """Draw the finished trials against every option that was searched."""
    rows = []
    distributions = {}
    for trial in study.get_trials(deepcopy=False, states=COUNTED[:2]):
        row = {"trial": trial.number, "outcome": outcome_of(trial), "bound": trial.value}
        rows.append(row | trial.params)
        distributions |= trial.distributions

    space = {}
    order = list(SPACE)
    for name in sorted(distributions, key=lambda name: (order.index(name.split()[0]), name)):
        choices = distributions[name]
        categorical = isinstance(choices, CategoricalDistribution)
        space[name] = list(choices.choices) if categorical else (choices.low, choices.high)
    plot_trials(rows, space, path)


def best_command(study: optuna.Study, folder: Path) -> str:
    """The command that trains the best configuration with the recipe's own budget, not that of a trial."""
    options = study.user_attrs["given"] | settings_of(study.best_trial)
    options["output_dir"] = str(folder / "best")
    for name in BUDGET:
        options.pop(name, None)

    script = Path(__file__).with_name(f"{study.user_attrs['options']['recipe']}.py")
    words = ["accelerate", "launch", os.path.relpath(script)]
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def main(arguments: list[str] | None = None) -> optuna.Study:
    """Run trials until there are enough, and report after each; returns the study."""
    sweep = parse(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = open_study(sweep)

    claim = claim_trial(sweep, study)
    if claim is None:
        report(study, sweep.folder)
    while claim:
        trial, config, lock = claim
        with lock:
            run_trial(sweep.recipe, study, trial, config)
        report(study, sweep.folder)
        claim = claim_trial(sweep, study)
    return study


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"sweep.py: {error}")
