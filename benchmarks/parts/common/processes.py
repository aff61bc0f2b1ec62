"""Measurements in a process of their own, and the memory of a process."""

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch


def in_own_process(num_threads: int, function: Callable, *arguments: Any) -> Any:
    """Call a function in a fork of this process, so that on Linux its peak memory is its own.

    This process must have imported but not computed anything: a fork does not inherit the threads of torch.

    Raises:
        BrokenProcessPool: if the fork is killed.
    """
    # Unlike a spawned process, a fork need not import torch and transformers again. A pool of `multiprocessing` would
    # wait for ever for one that was killed.
    fork = get_context("fork")
    with ProcessPoolExecutor(1, fork, torch.set_num_threads, (num_threads,)) as pool:
        return pool.submit(function, *arguments).result()


def peak_of(run: Callable[[], Any]) -> float:
    """MiB by which resident memory grows at the peak of a call, whatever this process has used and freed before."""
    # The allocator keeps freed memory; used again by the call, it would not be counted.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)

    # Linux then forgets the peak so far.
    Path("/proc/self/clear_refs").write_text("5")

    base = resident_memory("VmRSS")
    run()
    return resident_memory("VmHWM") - base


def resident_memory(name: str) -> float:
    """MiB of this process according to Linux: "VmRSS", now, or "VmHWM", at the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            # "VmRSS:   123456 kB"
            return int(line.split()[1]) / 1024
    raise OSError(f"Linux must know `{name}` of this process, but does not.")
