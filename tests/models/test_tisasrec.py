import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from planted import planted_log
from torch import Tensor

from seqrec import Recommender, TrainConfig, prepare, split_last_two
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.models.tisasrec import TiSASRec, TiSASRecConfig, pairs_of, scaled_intervals
from seqrec.ranking.protocols import evaluate
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
        gaps = random.choice([0, 1, 3, 50, 1000], size=length) * random.integers(1, 5, length)
        result.append((random.integers(1, NUM_ITEMS + 1, length).tolist(), (10**9 + gaps.cumsum()).tolist()))
    return result


def model_of(seed: int = 0, **values) -> TiSASRec:
    torch.manual_seed(seed)
    config = TiSASRecConfig(**{"max_length": 10, "embedding_dim": 8, "time_span": 20, "dropout": 0.0} | values)
    model = TiSASRec(config, NUM_ITEMS)
    with torch.no_grad():  # away from the neutral or small initial values
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "position" in name or "interval" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- an independent implementation


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / ((centred**2).mean(dim=-1, keepdim=True) + 1e-8).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def interval_matrix(times: list[int], time_span: int) -> list[list[int]]:
    """r_ij for j <= i, one by one."""
    matrix = []
    for i in range(len(times)):
        apart = [abs(a - b) for a in times[: i + 1] for b in times[: i + 1] if a != b]
        shortest = min(apart, default=1)
        matrix.append([min(time_span, math.floor(abs(times[i] - times[j]) / shortest)) for j in range(i + 1)])
    return matrix


def one_by_one(model: TiSASRec, items: list[int], times: list[int]) -> Tensor:
    """Hidden states of one user in float64, with a vector for each pair, directly from the equations."""
    config = model.config
    n, d = config.max_length, config.embedding_dim
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    items, times = items[-n:], times[-n:]
    length = len(items)
    r = interval_matrix(times, config.time_span)
    x = weights["item_embedding.weight"][items] * math.sqrt(d)
    position_K, position_V = weights["position_embedding.weight"][n - length :].split(d, dim=1)
    interval_K, interval_V = weights["interval_vectors"].split(d, dim=1)
    for b in range(config.num_blocks):
        name = f"blocks.{b}"
        queries = norm(x, weights, f"{name}.attention_norm")
        q = linear(queries, weights, f"{name}.attention.query")
        k, v = linear(x, weights, f"{name}.attention.key_value").split(d, dim=1)
        z = torch.zeros_like(x)
        for part in torch.arange(d).chunk(config.num_heads):
            for i in range(length):
                e = [
                    q[i, part] @ (k[j] + interval_K[r[i][j]] + position_K[j])[part] / math.sqrt(len(part))
                    for j in range(i + 1)
                ]
                a = torch.stack(e).softmax(dim=0)
                for j in range(i + 1):
                    z[i, part] += a[j] * (v[j] + interval_V[r[i][j]] + position_V[j])[part]
        x = norm(queries + z, weights, f"{name}.feedforward_norm")
        hidden = linear(x, weights, f"{name}.feedforward.layers.0").clamp(min=0)
        x = x + linear(hidden, weights, f"{name}.feedforward.layers.1")
    return norm(x, weights, "final_norm")


CONFIGS = [
    {},
    {"num_heads": 2},
    {"num_heads": 8, "num_blocks": 3},
    {"num_blocks": 0},
    {"max_length": 1},
    {"time_span": 1},
    {"time_span": 5000, "num_heads": 4},
    {"max_length": 80},  # longer than a row of the grouping
]


