"""Laws of a run that something happens to: signals, numbers that are not finite, too little memory, a full disk."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow

from text_diffusers.training import checkpoints
from text_diffusers.training import loop as training

ROOT = Path(__file__).parent.parent.parent
SCRIPT = str(ROOT / "training_scripts" / "train_d3pm.py")
# Of a run that is stopped twice: so many that it has not ended before
NUM_STEPS = 600


@pytest.mark.parametrize("number", [signal.SIGTERM, slow(signal.SIGINT)])
def test_a_signal_saves_and_the_run_resumes_bit_for_bit(make_loop, number):
    straight = make_loop("straight", max_train_steps=30)
    losses = straight.run()
    stopped = make_loop("stopped", max_train_steps=30, checkpointing_steps=1000)
    taken, step = [], stopped.train_step

    def signalled_at_seven():
        if stopped.step == 7:
            signal.raise_signal(number)
        taken.append(step())
        return taken[-1]

    stopped.train_step = signalled_at_seven
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit:
        stopped.run()
    assert exit.value.code == 128 + number and signal.getsignal(number) is before
    assert [path.name for path in checkpoints.list_checkpoints(stopped.checkpoint_folder)] == [
        "step-00000008"
    ]
    resumed = make_loop("stopped", max_train_steps=30, resume_from_checkpoint="latest")
    assert [loss for loss, *_ in taken] + resumed.run() == losses
    for name, parameter in straight.state.parameters.items():
        assert torch.equal(parameter, resumed.state.parameters[name]), name


def test_a_second_ctrl_c_does_not_wait(make_loop):
    loop = make_loop(max_train_steps=1000)
    step = loop.train_step

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return step()

    loop.train_step = twice
    with pytest.raises(KeyboardInterrupt):
        loop.run()


def test_a_row_whose_loss_is_not_finite_is_named_and_the_weights_stay(make_loop, monkeypatch):
    loop = make_loop(gradient_accumulation_steps=2, train_batch_size=8)
    loop.train_step()
    loop.step = 1
    poisoned = loop.rows._index(1 * 16 + 11)
    tokens = torch.as_tensor(loop.rows.rows[poisoned]["input_ids"])
    loss_function = loop.loss_function

    def division_by_zero(model, batch, uniform, generators):
        same = (batch["input_ids"] == tokens).all(dim=1)
        return loss_function(model, batch, uniform, generators) * (
            torch.tensor(float("nan")) if same.any() else 1
        )

    loop.loss_function = division_by_zero
    before = {name: p.detach().clone() for name, p in loop.state.parameters.items()}
    shadows = [shadow.clone() for shadow in loop.state.ema.shadow_params]
    with pytest.raises(
        FloatingPointError, match=rf"Step 1: loss nan.*Not finite alone: rows \[.*\b{poisoned}\b"
    ):
        loop.train_step()
    assert all(torch.equal(before[name], p) for name, p in loop.state.parameters.items())
    assert all(
        torch.equal(a, b) for a, b in zip(shadows, loop.state.ema.shadow_params, strict=True)
    )


def test_a_gradient_that_is_not_finite_stops_before_the_update(make_loop):
    loop = make_loop()
    parameter = next(iter(loop.state.parameters.values()))
    parameter.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: p.detach().clone() for name, p in loop.state.parameters.items()}
    with pytest.raises(
        FloatingPointError,
        match=r"Step 0: loss \d.*gradient norm (nan|inf).*rows \[\d+, .*training data",
    ):
        loop.train_step()
    assert all(torch.equal(before[name], p) for name, p in loop.state.parameters.items())


@pytest.mark.slow
def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(make_loop, caplog):
    """The allocator's own error, above a number of rows that is let through."""
    whole = make_loop(
        "whole", train_batch_size=16, gradient_accumulation_steps=1, max_train_steps=4, dropout=0.0
    )
    tight = make_loop(
        "tight", train_batch_size=16, gradient_accumulation_steps=1, max_train_steps=4, dropout=0.0
    )
    loss_function, sizes = tight.loss_function, []

    def limited(model, batch, uniform, generators):
        sizes.append(len(uniform))
        if len(uniform) > 5:
            torch.empty(2**60)
        return loss_function(model, batch, uniform, generators)

    tight.loss_function = limited
    np.testing.assert_allclose(whole.run(), tight.run(), rtol=1e-5)
    assert sizes == [16, 8] + 16 * [4] and "4 rows in a micro-batch" in caplog.text
    for a, b in zip(whole.state.parameters.values(), tight.state.parameters.values(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=0)
    tight.save()
    resumed = make_loop(
        "tight",
        train_batch_size=16,
        max_train_steps=4,
        resume_from_checkpoint="latest",
        dropout=0.0,
    )
    resumed.load()
    assert resumed.micro_batch_size == 4


@pytest.mark.slow
def test_out_of_memory_with_a_single_row_says_so(make_loop):
    loop = make_loop(train_batch_size=4)
    loop.loss_function = lambda *arguments: torch.empty(2**60)
    with pytest.raises(RuntimeError, match="Step 0: out of memory with a single row"):
        loop.train_step()


def test_a_full_disk_does_not_end_a_run_but_its_last_save_must_work(make_loop, monkeypatch, caplog):
    full, attempts = {2, 4}, []
    write = training.write_checkpoint

    def attempt(folder, step, *others):
        attempts.append(step)
        if step in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(folder, step, *others)

    monkeypatch.setattr(training, "write_checkpoint", attempt)
    loop = make_loop(max_train_steps=8, checkpointing_steps=2)
    assert len(loop.run()) == 8 and attempts == [2, 4, 6, 8]
    assert caplog.text.count("No checkpoint at step") == 2 and "No space left" in caplog.text
    full.add(8)
    with pytest.raises(OSError, match="No space left"):
        make_loop("other", max_train_steps=8, checkpointing_steps=2).run()


def test_too_little_room_is_said_before_the_first_step(make_loop, monkeypatch):
    usage = checkpoints.shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="has 1e-05 GB free; checkpoints need"):
        make_loop(checkpointing_steps=2).run()
    make_loop("none", checkpointing_steps=0, max_train_steps=1).run()


