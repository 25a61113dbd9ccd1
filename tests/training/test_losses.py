import math

import pytest
import torch
import torch.nn.functional as F

from seqrec.training import losses
from seqrec.training.losses import (
    binary_cross_entropy,
    blocked_cross_entropy,
    blocked_sampled_softmax,
    bpr_max,
    cross_entropy,
    gbce_weight,
    sampled_softmax,
    top1_max,
)

SHAPES = [(1, 1), (1, 7), (9, 1), (6, 4), (30, 50)]


def logits(tokens: int, negatives: int, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    target = scale * torch.randn(tokens, generator=random, dtype=torch.float64)
    negative = scale * torch.randn(tokens, negatives, generator=random, dtype=torch.float64)
    return target.requires_grad_(), negative.requires_grad_()


def gradients(loss: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("shape", SHAPES)
def test_binary_cross_entropy_is_the_naive_loop(shape):
    target, negative = logits(*shape)
    expected = 0.0
    for t, line in zip(target.tolist(), negative.tolist(), strict=True):
        expected -= math.log(1 / (1 + math.exp(-t)))
        for n in line:
            expected -= math.log(1 - 1 / (1 + math.exp(-n)))
    assert binary_cross_entropy(target, negative).item() == pytest.approx(expected / shape[0], rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_binary_cross_entropy_is_that_of_torch(shape):
    target, negative = logits(*shape, seed=1)
    ours = binary_cross_entropy(target, negative)
    both = torch.cat([target[:, None], negative], dim=1)
    labels = torch.zeros_like(both)
    labels[:, 0] = 1
    theirs = F.binary_cross_entropy_with_logits(both, labels, reduction="sum") / shape[0]
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(gradients(ours, target, negative), gradients(theirs, target, negative), strict=True):
        torch.testing.assert_close(a, b)


def test_gbce_weighs_the_targets_term_by_the_papers_power():
    """log(sigma(x) ** beta) = beta * log(sigma(x)), with beta as in the paper."""
    for negatives, num_items, t in ((1, 100, 0.75), (256, 20_000, 0.75), (16, 51, 0.3)):
        alpha = negatives / (num_items - 1)
        beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
        assert gbce_weight(negatives, num_items, t) == pytest.approx(beta, rel=1e-12)
        assert gbce_weight(negatives, num_items, 1.0) == pytest.approx(alpha, rel=1e-12)
        assert gbce_weight(negatives, num_items, 0.0) == 1.0
        target, negative = logits(5, negatives)
        powers = (target.sigmoid() ** beta).log() + (1 - negative.sigmoid()).log().sum(dim=1)
        torch.testing.assert_close(binary_cross_entropy(target, negative, beta), -powers.mean())
    assert gbce_weight(50, 50, 0.9) == gbce_weight(1, 1, 0.9) == 1.0  # all other items are negatives


@pytest.mark.parametrize("shape", SHAPES)
def test_sampled_softmax_is_the_naive_loop(shape):
    target, negative = logits(*shape, seed=2)
    target_q = -torch.rand(shape[0], dtype=torch.float64) * 5
    negative_q = -torch.rand(shape[1], dtype=torch.float64) * 5
    plain = corrected = 0.0
    for t, line, q in zip(target.tolist(), negative.tolist(), target_q.tolist(), strict=True):
        plain -= math.log(math.exp(t) / (math.exp(t) + sum(math.exp(n) for n in line)))
        weighted = sum(math.exp(n) / math.exp(p) for n, p in zip(line, negative_q.tolist(), strict=True))
        corrected -= math.log(math.exp(t) / math.exp(q) / (math.exp(t) / math.exp(q) + weighted))
    assert sampled_softmax(target, negative).item() == pytest.approx(plain / shape[0], rel=1e-9)
    ours = sampled_softmax(target, negative, target_q, negative_q)
    assert ours.item() == pytest.approx(corrected / shape[0], rel=1e-9)


def full_and_others(num_items: int, tokens: int, seed: int):
    """Logits of the whole catalogue, the targets, and for each row all other items."""
    random = torch.Generator().manual_seed(seed)
    full = 2 * torch.randn(tokens, num_items, generator=random, dtype=torch.float64)
    targets = torch.randint(num_items, (tokens,), generator=random)
    others = torch.stack([torch.tensor([i for i in range(num_items) if i != t]) for t in targets.tolist()])
    return full.requires_grad_(), targets, others


def test_sampled_softmax_against_all_others_is_cross_entropy():
    full, targets, others = full_and_others(20, 8, seed=3)
    expected = F.cross_entropy(full, targets)
    ours = sampled_softmax(full.gather(1, targets[:, None])[:, 0], full.gather(1, others))
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, full)[0], gradients(expected, full)[0])
    # A uniform correction shifts all logits equally, so it changes nothing.
    uniform = torch.full((20,), -math.log(20), dtype=torch.float64)
    shifted = sampled_softmax(
        full.gather(1, targets[:, None])[:, 0], full.gather(1, others), uniform[targets], uniform[:19]
    )
    torch.testing.assert_close(shifted, expected)


def test_gradcheck():
    target, negative = logits(4, 5, seed=4, scale=1.0)
    target_q = torch.randn(4, dtype=torch.float64, requires_grad=True)
    negative_q = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(binary_cross_entropy, (target, negative))
    assert torch.autograd.gradcheck(sampled_softmax, (target, negative))
    assert torch.autograd.gradcheck(sampled_softmax, (target, negative, target_q, negative_q))


@pytest.mark.parametrize("loss", [binary_cross_entropy, sampled_softmax, bpr_max, top1_max])
def test_minus_infinity_leaves_a_negative_out(loss):
    target, negative = logits(3, 4, seed=5)
    without = torch.cat([negative[:, :1], negative[:, 2:]], dim=1)
    masked = negative.masked_fill(torch.tensor([False, True, False, False]), -torch.inf)
    torch.testing.assert_close(loss(target, masked), loss(target, without))
    ours, theirs = (gradients(loss(target, n), target, negative) for n in (masked, without))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b)
    assert (ours[1][:, 1] == 0).all()


