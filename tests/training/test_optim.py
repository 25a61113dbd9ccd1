import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from seqrec.training import rows as tables_by_row
from seqrec.training.drift import Factors
from seqrec.training.optim import RowAdam, clip_gradients
from seqrec.training.schedule import Schedule

#: Of the longer tests: rows that are seldom touched miss up to 97 steps, in which all momentum is gone.
STEPS = 125


class Tables(nn.Module):
    """A model with two tables and a dense layer that changes what the tables learn."""

    def __init__(self, sparse: bool, items: int = 40, users: int = 25, dim: int = 4) -> None:
        super().__init__()
        self.items = nn.Embedding(items, dim, padding_idx=0, sparse=sparse)
        self.users = nn.Embedding(users, dim, sparse=sparse)
        self.mix = nn.Linear(dim, dim)
        self.reads_all = False  # whether the loss also reads all items

    def forward(self, items: Tensor, users: Tensor) -> Tensor:
        """A loss with gradients of very different sizes."""
        x = self.items(items) * 3 + self.mix(self.users(users))
        again = self.items(items.flip(0))  # reads the table twice in a step
        loss = (x.tanh() * again).sum() / len(items) + 0.01 * x.square().mean()
        return loss + 0.1 * self.items.weight[1:].sigmoid().sum() if self.reads_all else loss


class Both:
    """The same model under RowAdam, and in float64 under torch's Adam with dense gradients.

    If RowAdam runs in float64 too, only the methods differ; float32 rounds gradients, which Adam magnifies.
    """

    def __init__(
        self,
        seed: int = 0,
        rate: float = 0.01,
        table_rate: float | None = None,
        dtype: torch.dtype = torch.float64,
        **options,
    ) -> None:
        torch.manual_seed(seed)
        self.ours = Tables(sparse=True).to(dtype)
        self.start = copy.deepcopy(self.ours.state_dict())
        self.theirs = Tables(sparse=False).double()
        self.theirs.load_state_dict(self.ours.state_dict())
        self.row_adam = RowAdam(self.ours, rate, table_rate, **options)
        tables = [self.theirs.items.weight, self.theirs.users.weight]
        groups = [{"params": tables, "lr": rate if table_rate is None else table_rate}]
        groups.append({"params": list(self.theirs.mix.parameters())})
        self.rates = [group.get("lr", rate) for group in groups]
        settings = {"betas": options.get("betas", (0.9, 0.999)), "eps": options.get("epsilon", 1e-8)}
        self.adam = torch.optim.Adam(groups, lr=rate, **settings)

    def step(self, items: Tensor, users: Tensor, clip: float | None = None) -> None:
        self.row_adam.zero_grad()
        self.ours(items, users).backward()
        if clip is not None:
            clip_gradients(self.row_adam.gradients(), clip)
        self.row_adam.step()
        self.adam.zero_grad()
        if self.row_adam.schedule is not None:
            share = float(self.row_adam.schedule(np.array([self.row_adam.steps]))[0])
            for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
                group["lr"] = rate * share
        self.theirs(items, users).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.theirs.parameters(), clip)
        self.adam.step()

    def difference(self) -> float:
        """The largest difference of any weight, as a share of the largest movement in its tensor."""
        self.row_adam.catch_up()
        worst = 0.0
        for name, value in self.theirs.state_dict().items():
            moved = (value - self.start[name]).abs().max()
            worst = max(worst, ((self.ours.state_dict()[name] - value).abs().max() / moved).item())
        return worst


def rare_rows(random: np.random.Generator, step: int) -> tuple[Tensor, Tensor]:
    """Rows for each step: a few common ones at every step, others rarely, some after 97 steps, some never."""
    items = random.integers(1, 8, 6)
    if random.random() < 0.3:
        items[0] = random.integers(8, 30)
    if step in (3, 100, 101, 120):
        items[1:3] = [30, 31]
    users = np.minimum(random.geometric(0.2, 6), 20)
    return torch.from_numpy(items), torch.from_numpy(users)


