"""A sweep of tiny trials: it finishes, goes on, forgets the dead, prunes, and says what went wrong."""

import csv
import importlib.util
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from text_diffusers import TextDiffusionPipeline
from text_diffusers.training.config import OPTIMIZERS, OptionParser

# Processes, servers and browsers take their time; continuous integration runs all of these.
pytestmark = pytest.mark.slow

optuna = pytest.importorskip("optuna")
COMPLETE, FAIL = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
PRUNED, RUNNING = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.RUNNING

SCRIPT = Path(__file__).parent.parent.parent / "training_scripts" / "sweep.py"
spec = importlib.util.spec_from_file_location("sweep", SCRIPT)
sweep = importlib.util.module_from_spec(spec)
sys.modules["sweep"] = sweep
spec.loader.exec_module(sweep)
train_d3pm, D3PMConfig = sweep.load_recipe("train_d3pm")


@pytest.fixture
def arguments(text_file, tmp_path):
    """The command line of a tiny sweep; an option that is `None` is left out."""

    def make(**changes):
        options = {
            "output_dir": tmp_path / "sweep",
            "num_trials": 1,
            "widths": [16, 32],
            "depths": [1, 2],
        }
        options |= {"dataset": text_file, "vocab_size": 300, "length": 16, "num_attention_heads": 2}
        options |= {
            "max_train_steps": 2,
            "validation_steps": 1,
            "train_batch_size": 4,
            "num_cpu_threads": 1,
        }
        words = []
        for name, value in (options | changes).items():
            if value is not None:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words

    return make


@pytest.fixture
def injected(arguments):
    """A function that runs a trial of its `study` with another `main` instead of the recipe's."""
    asked = sweep.parse(
        arguments(num_trials=100, prune_after_trials=2, prune_warmup=0.5, max_train_steps=10)
    )
    study = sweep.open_study(asked)

    def run(main):
        trial, config, held = sweep.claim_trial(asked, study)
        with held:
            sweep.run_trial(SimpleNamespace(main=main), study, trial, config)
        return study.trials[trial.number]

    run.study = study
    return run


def validations(bounds):
    """A `main` that takes one step for each of these bounds."""

    def main(config, on_validation):
        for step, bound in enumerate(bounds, start=1):
            on_validation(
                step, {"bound": bound, "standard_error": 0.1, "progress": step / len(bounds)}
            )

    return main


def raising(error):
    def main(config, on_validation):
        raise error

    return main


def allocate(config, on_validation):
    torch.empty(2**58)


def allocate_as_the_loop_does(config, on_validation):
    try:
        torch.empty(2**58)
    except RuntimeError as error:
        raise RuntimeError("Step 3: out of memory with a single row in a micro-batch.") from error