def test_minus_infinity_with_log_probabilities():
    target, negative = logits(3, 4, seed=6)
    masked = negative.masked_fill(torch.eye(3, 4, dtype=torch.bool), -torch.inf)
    loss = sampled_softmax(target, masked, torch.full((3,), -2.0), torch.tensor([-1.0, -2.0, -3.0, -4.0]))
    expected = 0.0
    for row in range(3):
        terms = [math.exp(negative[row, column].item() + column + 1) for column in range(4) if column != row]
        own = math.exp(target[row].item() + 2)
        expected -= math.log(own / (own + sum(terms)))
    assert loss.item() == pytest.approx(expected / 3)
    assert all(torch.isfinite(g).all() for g in gradients(loss, target, negative))


@pytest.mark.parametrize("loss", [binary_cross_entropy, sampled_softmax, bpr_max, top1_max])
def test_only_masked_negatives_and_no_negatives(loss):
    target, negative = logits(3, 2, seed=7)
    alone = loss(target, negative.masked_fill(torch.tensor(True), -torch.inf))
    assert all(torch.isfinite(g).all() for g in gradients(alone, target, negative))
    torch.testing.assert_close(alone, loss(target, negative[:, :0]))
    expected = F.softplus(-target).mean() if loss is binary_cross_entropy else torch.zeros_like(alone)
    torch.testing.assert_close(alone, expected)


@pytest.mark.parametrize("loss", [binary_cross_entropy, sampled_softmax, bpr_max, top1_max])
@pytest.mark.parametrize("size", [50.0, 1e4])
def test_extreme_logits_stay_finite(loss, size):
    target = torch.tensor([size, -size, size, -size], requires_grad=True)
    negative = torch.tensor([[size], [size], [-size], [-size]], requires_grad=True)
    value = loss(target, negative)
    assert torch.isfinite(value)
    assert all(torch.isfinite(g).all() for g in gradients(value, target, negative))