@pytest.mark.parametrize(
    ("table_rate", "dtype", "tolerance"), [(None, torch.float64, 1e-5), (0.03, torch.float32, 2e-4)]
)
def test_row_adam_is_dense_adam(table_rate, dtype, tolerance):
    both = Both(table_rate=table_rate, dtype=dtype)
    random = np.random.default_rng(0)
    for step in range(STEPS):
        both.step(*rare_rows(random, step))
        if step in (0, 1, 10, 60, 99):
            # A catch_up in between must not change the result.
            assert both.difference() < tolerance
    assert both.difference() < tolerance
    assert (both.ours.items.weight[32:] == both.start["items.weight"][32:]).all()  # never touched
    assert (both.ours.items.weight[0] == 0).all()  # the padding


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("clip", "turns", "dtype", "tolerance"),
    [
        (None, True, torch.float64, 1e-5),
        (0.5, True, torch.float32, 2e-4),
        (None, False, torch.float32, 2e-4),
        (0.5, False, torch.float64, 1e-5),
    ],
)
def test_a_loss_that_reads_all_rows_moves_them_as_dense_adam_does(dtype, tolerance, clip, turns):
    both = Both(dtype=dtype, table_rate=0.02)
    random = np.random.default_rng(0)
    for step in range(120):
        both.ours.reads_all = both.theirs.reads_all = step // 20 % 2 == 0 or not turns
        if both.ours.reads_all and step % 20 == 0:
            both.row_adam.catch_up()  # needed before all rows are read
        both.step(*rare_rows(random, step), clip)
        assert both.ours.items.weight.grad.is_sparse != both.ours.reads_all
        assert both.ours.users.weight.grad.is_sparse
    assert both.difference() < tolerance


@pytest.mark.slow_but_one
@pytest.mark.parametrize("betas", [(0.0, 0.9), (0.5, 0.9999), (0.95, 0.98), (0.9, 1 - 1e-8)])
def test_row_adam_with_other_betas(betas):
    both = Both(betas=betas)
    random = np.random.default_rng(7)
    for step in range(STEPS):
        both.step(*rare_rows(random, step))
    assert both.difference() < 1e-5


@pytest.mark.parametrize("beta2", [0.95, 0.9999, 1 - 1e-8])
def test_row_adam_in_float32(beta2):
    """Near 1, float32 loses the difference of the second beta from 1."""
    both = Both(betas=(0.9, beta2), dtype=torch.float32)
    random = np.random.default_rng(7)
    for step in range(STEPS):
        both.step(*rare_rows(random, step))
    assert both.difference() < 3e-4


