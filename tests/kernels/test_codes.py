"""Ranking by codes against ranking by all scores: the same candidates with the same bits."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqrec import kernels


def decoded(codes: kernels.Codes, count: int, dim: int) -> Tensor:
    """The codes of each vector, ``float64[C, D]``, read one at a time."""
    found = torch.zeros(count, dim, dtype=torch.float64)
    for place, c in enumerate(codes.order.tolist()):
        for d in range(dim):
            found[c, d] = int(codes.blocks[place // 16, d // 4, place % 16 * 4 + d % 4]) - 64
    return found


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (16, 2), (33, 7), (50, 64), (20, 70)])
def test_codes_are_within_half_a_step(count: int, dim: int) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(count, dim) * torch.rand(dim).pow(-2)
    vectors[:, dim // 2] = 0
    codes = kernels.codes_of(vectors)
    code = decoded(codes, count, dim)
    rest = (vectors.double() - codes.centres.double()) / codes.steps.double() - code
    assert rest.abs().max() <= 0.5 + 1e-4
    assert code.abs().max() <= 63
    assert codes.residual >= rest.norm(dim=1).max()
    assert codes.residual <= rest.norm(dim=1).max() + 1e-3
    groups = [[d for d in range(dim) if d // 64 == n // 2 and d % 4 // 2 == n % 2] for n in range((dim + 63) // 64 * 2)]
    norms = [code[:, group].norm(dim=1).max() for group in [*groups, list(range(dim))]]
    torch.testing.assert_close(codes.norms, torch.stack(norms))
    assert codes.blocks.shape == ((count + 15) // 16, (dim + 3) // 4, 64)
    assert (codes.blocks.long() - 64).abs().sum() == code.abs().sum()  # nothing at the ends
    lengths = code.norm(dim=1)[codes.order]
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)
    assert (codes.reach >= lengths[::16]).all()
    torch.testing.assert_close(codes.reach.double(), lengths[::16], rtol=1e-5, atol=0)
    assert codes.places[codes.order].tolist() == list(range(count))


def test_codes_of_many_blocks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = torch.randn(100, 5)
    at_once = kernels.codes_of(vectors)
    monkeypatch.setattr("seqrec.kernels.codes._ITEMS_AT_ONCE", 32)
    in_parts = kernels.codes_of(vectors)
    assert torch.equal(at_once.blocks, in_parts.blocks)
    assert at_once.residual == in_parts.residual
    assert torch.equal(at_once.norms, in_parts.norms)
    assert kernels.codes_of(torch.zeros(0, 3)).blocks.shape == (0, 1, 64)


KINDS = ["random", "whole", "close", "tails", "equal", "near zero", "tiny", "not normal", "scales", "huge"]


def vectors_of(kind: str, count: int, dim: int) -> Tensor:
    if kind == "whole":  # many scores tie
        return torch.randint(-2, 3, (count, dim)).float()
    if kind == "close":  # vectors differ by less than a step
        return torch.randn(1, dim) + 1e-3 * torch.randn(count, dim)
    if kind == "tails":  # one item is a thousand times larger, so that the codes of the others are 0
        vectors = torch.randn(count, dim)
        vectors[count // 2] *= 1000
        return vectors
    if kind == "equal":
        return torch.randn(1, dim).repeat(count, 1)
    if kind == "near zero":  # most vectors are so short that their products can't be among the highest
        return torch.randn(count, dim) * torch.rand(count, 1) ** 8
    if kind == "tiny":  # products that are not normal numbers
        return 1e-20 * torch.randn(count, dim)
    if kind == "not normal":
        return 1e-40 * torch.randn(count, dim)
    if kind == "scales":  # dimensions from tiny to huge, and constant ones
        vectors = torch.randn(count, dim) * 10 ** torch.empty(dim).uniform_(-40, 15)
        vectors[:, ::3] = torch.randn(1)
        return vectors
    if kind == "huge":
        return 1e18 * torch.randn(count, dim)
    return torch.randn(count, dim) * torch.randn(dim).exp()


@pytest.mark.loops
@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.tuples(st.integers(0, 10), st.integers(1, 700), st.integers(1, 70)),
    filters=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    k=st.integers(1, 40),
    threads=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
@example(kind="random", sizes=(5, 5000, 64), filters=(True, True, True), k=10, threads=1, seed=0)
@example(kind="whole", sizes=(9, 3000, 3), filters=(True, True, True), k=10, threads=2, seed=0)
@example(kind="random", sizes=(3, 400, 600), filters=(False, True, True), k=10, threads=1, seed=0)
def test_the_same_bits_as_without_codes(
    kind: str, sizes: tuple[int, int, int], filters: tuple[bool, bool, bool], k: int, threads: int, seed: int
) -> None:
    rows, count, dim = sizes
    k = min(k, count)
    torch.manual_seed(seed)
    vectors = vectors_of(kind, count, dim)
    states = torch.randint(-2, 3, (rows, dim)).float() if kind == "whole" else torch.randn(rows, dim)
    states = states * {"tiny": 1e-20, "huge": 1e18}.get(kind, 1.0)
    states[:1] = 0 if seed % 5 == 0 else states[:1]
    left_out = skipped = added = None
    if filters[0]:
        owners = torch.randint(0, max(rows, 1), (4 * rows,)).sort().values
        left_out = owners, torch.randint(0, count, (4 * rows,))
    if filters[1]:
        skipped = torch.rand(count) < torch.rand(1)  # from none to all
    if filters[2]:  # some pairs twice, values of both signs, some of items that are left out
        pairs = torch.randint(0, max(rows * count, 1), (30 * rows,)).sort().values
        added = pairs // count, pairs % count, torch.randn(30 * rows)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = kernels.rank(states, vectors, k, left_out, skipped, None, added)
        found = kernels.rank_by_codes(states, vectors, kernels.codes_of(vectors), k, left_out, skipped, added)
    finally:
        torch.set_num_threads(before)
    assert found.numbers
    assert torch.equal(found.columns, expected.columns)
    assert torch.equal(found.scores, expected.scores)
    assert (found.scored >= (found.columns >= 0).sum(dim=1)).all()


@pytest.mark.loops
def test_few_candidates_are_scored() -> None:
    torch.manual_seed(0)
    states, vectors = torch.randn(20, 64), torch.randn(30_000, 64)
    found = kernels.rank_by_codes(states, vectors, kernels.codes_of(vectors), 10)
    exact = (states.double() @ vectors.double().T).topk(10).indices
    assert torch.equal(found.columns, exact)
    assert found.scored.max() < 150


@pytest.mark.loops
@pytest.mark.parametrize("dim", [5, 64, 130])
def test_the_best_are_those_of_a_naive_loop(dim: int) -> None:
    """Whole numbers, whose scores float32 holds exactly, in a loop of its own."""
    generator = torch.Generator().manual_seed(dim)
    states = torch.randint(-30, 31, (13, dim), generator=generator)
    vectors = torch.randint(-30, 31, (1500, dim), generator=generator)
    vectors[700:800] = vectors[:100]  # ties
    found = kernels.rank_by_codes(states.float(), vectors.float(), kernels.codes_of(vectors.float()), 10)
    assert found.scored.max() < 1500  # the codes were used
    for row, state in enumerate(states.tolist()):
        scores = [float(sum(a * b for a, b in zip(state, vector, strict=True))) for vector in vectors.tolist()]
        order = sorted(range(1500), key=lambda item: (-scores[item], item))[:10]
        assert found.columns[row].tolist() == order
        assert found.scores[row].tolist() == [scores[item] for item in order]


@pytest.mark.loops
def test_states_that_the_codes_cannot_rank() -> None:
    """Too many candidates, infinite states and none: each row is ranked as without codes, with its own filters."""
    torch.manual_seed(0)
    vectors, states = torch.randn(3000, 16), torch.randn(30, 16)
    states[3], states[7, 2], states[20] = 0, torch.inf, 1e38
    owners, items = torch.arange(30).repeat_interleave(2), torch.randint(0, 3000, (60,))
    added = owners, torch.arange(60) * 7, torch.randn(60)
    expected = kernels.rank(states, vectors, 5, (owners, items), added=added)
    found = kernels.rank_by_codes(states, vectors, kernels.codes_of(vectors), 5, (owners, items), added=added)
    assert found.numbers == expected.numbers
    assert torch.equal(found.columns, expected.columns)
    assert torch.equal(found.scores, expected.scores)
    assert torch.nonzero(found.scored == 3000)[:, 0].tolist() == [3, 7, 20]
    states[7, 2] = torch.nan
    assert not kernels.rank_by_codes(states, vectors, kernels.codes_of(vectors), 5).numbers


@pytest.mark.loops
def test_scores_that_overflow_are_those_without_codes() -> None:
    """With fused multiplication they are infinite, otherwise no numbers."""
    vectors = torch.full((20, 2), 3e38)
    vectors[:, 1] = -3e38
    states = torch.tensor([[1e6, 1e6]])
    expected = kernels.rank(states, vectors, 2)
    found = kernels.rank_by_codes(states, vectors, kernels.codes_of(vectors), 2)
    assert found.numbers == expected.numbers
    if found.numbers:
        assert torch.equal(found.columns, expected.columns)