def test_the_correction_makes_the_gradient_that_of_the_full_softmax():
    """Negatives of a skewed distribution q: the gradient's error falls with N, and only with both corrections.

    Draws that equal the target are masked. The target is its own term of the full sum, which corresponds to N draws
    of weight 1 / q.
    """
    random = torch.Generator().manual_seed(8)
    num_items, target = 30, 4
    full = torch.randn(1, num_items, generator=random, dtype=torch.float64).requires_grad_()
    weights = torch.rand(num_items, generator=random, dtype=torch.float64) ** 3 + 0.01
    log_q = (weights / weights.sum()).log()
    exact = gradients(F.cross_entropy(full, torch.tensor([target])), full)[0]

    def error(count: int, repetitions: int, own: float | None, corrected: bool = True) -> float:
        total = torch.zeros_like(exact)
        for _ in range(repetitions):
            drawn = torch.multinomial(weights, count, replacement=True, generator=random)
            negative = full[:, drawn].masked_fill(drawn == target, -torch.inf)
            loss = sampled_softmax(full[:, target], negative, own, log_q[drawn] if corrected else None)
            total += gradients(loss, full)[0]
        return ((total / repetitions - exact).norm() / exact.norm()).item()

    few, more, many = (error(n, times, -math.log(n)) for n, times in ((10, 500), (100, 200), (5000, 40)))
    assert many < 0.02
    assert few > more > many
    assert error(5000, 40, None, corrected=False) > 0.1
    log_q = log_q + math.log(num_items)  # relative to a uniform sampler's probability, as in training
    assert error(5000, 40, math.log(num_items / 5000)) < 0.02


@pytest.mark.parametrize("seed", range(5))
def test_the_corrected_loss_has_the_full_softmax_as_its_expectation(seed):
    """The expectation is exact: exp(loss) is linear in the sum over draws, which are enumerated here."""
    random = torch.Generator().manual_seed(seed)
    items, count = (int(torch.randint(low, high, (), generator=random)) for low, high in ((3, 9), (1, 4)))
    full = 2 * torch.randn(items, generator=random, dtype=torch.float64)
    q = torch.rand(items, generator=random, dtype=torch.float64) ** 2 + 0.01
    q /= q.sum()
    target = int(torch.randint(items, (), generator=random))
    full.requires_grad_()
    weights, losses = [], []
    for drawn in torch.cartesian_prod(*[torch.arange(items)] * count).view(-1, count):
        negative = full[drawn].masked_fill(drawn == target, -torch.inf)
        losses.append(sampled_softmax(full[target][None], negative[None], -math.log(count), q[drawn].log()))
        weights.append(q[drawn].prod())
    expectation = (torch.stack(weights) * torch.stack(losses).exp()).sum()
    exact = F.cross_entropy(full[None], torch.tensor([target])).exp()
    torch.testing.assert_close(expectation, exact)
    torch.testing.assert_close(gradients(expectation, full)[0], gradients(exact, full)[0])


@pytest.mark.parametrize("seed", range(5))
def test_different_uniform_negatives_need_a_correction_of_the_target_alone(seed):
    """For N distinct items of I, the target's correction is log(I / N), as in training."""
    random = torch.Generator().manual_seed(seed)
    items, count = (int(torch.randint(low, high, (), generator=random)) for low, high in ((3, 9), (1, 4)))
    full = 2 * torch.randn(items, generator=random, dtype=torch.float64)
    target = int(torch.randint(items, (), generator=random))
    found = []
    for drawn in torch.combinations(torch.arange(items), count):
        negative = full[drawn].masked_fill(drawn == target, -torch.inf)
        found.append(sampled_softmax(full[target][None], negative[None], math.log(items / count)).exp())
    exact = F.cross_entropy(full[None], torch.tensor([target])).exp()
    torch.testing.assert_close(torch.stack(found).mean(), exact)