def schedules(steps: int) -> dict[str, Factors]:
    return {
        "linear": Schedule("linear", steps // 10, steps),
        "cosine": Schedule("cosine", 3 * steps // 8, steps),
        "warm-up": Schedule("constant", 3 * steps // 4, steps),
        "short": Schedule("cosine", 0, 5 * steps // 8),  # then the rate is 0
        "jumps": lambda steps: np.where(np.asarray(steps) // 10 % 2, 1.0, 0.01),
    }


SCHEDULES = schedules(400)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 3e-4)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_missed_steps_have_rates_of_their_own(name, dtype, tolerance):
    both = Both(table_rate=0.03, dtype=dtype, schedule=schedules(STEPS)[name])
    random = np.random.default_rng(0)
    for step in range(STEPS):
        both.ours.reads_all = both.theirs.reads_all = step in (60, 61)
        if step == 60:
            both.row_adam.catch_up()
        both.step(*rare_rows(random, step))
        # The first movements of a warm-up are as small as the rounding of weights in float32.
        if step in ((1, 10, 40, 99) if dtype == torch.float64 else (99,)):
            assert both.difference() < tolerance
    assert both.difference() < tolerance


@pytest.mark.slow_but_one
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("start", "missed"), [(1, 1), (1, 7), (3, 90), (35, 300), (390, 30)])
def test_the_drift_of_a_row_is_the_sum_of_its_steps(name, start, missed):
    """The closed form equals Adam's steps one by one in float64, with zero gradients."""
    schedule, (beta1, beta2), rate = SCHEDULES[name], (0.9, 0.98), 0.1
    table = nn.Embedding(3, 2, sparse=True).double()
    optimizer = RowAdam(table, rate, betas=(beta1, beta2), schedule=schedule)
    first = second = torch.zeros(2, dtype=torch.float64)
    weight = table.weight[1].detach().clone()
    for step in range(1, start + missed + 1):
        gradient = torch.tensor([1.0, -0.3], dtype=torch.float64) * (step == start)
        optimizer.zero_grad()
        row = 1 if step == start else 2
        (table(torch.tensor([row])) * torch.tensor([1.0, -0.3])).sum().backward()
        optimizer.step()
        first, second = beta1 * first + (1 - beta1) * gradient, beta2 * second + (1 - beta2) * gradient**2
        if step >= start:
            size = rate * float(schedule(np.array([step]))[0]) / (1 - beta1**step)
            weight = weight - size * first / ((second / (1 - beta2**step)).sqrt() + 1e-8)
    before = table.weight[1].detach().clone()
    optimizer.catch_up()
    drift = (weight - before).abs().max()
    assert (table.weight[1] - weight).abs().max() <= 2e-5 * drift + 1e-12


def test_all_rows_that_were_asked_for_are_those_that_are_behind():
    """On a GPU no rows are selected, because the host would wait for their number."""
    ways = [Both(), Both()]
    random = np.random.default_rng(0)
    for step in range(50):
        batch = rare_rows(random, step)
        for both in ways:
            both.step(*batch)
    for both, rows in zip(ways, (torch.arange(40), torch.arange(40).repeat(2)), strict=True):
        optimizer = both.row_adam
        table = optimizer.tables["items.weight"]
        last = table.last[rows]
        behind = (last < optimizer.steps) & (last > 0)
        assert 0 < int(behind.sum()) < len(rows)
        with torch.no_grad():
            optimizer._drift_rows(table, rows, last, behind, optimizer.steps)
        assert ((table.last == optimizer.steps) | (table.last == 0)).all()
        assert both.difference() < 1e-5
    assert torch.equal(ways[0].ours.items.weight, ways[1].ours.items.weight)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Make RowAdam select no rows on the CPU either, and use no compiled loops."""
    monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)
    plain = tables_by_row.summed_by_row
    monkeypatch.setattr(tables_by_row, "summed_by_row", lambda gradient, device: plain(gradient, torch.device("meta")))

    def catch_up(self, table, rows, step):
        last = table.last[rows]
        self._drift_rows(table, rows, last, (last < step) & (last > 0), step)

    monkeypatch.setattr(RowAdam, "_catch_up_rows", catch_up)


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("clip", "schedule", "dtype", "tolerance"),
    [
        (None, None, torch.float64, 1e-5),
        (0.5, None, torch.float32, 2e-4),
        (None, Schedule("cosine", 10, STEPS), torch.float32, 2e-4),
        (0.5, Schedule("cosine", 10, STEPS), torch.float64, 1e-5),
    ],
)
def test_without_selecting_rows_row_adam_is_dense_adam(clip, schedule, dtype, tolerance, as_on_a_gpu):
    both = Both(dtype=dtype, schedule=schedule)
    random = np.random.default_rng(1)
    for step in range(STEPS):
        both.step(*rare_rows(random, step), clip=clip)
        if step in (0, 1, 60):
            assert both.difference() < tolerance
    assert both.difference() < tolerance
    assert (both.ours.items.weight[32:] == both.start["items.weight"][32:]).all()  # never touched


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_sums_by_row_of_a_fixed_size(count):
    random = torch.Generator().manual_seed(count)
    rows = torch.randint(7, (count,), generator=random)
    values = torch.randn(count, 3, generator=random, dtype=torch.float64)
    gradient = torch.sparse_coo_tensor(rows[None], values, (7, 3), check_invariants=True)
    summed = tables_by_row.summed_by_row(gradient, torch.device("meta"))
    assert summed.sums.shape == values.shape
    torch.testing.assert_close(summed.sums.norm(), gradient.to_dense().norm())  # so clipping counts each row once
    each, sums = summed.by_row()
    assert torch.equal(each, rows.sort().values)
    torch.testing.assert_close(sums, gradient.to_dense()[each])
    for row in each.unique():
        assert (sums[each == row] == sums[each == row][0]).all()  # the same bits, so any of them may be written


@pytest.mark.cuda
def test_a_gpu_computes_the_same():
    ways = [Both(dtype=torch.float32), Both(dtype=torch.float32)]
    ways[1].ours.cuda()
    ways[1].row_adam = RowAdam(ways[1].ours, 0.01)
    random = np.random.default_rng(0)
    for step in range(STEPS):
        items, users = rare_rows(random, step)
        for both, device in zip(ways, ("cpu", "cuda"), strict=True):
            both.row_adam.zero_grad()
            both.ours(items.to(device), users.to(device)).backward()
            both.row_adam.step()
    for both in ways:
        both.row_adam.catch_up()
    for name, value in ways[0].ours.state_dict().items():
        torch.testing.assert_close(ways[1].ours.state_dict()[name].cpu(), value, rtol=0, atol=2e-4)


def test_a_rate_that_never_changes_is_no_schedule():
    ways = [Both(dtype=torch.float32, schedule=schedule) for schedule in (None, lambda steps: np.ones(len(steps)))]
    random = np.random.default_rng(0)
    for step in range(100):
        batch = rare_rows(random, step)
        for both in ways:
            both.step(*batch)
    plain, ones = (both.ours.state_dict() for both in ways)
    assert all(torch.equal(plain[name], ones[name]) for name in plain)


@pytest.mark.parametrize("betas", [(0.95, 0.9), (0.9, 0.89), (0.9, 1.0), (-0.1, 0.9)])
def test_betas_without_a_closed_form(betas):
    with pytest.raises(ValueError, match="betas are"):
        RowAdam(Tables(sparse=True), betas=betas)


@pytest.mark.parametrize("size", [1e-4, 1e-6, 1e-8, 1e-10, 1e-18, 1e-22, 1e-30])
def test_tiny_gradients(size):
    """Gradients so small that epsilon matters, or that the second moment underflows while the first does not.

    If epsilon dominates, RowAdam's drift is off by a few percent, but then rows hardly move.
    """
    ours, theirs = nn.Embedding(4, 2, sparse=True), nn.Embedding(4, 2).double()
    with torch.no_grad():
        for table in (ours, theirs):
            table.weight.zero_()  # otherwise small movements would be lost to rounding
    row_adam, adam = RowAdam(ours, 0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for step in range(60):
        rows = torch.tensor([0, 1] if step % 25 == 0 else [0])
        for table, optimizer in ((ours, row_adam), (theirs, adam)):
            optimizer.zero_grad()
            (table(rows) * table.weight.new_tensor([size, -3 * size])).sum().backward()
            optimizer.step()
    row_adam.catch_up()
    torch.testing.assert_close(ours.weight.double(), theirs.weight, rtol=2e-3 if size > 1e-7 else 0.15, atol=1e-22)


@pytest.mark.slow
def test_a_row_that_is_missing_for_very_long():
    ours, theirs = nn.Embedding(4, 2, sparse=True).double(), nn.Embedding(4, 2).double()
    theirs.load_state_dict(ours.state_dict())
    start = ours.weight.detach().clone()
    row_adam, adam = RowAdam(ours, 0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for step in range(1034):  # beyond the first table of drifts, when the momentum is gone
        rows = torch.tensor([0, 1] if step in (0, 1032) else [0])
        for table, optimizer in ((ours, row_adam), (theirs, adam)):
            optimizer.zero_grad()
            (table(rows) * torch.tensor([1.0, -0.3])).sum().backward()
            optimizer.step()
    row_adam.catch_up()
    moved = (theirs.weight - start)[:2].abs().amin()
    assert moved > 0.01
    assert (ours.weight - theirs.weight).abs().max() < 1e-5 * moved


def test_rows_are_up_to_date_when_they_are_read():
    both = Both()
    random = np.random.default_rng(3)
    for step in range(50):
        items, users = rare_rows(random, step)
        both.step(items, users)
        asked = torch.tensor([[5, 9, 9], [30, 12, 0]])
        torch.testing.assert_close(both.ours.items(asked), both.theirs.items(asked), rtol=0, atol=1e-7)


def test_reading_in_eval_mode_changes_nothing():
    both = Both()
    for step in range(20):
        both.step(*rare_rows(np.random.default_rng(step), step))
    before = both.ours.items.weight.detach().clone()
    both.ours.eval()
    both.ours.items(torch.arange(40))
    assert torch.equal(both.ours.items.weight, before)


def test_steps_on_rows_that_were_read_in_eval_mode():
    # Their values were stale when read, but this gradient does not depend on them.
    ours, theirs = nn.Embedding(9, 2, sparse=True).double().eval(), nn.Embedding(9, 2).double()
    theirs.load_state_dict(ours.state_dict())
    row_adam, adam = RowAdam(ours, 0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    random = torch.Generator().manual_seed(0)
    for _ in range(60):
        rows = torch.randint(9, (3,), generator=random)
        weights = torch.randn(3, 2, generator=random, dtype=torch.float64)
        for table, optimizer in ((ours, row_adam), (theirs, adam)):
            optimizer.zero_grad()
            (table(rows) * weights).sum().backward()
            optimizer.step()
    row_adam.catch_up()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=0, atol=1e-6)


def test_repeated_rows_in_a_batch_are_summed_once():
    both = Both()
    for _ in range(3):
        for items in ([5, 5, 5, 5], [5, 6, 5, 6], [6, 6, 7, 7]):
            both.step(torch.tensor(items), torch.tensor([1, 1, 1, 2]))
    assert both.difference() < 1e-5


def test_a_table_that_no_step_touches_and_gradients_of_zero():
    both = Both()
    for step in range(30):
        items, users = rare_rows(np.random.default_rng(step), step)
        for model, optimizer in ((both.ours, both.row_adam), (both.theirs, both.adam)):
            optimizer.zero_grad()
            loss = model.items(items).square().sum()
            if step % 3 == 1:
                loss = loss + (model.users(users) * 0).sum()  # a gradient of zeros
            loss.backward()
            optimizer.step()
    both.row_adam.catch_up()
    assert torch.equal(both.ours.users.weight, both.start["users.weight"])
    torch.testing.assert_close(both.ours.items.weight, both.theirs.items.weight, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_sparse_adam_learns_much_less_from_rare_rows():
    """The reason for RowAdam: torch's SparseAdam ends far from dense Adam on rows that are seldom touched."""
    both = Both()
    sparse = Tables(sparse=True).double()
    sparse.load_state_dict(both.start)
    sparse_adam = torch.optim.SparseAdam([sparse.items.weight, sparse.users.weight], lr=0.01)
    dense_adam = torch.optim.Adam(sparse.mix.parameters(), lr=0.01)
    random = np.random.default_rng(0)
    for step in range(200):
        items, users = rare_rows(random, step)
        both.step(items, users)
        sparse_adam.zero_grad()
        dense_adam.zero_grad()
        sparse(items, users).backward()
        sparse_adam.step()
        dense_adam.step()
    both.row_adam.catch_up()
    rare = slice(8, 32)
    reference, ours, other = (model.items.weight[rare] for model in (both.theirs, both.ours, sparse))
    start = both.start["items.weight"][rare]
    moved = (reference - start).norm()
    assert (ours - reference).norm() < 1e-5 * moved
    assert (other - reference).norm() > 0.5 * moved
    assert (other - start).norm() < 0.5 * moved


@pytest.mark.parametrize(("clip", "tolerance"), [(1e-3, 3e-4), (0.1, 1e-4), (1e6, 1e-5)])
def test_clipping_is_that_of_torch(clip, tolerance):
    both = Both()
    random = np.random.default_rng(2)
    for step in range(60):
        items, users = rare_rows(random, step)
        both.theirs.zero_grad()
        both.theirs(items, users).backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.reshape(-1) for p in both.theirs.parameters()]))
        both.row_adam.zero_grad()
        both.ours(items, users).backward()
        clip_gradients(both.row_adam.gradients(), clip)
        clipped = torch.cat([gradient.reshape(-1) for gradient in both.row_adam.gradients()])
        torch.testing.assert_close(clipped.norm().double(), norm.clamp(max=clip), rtol=2e-3, atol=1e-8)
        both.step(items, users, clip)
    # Adam's step hardly depends on the size of gradients, so the moments are compared too.
    both.row_adam.catch_up()
    for name in ("first", "second"):
        reference = both.adam.state[both.theirs.items.weight]["exp_avg" if name == "first" else "exp_avg_sq"]
        ours = getattr(both.row_adam.tables["items.weight"], name)
        assert (ours - reference).abs().max() < 1e-3 * reference.abs().max()
    assert both.difference() < tolerance  # epsilon matters for tiny gradients