@pytest.mark.slow_but_one
@pytest.mark.parametrize(
    ("values", "with_targets"),
    [*((values, False) for values in CONFIGS), ({}, True), ({"max_length": 1}, True)],
    ids=str,
)
def test_packed_is_one_by_one(values, with_targets):
    model = model_of(**values)
    histories = random_histories(users=5, longest=70) if values.get("max_length") == 80 else random_histories()
    batch = batch_of(histories, model.config.max_length, with_targets)
    hidden = model.encode(batch)
    assert hidden.shape == (int(batch.offsets[-1]), model.config.embedding_dim)
    for row, (items, times) in enumerate(histories):
        if with_targets:
            items, times = items[:-1], times[:-1]
        if not items:
            continue
        expected = one_by_one(model, items, times)
        ours = hidden[batch.offsets[row] : batch.offsets[row + 1]]
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)
        table = model.item_embedding.weight.double()
        torch.testing.assert_close(model.score(ours).double(), expected @ table.T, rtol=1e-4, atol=1e-4)


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


# ---------------------------------------------------------------- intervals


def test_intervals():
    times = [100, 100, 160, 170, 171, 1171]
    batch = batch_of([([1], [5]), (list(range(1, 7)), times), ([1, 2], [0, 7])], 10)
    queries = torch.arange(1, 7).repeat_interleave(6)
    keys = torch.arange(1, 7).repeat(6)
    r = scaled_intervals(batch, queries, keys, 256).view(6, 6)
    assert r.tril().tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],  # no interval yet
        [1, 1, 0, 0, 0, 0],  # the shortest interval is 60
        [7, 7, 1, 0, 0, 0],  # 10
        [71, 71, 11, 1, 0, 0],  # 1
        [256, 256, 256, 256, 256, 0],  # clipped
    ]
    # Users before and after don't matter.
    assert scaled_intervals(batch, torch.tensor([8, 8]), torch.tensor([7, 8]), 256).tolist() == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_intervals_of_many_users(seed):
    histories = random_histories(seed, users=30)
    batch = batch_of(histories, 10)
    pairs = pairs_of(batch, 1, 20)
    expected = [r for _, times in histories for row in interval_matrix(times[-10:], 20) for r in row]
    assert (pairs.buckets % 21).tolist() == expected
    assert (pairs.mask.view(-1)[pairs.cells] == 0).all()
    assert len(pairs.cells.unique()) == len(expected)


def test_huge_and_backward_times():
    times = [2**62, 2**62 + 2**50, 2**62 + 2**50 + 3, 0]  # nothing overflows, and times need not be sorted
    batch = batch_of([([1, 2, 3, 4], times)], 10)
    queries, keys = torch.tensor([1, 2, 2, 3]), torch.tensor([0, 0, 1, 2])
    assert scaled_intervals(batch, queries, keys, 9).tolist() == [9, 9, 1, 9]


def test_times_matter_in_proportion_alone():
    model = model_of()
    items, times = random_histories()[2]
    hidden = model.encode(batch_of([(items, times)], 10))
    moved = [7 * (time - 10**9) + 12345 for time in times]
    assert torch.equal(model.encode(batch_of([(items, moved)], 10)), hidden)
    even = list(range(len(items)))
    assert (model.encode(batch_of([(items, even)], 10)) - hidden)[1:].abs().max() > 1e-3


def test_later_times_do_not_change_earlier_states():
    model = model_of()
    items = list(range(1, 9))
    times = [0, 1000, 2000, 5000, 5500, 6000, 9000, 9900]
    before = model.encode(batch_of([(items, times)], 10))
    for cut in range(1, 8):
        # The later times are much closer together: the shortest interval of the window becomes 1.
        later = times[:cut] + [times[cut - 1] + 1 + step for step in range(8 - cut)]
        after = model.encode(batch_of([(items, later)], 10))
        torch.testing.assert_close(after[:cut], before[:cut])
        assert (after[cut:] - before[cut:]).abs().max() > 1e-4