@pytest.mark.parametrize(
    ("tokens", "negatives", "dim", "block"), [(37, 11, 5, 8), (300, 50, 16, 256), (1, 3, 4, 2), (16, 4, 4, 8)]
)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])  # torch, and the compiled loops
def test_blocked_sampled_softmax_is_sampled_softmax(tokens, negatives, dim, block, corrected, dtype):
    generator = torch.Generator().manual_seed(tokens)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    hidden, vectors, target = draw(tokens, dim), draw(negatives, dim), draw(tokens)
    left_out = torch.rand(tokens, negatives, generator=generator) < 0.2
    left_out[0] = True  # a token without negatives
    log_probability = draw(negatives).detach() if corrected else None
    logits = (hidden @ vectors.T).masked_fill(left_out, -torch.inf)
    own = -math.log(negatives) if corrected else None  # as in training
    plain = sampled_softmax(target, logits, own, log_probability)
    pairs = left_out.nonzero(as_tuple=True)
    blocked = blocked_sampled_softmax(hidden, vectors, target, pairs, own, log_probability, block)
    torch.testing.assert_close(blocked, plain)
    expected = torch.autograd.grad(plain, (hidden, vectors, target))
    for mine, theirs in zip(torch.autograd.grad(3 * blocked, (hidden, vectors, target)), expected, strict=True):
        torch.testing.assert_close(mine, 3 * theirs.nan_to_num())


@pytest.mark.parametrize(("tokens", "items", "dim"), [(37, 11, 5), (300, 50, 16), (1, 1, 4), (40, 300_000, 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocked_cross_entropy_is_cross_entropy(tokens, items, dim, dtype):
    generator = torch.Generator().manual_seed(items)
    hidden = (3 * torch.randn(tokens, dim, generator=generator)).to(dtype).requires_grad_()
    vectors = torch.randn(items + 1, dim, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(1, items + 1, (tokens,), generator=generator)
    plain = cross_entropy((hidden @ vectors.T).double(), targets)
    blocked = blocked_cross_entropy(hidden, vectors, targets)
    torch.testing.assert_close(blocked.double(), plain, rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(plain, (hidden, vectors))
    for mine, theirs in zip(torch.autograd.grad(blocked, (hidden, vectors)), expected, strict=True):
        close = {} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}  # sums over 300,000 items
        torch.testing.assert_close(mine, theirs, **close)


BLOCKED = [(1, 1, 3), (5, 40, 8), (64, 7, 16), (130, 257, 24), (33, 1000, 5)]


@pytest.fixture
def no_loops(monkeypatch):
    """The compiled loops are never used, as on a GPU."""
    monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)


@pytest.mark.parametrize(("tokens", "negatives", "dim"), BLOCKED)
@pytest.mark.parametrize("block", [None, 1, 7, 16, 10_000])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5), (torch.bfloat16, 0.03)])
def test_blocks_of_any_size_and_type_give_the_unblocked_loss(tokens, negatives, dim, block, kind, tolerance, no_loops):
    """Also under autocast, with the pairs' tokens given on the host, against one float64 product of everything."""
    random = torch.Generator().manual_seed(tokens)
    wide = torch.float64 if kind is torch.float64 else torch.float32

    def draw(*shape: int) -> torch.Tensor:
        return (0.7 * torch.randn(*shape, generator=random)).to(wide).requires_grad_()

    hidden, vectors, target = draw(tokens, dim), draw(negatives, dim), draw(tokens)
    left_out = torch.rand(tokens, negatives, generator=random) < 0.2
    pairs, correction = left_out.nonzero(as_tuple=True), draw(negatives).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is torch.bfloat16):
        loss = blocked_sampled_softmax(
            hidden, vectors, target, pairs, 0.3, correction, block, host_tokens=pairs[0].clone()
        )
    exact = [x.detach().double().requires_grad_() for x in (hidden, vectors, target)]
    logits = (exact[0] @ exact[1].T).masked_fill(left_out, -torch.inf)
    expected = sampled_softmax(exact[2], logits, 0.3, correction.double())
    assert loss.dtype == wide
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    loss.backward()
    expected.backward()
    for mine, theirs in zip((hidden, vectors, target), exact, strict=True):
        assert mine.grad.dtype == wide
        right = theirs.grad.nan_to_num()
        assert (mine.grad - right).norm() <= tolerance * right.norm() + 1e-12


