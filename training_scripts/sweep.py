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
import importlib.util
import math
import os
import shlex
import shutil
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import numpy as np
import optuna
import torch
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import GeneralTracker
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from filelock import FileLock, Timeout
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from transformers import HfArgumentParser

from text_diffusers.evaluation.visualization import plot_trials
from text_diffusers.training.checkpoints import CHECKPOINT_FOLDER
from text_diffusers.training.config import TrainingConfig

LEARNING_RATES = {"adamw": (1e-4, 1e-2), "sgd": (1e-2, 1.0)}  # least and most, on a logarithmic scale
SPACE: dict[str, list] = {  # in this order: an optimizer is chosen before its learning rate
    "optimizer": list(LEARNING_RATES),
    "learning_rate": [],
    "hidden_size": [],  # `widths`
    "num_layers": [],  # `depths`
    "schedule": ["linear", "cosine", "sigmoid", "geometric"],  # estimates under sqrt are several times as noisy
    "beta_schedule": ["sqrt", "cosine", "sigmoid"],
    "self_conditioning": [0.0, 0.5],
}
TRIAL_DEFAULTS = {"checkpointing_steps": 0, "num_samples": 0, "num_length_samples": 0, "report_to": ["none"]}
OF_SINGLE_RUNS = ("overwrite_output_dir", "resume_from_checkpoint")
BUDGET = ("max_train_steps", "max_train_minutes")
MAY_CHANGE = {*TRIAL_DEFAULTS, "output_dir", "checkpoints_total_limit", "project", "num_cpu_threads"}
PRUNING_POINTS = 10  # trials are compared by share of the budget: equal steps are unequal progress for unlike models
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
OUTCOMES = {  # how a training ends, and whether that is due to the trial's options
    optuna.TrialPruned: ("pruned", True),
    FloatingPointError: ("diverged", True),
    (SystemExit, KeyboardInterrupt): ("interrupted", False),
    BaseException: ("error", False),
}
COLUMNS = ("trial", "outcome", "bound", "standard_error", "steps", "minutes")
SQLITE_SECONDS = 60


@dataclass
class SweepConfig:
    """Options of the search; those of the trials are the recipe's."""

    _argument_group_name = "search"

    num_trials: int = field(default=20, metadata={"help": "complete or pruned trials that are wanted; 0: only report"})
    recipe: str = field(default="train_d3pm", metadata={"help": "training script beside this one"})
    search: list[str] | None = field(
        default=None, metadata={"help": f"among {', '.join(SPACE)}; default: all that the recipe has"}
    )
    widths: list[int] = field(default_factory=lambda: [128, 256, 384], metadata={"help": "choices of hidden_size"})
    depths: list[int] = field(default_factory=lambda: [2, 4, 6, 8], metadata={"help": "choices of num_layers"})
    prune_after_trials: int = field(
        default=5, metadata={"help": "complete trials that reached a share of the budget before any is pruned there"}
    )
    prune_warmup: float = field(default=0.3, metadata={"help": "share of the budget before which none is pruned"})

    def __post_init__(self):
        leasts = {"num_trials": 0, "prune_after_trials": 1, "widths": 1, "depths": 1}
        for name, least in leasts.items():
            if np.min(getattr(self, name)) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 <= self.prune_warmup <= 1:
            raise ValueError(f"`prune_warmup` must be in [0, 1], got {self.prune_warmup}.")