def test_clip_gradients_alone():
    random = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (7,), (2, 2, 2)]
    gradients = [torch.randn(shape, generator=random) for shape in shapes]
    for norm in (0.5, 3.0, 100.0):
        ours = [gradient.clone() for gradient in gradients]
        theirs = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter, gradient in zip(theirs, gradients, strict=True):
            parameter.grad = gradient.clone()
        clip_gradients(iter(ours), norm)
        torch.nn.utils.clip_grad_norm_(theirs, norm)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b.grad)
    zeros = [torch.zeros(3)]
    clip_gradients(zeros, 1.0)
    assert (zeros[0] == 0).all()


def test_step_after_clipping_uses_the_clipped_rows():
    ours, same = (Tables(sparse=True) for _ in range(2))
    same.load_state_dict(ours.state_dict())
    batch = torch.tensor([1, 1, 2]), torch.tensor([3, 4, 3])
    optimizers = [
        RowAdam(model, epsilon=1.0) for model in (ours, same)
    ]  # with a large epsilon the size of gradients matters
    for model, optimizer, clip in zip((ours, same), optimizers, (1e-3, None), strict=True):
        model(*batch).backward()
        if clip:
            clip_gradients(optimizer.gradients(), clip)
        optimizer.step()
    clipped, full = (optimizer.tables["items.weight"].first.norm() for optimizer in optimizers)
    assert clipped < 0.01 * full


