"""Measurements in a process of their own come to an end, whatever happens to it."""

import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from parts.common.processes import in_own_process


def killed():
    os.kill(os.getpid(), signal.SIGTERM)


def refused():
    raise ValueError("`rows` must be among some, got others.")


def test_a_function_has_a_process_and_threads_of_its_own():
    here = torch.get_num_threads()
    assert in_own_process(1, os.getpid) != os.getpid()
    assert in_own_process(here + 1, torch.get_num_threads) == here + 1
    assert torch.get_num_threads() == here


def test_an_error_comes_back_and_so_does_the_end_of_a_process_that_is_killed():
    with pytest.raises(ValueError, match="`rows` must be among"):
        in_own_process(1, refused)
    with pytest.raises(BrokenProcessPool):
        in_own_process(1, killed)
