"""Trains in forked processes that are killed in the midst of a save, and counts what the next run makes of it.

    python tests/support/crash_driver.py kill FOLDER PROCESSES LIMIT EVERY
    python tests/support/crash_driver.py resume FOLDER PROCESSES

`kill` ends rank 0 by SIGKILL at every EVERY-th change that a save makes in the file system, the middle of each write
among them, and resumes; `resume` goes on from each step of a run. Both compare all losses and every byte of weights,
averages and moments with a run that nothing happened to, and print one line of JSON.
"""

import hashlib
import json
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch
from conftest import SENTENCES, make_denoiser
from datasets import Dataset

from text_diffusers import D3PMAbsorbingScheduler
from text_diffusers.data.rows import ShuffledRows, tokenize
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.evaluation.bounds import batch_bound
from text_diffusers.evaluation.likelihood import estimate_bound
from text_diffusers.training import loop as training
from text_diffusers.training.config import TrainingConfig
from text_diffusers.training.runtime import end_training, make_accelerator

STEPS, SAVED_EVERY, GLOBAL_ROWS = 8, 3, 8
CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


class Killer:
    """SIGKILLs its own process at the `at`-th change of the file system after `arm`."""

    def __init__(self, at: int):
        self.at, self.count, self.armed = at, 0, False
        sys.addaudithook(self.audit)
        self.write, self.fsync = os.write, os.fsync
        os.write, os.fsync = self.torn_write, self.no_fsync

    def event(self):
        self.count += self.armed
        return self.armed and self.count == self.at

    def audit(self, event, arguments):
        reading = event == "open" and not (arguments[2] or 0) & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT
        )
        if self.armed and event in CHANGES and not reading and self.event():
            os.kill(os.getpid(), signal.SIGKILL)

    def torn_write(self, descriptor, data):
        if self.event():
            self.write(descriptor, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return self.write(descriptor, data)

    def no_fsync(self, descriptor):
        if self.event():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.fsync(descriptor)


def train(folder: Path, processes: int, options: dict, kill_at: int = 0, dropout: float = 0.1):
    """The child of a fork: trains and leaves its losses and the digest of its state in `folder`."""
    tokenizer = train_tokenizer(SENTENCES, vocab_size=300)
    rows = tokenize(Dataset.from_dict({"text": SENTENCES * 10}), tokenizer, length=8)
    config = TrainingConfig(
        output_dir=str(folder),
        max_train_steps=STEPS,
        train_batch_size=GLOBAL_ROWS // processes,
        lr_warmup_steps=2,
        report_to=["none"],
        num_cpu_threads=1,
        validation_steps=0,
        **options,
    )
    accelerator = make_accelerator(config)
    assert accelerator.num_processes == processes
    scheduler = D3PMAbsorbingScheduler(tokenizer.mask_token_id)

    def loss_function(model, batch, uniform, generators):
        return batch_bound(model, scheduler, batch, uniform, generators).sum()

    model = make_denoiser(tokenizer, hidden_size=16, num_layers=1, max_length=8, dropout=dropout)
    order = ShuffledRows(rows, GLOBAL_ROWS, seed=0)

    def evaluate(one) -> dict[str, float]:  # alone on each process, as a recipe may
        return {"bound": estimate_bound(one, scheduler, rows.select(range(20)), batch_size=8).bound}

    validated = []
    loop = training.TrainingLoop(
        config,
        accelerator,
        model,
        loss_function,
        order,
        evaluate,
        on_validation=lambda *args: validated.append(args),
    )
    if kill_at and accelerator.is_main_process:
        killer, write = Killer(kill_at), training.write_checkpoint

        def armed(target, step, *others):
            killer.armed = (
                step > SAVED_EVERY
            )  # not at the first save: there must be something to lose
            write(target, step, *others)
            killer.armed = False
            Path(folder, "saved").write_text(str(step))

        training.write_checkpoint = armed
    losses = loop.run()
    digest = hashlib.sha256()
    for group in loop.state.tensors().values():
        for name, tensor in sorted(group.items()):
            digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    result = {
        "first": STEPS - len(losses),
        "losses": losses,
        "digest": digest.hexdigest(),
        "validated": validated,
    }
    result |= {"weights": {name: tensor.tolist() for name, tensor in loop.state.weights().items()}}
    result |= {"type": str(accelerator.distributed_type), "shards": loop.state.sharded}
    Path(folder, f"result-{accelerator.process_index}.json").write_text(json.dumps(result))
    end_training(accelerator)


def run(folder: Path, processes: int, options: dict, kill_at: int = 0) -> list[int]:
    """Exit codes of the forked processes; if one dies, the others are ended, as a launcher would."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = {}
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(
                    os.open(folder.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1
                )
                os.dup2(1, 2)
                if processes > 1:
                    place = {
                        "RANK": rank,
                        "LOCAL_RANK": rank,
                        "WORLD_SIZE": processes,
                        "LOCAL_WORLD_SIZE": processes,
                    }
                    os.environ.update({name: str(value) for name, value in place.items()})
                    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
                train(folder, processes, options, kill_at)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children[pid] = rank
    codes = [0] * processes
    while children:
        pid, status = os.waitpid(-1, 0)
        codes[children.pop(pid)] = os.waitstatus_to_exitcode(status)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
    return codes


def results(folder: Path, processes: int) -> list[dict]:
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(processes)]


def compare(folder: Path, processes: int, straight: list[dict], saved: int) -> str:
    """What became of a run that was resumed in `folder`, and had saved the step `saved` before it was killed."""
    for found, expected in zip(results(folder, processes), straight, strict=True):
        if (
            found["losses"] != expected["losses"][found["first"] :]
            or found["digest"] != expected["digest"]
        ):
            return "inexact"
        if found["first"] < saved:
            return "lost"
    return "recovered"


def kill(folder: Path, processes: int, limit: int, every: int) -> dict:
    options = {"checkpointing_steps": SAVED_EVERY, "checkpoints_total_limit": limit}
    assert run(folder / "straight", processes, options) == [0] * processes
    straight = results(folder / "straight", processes)
    counts = {"points": 0, "recovered": 0, "lost": 0, "inexact": 0}
    for point in range(1, 1000, every):
        broken = folder / f"killed-{point}"
        if run(broken, processes, options, kill_at=point) == [0] * processes:
            break  # there is no such point any more
        saved = int((broken / "saved").read_text())
        codes = run(broken, processes, options | {"resume_from_checkpoint": "latest"})
        outcome = (
            compare(broken, processes, straight, saved) if codes == [0] * processes else "lost"
        )
        counts["points"] += 1
        counts[outcome] += 1
        shutil.rmtree(broken)
    return counts


def resume(folder: Path, processes: int) -> dict:
    options = {"checkpointing_steps": 1, "checkpoints_total_limit": STEPS}
    assert run(folder / "straight", processes, options) == [0] * processes
    straight = results(folder / "straight", processes)
    equal = []
    for step in range(1, STEPS):
        saved = folder / "straight" / "checkpoints" / f"step-{step:08d}"
        again = options | {"resume_from_checkpoint": str(saved)}
        assert run(folder / f"from-{step}", processes, again) == [0] * processes
        found = results(folder / f"from-{step}", processes)
        exact = all(
            f["first"] == step and f["digest"] == s["digest"]
            for f, s in zip(found, straight, strict=True)
        )
        if exact and all(
            f["losses"] == s["losses"][step:] for f, s in zip(found, straight, strict=True)
        ):
            equal.append(step)
    return {"steps": STEPS - 1, "equal": equal}


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    command, target, *numbers = sys.argv[1:]
    Path(target).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    summary = {"kill": kill, "resume": resume}[command](Path(target), *map(int, numbers))
    print(json.dumps(summary | {"seconds": round(time.monotonic() - started)}))
