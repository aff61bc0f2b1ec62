"""One process beside two on the same machine: writing, and training through Accelerate.

    accelerate launch --config_file CONFIG benchmarks/parts/scaling/processes.py training '{"batch": 8, ...}' 8 10
    python benchmarks/parts/scaling/processes.py writing '{"batch": 8, ...}' 8 10

Arguments are what is done, the `Size` of model and batch, the steps of a text or the rows of a step of all processes,
and how often it is done. Each process prints its seconds, by the wall and of its CPU.

In writing each process writes texts of its own; in training two processes share the rows of a step. Processes that
write wait for each other's beginning, as training does by itself.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[2]
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

import torch  # noqa: E402 - the path above leads to what follows

from parts.common.recipes import TRAINING_SCRIPTS  # noqa: E402
from parts.common.results import Record  # noqa: E402
from parts.sampling.measuring import Size  # noqa: E402
from parts.scaling.config import TRAINING, WRITING, ScalingConfig  # noqa: E402
from parts.scaling.training import random_loop, step_of  # noqa: E402
from parts.scaling.writing import Case, model_of, writer_of  # noqa: E402

CONFIGS = TRAINING_SCRIPTS / "accelerate_configs"
COUNTS = (1, 2)
RESULT = "RESULT "  # before the line that a process prints
MEASURED_STEPS = 10
LONGEST_WAIT = 300.0  # seconds, for other processes


# --- in a process of its own


def timed(run: Callable[[], Any], times: int) -> Record:
    """Seconds of each of so many runs, after one that is not counted."""
    wall = time.perf_counter()
    cpu = time.process_time()
    for _ in range(times):
        run()
    return {
        "seconds": (time.perf_counter() - wall) / times,
        "cpu_seconds": (time.process_time() - cpu) / times,
    }


def wait_for_others(meeting: Path, number: int):
    """Return when so many processes have come to a folder."""
    Path(meeting, str(os.getpid())).touch()
    started = time.perf_counter()
    while len(list(meeting.iterdir())) < number:
        if time.perf_counter() - started > LONGEST_WAIT:
            raise TimeoutError(f"`{meeting}` was not reached by {number} processes.")
        time.sleep(0.01)


@torch.no_grad()
def write(size: Size, steps: int, times: int) -> Record:
    case = Case("", size, steps)
    run = writer_of(case, model_of(case))
    run()
    meeting = os.environ.get("SCALING_MEETING")
    if meeting:
        wait_for_others(Path(meeting), int(os.environ["SCALING_PROCESSES"]))
    return timed(run, times)


def train(size: Size, rows_per_step: int, times: int) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        step = step_of(random_loop(size, folder, rows_per_step))
        step()
        return timed(step, times)


# --- from outside


def results_of(commands: list[list[str]], environment: dict[str, str]) -> list[Record]:
    """What processes that run at once print; one that is launched may stand for several."""
    running = [
        subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    records = []
    for process in running:
        printed, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{process.args} failed:\n{printed[-2000:]}")
        # Processes of a launcher may print into the same line.
        for printed_by_one in printed.split(RESULT)[1:]:
            record, _ = json.JSONDecoder().raw_decode(printed_by_one)
            records.append(record)
    return records


def measure_processes(options: ScalingConfig, task: str) -> list[Record]:
    """A record for one process and one for two, of a `task`, "writing" or "training"."""
    size = options.size
    records = []
    for count in COUNTS:
        file = str(Path(__file__).resolve())
        with tempfile.TemporaryDirectory() as meeting:
            environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": python_path()}
            if task == WRITING:
                environment |= {"SCALING_MEETING": meeting, "SCALING_PROCESSES": str(count)}
                words = [json.dumps(asdict(size)), str(options.steps), str(options.repetitions)]
                commands = [[sys.executable, file, task, *words]] * count
                num_tokens = count * size.batch * size.length
            else:
                # The rows of a step are the same; each process has its part.
                part = asdict(size) | {"batch": max(1, size.batch // count)}
                rows_per_step = count * part["batch"]
                words = [json.dumps(part), str(rows_per_step), str(MEASURED_STEPS)]
                config = CONFIGS / ("cpu.yaml" if count == 1 else "cpu_two_processes.yaml")
                launch = [sys.executable, "-m", "accelerate.commands.launch"]
                commands = [[*launch, "--config_file", str(config), file, task, *words]]
                num_tokens = rows_per_step * size.length
            found = results_of(commands, environment)

        # All processes are done when the last one is.
        slowest = max(record["seconds"] for record in found)
        records.append(
            {
                "value": count,
                "batch": size.batch,
                "length": size.length,
                "seconds": slowest,
                "tokens_per_second": num_tokens / slowest,
                # CPU time that a token takes, of all processes together
                "cpu_seconds_per_token": sum(record["cpu_seconds"] for record in found)
                / num_tokens,
                "load": os.getloadavg()[0],
            }
        )
    return records


def python_path() -> str:
    """The path of this process, for others."""
    return os.pathsep.join([str(BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])])


def main():
    torch.set_num_threads(1)
    task, size, number, times = sys.argv[1:]
    function = {WRITING: write, TRAINING: train}[task]
    record = function(Size(**json.loads(size)), int(number), int(times))
    sys.stdout.write(f"{RESULT}{json.dumps(record)}\n")


if __name__ == "__main__":
    main()
