from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec import Recommender, TrainConfig, prepare, split_last_two
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.errors import InputError
from seqrec.models.caser import Caser, CaserConfig
from seqrec.models.popularity import Popularity, PopularityConfig
from seqrec.ranking.protocols import evaluate
from seqrec.training.loop import train

NUM_ITEMS = 30
NUM_USERS = 7


def batch_of(item_lists: list[list[int]], max_length: int, users: list[int] | None = None, targets=False) -> Batch:
    dataset = prepare(pl.DataFrame({"user_id": [1] * NUM_ITEMS, "item_id": list(range(1, NUM_ITEMS + 1))}))
    batch = pack(histories_of(dataset, [np.array(i, dtype=np.int64) for i in item_lists]), max_length, targets)
    known = torch.arange(len(item_lists)) % NUM_USERS if users is None else torch.tensor(users, dtype=torch.int64)
    return Batch(**{**vars(batch), "users": known})


def random_lists(seed: int = 0, users: int = 12, longest: int = 14) -> list[list[int]]:
    random = np.random.default_rng(seed)
    lengths = [1, 2, longest, *random.integers(1, longest + 1, users - 3)]
    return [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in lengths]


def model_of(seed: int = 0, **values) -> Caser:
    torch.manual_seed(seed)
    config = CaserConfig(**{"max_length": 10, "embedding_dim": 8, "dropout": 0.0} | values)
    model = Caser(config, NUM_ITEMS, NUM_USERS)
    with torch.no_grad():  # biases other than 0, and tables with values large enough for both sides of every ReLU
        for name, parameter in model.named_parameters():
            if "bias" in name or parameter.shape[0] in (NUM_ITEMS + 1, NUM_USERS + 1):
                parameter.add_(0.5 * torch.randn_like(parameter))
        model.item_embedding.weight[0] = 9.0  # the padding's vector must not be read
    return model


# ---------------------------------------------------------------- an independent implementation


def filters_of(model: Caser) -> list[tuple[Tensor, Tensor]]:
    """Every horizontal filter as a matrix [height, d] with its bias, in ascending order of height."""
    config = model.config
    found = []
    for height in range(1, config.window + 1):
        for k in range(config.horizontal_filters):
            rows = []
            for row in range(height):
                to_the_end = height - 1 - row
                taps = model.horizontal[to_the_end].view(config.window - to_the_end, config.horizontal_filters, -1)
                rows.append(taps[height - 1 - to_the_end, k])
            bias = model.horizontal_bias[(height - 1) * config.horizontal_filters + k]
            found.append((torch.stack(rows).double(), bias.double()))
    return found


def scores_one_by_one(model: Caser, items: list[int], user: int) -> Tensor:
    """y [n, I + 1] of one user after each item, window by window and filter by filter, in float64."""
    config = model.config
    size = config.window
    table, output = model.item_embedding.weight.double(), model.output.weight.double()
    result = []
    for t in range(1, len(items) + 1):
        window = items[:t][-size:]
        image = torch.zeros(size, config.embedding_dim, dtype=torch.float64)
        image[size - len(window) :] = table[window]
        features = []
        if config.vertical_filters:
            for weights in model.vertical.double():
                features += (weights[:, None] * image).sum(dim=0)
        if config.horizontal_filters:
            for matrix, bias in filters_of(model):
                height = len(matrix)
                values = [(image[i : i + height] * matrix).sum() + bias for i in range(size - height + 1)]
                features.append(max(value.clamp(min=0) for value in values))
        layer = model.fully_connected
        z = (layer.weight.double() @ torch.stack(features) + layer.bias.double()).clamp(min=0)
        joined = z if model.user_embedding is None else torch.cat([z, model.user_embedding.weight[user].double()])
        result.append(output[:, :-1] @ joined + output[:, -1])
    return torch.stack(result)


