"""Laws of checkpoints: whatever fails while one is written, the one before it is intact and the next attempt works."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import covering, slow

from text_diffusers.training.checkpoints import (
    find_checkpoint,
    find_damage,
    list_checkpoints,
    read_checkpoint,
    write_checkpoint,
)

DRIVER = Path(__file__).parent.parent / "support" / "crash_driver.py"


def contents(step):
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {"a": torch.randn(50, generator=generator)},
        "ema": {"a": torch.randn(50, generator=generator)},
    }


def write(folder, step, keep=1):
    return write_checkpoint(
        folder, step, contents(step), {"step": step, "elapsed": 0.1 + step}, keep
    )


def assert_holds(path, step):
    tensors, state = read_checkpoint(path)
    assert state == {"step": step, "elapsed": 0.1 + step}
    for group, named in contents(step).items():
        assert torch.equal(tensors[group]["a"], named["a"])


class Faults:
    """Makes the `at`-th call that changes the file system fail: with an error, or by writing less than it says."""

    calls = ("open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir")

    def __init__(self, monkeypatch, at, fault):
        self.at, self.fault, self.count = at, fault, 0
        for name in self.calls:
            monkeypatch.setattr(os, name, self.faulty(name, getattr(os, name)))

    def faulty(self, name, call):
        def attempt(*arguments, **options):
            reads = name == "open" and not arguments[1] & (os.O_WRONLY | os.O_CREAT)
            self.count += not reads
            if reads or self.count != self.at:
                return call(*arguments, **options)
            if self.fault == "lying write":
                if name != "write":
                    return call(*arguments, **options)
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                return len(arguments[1])
            if name == "write":  # as on a full disk: what fits is written
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise OSError(getattr(errno, self.fault), os.strerror(getattr(errno, self.fault)))

        return attempt


@pytest.mark.parametrize(
    "fault, keep", covering(["ENOSPC", "EIO", "EROFS", "EDQUOT", "lying write"], [1, 2])
)
def test_a_fault_at_any_call_leaves_the_checkpoint_before_it(tmp_path, fault, keep):
    points = 0
    for at in range(1, 100):
        folder = tmp_path / f"at-{at}"
        write(folder, 1, keep)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, at, fault)
            try:
                write(folder, 2, keep)
                failed = False
            except OSError:
                failed = True
        if faults.count < at:
            assert not failed
            break
        points += 1
        path, skipped = find_checkpoint(folder, "latest")
        assert not skipped
        assert_holds(path, int(path.name[-8:]))
        assert failed or path.name.endswith("2")
        assert_holds(write(folder, 3, keep), 3)
        kept = [path.name[-1] for path in folder.iterdir()]
        assert len(kept) == keep and "3" in kept, sorted(folder.iterdir())
    assert points >= 15


def test_writes_that_are_short_are_carried_on(tmp_path, monkeypatch):
    whole = os.write
    monkeypatch.setattr(
        os, "write", lambda descriptor, data: whole(descriptor, data[: max(1, len(data) // 3)])
    )
    assert_holds(write(tmp_path, 1), 1)
    assert find_damage(tmp_path / "step-00000001") is None


def test_a_disk_that_is_really_full_leaves_the_checkpoint_before_it(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        write(tmp_path / "run", 1)
        (tmp_path / "ballast").write_bytes(bytes(44_000))
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(tmp_path / "run", 2, {"model": {"a": torch.zeros(10_000)}}, {}, keep=1)
        assert_holds(find_checkpoint(tmp_path / "run", "latest")[0], 1)
        assert os.listdir(tmp_path / "run") == ["step-00000001"]  # the draft made room
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(OSError, match="Read-only"):
            write(tmp_path / "run", 2)
        assert_holds(find_checkpoint(tmp_path / "run", "latest")[0], 1)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: flip(path / "ema.safetensors"), "sha256 of ema.safetensors"),
        (
            lambda path: (path / "model.safetensors").write_bytes(b"torn"),
            "model.safetensors has 4 bytes instead of",
        ),
        (lambda path: (path / "state.json").unlink(), "state.json is missing"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (
            lambda path: (path / "manifest.json").write_text('{"files"'),
            "manifest.json cannot be read",
        ),
        (
            lambda path: (path / "manifest.json").write_text('{"files": 3}'),
            "manifest.json cannot be read",
        ),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, damage, reason):
    for step in (1, 2, 3):
        write(tmp_path, step, keep=3)
    damage(tmp_path / "step-00000003")
    path, skipped = find_checkpoint(tmp_path, "latest")
    assert path.name == "step-00000002"
    assert len(skipped) == 1 and "step-00000003" in skipped[0] and reason in skipped[0]
    with pytest.raises(ValueError, match="is damaged"):
        find_checkpoint(tmp_path, str(tmp_path / "step-00000003"))
    for older in ("step-00000001", "step-00000002"):
        (tmp_path / older / "manifest.json").unlink()
    for wanted in ("latest", "auto"):  # not a new run in silence
        with pytest.raises(ValueError, match="no valid checkpoint.*step-00000003.*step-00000001"):
            find_checkpoint(tmp_path, wanted)


def test_auto_need_not_find_one(tmp_path):
    assert find_checkpoint(tmp_path / "nothing", "auto") == (None, [])
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        find_checkpoint(tmp_path / "nothing", "latest")
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_checkpoint(tmp_path, str(tmp_path / "typo"))


def test_a_run_taken_back_to_an_earlier_step_is_not_mixed_with_what_came_after(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, keep=3)
    write(tmp_path, 2, keep=3)  # a run that was resumed from step 1
    assert [path.name[-1] for path in list_checkpoints(tmp_path)] == ["1", "2"]


def drive(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(DRIVER.parent.parent)}
    command = [sys.executable, str(DRIVER), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    print(arguments, summary)
    return summary


@pytest.mark.parametrize("processes, limit, every", [slow(1, 1, 2), slow(2, 2, 13)])
def test_a_kill_in_the_midst_of_a_save_loses_nothing(tmp_path, processes, limit, every):
    found = drive("kill", tmp_path, processes, limit, every)
    assert found["points"] >= 20 // (every // 2) and found["recovered"] == found["points"]


@pytest.mark.parametrize("processes", [slow(1), slow(2)])
def test_runs_resume_bit_for_bit_from_every_step(tmp_path, processes):
    found = drive("resume", tmp_path, processes)
    assert found["steps"] >= 6 and found["equal"] == list(range(1, found["steps"] + 1))


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("limit", [1, 2, 3])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_kill_at_every_change_of_the_file_system_loses_nothing(tmp_path, processes, limit):
    found = drive("kill", tmp_path, processes, limit, 1)
    assert found["points"] >= 40 and found["recovered"] == found["points"]
