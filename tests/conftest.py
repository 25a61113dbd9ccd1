"""Shared fixtures.

Tests marked ``real`` need the folder of logs that SEQREC_DATA names. Tests marked ``loops`` need the compiled loops,
and tests marked ``cuda`` need a GPU. Of the cases of a test that is ``slow_but_one``, all but the first are ``slow``.
"""

import gc
import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Threads that wait must not take the processor from the other tests. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from seqrec.errors import InputError

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before those marked slow are left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests on real logs, on a GPU or of the compiled loops where these are missing, and mark slow cases."""
    begun = set()
    for item in items:
        if item.get_closest_marker("slow_but_one"):
            test = item.nodeid.partition("[")[0]
            if test in begun:
                item.add_marker("slow")
            begun.add(test)
    missing = [] if os.environ.get("SEQREC_DATA") else ["real"]
    missing += [] if torch.cuda.is_available() else ["cuda"]
    missing += ["loops"] if os.environ.get("SEQREC_KERNELS") == "0" else []
    left_out = [item for item in items if any(map(item.get_closest_marker, missing))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Keep the modules and the tests out of garbage collections, which otherwise take a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """Files are not flushed to the disk, which takes milliseconds each and would only show if the power failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="module")
def few_constants() -> Iterator[None]:
    """Fits try only one value of each constant of transition counts. test_chosen_additions.py tries them all."""
    from seqrec.training import additions  # not where tests are only collected

    few = {name: values[:1] for name, values in additions.VALUES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(additions, "VALUES", few)
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Reset the number of threads, on which the rounding of sums depends, even if a test failed."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real logs."""
    return Path(os.environ["SEQREC_DATA"])


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make torch and the compiled loops use two threads, for any number of cores."""
    monkeypatch.setattr("seqrec.device.usable_processors", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def in_a_fork() -> Callable[..., Any]:
    """A function that calls another function in a forked child and returns its result."""
    return _in_a_fork


def _in_a_fork(work: Callable[[], Any], seconds: float = 60) -> Any:
    """Call a function in a forked child and return its result, through JSON. A child that hangs is killed."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(receiver)
            warnings.simplefilter("ignore")
            os.write(sender, json.dumps(work()).encode())
            os._exit(0)
        except InputError as error:
            os.write(sender, json.dumps(f"InputError: {error}").encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(sender)
    try:
        for _ in range(int(seconds * 100)):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0
                with os.fdopen(receiver, "rb", closefd=False) as answer:
                    return json.loads(answer.read())
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise AssertionError("the child hangs")
    finally:
        os.close(receiver)