def read_table(folder):
    with open(folder / "trials.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_trials_give_a_table_a_picture_and_a_command_and_the_same_command_goes_on(
    arguments, tmp_path, capsys
):
    folder, threads = tmp_path / "sweep", torch.get_num_threads()
    first = sweep.main(arguments(num_trials=3)).trials
    printed = capsys.readouterr().out
    assert [trial.state for trial in first] == [COMPLETE] * 3
    rows = read_table(folder)
    best = min(first, key=lambda trial: trial.value)
    assert [float(row["bound"]) for row in rows] == sorted(trial.value for trial in first)
    assert (
        int(rows[0]["trial"]) == best.number
        and rows[0]["steps"] == "2"
        and rows[0]["outcome"] == "complete"
    )
    trained = folder / sweep.trial_name(best.number)
    assert json.loads((trained / "metrics.json").read_text())["bound"] == pytest.approx(
        best.value, abs=1e-6
    )
    assert {path.name for path in trained.iterdir()} >= {
        "model_index.json",
        "denoiser",
        "scheduler",
        "tokenizer",
    }
    assert not list(folder.rglob("checkpoints")) and not list(folder.rglob("events*"))
    denoiser = TextDiffusionPipeline.from_pretrained(trained).denoiser
    assert str(denoiser.config.hidden_size) == rows[0]["hidden_size"]
    picture = (folder / "sweep.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000

    assert "Of 2 other complete trials, " in printed
    command = shlex.split(printed.strip().splitlines()[-1])
    assert command[:2] == ["accelerate", "launch"] and Path(
        command[2]
    ).resolve() == SCRIPT.with_name("train_d3pm.py")
    (full,) = OptionParser(D3PMConfig).parse_args_into_dataclasses(command[3:])
    chosen = sweep.settings_of(best)
    assert {name: getattr(full, name) for name in chosen} == chosen
    assert full.max_train_steps == D3PMConfig.max_train_steps and full.vocab_size == 300
    assert full.output_dir == str(folder / "best") and full.num_samples == D3PMConfig.num_samples

    more = sweep.main(arguments(num_trials=5)).trials
    assert [(trial.params, trial.value) for trial in more[:3]] == [
        (trial.params, trial.value) for trial in first
    ]
    assert len({json.dumps(trial.params) for trial in more}) == 5 and len(read_table(folder)) == 5
    assert torch.get_num_threads() == threads and not AcceleratorState._shared_state

    (folder / "trials.csv").unlink()
    capsys.readouterr()
    assert len(sweep.main(["--output_dir", str(folder), "--num_trials", "0"]).trials) == 5
    assert len(read_table(folder)) == 5 and "accelerate launch" in capsys.readouterr().out


@pytest.mark.slow
def test_choices_depend_on_the_seed_and_the_number_of_a_trial_and_not_on_the_session(
    arguments, tmp_path
):
    def choices(folder, sessions):
        found = []
        for trials in sessions:
            asked = sweep.parse(arguments(output_dir=tmp_path / folder, num_trials=100))
            study = sweep.open_study(asked)
            for _ in range(trials):
                trial, config, held = sweep.claim_trial(asked, study)
                study.tell(trial, config.learning_rate)
                found.append(
                    (config.learning_rate, config.optimizer, config.hidden_size, config.schedule)
                )
                held.lock.release()
        return found

    straight = choices("a", [15])  # more than the sampler's ten random trials
    assert straight == choices("b", [1, 13, 1]) and len(set(straight)) == 15
    assert {optimizer for _, optimizer, _, _ in straight} == {"adamw", "sgd"}
    for rate, optimizer, width, _ in straight:
        least, most = sweep.LEARNING_RATES[optimizer]
        assert least <= rate <= most and width in (16, 32)


@pytest.mark.slow
def test_trials_of_dead_processes_are_given_up_and_those_of_living_ones_are_not(
    arguments, tmp_path
):
    asked = sweep.parse(arguments(num_trials=2))
    study = sweep.open_study(asked)
    for _ in range(2):
        study.ask()
    (tmp_path / "sweep" / "trial-0000" / "checkpoints").mkdir(parents=True)
    lock = tmp_path / "sweep" / "locks" / "trial-0000"
    code = (
        f"import filelock, sys; held = filelock.FileLock({str(lock)!r}).acquire(); "
        "print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        other.stdout.readline()
        sweep.fail_dead_trials(study, asked.folder)
        assert [trial.state for trial in study.trials] == [RUNNING, FAIL]
        assert (
            sweep.claim_trial(sweep.parse(arguments(num_trials=1)), study) is None
        )  # the living one counts
    finally:
        other.kill()
        other.wait()
    study = sweep.main(arguments(num_trials=1))
    assert [trial.state for trial in study.trials] == [FAIL, FAIL, COMPLETE]
    assert [row["outcome"] for row in read_table(tmp_path / "sweep")] == [
        "complete",
        "killed",
        "killed",
    ]
    assert not (tmp_path / "sweep" / "trial-0000" / "checkpoints").exists()


@pytest.mark.slow
def test_a_trial_worse_than_the_median_ends_early(injected):
    for _ in range(2):
        assert injected(validations([5.0] * 4)).state == COMPLETE
    bad = injected(validations([6.0] * 4))
    assert bad.state == PRUNED and bad.user_attrs["steps"] == 2 and bad.value == 6.0
    assert (
        bad.user_attrs["outcome"] == "pruned"
        and "6.0000 at 50% of the budget" in bad.user_attrs["reason"]
    )
    good = injected(validations([6.0, 4.5, 4.5, 4.5]))
    assert good.state == COMPLETE and good.value == 4.5  # it was bad before `prune_warmup` only
    late = injected(validations([5.0, 5.0, 5.0, 6.0]))
    assert late.state == COMPLETE and late.value == 6.0  # at the end there is nothing left to save


@pytest.mark.slow
def test_trials_are_compared_at_the_same_share_of_their_budget(injected):
    def fast(bound):  # five times the steps of the others in the same time
        def main(config, on_validation):
            for step in range(5, 25, 5):
                on_validation(step, {"bound": bound + 5 / step, "progress": step / 20})

        return main

    for _ in range(2):
        injected(validations([5.0 + 1 / step for step in range(1, 5)]))
    assert injected(fast(4.9)).state == COMPLETE
    pruned = injected(fast(5.1))
    assert pruned.state == PRUNED and pruned.user_attrs["steps"] == 10


@pytest.mark.slow
def test_a_pruned_training_stops_and_leaves_nothing_open(arguments, tmp_path):
    options = {
        "prune_after_trials": 1,
        "prune_warmup": 0,
        "report_to": ["tensorboard"],
        "max_train_steps": 50,
    }
    command = arguments(num_trials=2, **options)
    study = sweep.open_study(sweep.parse(command))
    perfect = optuna.create_trial(value=0.0, intermediate_values=dict.fromkeys(range(11), 0.0))
    study.add_trial(perfect)
    trial = sweep.main(command).trials[1]
    assert trial.state == PRUNED and trial.user_attrs["steps"] == 1
    assert "_AsyncWriterThread" not in {type(thread).__name__ for thread in threading.enumerate()}
    assert not AcceleratorState._shared_state
    folder = tmp_path / "sweep" / "trial-0001"
    assert list(folder.rglob("events*")) and not (folder / "model_index.json").exists()
    assert [row["outcome"] for row in read_table(tmp_path / "sweep")] == ["complete", "pruned"]


@pytest.mark.slow
def test_a_diverging_trial_counts_and_its_reason_is_kept(arguments, tmp_path, capsys):
    study = sweep.main(arguments(learning_rate=1e30, max_train_steps=5, validation_steps=0))
    assert [trial.state for trial in study.trials] == [PRUNED]
    (row,) = read_table(tmp_path / "sweep")
    assert (
        row["outcome"] == "diverged"
        and row["reason"].startswith("Step ")
        and "gradient norm" in row["reason"]
    )
    assert "accelerate launch" not in capsys.readouterr().out  # there is no best one


@pytest.mark.parametrize(
    "main", [allocate, allocate_as_the_loop_does, raising(MemoryError("numpy"))]
)
def test_a_trial_without_memory_counts_and_its_reason_is_kept(injected, main):
    trial = injected(main)
    assert (
        trial.state == PRUNED
        and trial.user_attrs["outcome"] == "out of memory"
        and trial.user_attrs["reason"]
    )


def test_a_bound_that_is_not_a_number_is_a_divergence(injected):
    trial = injected(validations([5.0, math.nan, 5.0]))
    assert (
        trial.state == PRUNED
        and trial.user_attrs["outcome"] == "diverged"
        and trial.user_attrs["steps"] == 2
    )


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        pytest.param(KeyboardInterrupt(), "interrupted", marks=pytest.mark.slow),
        (SystemExit(143), "interrupted"),
        pytest.param(KeyError("typo"), "error", marks=pytest.mark.slow),
    ],
    ids=lambda value: str(value),
)
def test_what_says_nothing_about_the_options_ends_the_sweep_and_does_not_count(
    injected, error, outcome
):
    with pytest.raises(type(error)):
        injected(raising(error))
    (trial,) = injected.study.trials
    assert (
        trial.state == FAIL
        and trial.user_attrs["outcome"] == outcome
        and trial.user_attrs["reason"]
    )
    assert injected(validations([5.0])).state == COMPLETE