def test_gradients_that_no_step_used_are_forgotten():
    model = Tables(sparse=True)
    optimizer = RowAdam(model)
    model(torch.tensor([1, 2]), torch.tensor([1, 2])).backward()
    clip_gradients(optimizer.gradients(), 1.0)  # and no step follows, as after a loss that is NaN
    optimizer.zero_grad()
    before = model.items.weight.detach().clone()
    model(torch.tensor([5, 6]), torch.tensor([1, 2])).backward()
    optimizer.step()
    changed = (model.items.weight != before).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == [5, 6]


def test_accumulated_gradients():
    both = Both()
    for step in range(20):
        items, users = rare_rows(np.random.default_rng(step), step)
        for model, optimizer in ((both.ours, both.row_adam), (both.theirs, both.adam)):
            optimizer.zero_grad()
            model(items, users).backward()
            model(items.flip(0), users + 1).backward()
            optimizer.step()
    assert both.difference() < 1e-5


@pytest.mark.parametrize("which", ["sparse", "dense"])
def test_models_of_one_kind_only(which):
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True)) if which == "sparse" else nn.Linear(2, 1)
    optimizer = RowAdam(model)
    start = copy.deepcopy(model.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([1, 2]) if which == "sparse" else torch.ones(3, 2)).sum().backward()
        clip_gradients(optimizer.gradients(), 1.0)
        optimizer.step()
    optimizer.catch_up()
    optimizer.load_state_dict(optimizer.state_dict())
    assert any((value != start[name]).any() for name, value in model.state_dict().items())


