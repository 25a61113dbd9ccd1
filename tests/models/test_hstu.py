import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from planted import planted_log
from torch import Tensor

from seqrec import InputError, Predictor, Recommender, TrainConfig, prepare, split_last_two
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.models.base import Model
from seqrec.models.hstu import HSTU, HSTUConfig, around, time_edges
from seqrec.ranking.protocols import evaluate
from seqrec.run.folder import Run
from seqrec.training.loop import train

NUM_ITEMS = 30
History = tuple[list[int], list[int]]  # items and times


def batch_of(histories: list[History], max_length: int, with_targets: bool = False) -> Batch:
    dataset = prepare(pl.DataFrame({"user_id": [1] * NUM_ITEMS, "item_id": list(range(1, NUM_ITEMS + 1))}))
    items = [np.array(history[0], dtype=np.int64) for history in histories]
    times = [np.array(history[1], dtype=np.int64) for history in histories]
    return pack(histories_of(dataset, items, times), max_length, with_targets)


def random_histories(seed: int = 0, users: int = 12, longest: int = 14) -> list[History]:
    """Histories with intervals of all sizes, including 0."""
    random = np.random.default_rng(seed)
    lengths = [1, 2, longest, *random.integers(1, longest + 1, users - 3)]
    result = []
    for length in lengths:
        gaps = random.choice([0, 1, 3, 50, 1000, 10**6], size=length) * random.integers(1, 5, length)
        result.append((random.integers(1, NUM_ITEMS + 1, length).tolist(), (10**9 + gaps.cumsum()).tolist()))
    return result


