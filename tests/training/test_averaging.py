"""The running mean of the weights, in memory and in the run folder."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from seqrec.errors import InputError
from seqrec.run.folder import Run
from seqrec.training import averaging
from seqrec.training.averaging import RunningMean


def run_in(folder: Path) -> Run:
    run = object.__new__(Run)  # only the folder and the id are needed
    run.folder, run.id = folder, "a run"
    return run


def weights(seed: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = {"table": (70, 3), "scale": (5,), "one": (1, 1)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


@pytest.mark.parametrize("block", [7, 2**20])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_the_mean_is_that_of_the_definition_in_memory_and_in_a_folder(tmp_path, monkeypatch, block, kind):
    monkeypatch.setattr(averaging, "_BLOCK", block)
    decay, run = 0.7, run_in(tmp_path)
    both = [RunningMean(decay, None), RunningMean(decay, run)]
    expected: dict[str, Tensor] = {}
    for epoch in range(1, 5):
        now = {name: value.to(kind) for name, value in weights(epoch).items()}
        for name, value in now.items():
            kept = decay * expected[name].double() if name in expected else (1 - (1 - decay)) * value.double()
            expected[name] = kept + (1 - decay) * value.double()
        for mean in both:
            mine = {name: value.clone() for name, value in now.items()}
            with mean.in_place(mine, epoch):
                for name, value in mine.items():
                    torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6)
            for name, value in mine.items():  # restored to the last bit
                assert torch.equal(value, now[name])
        run.forget_means(but=epoch)
        assert [path.name for path in (tmp_path / "state").iterdir()] == [f"mean-{epoch}.safetensors"]


def test_a_later_process_goes_on_with_the_folders_mean(tmp_path):
    found = []
    for processes in (1, 3):
        run = run_in(tmp_path / str(processes))
        mean = RunningMean(0.5, run)
        for epoch in range(1, 4):
            mean = RunningMean(0.5, run) if processes > 1 else mean
            now = weights(epoch)
            mean.check(epoch - 1, now)
            with mean.in_place(now, epoch):
                last = {name: value.clone() for name, value in now.items()}
        found.append(last)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_without_a_share_nothing_happens(tmp_path):
    now = weights(0)
    with RunningMean(0.0, run_in(tmp_path)).in_place(now, 1):
        assert all(torch.equal(value, now[name]) for name, value in weights(0).items())
    assert not list(tmp_path.iterdir())


def test_weights_come_back_where_what_is_within_fails(tmp_path):
    for run in (None, run_in(tmp_path)):
        mean = RunningMean(0.5, run)
        for epoch in (1, 2):
            now = weights(epoch)
            with pytest.raises(KeyError), mean.in_place(now, epoch):
                raise KeyError
            assert all(torch.equal(value, now[name]) for name, value in weights(epoch).items())


@pytest.mark.parametrize("harm", ["cut", "gone", "no tensors", "other"])
def test_a_mean_that_is_damaged_is_said_to_be(tmp_path, harm):
    run = run_in(tmp_path)
    mean = RunningMean(0.5, run)
    now = weights(1)
    with mean.in_place(now, 1):
        pass
    path = run.mean_path(1)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif harm == "gone":
        path.unlink()
        with pytest.raises(InputError, match="missing"):
            mean.check(1, now)
    elif harm == "no tensors":
        path.write_bytes(b"not what it was")
    else:
        run.save_mean({"another": torch.zeros(3)}, 1)
    with pytest.raises(InputError, match=r"cut off|damaged or missing") as caught, mean.in_place(now, 2):
        pass
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
