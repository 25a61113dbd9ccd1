"""benchmarks/gpu.py, on the CPU: what it prints for RESULTS.md. It was never run on a GPU."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def log(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 8)
    items = (np.arange(len(users)) + np.repeat(random.integers(12, size=60), 8)) % 12
    path = tmp_path / "log.csv"
    pl.DataFrame({"user_id": users, "item_id": items}).write_csv(path)
    return str(path)


def test_it_prints_speeds_and_qualities(log, monkeypatch, capsys):
    run(monkeypatch, log, "--device", "cpu", "--peak", "2", "--batch-sizes", "16,32", "--embedding-dim", "8",
        "--max-length", "8", "--steps", "3", "--epochs", "2", "--losses", "sampled-softmax,cross-entropy")  # fmt: skip
    title, speeds, qualities = capsys.readouterr().out.strip().split("\n\n")
    assert title.endswith("log.csv: 60 users, 12 items")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in speeds.splitlines()]
    assert rows[0][-1] == "MFU (of 2)"
    assert [row[:2] for row in rows[2:]] == [
        ["sampled-softmax", "16"], ["sampled-softmax", "32"], ["cross-entropy", "16"], ["cross-entropy", "32"],
    ]  # fmt: skip
    for _, _, tokens, step, operations, share in rows[2:]:
        assert float(tokens.replace(",", "")) > 0
        assert float(step.removesuffix(" ms")) > 0
        assert 0 <= float(operations) < 2
        assert re.fullmatch(r"\d+\.\d\d%", share)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in qualities.splitlines()]
    assert [row[0] for row in rows[2:]] == ["cpu"]  # the device is the CPU itself
    low, high = map(float, rows[2][-2].split(" to "))
    assert low <= 0 <= high
    assert rows[2][-1] == "yes"
    assert 0 < float(rows[2][3]) <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(log, monkeypatch):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, log)
    assert str(caught.value).startswith("bench-gpu: device 'cuda' is not available")
    assert "\n" not in str(caught.value)