def test_sigterm_ends_the_sweep_and_the_trial_is_done_anew(arguments, tmp_path):
    asked = sweep.parse(arguments(max_train_steps=50))
    study = sweep.open_study(asked)

    def main(config, on_validation):
        train_d3pm.main(
            config, lambda *result: (on_validation(*result), os.kill(os.getpid(), signal.SIGTERM))
        )

    trial, config, held = sweep.claim_trial(asked, study)
    with held, pytest.raises(SystemExit, match="143"):
        sweep.run_trial(SimpleNamespace(main=main), study, trial, config)
    (stopped,) = study.trials
    assert stopped.state == FAIL and stopped.user_attrs["outcome"] == "interrupted"
    assert (
        stopped.user_attrs["steps"] < 50
        and not (tmp_path / "sweep" / "trial-0000" / "checkpoints").exists()
    )
    assert sweep.claim_trial(asked, study) is not None


def test_only_what_is_not_given_is_searched(arguments):
    asked = sweep.parse(arguments(hidden_size=48, widths=None, schedule="cosine"))
    assert list(asked.space) == ["optimizer", "learning_rate", "num_layers"] and asked.space[
        "num_layers"
    ] == [1, 2]
    assert asked.base.hidden_size == 48 and asked.base.schedule == "cosine"
    narrow = sweep.parse(
        arguments(search=["learning_rate"], optimizer="sgd", widths=None, depths=None)
    )
    assert narrow.space == {"learning_rate": list(sweep.LEARNING_RATES["sgd"])}
    study = sweep.open_study(narrow)
    trial, config, _ = sweep.claim_trial(narrow, study)
    assert list(trial.params) == ["learning_rate (sgd)"] and config.optimizer == "sgd"
    assert asdict(config) == asdict(narrow.base) | {
        "output_dir": config.output_dir
    } | sweep.settings_of(trial)


