"""Laws of DeepSpeed's ZeRO, in two processes on CPUs: it trains, averages and resumes as the plain loop does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from accelerate.utils import DeepSpeedPlugin

from text_diffusers.training.checkpoints import read_checkpoint
from text_diffusers.training.config import TrainingConfig

pytest.importorskip(
    "deepspeed", reason="DeepSpeed is not a dependency: `pip install deepspeed` runs these tests"
)
pytestmark = pytest.mark.slow

DRIVER = Path(__file__).parent.parent / "support" / "deepspeed_driver.py"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}
MIDDLE = "checkpoints/step-00000010"


def launch(folder, runs, launcher=(), **environment):
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRIVER.parent.parent)}
    variables = (
        {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"} | settings | environment
    )
    words = [sys.executable, *launcher, str(DRIVER), str(folder), json.dumps(runs)]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of all runs: plain ones in one process and in two, and those of ZeRO."""
    folder = tmp_path_factory.mktemp("runs")
    save = {"checkpointing_steps": 10, "checkpoints_total_limit": 3}
    launch(folder, {"one": save})
    launch(folder, {"ddp": {}, "ddp-halves": {"gradient_accumulation_steps": 2}}, TORCHRUN)
    zero = {
        "zero2": save,
        "zero2-again": save | {"resume_from_checkpoint": str(folder / "zero2" / MIDDLE)},
        "zero2-halves": {"gradient_accumulation_steps": 2},
        "zero2-poisoned": {"poison": 10},
        "zero2-from-one": {"resume_from_checkpoint": str(folder / "one" / MIDDLE)},
        "zero2-dropout": save | {"dropout": 0.1, "optimizer": "sgd"},
        "zero2-dropout-again": {
            "dropout": 0.1,
            "optimizer": "sgd",
            "resume_from_checkpoint": str(folder / "zero2-dropout" / MIDDLE),
        },
        "zero1": save | {"zero_stage": 1},
        "zero1-again": {"zero_stage": 1, "resume_from_checkpoint": str(folder / "zero1" / MIDDLE)},
        "bf16": save | {"mixed_precision": "bf16"},
        "bf16-again": {
            "mixed_precision": "bf16",
            "resume_from_checkpoint": str(folder / "bf16" / MIDDLE),
        },
    }
    launch(folder, zero, TORCHRUN, **DEEPSPEED)
    launch(folder, {"one-from-zero2": {"resume_from_checkpoint": str(folder / "zero2" / MIDDLE)}})
    return folder


def results(folder, name, kind="DEEPSPEED", processes=2):
    found = [
        json.loads((folder / name / f"result-{rank}.json").read_text()) for rank in range(processes)
    ]
    assert all((result["type"], result["processes"]) == (kind, processes) for result in found)
    assert len({result["digest"] for result in found}) == 1  # what a process gathered is whole
    return found


def weights(folder, name, which="weights"):
    return np.load(folder / name / f"{which}-0.npz")


def assert_close(found, expected, tolerance=1e-5):
    assert sorted(found) == sorted(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "name, plain", [("zero2", "ddp"), ("zero2-halves", "ddp-halves"), ("zero1", "ddp")]
)
def test_zero_trains_and_averages_as_ddp_and_as_one_process(folder, name, plain):
    (one,) = results(folder, "one", "NO", 1)
    for result, ddp in zip(results(folder, name), results(folder, plain, "MULTI_CPU"), strict=True):
        assert len(result["losses"]) == 20 and np.ptp(result["losses"]) > 0.1
        for expected in (ddp, one):
            np.testing.assert_allclose(result["losses"], expected["losses"], atol=1e-5, rtol=0)
            for key in ("bound", "bound_without_ema"):
                assert result["validated"][key] == pytest.approx(
                    expected["validated"][key], abs=1e-5
                )
    assert_close(weights(folder, name), weights(folder, plain))
    assert_close(weights(folder, name, "averaged"), weights(folder, plain, "averaged"))


@pytest.mark.parametrize("name", ["zero2", "zero1", "zero2-dropout", "bf16"])
def test_a_resumed_run_of_zero_is_equal_bit_for_bit(folder, name):
    for straight, resumed in zip(
        results(folder, name), results(folder, f"{name}-again"), strict=True
    ):
        assert resumed["losses"] == straight["losses"][10:]
        assert (
            resumed["digest"] == straight["digest"]
            and resumed["validated"] == straight["validated"]
        )


def test_checkpoints_of_zero_and_of_plain_runs_hold_the_same(folder):
    tensors, state = read_checkpoint(folder / "zero2" / MIDDLE)
    expected, plain = read_checkpoint(folder / "one" / MIDDLE)
    assert state["ema_step"] == plain["ema_step"] == 10
    assert tensors.keys() == expected.keys()
    for group, named in expected.items():
        assert {name: (t.dtype, t.shape) for name, t in named.items()} == {
            name: (t.dtype, t.shape) for name, t in tensors[group].items()
        }
        assert_close(tensors[group], named)


@pytest.mark.parametrize(
    "name, kind, processes", [("zero2-from-one", "DEEPSPEED", 2), ("one-from-zero2", "NO", 1)]
)
def test_zero_resumes_a_plain_run_and_the_other_way_round(folder, name, kind, processes):
    (one,) = results(folder, "one", "NO", 1)
    for result in results(folder, name, kind, processes):
        np.testing.assert_allclose(result["losses"], one["losses"][10:], atol=1e-5, rtol=0)
    assert_close(weights(folder, name, "averaged"), weights(folder, "one", "averaged"))


def test_a_loss_of_nan_stops_zero_before_the_update(folder):
    from support.deepspeed_driver import digest

    tensors, _ = read_checkpoint(folder / "zero2" / MIDDLE)
    for result in results(folder, "zero2-poisoned"):
        assert (
            "Step 10: loss nan" in result["error"]
            and "the weights were not changed" in result["error"]
        )
        assert result["digest"] == digest(tensors)


@pytest.mark.parametrize(
    "settings, precision, named",
    [
        ({"zero_stage": 3}, "no", "`zero_stage`.* got 3"),
        ({"zero_stage": 0}, "no", "`zero_stage`.* got 0"),
        (
            {"zero_stage": 2, "offload_optimizer_device": "cpu"},
            "no",
            "`offload_optimizer_device`.* got cpu",
        ),
        ({"zero_stage": 2}, "fp16", "`mixed_precision`.* got fp16"),
    ],
)
def test_settings_that_keep_the_state_elsewhere_are_refused(settings, precision, named, tmp_path):
    from text_diffusers.training.deepspeed import set_up

    with pytest.raises(ValueError, match=named):
        set_up(
            DeepSpeedPlugin(**settings),
            TrainingConfig(str(tmp_path), report_to=["none"]),
            precision,
        )
