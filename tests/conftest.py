"""Shared fixtures.

Tests marked ``real`` need the folder of logs that SEQREC_DATA names, those marked ``loops`` the compiled loops,
those marked ``cuda`` a GPU.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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