def test_self_conditioning_is_searched_where_the_recipe_has_it(arguments):
    @dataclass
    class Config(D3PMConfig):
        self_conditioning: float = 0.0
        beta_schedule: str = "sqrt"

    assert "self_conditioning" not in sweep.parse(arguments()).space
    space = sweep.search_space(sweep.SweepConfig(), Config(output_dir="unused"), {})
    assert space["self_conditioning"] == [0.0, 0.5] and list(space) == list(sweep.SPACE)


def test_every_optimizer_has_a_range_of_learning_rates():
    assert sweep.LEARNING_RATES.keys() == OPTIMIZERS.keys()


def test_a_study_keeps_its_options(arguments):
    study = sweep.open_study(sweep.parse(arguments(dataset="typo.txt")))
    sweep.open_study(sweep.parse(arguments()))  # nothing depends on the mistake
    study.add_trial(optuna.create_trial(value=5.0))
    sweep.open_study(sweep.parse(arguments(num_trials=9, prune_warmup=0.5, num_cpu_threads=2)))
    with pytest.raises(ValueError, match="`vocab_size` must stay 300 in the study .* got 400"):
        sweep.open_study(sweep.parse(arguments(vocab_size=400)))
    with pytest.raises(ValueError, match="`search` must stay"):
        sweep.open_study(sweep.parse(arguments(widths=[16])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": ["lr"]}, "`search` must name options among optimizer, .*; got 'lr'"),
        ({"search": ["num_layers"], "num_layers": 2}, "`num_layers` is in `search` and given as 2"),
        (
            {"widths": [16, 30]},
            r"`widths` must be multiples of 2 `num_attention_heads`=4, got \[16, 30\]",
        ),
        (
            {"widths": [16], "hidden_size": 16},
            r"`widths`=\[16\] are choices of `hidden_size`, which is not searched",
        ),
        ({"depths": [0]}, "`depths` must be at least 1"),
        ({"num_trials": -1}, "`num_trials` must be at least 0, got -1"),
        ({"num_trials": 0}, "has no study.db"),
        ({"prune_warmup": 2}, "`prune_warmup` must be between 0 and 1, got 2.0"),
        ({"recipe": "train_gan"}, "`recipe` must be a script .* train_d3pm.*; got 'train_gan'"),
        ({"recipe": "quickstart"}, "`recipe` must have a `main.config, on_validation.`"),
        ({"resume_from_checkpoint": "latest"}, "`resume_from_checkpoint` is for single runs"),
        ({"kernel": "gauss"}, "`kernel` must be"),
        (
            {"model_name_or_path": "chat-and-novels", "vocab_size": None},
            "belongs to the pipeline",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_are_refused_before_anything_is_written(arguments, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sweep.main(arguments(**changes))
    assert not (tmp_path / "sweep").exists()


def test_unknown_options_are_refused_with_the_one_that_was_meant(arguments):
    message = "`--hidden_sizes` is no option here; did you mean `--hidden_size`"
    with pytest.raises(ValueError, match=message):
        sweep.main(arguments(hidden_sizes=[16]))


def test_trials_without_their_study_are_not_overwritten(arguments, tmp_path):
    (tmp_path / "sweep" / "trial-0000").mkdir(parents=True)
    with pytest.raises(ValueError, match="has no study.db to report on or to go with its trials"):
        sweep.main(arguments())
