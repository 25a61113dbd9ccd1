"""The optimizer's compiled loops against their equivalents in torch."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqrec.kernels import loader
from seqrec.training.optim import RowAdam
from seqrec.training.schedule import Schedule

pytestmark = pytest.mark.loops


def test_rows_that_the_table_does_not_have_are_torchs_to_refuse():
    model = Tables().train()
    optimizer = RowAdam(model, 0.1)
    for rows in (torch.tensor([1, 2]), torch.tensor([2, 3], dtype=torch.int32)):
        optimizer.zero_grad()
        model.table(rows).sum().backward()
        optimizer.step()
    before = model.table.weight.detach().clone()
    for row in (40, 10**9, -1):
        with pytest.raises(IndexError):
            model.table(torch.tensor([row]))
    assert torch.equal(model.table.weight, before)


def test_a_table_that_is_part_of_another_is_moved_where_it_is():
    whole = torch.zeros(6, 8)
    model = nn.ModuleDict({"table": nn.Embedding.from_pretrained(whole[:, :4], freeze=False, sparse=True)}).train()
    optimizer = RowAdam(model, 0.1)
    model["table"](torch.tensor([3])).sum().backward()
    optimizer.step()
    assert (whole != 0).nonzero().tolist() == [[3, column] for column in range(4)]


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 5, sparse=True)


def trained(steps: int, threads: int = 1, schedule: Schedule | None = None) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = Tables().train()
        optimizer = RowAdam(model, 0.1, betas=(0.9, 0.98), schedule=schedule)
        random = np.random.default_rng(0)
        for step in range(steps):
            # Few rows per step, with repetitions, so that rows miss many steps.
            rows = torch.from_numpy(random.integers(0, 40, size=1 + step % 7).repeat(2))
            target = torch.from_numpy(random.normal(size=(len(rows), 5)).astype(np.float32))
            optimizer.zero_grad()
            more = model.table(rows[:1]).square().sum()
            ((model.table(rows) - target).square().sum() + more).backward()
            optimizer.step()
        optimizer.catch_up()
        return [model.table.weight.detach(), *(optimizer.tables["table.weight"].__dict__[n] for n in
                ("first", "second", "last"))]  # fmt: skip
    finally:
        torch.set_num_threads(before)


def test_torch_knows_of_their_changes():
    model = Tables().train()
    optimizer = RowAdam(model, 0.1)
    versions = [model.table.weight._version]
    for work in (optimizer.step, optimizer.catch_up):
        optimizer.zero_grad()
        model.table(torch.tensor([1, 2])).sum().backward()
        work()
        versions.append(model.table.weight._version)
    assert versions[0] < versions[1] <= versions[2]  # for the second, all rows may be up to date


@pytest.mark.parametrize("schedule", [None, Schedule("cosine", 20, 150), Schedule("linear", 0, 200)])
def test_adam_by_rows_does_the_same_without_them(monkeypatch, schedule):
    assert RowAdam(Tables(), 0.1).tables["table.weight"].compiled
    compiled = trained(150, schedule=schedule)
    monkeypatch.setattr(loader, "library", lambda: None)
    for mine, plain in zip(compiled, trained(150, schedule=schedule), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


def test_the_number_of_threads_changes_no_byte_of_adam():
    for one, two in zip(trained(60, 1), trained(60, 2), strict=True):
        assert torch.equal(one, two)