class Manual(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Prints the text above as it stands, and the defaults."""


@dataclass
class Sweep:
    """What the command line asks for."""

    config: SweepConfig
    recipe: ModuleType
    base: TrainingConfig  # of every trial, apart from its folder and what is searched
    given: dict[str, Any]  # the recipe's options on the command line
    space: dict[str, list]  # searched options with their choices

    @property
    def folder(self) -> Path:
        return Path(self.base.output_dir)

    @property
    def options(self) -> dict[str, Any]:
        """Everything on which the bounds of a study depend."""
        fixed = {name: value for name, value in asdict(self.base).items() if name not in {*MAY_CHANGE, *self.space}}
        return {"recipe": self.config.recipe, "search": self.space} | fixed


def load_recipe(name: str) -> tuple[ModuleType, type]:
    """The training script of this name, imported from its file, and its class of options."""
    path = Path(__file__).parent / f"{name}.py"
    known = ", ".join(sorted(script.stem for script in path.parent.glob("train_*.py")))
    if not path.is_file():
        raise ValueError(f"`recipe` must be a script beside sweep.py, such as {known}; got {name!r}.")
    spec: Any = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    hints = get_type_hints(module.main) if hasattr(module, "main") else {}
    if not {"config", "on_validation"} <= hints.keys():
        raise ValueError(f"`recipe` must have a `main(config, on_validation)`, such as {known}; got {name!r}.")
    return module, hints["config"]


def parse(arguments: list[str] | None) -> Sweep:
    """Read and check the whole command line, before anything is written."""
    first, _ = HfArgumentParser(SweepConfig, add_help=False, allow_abbrev=False).parse_known_args(arguments)
    recipe, recipe_config = load_recipe(first.recipe)
    own, others = ([option.name for option in fields(kind)] for kind in (SweepConfig, recipe_config))
    manual = {"usage": "%(prog)s --output_dir FOLDER [--option VALUE ...]", "description": __doc__}
    parser = HfArgumentParser((SweepConfig, recipe_config), formatter_class=Manual, allow_abbrev=False, **manual)
    parser.parse_args(arguments)  # --help ends here, while the defaults are known
    parser.set_defaults(**dict.fromkeys([*own, *others]))
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    if (processes := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise ValueError(f"A sweep is 1 process, got {processes}: start it in several terminals instead.")
    if wrong := [name for name in OF_SINGLE_RUNS if name in given]:
        raise ValueError(f"`{wrong[0]}` is for single runs: the same command goes on with a sweep.")
    config = SweepConfig(**{name: given[name] for name in own if name in given})
    base = recipe_config(**{name: value for name, value in (TRIAL_DEFAULTS | given).items() if name in others})
    space = search_space(config, base, given)
    return Sweep(config, recipe, base, {name: given[name] for name in others if name in given}, space)


def search_space(config: SweepConfig, base: TrainingConfig, given: dict[str, Any]) -> dict[str, list]:
    """The searched options with their choices, each of which every trial can begin with."""
    existing = [name for name in SPACE if hasattr(base, name)]
    for name in config.search or []:
        if name not in existing:
            raise ValueError(f"`search` must name options among {', '.join(existing)}; got {name!r}.")
        if name in given:
            raise ValueError(f"`{name}` is in `search` and given as {given[name]!r}: search it or fix it.")
    searched = [name for name in existing if name in (config.search or existing) and name not in given]
    if not searched:
        raise ValueError("`search` has nothing left: all that could be searched is given.")
    choices = SPACE | {"hidden_size": config.widths, "num_layers": config.depths}
    optimizers = LEARNING_RATES if "optimizer" in searched else [base.optimizer]
    choices["learning_rate"] = [rate for optimizer in optimizers for rate in LEARNING_RATES[optimizer]]
    for option, name in (("widths", "hidden_size"), ("depths", "num_layers")):
        if option in given and name not in searched:
            raise ValueError(f"`{option}`={given[option]} are choices of `{name}`, which is not searched.")
    multiple = 2 * getattr(base, "num_attention_heads", 1)
    if "hidden_size" in searched and any(width % multiple for width in config.widths):
        raise ValueError(f"`widths` must be multiples of 2 `num_attention_heads`={multiple}, got {config.widths}.")
    for name in searched:
        for choice in choices[name]:
            replace(base, **{name: choice})  # the recipe's own checks
    return {name: choices[name] for name in searched}


def lock_of(folder: Path, name: str) -> FileLock:
    """A lock among the processes that work on a study: of the study itself, or of a trial."""
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "locks" / name)


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


def open_study(sweep: Sweep) -> optuna.Study:
    """The study of the output folder, new or with the same options as before."""
    folder, database, enough = sweep.folder, sweep.folder / "study.db", sweep.config.prune_after_trials
    if not database.exists() and (sweep.config.num_trials == 0 or any(folder.glob("trial-*"))):
        raise ValueError(f"`output_dir`={str(folder)!r} has no study.db to report on or to go with its trials.")
    warmup = math.ceil(sweep.config.prune_warmup * PRUNING_POINTS)
    pruner = optuna.pruners.MedianPruner(enough, warmup, n_min_trials=enough)
    with lock_of(folder, "study"):
        storage = optuna.storages.RDBStorage(f"sqlite:///{database}", {"connect_args": {"timeout": SQLITE_SECONDS}})
        study = optuna.create_study(storage=storage, study_name="sweep", pruner=pruner, load_if_exists=True)
        fail_dead_trials(study, folder)
        if sweep.config.num_trials == 0 and not study.get_trials(deepcopy=False):
            raise ValueError(f"`output_dir`={str(folder)!r} has a study without trials: `num_trials` must be above 0.")
        if sweep.config.num_trials:
            kept = study.user_attrs["options"] if study.get_trials(deepcopy=False, states=COUNTED) else sweep.options
            for name, now in sweep.options.items():
                if kept.get(name) != now:
                    raise ValueError(
                        f"`{name}` must stay {kept.get(name)!r} in the study of `output_dir`={str(folder)!r}, got "
                        f"{now!r}: bounds compare under the same options only. Choose another folder."
                    )
            study.set_user_attr("options", sweep.options)
            study.set_user_attr("given", sweep.given)
    return study


def fail_dead_trials(study: optuna.Study, folder: Path):
    """Mark running trials whose process is gone as failed. The caller holds the lock of the study."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = trial_name(trial.number)
        try:
            with lock_of(folder, name).acquire(blocking=False):
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                shutil.rmtree(folder / name / CHECKPOINT_FOLDER, ignore_errors=True)
        except Timeout:
            continue  # its process lives


def claim_trial(sweep: Sweep, study: optuna.Study) -> tuple[optuna.Trial, TrainingConfig, Any] | None:
    """The next trial, its configuration and its lock, held; `None` if enough trials are finished or running."""
    with lock_of(sweep.folder, "study"):
        fail_dead_trials(study, sweep.folder)
        if len(study.get_trials(deepcopy=False, states=COUNTED)) >= sweep.config.num_trials:
            return None
        # A seed for each trial: with one for each session, all sessions would begin with the same draws.
        study.sampler = optuna.samplers.TPESampler(seed=sweep.base.seed + len(study.get_trials(deepcopy=False)))
        trial, chosen = study.ask(), {}
        name_of_trial = trial_name(trial.number)
        held = lock_of(sweep.folder, name_of_trial).acquire(blocking=False)
        for name, choices in sweep.space.items():
            if name == "learning_rate":
                optimizer = chosen.get("optimizer", sweep.base.optimizer)
                chosen[name] = trial.suggest_float(f"{name} ({optimizer})", *LEARNING_RATES[optimizer], log=True)
            else:
                chosen[name] = trial.suggest_categorical(name, choices)
    print(f"\n{name_of_trial}: " + ", ".join(f"{name} {cell(value)}" for name, value in chosen.items()))
    return trial, replace(sweep.base, output_dir=str(sweep.folder / name_of_trial), **chosen), held


def run_trial(recipe: ModuleType, study: optuna.Study, trial: optuna.Trial, config: TrainingConfig):
    """Train, and tell the study how it ended; an end that says nothing about the trial's options is raised again."""
    latest, threads = {}, torch.get_num_threads()

    def on_validation(step: int, metrics: dict[str, float]):
        bound, share = metrics["bound"], metrics["progress"]
        trial.set_user_attr("steps", step)
        trial.set_user_attr("standard_error", metrics.get("standard_error"))
        if not math.isfinite(bound):
            raise FloatingPointError(f"Step {step}: the validation bound is {bound}.")
        point, before = int(share * PRUNING_POINTS), latest.get("point")
        latest.update(bound=bound, point=point)
        if point != before:
            trial.report(bound, point)
            if share < 1 and trial.should_prune():
                raise optuna.TrialPruned(f"{bound:.4f} at {share:.0%} of the budget is worse than the median.")

    try:
        recipe.main(config, on_validation)
        study.tell(trial, latest["bound"])
    except BaseException as error:
        outcome, counts = judge(error)
        trial.set_user_attr("outcome", outcome)
        trial.set_user_attr("reason", " ".join(str(error).split()) or type(error).__name__)
        study.tell(trial, state=TrialState.PRUNED if counts else TrialState.FAIL)
        for tracker in [thing for thing in gc.get_objects() if issubclass(type(thing), GeneralTracker)]:
            tracker.finish()  # nobody else can reach those of a broken run
        print(f"{trial_name(trial.number)}: {outcome}. {error}")
        if not counts:
            print("This trial will not be continued; the same command goes on with the sweep.")
            raise
    finally:
        clean_up(config, threads)


def judge(error: BaseException) -> tuple[str, bool]:
    """What the end of a training by this exception is called, and whether it is due to the trial's options."""
    if any(isinstance(link, MemoryError) or should_reduce_batch_size(link) for link in (error, error.__cause__)):
        return "out of memory", True
    return next(outcome for kind, outcome in OUTCOMES.items() if isinstance(error, kind))


def clean_up(config: TrainingConfig, threads: int):
    """Leave nothing of a training in this process, and no checkpoints on the disk."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.set_num_threads(threads)
    clear_device_cache(garbage_collection=True)
    shutil.rmtree(Path(config.output_dir, CHECKPOINT_FOLDER), ignore_errors=True)


def settings_of(trial: FrozenTrial) -> dict[str, Any]:
    """The searched options of a trial: "learning_rate (sgd)" is a `learning_rate`."""
    return {name.split()[0]: value for name, value in trial.params.items()}


def outcome_of(trial: FrozenTrial) -> str:
    """How a trial ended; of one that was killed, nobody could take a note."""
    known = {TrialState.COMPLETE: "complete", TrialState.RUNNING: "running", TrialState.WAITING: "waiting"}
    return known.get(trial.state) or trial.user_attrs.get("outcome", "killed")


def table(study: optuna.Study) -> list[dict[str, Any]]:
    """A row a trial: first the complete ones, then the pruned ones, each by their bound, then the rest."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        row = dict.fromkeys((*COLUMNS, *study.user_attrs["options"]["search"], "reason")) | trial.user_attrs
        row |= {"trial": trial.number, "outcome": outcome_of(trial)} | settings_of(trial)
        if trial.state.is_finished():
            row |= {"bound": trial.value, "minutes": trial.duration.total_seconds() / 60}
        rows.append(row if row["bound"] is not None else row | {"standard_error": None})
    rank = {"complete": 0, "pruned": 1}
    return sorted(rows, key=lambda r: (rank.get(r["outcome"], 2), math.inf if r["bound"] is None else r["bound"]))


def cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


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
    lines = [names[:-1], *([cell(row[name]) for name in names[:-1]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print("\n" + "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines))
    print(f"Bounds in nats per token. With reasons: {folder / 'trials.csv'}. Drawn: {folder / 'sweep.png'}.")
    complete = [row for row in rows if row["outcome"] == "complete"]
    if complete:
        errors = [row["standard_error"] or 0 for row in complete]
        gaps = [row["bound"] - complete[0]["bound"] for row in complete[1:]]
        close = sum(gap < 2 * math.hypot(errors[0], error) for gap, error in zip(gaps, errors[1:], strict=True))
        print(f"Of {len(gaps)} other complete trials, {close} are within two standard errors of the best.")
        print(f"The best, at the recipe's length unless you add {' or '.join(f'--{name}' for name in BUDGET)}:")
        print(f"  {best_command(study, folder)}")


def draw(study: optuna.Study, path: Path):
    """Draw the finished trials against every option that was searched."""
    trials = study.get_trials(deepcopy=False, states=COUNTED[:2])
    spaces = {name: space for trial in trials for name, space in trial.distributions.items()}
    names = sorted(spaces, key=lambda name: (list(SPACE).index(name.split()[0]), name))
    space: dict[str, Any] = {
        name: list(s.choices) if isinstance(s, CategoricalDistribution) else (s.low, s.high)
        for name, s in ((name, spaces[name]) for name in names)
    }
    rows = [{"trial": t.number, "outcome": outcome_of(t), "bound": t.value} | t.params for t in trials]
    plot_trials(rows, space, path)


def best_command(study: optuna.Study, folder: Path) -> str:
    """The command that trains the best configuration with the recipe's own budget, not that of a trial."""
    script = Path(__file__).with_name(f"{study.user_attrs['options']['recipe']}.py")
    options = {name: value for name, value in study.user_attrs["given"].items() if name not in BUDGET}
    options |= {"output_dir": str(folder / "best")} | settings_of(study.best_trial)
    words = ["accelerate", "launch", os.path.relpath(script)]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
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
        trial, config, held = claim
        with held:
            run_trial(sweep.recipe, study, trial, config)
        report(study, sweep.folder)
        claim = claim_trial(sweep, study)
    return study


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"sweep.py: {error}")