CONFIGS = [
    {},
    {"window": 1},
    {"window": 2, "horizontal_filters": 3},
    {"window": 10, "horizontal_filters": 2, "vertical_filters": 1},
    {"horizontal_filters": 0},
    {"vertical_filters": 0, "horizontal_filters": 5},
    {"user_dim": 0},
    {"user_dim": 3, "num_targets": 1, "max_length": 5},
]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("values", CONFIGS, ids=str)
def test_packed_is_window_by_window(values):
    model = model_of(**values).eval()
    lists = random_lists()
    batch = batch_of(lists, model.config.max_length)
    with torch.no_grad():
        hidden = model.encode(batch)
        scores = model.score(hidden)
        for row, items in enumerate(lists):
            expected = scores_one_by_one(model, items[-model.config.max_length :], row % NUM_USERS)
            ours = scores[batch.offsets[row] : batch.offsets[row + 1]].double()
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    used = hidden[:, : model.config.embedding_dim]
    assert (used == 0).any()  # some ReLUs give 0
    assert (used > 0).any()
    assert (hidden[:, -1] == 1).all()


def test_gradients_of_packed_and_window_by_window():
    model = model_of(horizontal_filters=3).double().train()
    lists = random_lists(3, users=6, longest=8)
    batch = batch_of(lists, 10)
    weight = torch.randn(int(batch.offsets[-1]), NUM_ITEMS + 1, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    ours = torch.autograd.grad((model.score(model.encode(batch)) * weight).sum(), list(parameters.values()))
    scores = torch.cat([scores_one_by_one(model, items, row % NUM_USERS) for row, items in enumerate(lists)])
    expected = torch.autograd.grad((scores * weight).sum(), list(parameters.values()))
    for name, a, b in zip(parameters, ours, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_only_the_window_matters():
    model = model_of(window=3).eval()
    batch = batch_of([[9, 8, 7, 1, 2, 3], [5, 1, 2, 3], [1, 2, 3], [6, 2, 3]], 10, users=[4, 4, 4, 4])
    last = model.encode(batch)[batch.last]
    torch.testing.assert_close(last[0], last[1])
    torch.testing.assert_close(last[0], last[2])
    assert (last[0] - last[3]).abs().max() > 1e-3


def test_an_empty_batch_and_users_without_items():
    model = model_of().eval()
    assert model.encode(batch_of([], 10, users=[])).shape == (0, 17)
    one = model.encode(batch_of([[3, 4]], 10, users=[2]))
    torch.testing.assert_close(model.encode(batch_of([[], [3, 4], []], 10, users=[1, 2, 3])), one)


# ---------------------------------------------------------------- users


def test_unknown_people_have_the_mean_user():
    model = model_of().eval()
    users = slice(8, 16)
    hidden = model.encode(batch_of([[1, 2], [1, 2], [1, 2]], 10, users=[-1, 3, NUM_USERS]))
    mean = model.user_embedding.weight[:NUM_USERS].mean(dim=0)
    for token, expected in enumerate([mean, mean, model.user_embedding.weight[3], model.user_embedding.weight[3]]):
        torch.testing.assert_close(hidden[token, users], expected)
    torch.testing.assert_close(hidden[5, users], mean)  # a user outside the table is unknown too
    torch.testing.assert_close(hidden[1, :8], hidden[3, :8])
    assert (hidden[1, users] - hidden[3, users]).abs().max() > 1e-3
    # In training the mean is not computed; an unknown user gets the last row.
    model.train()
    hidden = model.encode(batch_of([[1, 2]], 10, users=[-1]))
    torch.testing.assert_close(hidden[0, users], model.user_embedding.weight[NUM_USERS])


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_users_of_the_log_who_never_trained_have_the_mean_of_those_who_did(decay, tmp_path):
    """Users with one or no item in training get the rankings of an unknown user, also after saving."""
    rows = [(user, (user + step) % 9, step) for user in range(12) for step in range(7)]
    rows += [(user, user % 9, step) for user in range(12, 20) for step in range(3 if user % 2 else 1)]
    dataset = prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    split = split_last_two(dataset)
    never = np.flatnonzero(split.train.lengths < 2)
    assert 0 < len(never) < dataset.num_users
    torch.manual_seed(0)
    model = Caser(CaserConfig(max_length=5, embedding_dim=8), dataset.num_items, dataset.num_users)
    untrained = model.user_embedding.weight.detach().clone()
    config = TrainConfig(epochs=3, average_decay=decay, evaluate_every=1, loss="gbce")
    train(model, split, config)
    model.eval()
    table = model.user_embedding.weight.detach()
    trained = np.setdiff1d(np.arange(dataset.num_users), never)
    assert (table[trained] != untrained[trained]).any(dim=1).all()
    everybody = [*range(dataset.num_users), -1]
    with torch.no_grad():
        hidden = model.encode(batch_of([[1, 2]] * len(everybody), 5, users=everybody))[1::2, 8:16]
    mean = table[trained].mean(dim=0)
    for user in (*never, -1):
        torch.testing.assert_close(hidden[user], mean)
    torch.testing.assert_close(hidden[trained], table[trained])
    again = Caser(model.config, dataset.num_items, dataset.num_users).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again.encode(batch_of([[1, 2]] * len(everybody), 5, users=everybody))[1::2, 8:16], hidden)


def test_a_model_that_knows_no_users():
    model = Caser(CaserConfig(embedding_dim=8), NUM_ITEMS).eval()
    hidden = model.encode(batch_of([[1, 2]], 10, users=[5]))
    assert hidden.isfinite().all()
    assert hidden.shape == (2, 17)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_training_targets(count):
    model = model_of(num_targets=count)
    lists = [[1, 2, 3, 4, 5, 6], [7, 8], [9, 10, 11], list(range(1, 16))]
    batch = batch_of(lists, 10, targets=True)
    tokens, items = model.training_targets(batch)
    pairs, token = [], 0
    for history in lists:
        seen = history[:-1][-10:]
        following = history[-len(seen) - 1 :]
        for place in range(len(seen)):
            pairs += [(token, item) for item in following[place + 1 : place + 1 + count]]
            token += 1
    found = torch.arange(len(batch.items)) if tokens is None else tokens
    assert list(zip(found.tolist(), items.tolist(), strict=True)) == pairs


def test_penalty():
    batch = batch_of([[1, 2, 3], [4, 4]], 10, targets=True, users=[2, 6])
    assert model_of().penalty(batch) is None
    model = model_of(l2=0.7)

    def mean_norm(table: torch.nn.Embedding, rows: list[int]) -> float:
        return float(sum((table.weight[row].double() ** 2).sum() for row in rows).detach()) / len(rows)

    expected = mean_norm(model.item_embedding, [1, 2, 4]) + mean_norm(model.output, [2, 3, 4])
    expected += mean_norm(model.user_embedding, [2, 6])
    for weight in (model.vertical, model.fully_connected.weight, *(matrix for matrix, _ in filters_of(model))):
        expected += float((weight.double() ** 2).sum().detach())
    assert model.penalty(batch).item() == pytest.approx(0.7 * expected, rel=1e-5)
    for values in ({"user_dim": 0}, {"vertical_filters": 0}, {"horizontal_filters": 0}):
        assert model_of(l2=0.7, **values).penalty(batch) > 0


def test_the_start():
    model = Caser(CaserConfig(), 5000, 400)
    assert (model.item_embedding.weight[0] == 0).all()
    assert (model.output.weight[:, -1] == 0).all()
    for table in (model.item_embedding.weight, model.output.weight[:, :-1], model.user_embedding.weight):
        assert 0 < table.std() < 0.05
    for matrix, bias in filters_of(model):
        assert bias == 0
        assert matrix.std().item() == pytest.approx((2 / (len(matrix) * 64 + 16)) ** 0.5, rel=0.35)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset()
    for name, value in model.state_dict().items():
        assert value.std().item() == pytest.approx(start[name].std().item(), rel=0.4, abs=1e-6), name
    torch.manual_seed(2)
    fresh = Caser(CaserConfig(), 50)
    torch.manual_seed(2)
    for name, value in Caser(CaserConfig(), 50).state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name  # a seed fixes the initial weights


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length is 0; give 1 to 1048576"),
        ({"window": 0}, "window is 0; give 1 or more"),
        ({"window": 6, "max_length": 5}, "window is 6, more than max_length 5; give at most that"),
        ({"num_targets": 0}, "num_targets is 0"),
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"user_dim": -1}, "user_dim is -1; give 0 or more, or leave it out"),
        ({"horizontal_filters": -1}, "horizontal_filters is -1; give 0 or more"),
        ({"vertical_filters": -2}, "vertical_filters is -2"),
        ({"vertical_filters": 0, "horizontal_filters": 0}, "there are no filters; give horizontal_filters"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"l2": -1.0}, "l2 is -1.0"),
        ({"l2": float("nan")}, "l2 is nan"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        CaserConfig(**values)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- learning


def planted_log(users: int = 900, items: int = 12, length: int = 11, seed: int = 0) -> pl.DataFrame:
    """The next item depends on a pair of items in any order, with one more item after them.

    It follows from the items 3 and 2 places back, so the last item, or only one of the two, says almost nothing.
    """
    random = np.random.default_rng(seed)
    follows = random.permutation(items * items).reshape(items, items) % items
    follows = np.triu(follows) + np.triu(follows, 1).T  # a set has no order
    walk = random.integers(items, size=(users, length))
    for step in range(3, length):
        planted = follows[walk[:, step - 3], walk[:, step - 2]]
        walk[:, step] = np.where(random.random(users) < 0.9, planted, walk[:, step])
    times = np.tile(np.arange(length), users)
    return pl.DataFrame({"user_id": np.repeat(np.arange(users), length), "item_id": walk.ravel(), "timestamp": times})


def hit_rate(model, dataset: Dataset) -> float:
    """HR@1 after training."""
    split = split_last_two(dataset)
    if model.COUNTED:
        model.count(split.train)
    else:
        options = {"loss": "cross-entropy", "epochs": 30, "learning_rate": 0.01, "batch_size": 64}
        train(model, split, TrainConfig(**options, evaluate_every=0))
    found = evaluate(model, split.test, train_counts=split.train.item_counts(), k=(1,), keep_seen=True)
    return found.metrics["hr@1"]


@pytest.mark.slow
def test_it_learns_what_two_items_say_together():
    dataset = prepare(planted_log())
    sizes = {"max_length": 10, "embedding_dim": 32, "num_targets": 1, "user_dim": 0, "dropout": 0.1}
    rates = {}
    for window in (5, 2):
        torch.manual_seed(0)
        rates[window] = hit_rate(Caser(CaserConfig(**sizes, window=window), 12), dataset)
    popularity = hit_rate(Popularity(PopularityConfig(), 12), dataset)
    assert rates[5] > 0.7
    assert max(rates[2], popularity) < 0.45  # one item of the pair gives a little information


def test_save_load_recommend(tmp_path: Path):
    log = planted_log(users=60)
    recommender = Recommender("caser", embedding_dim=8, max_length=6, epochs=2, window=4, negatives=3)
    recommender.fit(log, tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert again.model_config == recommender.model_config.resolved()
    expected = recommender.recommend(users=[3, 5], k=2, keep_seen=True)
    assert expected.height == 4
    assert again.recommend(users=[3, 5], k=2, keep_seen=True).equals(expected)
    assert again.recommend(histories=[[1, 2, 9]], k=3).height == 3
    assert again.similar([4], k=2).height == 2
