"""Shared fixtures. Tests marked ``real`` need the folder of logs that SEQREC_DATA names."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests on real logs out where the logs are not at hand, as the README says."""
    if os.environ.get("SEQREC_DATA"):
        return
    real = [item for item in items if item.get_closest_marker("real")]
    config.hook.pytest_deselected(items=real)
    items[:] = [item for item in items if not item.get_closest_marker("real")]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real logs."""
    return Path(os.environ["SEQREC_DATA"])
