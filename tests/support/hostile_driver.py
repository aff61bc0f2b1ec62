"""What becomes of saved pipelines in which something was changed, each loaded in a process of its own.

    python tests/support/hostile_driver.py COUNT [--first FIRST] [--families FAMILY ...]

prints one line of JSON for each of COUNT seeded mutations, of the families in turn.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch  # noqa: E402
from diffusers.utils import logging  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from support.hostile_pipes import save_pipelines  # noqa: E402
from support.hostile_repositories import CONTROLS, REPOSITORIES  # noqa: E402
from support.mutations import SECRET, Scene, mutate  # noqa: E402
from text_diffusers import TextDiffusionPipeline  # noqa: E402

# Seconds of work, and of the clock, which a busy machine may need for them; bytes beyond those of the start.
SECONDS, PATIENCE, MEMORY = 10, 120, 1 << 30
SHORT, BRIEF = 1, 3  # of the same, for controls that hang
FORBIDDEN_EVENTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "webbrowser.open",
)
FORBIDDEN_MODULES = ("antigravity", "this", "evil", "turtle")


def sample_pipe(pipe: Any):
    """A short text of any of the pipelines."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    if hasattr(pipe, "autoencoder"):
        return pipe("the cat", 8, num_inference_steps=2, generator=generator)
    length = {} if pipe.config.lengths else {"max_new_tokens": 8}
    return pipe("the cat", num_inference_steps=2, generator=generator, **length)


def load_and_write(folder: Path, first: Callable[[], Any] | None = None) -> dict:
    """What becomes of the folder: "written", "refused" or "raw", by which error at which stage.

    `first` is done before, for controls.
    """
    stage = "load"
    try:
        if first is not None:
            first()
        pipe = TextDiffusionPipeline.from_pretrained(str(folder))
        stage = "write"
        output = sample_pipe(pipe)
        leaked = SECRET in pipe.tokenizer.get_vocab() or SECRET in str(pipe.config)
        return {
            "outcome": "executed" if leaked else "written",
            "stage": None,
            "text": output.texts[0],
        }
    except Exception as error:  # noqa: BLE001 - what is raised is what is asked
        clear = isinstance(error, ValueError | OSError)
        where = traceback.extract_tb(error.__traceback__)[-1]
        at = f"{Path(where.filename).name}:{where.lineno}"
        return {
            "outcome": "executed" if SECRET in str(error) else "refused" if clear else "raw",
            "stage": stage,
            "error": type(error).__name__,
            "message": str(error),
            "at": at,
        }


def in_own_process(
    work: Callable[[], dict], outside: Path, seconds: int = SECONDS, patience: int = PATIENCE
) -> dict:
    """The result of `work` in a fork with limited memory and time, or how that ended.

    It is "executed" if anything was run or, in the folder `outside`, opened or left there.
    """
    before = contents(outside)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        run_child(work, writing, outside, seconds)
    os.close(writing)
    data, deadline = b"", time.monotonic() + patience
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
            part = pipe.read(1 << 16)
            if not part:
                break
            data += part
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"outcome": "hung"}
    _, status = os.waitpid(child, 0)
    if not data:
        stopped = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        return {"outcome": "hung" if stopped else "died", "message": f"status {status}"}
    result = json.loads(data)
    if result["events"] or contents(outside) != before:
        result["outcome"] = "executed"
    return result


def contents(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def run_child(work: Callable[[], dict], writing: int, outside: Path, seconds: int):
    """The child of the fork: limits itself, watches what it does, and answers by JSON."""
    events: list[str] = []

    def watch(event: str, arguments: tuple):
        if event in FORBIDDEN_EVENTS or (event == "import" and arguments[0] in FORBIDDEN_MODULES):
            events.append(f"{event} {arguments[0]}")
        if event == "open" and isinstance(arguments[0], str | bytes):
            opened = os.path.realpath(os.fsdecode(arguments[0]))
            if opened.startswith(f"{outside.resolve()}{os.sep}"):
                events.append(f"open {opened}")

    memory = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    sys.addaudithook(watch)
    try:
        result = work()
        os.write(writing, json.dumps(result | {"events": events}).encode())
    finally:
        os._exit(0)


@contextmanager
def scene_of(pipeline: Path, seed: int) -> Iterator[Scene]:
    """A copy of a saved pipeline, and another folder with things that are none of its business."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, outside = Path(scratch) / "in" / pipeline.name, Path(scratch) / "outside"
        shutil.copytree(pipeline, folder)
        outside.mkdir()
        (outside / "secret.json").write_text(json.dumps({"secret": SECRET}))
        save_file({"secret": torch.ones(2)}, outside / "secret.safetensors")
        yield Scene(folder, outside, random.Random(seed))


def mutation_results(families: dict[str, Path], numbers: range) -> Iterator[dict]:
    """What the mutations of these numbers come to; a number determines its mutation."""
    names = list(families)
    for number in numbers:
        family = names[number % len(names)]
        with scene_of(families[family], number) as scene:
            described = mutate(scene)
            started = time.monotonic()
            result = in_own_process(partial(load_and_write, scene.folder), scene.outside)
            seconds = round(time.monotonic() - started, 2)
            changed = changes(families[family], scene.folder)
        verdict = {
            "number": number,
            "family": family,
            "mutation": described,
            "changed": changed,
            "seconds": seconds,
        }
        yield verdict | result


def changes(before: Path, after: Path) -> list[str]:
    """The paths at which two folders differ."""
    old, new = (
        {str(path.relative_to(folder)): path for path in folder.rglob("*")}
        for folder in (before, after)
    )
    same = {path for path in old.keys() & new.keys() if digest(old[path]) == digest(new[path])}
    return sorted((old.keys() | new.keys()) - same)


def digest(path: Path) -> Any:
    return "link" if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"


def repository_result(pipeline: Path, name: str) -> dict:
    """What a hostile repository comes to."""
    build, expected = REPOSITORIES[name]
    with scene_of(pipeline, 0) as scene:
        build(scene)
        result = in_own_process(partial(load_and_write, scene.folder), scene.outside)
    return {"repository": name, "expected": expected} | result


def control_result(pipeline: Path, name: str) -> dict:
    """What a control comes to, which is to be seen by the watching."""
    build, expected = CONTROLS[name]
    with scene_of(pipeline, 0) as scene:
        work = partial(load_and_write, scene.folder, build(scene))
        result = in_own_process(work, scene.outside, SHORT, BRIEF)
    return {"control": name, "expected": expected} | result


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--families", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        families = save_pipelines(Path(scratch))
        for (
            path
        ) in families.values():  # everything that is imported late is imported before the forks
            sample_pipe(TextDiffusionPipeline.from_pretrained(path))
        chosen = {name: families[name] for name in arguments.families or families}
        for result in mutation_results(
            chosen, range(arguments.first, arguments.first + arguments.count)
        ):
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