@pytest.fixture
def recipe(text_file, tmp_path):
    """Arguments of a run of the real recipe in a process of its own."""
    options = {
        "dataset": text_file,
        "output_dir": tmp_path / "run",
        "vocab_size": 300,
        "length": 16,
    }
    options |= {
        "hidden_size": 32,
        "num_layers": 1,
        "num_attention_heads": 2,
        "report_to": "none",
        "num_samples": 0,
    }
    options |= {
        "num_length_samples": 0,
        "validation_steps": 0,
        "num_cpu_threads": 1,
        "max_train_steps": NUM_STEPS,
    }
    options |= {"resume_from_checkpoint": "auto", "checkpointing_steps": 100_000}

    def make(**changes):
        return [SCRIPT] + [
            str(word)
            for name, value in (options | changes).items()
            for word in (f"--{name}", value)
        ]

    make.environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "HF_HOME": str(tmp_path / "cache"),
    }
    make.output = tmp_path / "run"
    return make


LAUNCHERS = {
    "accelerate": [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ],
    "torchrun": [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--standalone",
    ],
}


def stop_in_the_midst(command, environment, whom, seconds):
    """Start a run, wait until it trains, send SIGTERM to its launcher or to one worker, and wait for all of them."""
    import psutil

    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    printed, launcher = b"", psutil.Process(process.pid)
    while b"it/s" not in printed:
        chunk = os.read(process.stdout.fileno(), 10_000)
        assert chunk, printed.decode()[-3000:]
        printed += chunk
    reader = threading.Thread(target=process.stdout.read)
    reader.start()
    time.sleep(seconds)
    workers = [child for child in launcher.children(recursive=True) if SCRIPT in child.cmdline()]
    (launcher if whom == "launcher" else workers[-1]).send_signal(signal.SIGTERM)
    process.wait(60)
    gone, alive = psutil.wait_procs(workers, 60)
    assert not alive
    return process.returncode


def finish(recipe, launcher):
    command = LAUNCHERS[launcher] + recipe()
    done = subprocess.run(
        command, env=recipe.environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def final_weights(folder):
    tensors, state = checkpoints.read_checkpoint(
        checkpoints.list_checkpoints(folder / "checkpoints")[-1]
    )
    return {
        f"{group}/{name}": t for group, named in tensors.items() for name, t in named.items()
    }, state["step"]


CASES = [
    ("accelerate", "launcher"),
    ("accelerate", "worker"),
    ("torchrun", "launcher"),
    ("torchrun", "worker"),
]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("launcher, whom", CASES)
def test_sigterm_to_launcher_or_worker_saves_and_the_run_resumes_bit_for_bit(
    recipe, tmp_path, launcher, whom
):
    straight = tmp_path / "straight"
    options = recipe(output_dir=straight)
    subprocess.run(
        LAUNCHERS[launcher] + options,
        env=recipe.environment,
        check=True,
        timeout=600,
        capture_output=True,
    )
    expected, steps = final_weights(straight)
    stops = []
    for pause in np.random.default_rng(0).uniform(0, 0.6, size=2):
        code = stop_in_the_midst(LAUNCHERS[launcher] + recipe(), recipe.environment, whom, pause)
        assert code != 0
        stops.append(final_weights(recipe.output)[1])
    printed = finish(recipe, launcher)
    assert f"at step {stops[-1]}" in printed
    found, last = final_weights(recipe.output)
    assert last == steps == NUM_STEPS and stops == sorted(stops)
    assert found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.slow
def test_sigterm_to_accelerate_launch_reaches_the_run(recipe):
    """`accelerate launch` with one process does not pass the signal on; without a checkpoint all would be lost."""
    code = stop_in_the_midst(
        LAUNCHERS["accelerate"] + recipe(max_train_steps=100_000), recipe.environment, "launcher", 0
    )
    assert code != 0
    step = final_weights(recipe.output)[1]
    assert 0 < step < 100_000 and json.loads(
        (recipe.output / "tokenizer" / "tokenizer_config.json").read_text()
    )


def test_what_changes_a_resumed_run_is_said_and_what_does_not_is_not(make_loop, caplog):
    make_loop(checkpointing_steps=4, gradient_accumulation_steps=1).run()
    same = {"train_batch_size": 8, "gradient_accumulation_steps": 2, "checkpoints_total_limit": 5}
    make_loop(resume_from_checkpoint="latest", checkpointing_steps=4, **same).load()
    assert not caplog.text
    make_loop(
        resume_from_checkpoint="latest", learning_rate=3e-4, train_batch_size=8, seed=1
    ).load()
    warned = [record.message for record in caplog.records]
    assert len(warned) == 3 and "`learning_rate` was 0.001 and is 0.0003" in warned[0]
    assert "`rows_per_step` was 16 and is 8" in warned[1] and "`seed` was 0 and is 1" in warned[2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_out_of_memory_halves_the_micro_batch(make_loop):
    loop = make_loop(train_batch_size=16, max_train_steps=2)
    loss_function = loop.loss_function

    def limited(model, batch, uniform, generators):
        if len(uniform) > 5:
            torch.empty(2**60, device="cuda")
        return loss_function(model, batch, uniform, generators)

    loop.loss_function = limited
    assert np.isfinite(loop.run()).all() and loop.micro_batch_size == 4
