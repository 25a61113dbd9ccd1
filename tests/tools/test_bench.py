"""The benchmark measures what it reports. No test depends on speed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from seqrec import InputError
from seqrec.models.blocks import FeedForward
from seqrec.models.sasrec import SASRecConfig
from seqrec.tools.bench import BenchConfig, measured, peak_memory, tables, write
from seqrec.tools.steps import PHASES, arithmetic, generated

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return measured(config=BenchConfig(quick=True))


def test_the_generated_log_is_a_log() -> None:
    dataset = generated(500, 300, 9, 0)
    lengths = np.diff(dataset.offsets)
    assert dataset.num_users == 500
    assert dataset.offsets[-1] == len(dataset.items)
    assert lengths.min() >= 3
    assert 7 < lengths.mean() < 11
    assert dataset.items.min() >= 1
    assert dataset.items.max() <= 300
    assert np.bincount(dataset.items)[1:30].sum() > len(dataset.items) / 3  # a few items are very popular
    assert np.array_equal(dataset.items, generated(500, 300, 9, 0).items)


def test_arithmetic_is_what_torch_counts() -> None:
    tokens, dim, candidates = 50, 8, 7
    x = torch.randn(tokens, dim, dtype=torch.float64, requires_grad=True)  # float64 uses torch, which counts operations
    three = torch.nn.Linear(dim, 3 * dim).double()
    network = FeedForward(dim, (dim,), 0.0).double()
    vectors = torch.randn(candidates, dim, dtype=torch.float64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        (network(three(x)[:, :dim], x) @ vectors.T).sum().backward()
    config = SASRecConfig(embedding_dim=dim, num_blocks=1)
    assert counter.get_total_flops() == arithmetic(config, tokens, 0, candidates)
    # Attention has two products of a head's width per pair forward, and four backward.
    assert arithmetic(config, 0, 10, 0) == 2 * dim * 10 * (2 + 4)


def test_everything_is_measured(found: dict[str, Any]) -> None:
    assert [row["loss"] for row in found["steps"]] == ["bce", "sampled-softmax", "cross-entropy"]
    for row in found["steps"]:
        assert all(row[phase] > 0 for phase in PHASES)
        assert row["seconds"] > max(row[phase] for phase in PHASES) / 2
        assert set(row["rate"]) == set(row["share"]) == {"torch", "seqrec"}
        assert all(value > 0 for value in (*row["rate"].values(), *row["share"].values()))
    assert set(found["growth"]) == {"embedding_dim", "max_length", "users", "catalogue, bce",
                                    "catalogue, sampled-softmax"}  # fmt: skip
    for rows in found["growth"].values():
        assert len(rows) >= 2
        assert all(row["seconds"] > 0 and row["tokens"] > 0 for row in rows)
    assert all(rate > 0 for rate in found["users_per_second"].values())
    assert found["rows_per_second"] > 0
    assert found["machine"]["threads"] == torch.get_num_threads()


def test_memory_is_that_of_the_tables() -> None:
    memory = peak_memory(300, 400_000, 64, "bce")
    assert memory["table"] == 4 * 400_001 * 64
    # Weights and two moments are 3 tables. The running mean and the best weights, mapped from files, are two others.
    # The peak of the libraries hides a part.
    assert 3 < memory["peak"] / memory["table"] < 6


def test_it_is_told_and_written(found: dict[str, Any], tmp_path: Path) -> None:
    console = Console(record=True, width=100)
    console.print(*tables(found))
    words = console.export_text()
    for word in ("cross-entropy", "µs per token", "times the table", "users, evaluate sampled"):
        assert word in words
    write(found, tmp_path / "a" / "b")
    assert json.loads((tmp_path / "a" / "b" / "bench.json").read_text()) == found
    assert (tmp_path / "a" / "b" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_log_with_nothing_to_train_on(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": [1, 2, 3], "item_id": [1, 2, 3]}).write_csv(tmp_path / "log.csv")
    with pytest.raises(InputError, match="no user has two interactions"):
        measured(tmp_path / "log.csv", BenchConfig(quick=True))


def test_sizes_that_make_no_log() -> None:
    with pytest.raises(InputError, match="users is 0; give 3 or more"):
        BenchConfig(users=0)