@pytest.mark.parametrize("stop", [0, 1, 77])
def test_a_state_goes_on_bit_by_bit(stop):
    torch.manual_seed(2)
    model = Tables(sparse=True)
    optimizer = RowAdam(model, 0.01, 0.02)
    batches = [rare_rows(np.random.default_rng(step), step) for step in range(150)]

    def advance(model, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            model(*batch).backward()
            optimizer.step()

    advance(model, optimizer, batches[:stop])
    weights = copy.deepcopy(model.state_dict())
    state = {name: value.clone() for name, value in optimizer.state_dict().items()}
    assert all(isinstance(value, Tensor) for value in state.values())
    advance(model, optimizer, batches[stop:])

    again = Tables(sparse=True)
    again.load_state_dict(weights)
    resumed = RowAdam(again, 0.01, 0.02)
    resumed.load_state_dict(state)
    loaded = {name: value.clone() for name, value in state.items()}
    advance(again, resumed, batches[stop:])
    for name, value in state.items():
        assert torch.equal(value, loaded[name]), name  # further training does not write into the loaded state
    for one, other in ((model, again), (optimizer, resumed)):
        assert one.state_dict().keys() == other.state_dict().keys()
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    optimizer.catch_up()
    resumed.catch_up()
    assert torch.equal(model.items.weight, again.items.weight)


def test_catch_up_goes_through_all_blocks():
    model = nn.Sequential(nn.Embedding(70_000, 1, sparse=True))
    optimizer = RowAdam(model, 0.1)
    model(torch.tensor([1, 65_535, 65_536, 69_999])).sum().backward()
    optimizer.step()
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.tensor([2])).sum().backward()
        optimizer.step()
    before = model[0].weight.detach().clone()
    optimizer.catch_up()
    changed = (model[0].weight != before).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == [1, 65_535, 65_536, 69_999]
    moved = (model[0].weight - before)[changed]
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["first", "second", "last", "step"])
def test_a_state_that_would_lead_the_loops_astray_is_refused(name: str) -> None:
    model = nn.ModuleDict({"table": nn.Embedding(7, 4, sparse=True), "dense": nn.Linear(4, 4)})
    optimizer = RowAdam(model)
    for _ in range(3):
        model["dense"](model["table"](torch.tensor([1, 2]))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    state = {key: value.clone() for key, value in optimizer.state_dict().items()}
    other = RowAdam(model)
    for key in [key for key in state if key.endswith(f".{name}")]:
        value = state[key]
        wrong = [value.flatten()[:0], value.double(), value[None], torch.full_like(value, -9)]
        wrong = wrong[:3] if name == "first" else wrong  # the first moment may have any sign
        wrong += [torch.full_like(value, 9)] if name in ("last", "step") else [torch.full_like(value, torch.inf)]
        for bad in wrong:
            with pytest.raises(ValueError, match=key):
                other.load_state_dict(state | {key: bad})
        with pytest.raises(ValueError, match=key):
            other.load_state_dict({other_key: kept for other_key, kept in state.items() if other_key != key})
    other.load_state_dict(state)
    assert other.steps == 3
