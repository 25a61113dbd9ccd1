"""The running mean of the weights, in memory and mapped from files without a name."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.training import averaging
from seqrec.training.averaging import RunningMean


def weights(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {"table": (70, 3), "scale": (5,), "one": (1, 1)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def is_mapped(value: Tensor) -> bool:
    address, name = value.data_ptr(), ""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            name = line
    return "(deleted)" in name


@pytest.fixture
def all_mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "_MAPPED", 100)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_mean_is_that_of_the_definition_in_memory_and_in_files(tmp_path, all_mapped, kind):
    decay = 0.7
    both = [RunningMean(decay, None), RunningMean(decay, tmp_path / "state")]
    expected: dict[str, Tensor] = {}
    for epoch in range(1, 5):
        now = {name: value.to(kind) for name, value in weights(epoch).items()}
        for name, value in now.items():
            kept = decay * expected[name].double() if name in expected else (1 - (1 - decay)) * value.double()
            expected[name] = kept + (1 - decay) * value.double()
        for mean in both:
            mine = {name: value.clone() for name, value in now.items()}
            mean.update(mine)
            with mean.in_place(mine):
                for name, value in mine.items():
                    torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)
            for name, value in mine.items():  # restored to the last bit
                assert torch.equal(value, now[name])
    assert all(torch.equal(value, both[1].values[name]) for name, value in both[0].values.items())
    assert [is_mapped(both[1].values[name]) for name in ("table", "one")] == [True, False]
    assert list((tmp_path / "state").iterdir()) == []


def test_a_later_process_goes_on_with_a_saved_mean():
    found = []
    for processes in (1, 3):
        mean = RunningMean(0.5, None)
        for epoch in range(1, 4):
            before, mean = mean, RunningMean(0.5, None) if processes > 1 else mean
            mean.load(before.values)
            mean.update(weights(epoch))
        found.append(mean.values)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_without_a_share_nothing_happens(tmp_path):
    now = weights(0)
    mean = RunningMean(0.0, tmp_path)
    mean.update(now)
    with mean.in_place(now):
        assert all(torch.equal(value, now[name]) for name, value in weights(0).items())
    assert mean.values == {}


def test_weights_come_back_where_what_is_within_fails():
    mean = RunningMean(0.5, None)
    for epoch in (1, 2):
        now = weights(epoch)
        mean.update(now)
        with pytest.raises(KeyError), mean.in_place(now):
            raise KeyError
        assert all(torch.equal(value, now[name]) for name, value in weights(epoch).items())


def test_a_file_system_that_maps_no_files(tmp_path, all_mapped, monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(np, "memmap", refused)
    mean = RunningMean(0.5, tmp_path)
    mean.update(weights(1))
    assert all(torch.equal(mean.values[name], value) for name, value in weights(1).items())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_is_said_before_memory_is_written(tmp_path, all_mapped, monkeypatch):
    full = Path("/dev/full").open("r+b")  # noqa: SIM115 (what is tested closes it)
    monkeypatch.setattr(averaging.tempfile, "TemporaryFile", lambda dir: full)
    with pytest.raises(InputError, match="no space left on the disk") as caught:
        RunningMean(0.5, tmp_path).update(weights(1))
    assert str(tmp_path) in str(caught.value)