def test_a_log_without_times():
    model = model_of()
    items = [3, 1, 2, 8]
    dataset = prepare(pl.DataFrame({"user_id": [1] * NUM_ITEMS, "item_id": list(range(1, NUM_ITEMS + 1))}))
    batch = pack(histories_of(dataset, [np.array(items)]), 10)
    assert (pairs_of(batch, 1, 20).buckets % 21).tolist() == [0, 1, 0, 2, 1, 0, 3, 2, 1, 0]
    expected = one_by_one(model, items, [0, 1, 2, 3])
    torch.testing.assert_close(model.encode(batch).double(), expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- initial weights, penalty, configuration


def test_an_empty_batch_and_users_without_items():
    model = model_of(num_heads=2)
    assert model.encode(batch_of([], 10)).shape == (0, 8)
    alone = model.encode(batch_of([([3, 4], [5, 6])], 10))
    torch.testing.assert_close(model.encode(batch_of([([], []), ([3, 4], [5, 6]), ([], [])], 10)), alone)


def test_the_start():
    model = TiSASRec(TiSASRecConfig(), 5000)
    assert (model.item_embedding.weight[0] == 0).all()
    assert model.interval_vectors.shape == (257, 128)
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif "blocks" not in name:
            assert parameter.std().item() == pytest.approx(0.01, rel=0.1), name
    start = {name: value.std().item() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset()
    for name, value in model.state_dict().items():
        assert value.std().item() == pytest.approx(start[name], rel=0.2, abs=1e-6), name


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
        ({"time_span": 0}, "time_span is 0; give 1 or more"),
        ({"num_blocks": -1}, "num_blocks is -1; give 0 or more"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"embedding_dim": 10, "num_heads": 3}, "embedding_dim 10 is not a multiple of num_heads 3"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"l2": float("nan")}, "l2 is nan"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        TiSASRecConfig(**values)
    assert "\n" not in str(raised.value)


def test_a_table_as_long_as_the_catalogue():
    # The table of intervals must not get gradients by row, even if it has as many rows as the item table.
    log = planted_log(users=20)
    recommender = Recommender("tisasrec", time_span=20, embedding_dim=8, max_length=20, epochs=1, evaluate_every=0)
    recommender.fit(log)
    assert recommender.dataset.num_items == 20
    assert len(recommender.epochs) == 1


# ---------------------------------------------------------------- learning


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
    train(model, split, TrainConfig(epochs=40, learning_rate=0.01, batch_size=64, evaluate_every=0, threads=1))
    found = evaluate(model, split.test, train_counts=split.train.item_counts(), k=(1,), keep_seen=True)
    return found.metrics["hr@1"]


@pytest.mark.slow
def test_it_learns_from_time_gaps():
    dataset = prepare(planted_log())
    sizes = {"max_length": 8, "embedding_dim": 32, "num_blocks": 2, "dropout": 0.1}
    torch.manual_seed(0)
    real = hit_rate(TiSASRec(TiSASRecConfig(**sizes, time_span=64), 20), dataset)
    torch.manual_seed(0)
    shuffled = hit_rate(TiSASRec(TiSASRecConfig(**sizes, time_span=64), 20), with_shuffled_times(dataset))
    torch.manual_seed(0)
    without = hit_rate(SASRec(SASRecConfig(**sizes), 20), dataset)
    assert real > 0.9
    assert max(shuffled, without) < 0.65  # guessing one of two gives 0.5


def test_save_load_recommend(tmp_path: Path):
    log = planted_log(users=40)
    recommender = Recommender("tisasrec", embedding_dim=8, max_length=6, epochs=2, time_span=9, num_heads=2)
    recommender.fit(log, tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert again.model_config == recommender.model_config.resolved()
    expected = recommender.recommend(users=[3, 5], k=4)
    assert expected.height == 8
    assert again.recommend(users=[3, 5], k=4).equals(expected)
    people = pl.DataFrame({"user_id": ["a"] * 3, "item_id": [1, 2, 9], "timestamp": [5, 60, 70_000]})
    assert again.recommend(histories=people, k=3).height == 3
    assert again.similar([4], k=2).height == 2
