"""Shared fixtures.

Tests marked ``real`` need the folder of logs that SEQREC_DATA names, those marked ``loops`` the compiled loops,
those marked ``cuda`` a GPU.
"""

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from seqrec.errors import InputError

torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests on real logs where there are none, and those of the loops where these are turned off."""
    missing = [] if os.environ.get("SEQREC_DATA") else ["real"]
    missing += [] if torch.cuda.is_available() else ["cuda"]
    missing += ["loops"] if os.environ.get("SEQREC_KERNELS") == "0" else []
    left_out = [item for item in items if any(map(item.get_closest_marker, missing))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums round by their order, so a test that fails with several threads must not leave them to the next."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real logs."""
    return Path(os.environ["SEQREC_DATA"])


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch and the compiled loops use two threads, whatever the machine has."""
    monkeypatch.setattr("seqrec.device.usable_processors", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def in_a_fork() -> Callable[..., Any]:
    """A function that gives what another one gives in a forked child."""
    return _in_a_fork


def _in_a_fork(work: Callable[[], Any], seconds: float = 60) -> Any:
    """What a forked child gives, as JSON has it; a child that hangs is killed and fails."""
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
