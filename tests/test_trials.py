"""The short form of the kill, interrupt and full-disk trials; see ``tests/trials.py``."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_run_is_lost_or_mixed() -> None:
    # A separate process in which polars has not started its threads, because they do not survive a fork.
    command = [sys.executable, str(Path(__file__).with_name("trials.py")), "--trials", "10", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("10 trials, 0 failures\n")