@pytest.mark.parametrize(("tokens", "items", "dim"), BLOCKED)
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5), (torch.bfloat16, 0.03)])
def test_blocked_cross_entropy_of_any_type_is_the_unblocked_one(tokens, items, dim, kind, tolerance, no_loops):
    random = torch.Generator().manual_seed(items)
    wide = torch.float64 if kind is torch.float64 else torch.float32
    hidden = torch.randn(tokens, dim, generator=random).to(wide).requires_grad_()
    vectors = (0.7 * torch.randn(items + 1, dim, generator=random)).to(wide).requires_grad_()
    targets = torch.randint(1, items + 1, (tokens,), generator=random)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind is torch.bfloat16):
        loss = blocked_cross_entropy(hidden, vectors, targets)
    exact = [x.detach().double().requires_grad_() for x in (hidden, vectors)]
    expected = F.cross_entropy((exact[0] @ exact[1].T)[:, 1:], targets - 1)
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=1e-9)
    loss.backward()
    expected.backward()
    for mine, theirs in zip((hidden, vectors), exact, strict=True):
        assert (mine.grad - theirs.grad).norm() <= tolerance * theirs.grad.norm() + 1e-9


def test_half_precision_states_get_half_precision_gradients(no_loops):
    torch.manual_seed(0)
    hidden = torch.randn(20, 8).bfloat16().requires_grad_()
    vectors, target = torch.randn(9, 8, requires_grad=True), torch.randn(20, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = blocked_sampled_softmax(hidden, vectors, target, (none, none))
    exact = hidden.detach().double().requires_grad_()
    expected = sampled_softmax(target.double(), exact @ vectors.double().T)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected)
    assert torch.autograd.grad(loss, hidden, retain_graph=True)[0].dtype == torch.bfloat16
    torch.testing.assert_close(
        torch.autograd.grad(loss, hidden)[0].double(), torch.autograd.grad(expected, exact)[0], rtol=0.01, atol=1e-4
    )


@pytest.mark.parametrize("items", [1, 1000, 10**6, 10**8])
def test_the_logits_of_a_block_are_bounded_on_a_gpu(items):
    block = losses._block(items, torch.device("meta"))
    assert block >= 16
    assert block == 16 or block * items <= 2**26


def test_blocked_sampled_softmax_takes_strides_and_other_types():
    torch.manual_seed(0)
    hidden, vectors, scores = torch.randn(9, 4), torch.randn(5, 4), torch.randn(9, 3)
    none = torch.zeros(0, dtype=torch.int64)
    correction = torch.randn(5, dtype=torch.float64)
    found = blocked_sampled_softmax(hidden, vectors, scores[:, 1], (none, none), None, correction)
    torch.testing.assert_close(found, sampled_softmax(scores[:, 1], hidden @ vectors.T, None, correction.float()))


def test_a_loss_of_no_number_stays_one():
    hidden = torch.tensor([[1.0], [float("nan")]], requires_grad=True)
    vectors = torch.tensor([[0.0], [1.0], [2.0]], requires_grad=True)
    targets = torch.tensor([1, 2])
    loss = blocked_cross_entropy(hidden, vectors, targets)
    assert loss.isnan()
    loss.backward()
    assert hidden.grad[0].isfinite().all()
    assert hidden.grad[1].isnan().all()


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_shares(line: list[float]) -> list[float]:
    total = sum(math.exp(r) for r in line)
    return [math.exp(r) / total for r in line]