def model_of(seed: int = 0, **values: Any) -> HSTU:
    torch.manual_seed(seed)
    model = HSTU(HSTUConfig(**{"max_length": 10, "embedding_dim": 8, "dropout": 0.0} | values), NUM_ITEMS)
    with torch.no_grad():  # away from the neutral or small initial values
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "embedding" in name:
                parameter.add_(0.5 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- an independent implementation


def plain_norm(x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / ((centred**2).mean() + 1e-6).sqrt()


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def bucket_of(seconds: int, count: int) -> int:
    return min(count, int(math.log(max(1, abs(seconds))) / 0.301))


def one_by_one(model: HSTU, items: list[int], times: list[int]) -> Tensor:
    """Hidden states of one user in float64, a pair at a time, from equations 1 to 3 of the paper."""
    config = model.config
    n, d = config.max_length, config.embedding_dim
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    items, times = items[-n:], times[-n:]
    length = len(items)
    x = weights["item_embedding.weight"][items] * math.sqrt(d) + weights["position_embedding.weight"][n - length :]
    for b in range(config.num_blocks):
        u, v, q, k = (
            torch.stack([silu(weights[f"blocks.{b}.projection.weight"] @ plain_norm(row)) for row in x])
            .view(length, 4, d)
            .unbind(1)
        )
        rows = []
        for i in range(length):
            total = torch.zeros(d, dtype=torch.float64)
            for j in range(i + 1):
                bias = weights[f"blocks.{b}.position_bias"][i - j]
                if config.time_buckets:
                    bias = bias + weights[f"blocks.{b}.time_bias"][bucket_of(times[i] - times[j], config.time_buckets)]
                for part in torch.arange(d).chunk(config.num_heads):
                    total[part] += silu(q[i, part] @ k[j, part] + bias) / n * v[j, part]
            gated = u[i] * plain_norm(total)
            rows.append(x[i] + weights[f"blocks.{b}.output.weight"] @ gated + weights[f"blocks.{b}.output.bias"])
        x = torch.stack(rows)
    if config.similarity == "cosine":
        return x / x.norm(dim=1, keepdim=True) / config.temperature
    centred = x - x.mean(dim=1, keepdim=True)
    scaled = centred / ((centred**2).mean(dim=1, keepdim=True) + 1e-8).sqrt()
    return scaled * weights["final_norm.weight"] + weights["final_norm.bias"]


CONFIGS: list[dict[str, Any]] = [
    {},
    {"num_heads": 2},
    {"num_heads": 8, "num_blocks": 3},
    {"num_blocks": 0},
    {"max_length": 1},
    {"time_buckets": 0},
    {"time_buckets": 1},
    {"time_buckets": 7, "num_heads": 4, "similarity": "dot"},
    {"max_length": 80, "temperature": 0.3},  # longer than a row of the grouping
]


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("values", "with_targets"),
    [*((values, False) for values in CONFIGS), ({}, True), ({"max_length": 1}, True)],
    ids=str,
)
def test_packed_is_one_by_one(values, with_targets, monkeypatch):
    """Both in compiled loops and in torch."""
    model = model_of(**values)
    histories = random_histories(users=5, longest=70) if values.get("max_length") == 80 else random_histories()
    batch = batch_of(histories, model.max_length, with_targets)
    found = []
    for compiled in (True, False):
        if not compiled:
            monkeypatch.setattr("seqrec.kernels.usable", lambda *tensors: False)
        hidden = model.encode(batch)
        assert hidden.shape == (int(batch.offsets[-1]), model.config.embedding_dim)
        found.append((hidden, model.score(hidden)[:, 1:]))
    for row, (items, times) in enumerate(histories):
        if with_targets:
            items, times = items[:-1], times[:-1]
        if not items:
            continue
        expected = one_by_one(model, items, times)
        table = model.item_embedding.weight[1:].detach().double()
        if model.config.similarity == "cosine":
            table = table / table.norm(dim=1, keepdim=True)
        for hidden, scores in found:
            own = slice(batch.offsets[row], batch.offsets[row + 1])
            torch.testing.assert_close(hidden[own].double(), expected, rtol=1e-3, atol=2e-4)
            torch.testing.assert_close(scores[own].double(), expected @ table.T, rtol=1e-3, atol=1e-3)


def test_gradients_of_packed_and_one_by_one():
    model = model_of(num_heads=2).double()
    histories = random_histories(3)
    batch = batch_of(histories, 10, with_targets=True)
    together = torch.nn.functional.cross_entropy(model.score(model.encode(batch)), batch.targets, reduction="sum")
    gradients = torch.autograd.grad(together, list(model.parameters()))
    alone = torch.zeros((), dtype=torch.float64)
    for history in histories:
        one = batch_of([history], 10, with_targets=True)
        if len(one.items):
            logits = model.score(model.encode(one))
            alone = alone + torch.nn.functional.cross_entropy(logits, one.targets, reduction="sum")
    for a, b in zip(gradients, torch.autograd.grad(alone, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b)


# ---------------------------------------------------------------- times and causality


def test_edges_are_those_of_the_formula():
    edges = time_edges(60)
    for seconds in [*range(2000), 86_400, 10**6, 31_536_000]:
        assert int((edges <= seconds).sum()) == bucket_of(seconds, 60)
    assert time_edges(144)[-1] < 2**63 - 1
    assert (time_edges(144).diff() >= 0).all()


def test_times_matter_up_to_their_start():
    model = model_of()
    items, times = random_histories()[2]
    hidden = model.encode(batch_of([(items, times)], 10))
    assert torch.equal(model.encode(batch_of([(items, [time + 12345 for time in times])], 10)), hidden)
    apart = [10**9 + 7 * (time - 10**9) for time in times]
    assert (model.encode(batch_of([(items, apart)], 10)) - hidden).abs().max() > 1e-3
    without = model_of(time_buckets=0)
    assert not without.USES_TIMES
    plain = without.encode(batch_of([(items, times)], 10))
    assert torch.equal(without.encode(batch_of([(items, apart)], 10)), plain)


def test_later_items_and_times_do_not_change_earlier_states():
    model = model_of()
    items, times = list(range(1, 9)), [0, 1000, 2000, 5000, 5500, 6000, 9000, 9900]
    before = model.encode(batch_of([(items, times)], 10))
    for cut in range(1, 8):
        # The next item's time, which the authors' code knows, must not matter either.
        later = times[:cut] + [times[cut - 1] + 10**6 + step for step in range(8 - cut)]
        for other in ((items, later), (items[:cut] + [30] * (8 - cut), times)):
            after = model.encode(batch_of([other], 10))
            torch.testing.assert_close(after[:cut], before[:cut])
            assert (after[cut:] - before[cut:]).abs().max() > 1e-3


def test_huge_and_backward_times():
    times = [2**62, 2**62 + 2**50, 2**62 + 2**50 + 3, 0]
    model, wide = model_of(), model_of().double()
    batch = batch_of([([1, 2, 3, 4], times)], 10)
    torch.testing.assert_close(model.encode(batch).double(), wide.encode(batch), rtol=1e-3, atol=1e-3)
    found = around(batch, 144, compiled=False).buckets
    assert found is not None
    assert found[-4:].tolist() == [bucket_of(time, 144) for time in (2**62, 2**62 + 2**50, 2**62 + 2**50 + 3, 0)]


def test_a_log_without_times_leaves_the_bias_out(tmp_path: Path) -> None:
    log = planted_log(users=40).drop("timestamp")
    options = {"embedding_dim": 8, "max_length": 6, "epochs": 1, "ensemble": 1}
    recommender = Recommender("hstu", **options).fit(log, tmp_path / "run")
    assert recommender.model.config.time_buckets == 0
    assert "the log has no times" in Run(tmp_path / "run").config.recipe["time_buckets"]
    predictor = Predictor.load(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # times only set the order, and nothing is assumed about them
        assert predictor.recommend([2, 1], 3, times=[9, 5]) == predictor.recommend([1, 2], 3)
    with pytest.raises(InputError, match="time_buckets is 64, but the log has no times; leave it out, or give 0"):
        Recommender("hstu", **options, time_buckets=64).fit(log)
    known = Recommender("hstu", **options).fit(planted_log(users=40), tmp_path / "known")
    assert known.model.config.time_buckets == 128
    assert "time_buckets" not in Run(tmp_path / "known").config.recipe


@pytest.mark.parametrize("name", ["hstu", "tisasrec"])
def test_real_times_reach_given_histories(name: str, tmp_path: Path) -> None:
    log = planted_log(users=40)
    options = {"embedding_dim": 8, "max_length": 6, "epochs": 2, "ensemble": 1, "transitions": "off"}
    Recommender(name, **options).fit(log, tmp_path / "run")
    predictor = Predictor.load(tmp_path / "run")
    own = log.filter(pl.col("user_id") == 7).sort("timestamp")
    items, times = own["item_id"].to_list(), own["timestamp"].to_list()
    found = predictor.recommend(items, 5, times=times)
    known = predictor.recommend_users(7, 5)
    assert [item for item, _ in found] == [item for item, _ in known]
    np.testing.assert_allclose([score for _, score in found], [score for _, score in known], rtol=1e-4, atol=1e-5)
    scores = []
    for power in (1, 2, 4):  # tisasrec knows proportions alone
        apart = [10**9 + 1000 * place**power for place in range(len(items))]
        scores.append([score for _, score in sorted(predictor.recommend(items, 10, times=apart))])
    assert not np.allclose(scores[0], scores[1], atol=1e-5)
    assert not np.allclose(scores[1], scores[2], atol=1e-5)


# ---------------------------------------------------------------- initial weights, penalty, configuration


def test_an_empty_batch_and_users_without_items():
    model = model_of(num_heads=2)
    assert model.encode(batch_of([], 10)).shape == (0, 8)
    alone = model.encode(batch_of([([3, 4], [5, 6])], 10))
    torch.testing.assert_close(model.encode(batch_of([([], []), ([3, 4], [5, 6]), ([], [])], 10)), alone)


def test_the_start():
    model = HSTU(HSTUConfig(similarity="dot"), 5000)
    assert (model.item_embedding.weight[0] == 0).all()
    assert model.blocks[0].position_bias.shape == (50,)
    assert model.blocks[0].time_bias.shape == (129,)
    for name, parameter in model.named_parameters():
        if name.endswith("output.bias") or name == "final_norm.bias":
            assert (parameter == 0).all(), name
        elif "embedding" in name or "projection" in name or name.endswith("_bias"):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.3), name
    start = {name: value.std().item() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset()
    for name, value in model.state_dict().items():
        assert value.std().item() == pytest.approx(start[name], rel=0.5, abs=1e-6), name


def test_a_layer_starts_as_hardly_more_than_its_input():
    # With Glorot's rule for the projection, the first layers drown the items in noise, and training takes much longer.
    torch.manual_seed(0)
    model = HSTU(HSTUConfig(), NUM_ITEMS).eval()
    batch = batch_of(random_histories(longest=40), 50)
    x = torch.randn(len(batch.items), 64)
    block = model.blocks[0]
    added = block(x, around(batch, 128, compiled=False)) - x
    assert 0 < added.std() < 0.05 * x.std()


def test_penalty():
    batch = batch_of([([1, 2, 3], [1, 2, 3]), ([4, 4], [1, 1])], 10, with_targets=True)
    assert model_of().penalty(batch) is None
    model = model_of(l2=0.7)
    looked_up = model.item_embedding.weight.detach().double()[[1, 2, 4, 2, 3, 4]]  # items, then targets
    assert model.penalty(batch).item() == pytest.approx(0.7 * looked_up.square().sum(dim=1).mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length is 0; give 1 to 1048576"),
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"time_buckets": -1}, "time_buckets is -1; give 0 to 144"),
        ({"time_buckets": 145}, "time_buckets is 145; give 0 to 144"),
        ({"num_blocks": -1}, "num_blocks is -1; give 0 or more"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"similarity": "euclid"}, "similarity is 'euclid'"),
        ({"embedding_dim": 10, "num_heads": 3}, "embedding_dim 10 is not a multiple of num_heads 3"),
        ({"l2": -1.0}, "l2 is -1.0"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        HSTUConfig(**values)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- learning


def losses_of(temperature: float) -> list[float]:
    """Losses of the epochs on a hundred users with the sizes of RecTools' issue 324, where the loss stayed flat."""
    random = np.random.default_rng(0)
    walk = random.integers(300, size=(100, 1)) + np.arange(20)
    log = {"user_id": np.repeat(np.arange(100), 20), "item_id": walk.ravel(), "timestamp": 10**9 + 60 * np.arange(2000)}
    split = split_last_two(prepare(pl.DataFrame(log)))
    torch.manual_seed(0)
    sizes = HSTUConfig(num_blocks=1, embedding_dim=32, max_length=150, dropout=0.2, temperature=temperature)
    model = HSTU(sizes, split.train.dataset.num_items)
    options = {"epochs": 30, "batch_size": 16, "learning_rate": 0.01, "loss": "cross-entropy", "evaluate_every": 0}
    return [row["loss"] for row in train(model, split, TrainConfig(**options, threads=1)).epochs]


@pytest.mark.slow
def test_the_loss_falls_and_would_not_without_the_temperature():
    falling, flat = losses_of(0.05), losses_of(1.0)
    assert falling[-1] < 0.3 * falling[0]
    assert flat[-1] > 0.8 * flat[0]


def with_shuffled_times(dataset: Dataset, seed: int = 1) -> Dataset:
    """The same histories, with the intervals of each shuffled."""
    random = np.random.default_rng(seed)
    times = dataset.timestamps.copy()
    for start, end in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True):
        times[start + 1 : end] = times[start] + random.permutation(np.diff(times[start:end])).cumsum()
    return replace(dataset, timestamps=times)


def hit_rate(model: Model, dataset: Dataset) -> float:
    """HR@1 after training."""
    split = split_last_two(dataset)
    options: dict[str, Any] = {"epochs": 60, "learning_rate": 0.01, "batch_size": 64, "loss": "cross-entropy"}
    train(model, split, TrainConfig(**options, evaluate_every=0, threads=1))
    found = evaluate(model, split.test, train_counts=split.train.item_counts(), k=(1,), keep_seen=True)
    return found.metrics["hr@1"]


@pytest.mark.slow
def test_it_learns_from_time_gaps():
    dataset = prepare(planted_log())
    sizes: dict[str, Any] = {"max_length": 8, "embedding_dim": 32, "dropout": 0.1, "temperature": 0.1}
    found = []
    for data, buckets in ((dataset, 64), (with_shuffled_times(dataset), 64), (dataset, 0)):
        torch.manual_seed(0)
        found.append(hit_rate(HSTU(HSTUConfig(**sizes, time_buckets=buckets), 20), data))
    assert found[0] > 0.9
    assert max(found[1:]) < 0.65  # guessing one of two gives 0.5


def test_save_load_recommend(tmp_path: Path):
    recommender = Recommender("hstu", embedding_dim=8, max_length=6, epochs=2, time_buckets=9, num_heads=2, dropout=0.1)
    recommender.fit(planted_log(users=40), tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert again.model_config == recommender.model_config.resolved()
    expected = recommender.recommend(users=[3, 5], k=4)
    assert expected.height == 8
    assert again.recommend(users=[3, 5], k=4).equals(expected)
    people = pl.DataFrame({"user_id": ["a"] * 3, "item_id": [1, 2, 9], "timestamp": [5, 60, 70_000]})
    assert again.recommend(histories=people, k=3).height == 3
    assert again.similar([4], k=2).height == 2
