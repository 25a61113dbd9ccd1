import os
from types import SimpleNamespace

import pytest
import torch

from seqrec import device as module
from seqrec.device import is_on, threads, usable_processors


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "1000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": ""}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    ],
)
def test_processors_are_those_that_the_system_gives(files, expected, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert usable_processors() == expected


def test_the_number_holds_within_and_is_as_before_afterwards(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "usable_processors", lambda: 1)
    with threads() as count:
        assert count == torch.get_num_threads() == 1
        with threads(3) as more:
            assert more == torch.get_num_threads() == 3
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_it_is_as_before_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("where", "asked", "found"),
    [
        ("cpu", "cpu", True),
        ("cuda:1", "cuda", True),
        ("cuda:1", "cuda:1", True),
        ("cuda:1", "cuda:0", False),
        ("cpu", "cuda", False),
        ("meta", "cpu", False),
    ],
)
def test_a_device_without_an_index_is_any_of_its_type(where, asked, found):
    value = SimpleNamespace(device=torch.device(where))
    assert is_on(value, torch.device(asked)) == found