@pytest.mark.parametrize("penalty", [0.0, 1.0, 1.95])
@pytest.mark.parametrize("shape", SHAPES)
def test_bpr_max_is_the_naive_loop(shape, penalty):
    target, negative = logits(*shape, seed=9)
    expected = 0.0
    for r_i, line in zip(target.tolist(), negative.tolist(), strict=True):
        s = naive_shares(line)
        expected -= math.log(sum(s_j * sigma(r_i - r_j) for s_j, r_j in zip(s, line, strict=True)))
        expected += penalty * sum(s_j * r_j**2 for s_j, r_j in zip(s, line, strict=True))
    assert bpr_max(target, negative, penalty).item() == pytest.approx(expected / shape[0], rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_top1_max_is_the_naive_loop(shape):
    target, negative = logits(*shape, seed=10)
    expected = 0.0
    for r_i, line in zip(target.tolist(), negative.tolist(), strict=True):
        pairs = zip(naive_shares(line), line, strict=True)
        expected += sum(s_j * (sigma(r_j - r_i) + sigma(r_j**2)) for s_j, r_j in pairs)
    assert top1_max(target, negative).item() == pytest.approx(expected / shape[0], rel=1e-9)


def test_gradients_of_the_ranking_losses_are_those_of_the_paper():
    """Hidasi & Karatzoglou 2018, section 3.3: equations 10, 13 and 14 of the preprint."""
    target, negative = logits(6, 7, seed=11)
    s = negative.softmax(dim=1)
    above, below = (target[:, None] - negative).sigmoid(), (negative - target[:, None]).sigmoid()
    (by_target,) = gradients(6 * top1_max(target, negative), target)
    torch.testing.assert_close(by_target, -(s * below * (1 - below)).sum(dim=1))
    by_target, by_negative = gradients(6 * bpr_max(target, negative, 0.0), target, negative)
    ranked = (s * above).sum(dim=1)
    torch.testing.assert_close(by_target, -(s * above * (1 - above)).sum(dim=1) / ranked)
    torch.testing.assert_close(by_negative, s - s * above**2 / ranked[:, None])


@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_the_naive_loop(shape):
    _, full = logits(*shape, seed=12)
    targets = torch.randint(1, shape[1] + 1, (shape[0],), generator=torch.Generator().manual_seed(1))
    expected = -sum(
        math.log(naive_shares(line)[t - 1]) for line, t in zip(full.tolist(), targets.tolist(), strict=True)
    )
    for padding in (-torch.inf, 0.0, 50.0):  # whatever column 0 holds
        both = torch.cat([torch.full((shape[0], 1), padding), full], dim=1)
        assert cross_entropy(both, targets).item() == pytest.approx(expected / shape[0], rel=1e-9)


def test_gradcheck_of_the_ranking_losses():
    target, negative = logits(4, 5, seed=13, scale=1.0)
    left_out = torch.zeros(4, 5, dtype=torch.bool)
    left_out[0, 1:3] = left_out[2] = True
    for loss in (bpr_max, top1_max):
        assert torch.autograd.gradcheck(loss, (target, negative))
        masked = lambda t, n, loss=loss: loss(t, n.masked_fill(left_out, -torch.inf))  # noqa: E731
        assert torch.autograd.gradcheck(masked, (target, negative))
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, torch.tensor([1, 4, 2, 2])), (negative,))


@pytest.mark.parametrize("loss", [bpr_max, top1_max])
def test_numbers_that_are_none_are_not_hidden(loss):
    target, negative = torch.zeros(2), torch.zeros(2, 3)
    negative[1, 1] = torch.nan
    assert loss(target, negative).isnan()
