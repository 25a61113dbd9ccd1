from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec import Recommender
from seqrec.data.batches import Batch, Epoch, pack
from seqrec.data.dataset import Dataset
from seqrec.data.draws import Draws
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, Split, all_histories, split_last_two
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.popularity import Popularity, PopularityConfig
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.models.ssept import SSEPT, SSEPTConfig
from seqrec.ranking.topk import best
from seqrec.training.config import TrainConfig
from seqrec.training.loop import train

NUM_ITEMS = 30


def dataset_of(item_lists: list[list[int]]) -> Dataset:
    """A dataset of users 0, 1, … with these items, where indices are equal to ids."""
    users = np.repeat(np.arange(len(item_lists)), [len(items) for items in item_lists])
    frame = pl.DataFrame({"user_id": users, "item_id": [item for items in item_lists for item in items]})
    return prepare(frame)


def random_dataset(seed: int = 0, users: int = 12, longest: int = 14) -> Dataset:
    random = np.random.default_rng(seed)
    lengths = [NUM_ITEMS, 1, 2, *random.integers(1, longest + 1, users - 3)]
    return dataset_of([(random.permutation(NUM_ITEMS)[:length] + 1).tolist() for length in lengths])


def model_of(dataset: Dataset, seed: int = 0, **values) -> SSEPT:
    torch.manual_seed(seed)
    small = {"max_length": 10, "embedding_dim": 6, "user_dim": 4, "dropout": 0.0}
    model = SSEPT(SSEPTConfig(**small | values), dataset.num_items, dataset.num_users)
    with torch.no_grad():  # so that nothing has its neutral initial value
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def known_as(batch: Batch, users: list[int] | int) -> Batch:
    return replace(batch, users=torch.full_like(batch.users, users) if isinstance(users, int) else torch.tensor(users))


# ---------------------------------------------------------------- an independent implementation


def naive_logits(model: SSEPT, items: list[int], user: np.ndarray) -> np.ndarray:
    """Scores of all items after each item of one history, ``[L, I + 1]``, position by position and in float64.

    Computed from equation 2 (embedding), the equations of SASRec (blocks) and equation 4 (score).
    """
    config = model.config
    w = {name: value.numpy().astype(np.float64) for name, value in model.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        scaled = (x - x.mean()) / np.sqrt(x.var() + 1e-8)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    def attend(query: np.ndarray, seen: list[np.ndarray], name: str) -> np.ndarray:
        q = linear(query, f"{name}.query")
        keys, values = zip(*(np.split(linear(x, f"{name}.key_value"), 2) for x in seen), strict=True)
        parts = []
        for head in np.split(np.arange(len(q)), config.num_heads):
            scores = np.array([q[head] @ key[head] for key in keys]) / np.sqrt(len(head))
            weights = np.exp(scores) / np.exp(scores).sum()
            parts.append(sum(weight * value[head] for weight, value in zip(weights, values, strict=True)))
        mixed = np.concatenate(parts)
        return linear(mixed, f"{name}.output") if f"{name}.output.weight" in w else mixed

    def forward(x: np.ndarray, name: str) -> np.ndarray:
        last = len(config.feedforward_dims or (0,))
        for layer in range(last):
            x = np.maximum(linear(x, f"{name}.{layer}"), 0)
        return linear(x, f"{name}.{last}")

    items = items[-config.max_length :]
    u = np.sqrt(config.user_dim) * user
    xs = []
    for place, item in enumerate(items):
        v = np.sqrt(config.embedding_dim) * w["item_embedding.weight"][item]
        position = config.max_length - len(items) + place
        xs.append(np.concatenate([v, u]) + w["position_embedding.weight"][position])
    for b in range(config.num_blocks):
        name = f"blocks.{b}"
        first, second = f"{name}.attention_norm", f"{name}.feedforward_norm"
        after = []
        for place, x in enumerate(xs):
            seen = xs[: place + 1]
            if config.norm == "paper":
                query = norm(x, first)
                x = norm(query + attend(query, seen, f"{name}.attention"), second)
                x = x + forward(x, f"{name}.feedforward.layers")
            elif config.norm == "pre":
                x = x + attend(norm(x, first), [norm(y, first) for y in seen], f"{name}.attention")
                x = x + forward(norm(x, second), f"{name}.feedforward.layers")
            else:
                x = norm(x + attend(x, seen, f"{name}.attention"), first)
                x = norm(x + forward(x, f"{name}.feedforward.layers"), second)
            after.append(x)
        xs = after
    candidates = [np.concatenate([v, u]) for v in w["item_embedding.weight"]]
    return np.array([[norm(x, "final_norm") @ candidate for candidate in candidates] for x in xs])


CONFIGS = [
    {},
    {"norm": "pre", "num_heads": 2},
    {"norm": "post"},
    {"user_dim": 1, "embedding_dim": 7, "num_heads": 4},
    {"user_dim": 9, "embedding_dim": 2, "attention_dim": 6, "num_heads": 3, "feedforward_dims": (5, 8)},
    {"num_blocks": 0},
    {"num_blocks": 3, "max_length": 1},
    {
        "max_length": 40,
        "sse_user": 1.0,
        "sse_item": 1.0,
        "sse_target": 1.0,
        "random_start": 1.0,
    },  # no effect outside training
]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("values", CONFIGS, ids=str)
@pytest.mark.parametrize("with_targets", [False, True])
def test_it_computes_the_equations(values, with_targets):
    dataset = random_dataset(len(values))
    model = model_of(dataset, **values)
    batch = pack(all_histories(dataset), model.config.max_length, with_targets)
    strangers = [user if user % 3 else -1 for user in range(dataset.num_users)]
    table = model.user_embedding.weight.detach().double().numpy()
    mean = table[: dataset.num_users].mean(axis=0)
    with torch.no_grad():
        logits = model.score(model.encode(known_as(batch, strangers))).double().numpy()
    for row, user in enumerate(strangers):
        start, end = dataset.offsets[row : row + 2]
        items = dataset.items[start : end - with_targets].tolist()
        expected = naive_logits(model, items, table[user] if user >= 0 else mean) if items else np.empty((0, 31))
        ours = logits[batch.offsets[row] : batch.offsets[row + 1]]
        np.testing.assert_allclose(ours, expected.reshape(ours.shape), rtol=1e-4, atol=1e-4)


def test_the_user_counts():
    dataset = random_dataset()
    model = model_of(dataset)
    batch = pack(all_histories(dataset).take(slice(0, 1)), 10)
    with torch.no_grad():
        one, other = (model.score(model.encode(known_as(batch, user)))[:, 1:] for user in (0, 1))
        level = model.encode(known_as(batch, 1))[:, -1:]
    assert not torch.allclose(one, other)
    assert (one.argsort() != other.argsort()).any()  # not only by a constant shift of the scores
    within = other - level
    torch.testing.assert_close(within.softmax(1), other.softmax(1))  # a softmax ignores a constant shift


# ---------------------------------------------------------------- users without training data


def test_strangers_follow_the_table():
    dataset = random_dataset()
    model = model_of(dataset)
    batch = known_as(pack(all_histories(dataset), 10), -1)

    def as_expected() -> bool:
        again = SSEPT(model.config, dataset.num_items, dataset.num_users).eval()
        again.load_state_dict(model.state_dict())
        with torch.no_grad():
            again.user_embedding.weight[0] = model.user_embedding.weight[:-1].mean(dim=0)
            return torch.allclose(model.encode(batch), again.encode(known_as(batch, 0)), atol=1e-5)

    with torch.inference_mode():
        first = model.encode(batch).clone()
    assert model.encode(batch).requires_grad  # a mean cached in inference mode also works outside
    assert as_expected()
    with torch.no_grad():
        model.user_embedding.weight[-1] += 5  # the last row belongs to no user
    assert torch.equal(model.encode(batch), first)
    with torch.no_grad():
        model.user_embedding.weight[:3] += 1
    assert as_expected()
    assert not torch.allclose(model.encode(batch), first)
    model.load_state_dict(model_of(dataset, seed=1).state_dict())
    assert as_expected()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("exchanged", [0.0, 0.9])
def test_users_of_the_log_who_never_trained(exchanged):
    """They get the mean of the trained users, unless training showed other users' histories as theirs."""
    rows = [(user, (user + step) % 9, step) for user in range(12) for step in range(7)]
    rows += [(user, user % 9, 0) for user in range(12, 16)]
    dataset = prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    split = split_last_two(dataset)
    torch.manual_seed(0)
    config = SSEPTConfig(max_length=5, embedding_dim=6, user_dim=4, sse_user=exchanged)
    model = SSEPT(config, dataset.num_items, dataset.num_users)
    fresh = model.user_embedding.weight.detach().clone()
    train(model, split, TrainConfig(epochs=20, evaluate_every=0))
    model.eval()
    table = model.user_embedding.weight.detach()
    trained = dataset.num_users if exchanged else 12
    assert (table[:trained] != fresh[:trained]).any(dim=1).all()
    everybody = torch.tensor([*range(dataset.num_users), -1])
    with torch.no_grad():
        vectors = model.user_embedding(everybody)
    torch.testing.assert_close(vectors[:trained], table[:trained])
    for vector in vectors[trained:]:
        torch.testing.assert_close(vector, table[:trained].mean(dim=0))


def test_a_model_without_users():
    dataset = random_dataset()
    model = SSEPT(SSEPTConfig(max_length=10, embedding_dim=6, user_dim=4), dataset.num_items).eval()
    batch = known_as(pack(all_histories(dataset), 10), -1)
    hidden = model.encode(batch)
    assert torch.isfinite(hidden).all()
    assert (hidden[:, -1] == 0).all()
    assert model.corrupt(batch, Draws([0])).users is batch.users


# ---------------------------------------------------------------- stochastic shared embeddings


def long_batch(users: int = 3000, items: int = 4, catalogue: int = 10) -> tuple[Batch, Dataset]:
    random = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), items),
            "item_id": random.permuted(np.tile(np.arange(catalogue), (users, 1)), axis=1)[:, :items].ravel(),
        }
    )
    dataset = prepare(frame)
    return pack(all_histories(dataset), 50, with_targets=True), dataset


def share(before: Tensor, after: Tensor) -> float:
    return float((before != after).float().mean())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"sse_user": 0.92, "sse_item": 0.1}, (0.92, 0.1, 0.0)),
        ({"sse_user": 0.0, "sse_item": 0.3, "sse_target": 0.6}, (0.0, 0.3, 0.6)),
        ({"sse_user": 1.0, "sse_item": 0.0, "sse_target": 1.0}, (1.0, 0.0, 1.0)),
        ({"sse_user": 0.5, "sse_item": 1.0, "sse_target": 0.0}, (0.5, 1.0, 0.0)),
    ],
)
def test_training_exchanges_users_items_and_targets(values, expected):
    batch, dataset = long_batch()
    model = SSEPT(SSEPTConfig(**values), dataset.num_items, dataset.num_users)
    kept = {name: value.clone() for name, value in vars(batch).items() if torch.is_tensor(value)}
    shown = model.corrupt(batch, Draws([1]))
    for name, wanted in zip(("users", "items", "targets"), expected, strict=True):
        found = share(getattr(batch, name), getattr(shown, name))
        assert found == pytest.approx(wanted, abs=0.02 if 0 < wanted < 1 else 0), name
    for name, value in kept.items():
        assert torch.equal(value, getattr(batch, name)), f"the batch's own {name} changed"
    for name in ("positions", "offsets", "timestamps"):
        assert getattr(shown, name) is getattr(batch, name)
    again = model.corrupt(batch, Draws([1]))
    other = model.corrupt(batch, Draws([2]))
    assert all(torch.equal(getattr(shown, name), getattr(again, name)) for name in kept)
    assert any(not torch.equal(getattr(shown, name), getattr(other, name)) for name in kept)
    tokens, targets = model.training_targets(shown)
    assert tokens is None
    assert torch.equal(targets, shown.targets)


def test_all_others_are_as_likely():
    batch, dataset = long_batch()
    config = SSEPTConfig(sse_user=1.0, sse_item=1.0, sse_target=1.0)
    shown = SSEPT(config, dataset.num_items, dataset.num_users).corrupt(batch, Draws([0]))
    for before, after in ((batch.items, shown.items), (batch.targets, shown.targets)):
        counts = torch.zeros(11, 11, dtype=torch.int64)
        counts.index_put_((before, after), torch.tensor(1), accumulate=True)
        assert (counts.diagonal() == 0).all()
        assert (counts[0] == 0).all()
        assert (counts[:, 0] == 0).all()
        real = counts[1:, 1:].double()
        expected = real.sum(dim=1, keepdim=True) / 9
        away = ((real - expected) / expected.sqrt())[~torch.eye(10, dtype=torch.bool)]
        assert away.abs().max() < 4.5
    assert shown.users.min() >= 0
    assert shown.users.max() < dataset.num_users
    assert (shown.users.bincount(minlength=dataset.num_users) > 0).double().mean() == pytest.approx(0.632, abs=0.03)
    # Inputs and targets are drawn independently: a replaced input is not the target of the token before it.
    inside = (batch.positions[1:] > 0).nonzero()[:, 0]
    assert float((shown.items[1:] == shown.targets[:-1])[inside].double().mean()) == pytest.approx(1 / 9, abs=0.02)


def test_padding_and_strangers_are_not_exchanged():
    batch, dataset = long_batch(users=50)
    model = SSEPT(SSEPTConfig(sse_user=1.0, sse_item=1.0, sse_target=1.0), dataset.num_items, dataset.num_users)
    no_targets = replace(batch, targets=torch.zeros_like(batch.targets), users=torch.full_like(batch.users, -1))
    shown = model.corrupt(no_targets, Draws([0]))
    assert (shown.targets == 0).all()
    assert (shown.users == -1).all()
    assert share(batch.items, shown.items) == 1
    lonely = SSEPT(SSEPTConfig(sse_user=1.0, sse_item=1.0, sse_target=1.0), 1, 1)
    ones = replace(batch, items=torch.ones_like(batch.items), users=torch.zeros_like(batch.users))
    assert torch.equal(lonely.corrupt(ones, Draws([0])).items, ones.items)  # there is no other item
    off = SSEPT(SSEPTConfig(sse_user=0.0, sse_item=0.0), dataset.num_items, dataset.num_users)
    assert vars(off.corrupt(batch, Draws([0]))) == vars(batch)


# ---------------------------------------------------------------- SSE-PT++


def test_random_starts():
    dataset = dataset_of([list(range(1, 21)), [1, 2, 3], list(range(1, 6))])
    assert SSEPT(SSEPTConfig(), 5).random_start == 0
    random_start = SSEPT(SSEPTConfig(random_start=0.75), 5).random_start
    assert random_start == 0.75
    starts = []
    for epoch in range(800):
        (batch,) = Epoch(
            all_histories(dataset), batch_size=3, max_length=4, seed=0, epoch=epoch, random_start=random_start
        )
        for row, user in enumerate(batch.users.tolist()):
            items = batch.items[batch.offsets[row] : batch.offsets[row + 1]]
            targets = batch.targets[batch.offsets[row] : batch.offsets[row + 1]]
            assert torch.equal(targets, items + 1)  # consecutive items of the history
            assert len(items) == (2 if user == 1 else 4)
            if user == 0:
                starts.append(int(items[0]))
    counts = np.bincount(starts, minlength=17)
    assert counts[0] == 0
    assert counts[16] == pytest.approx(800 * (0.25 + 0.75 / 16), rel=0.15)  # the last window, chosen or drawn by chance
    assert counts[1:16] == pytest.approx(np.full(15, 800 * 0.75 / 16), abs=25)


# ---------------------------------------------------------------- learning

KINDS, BRANDS, ROUNDS = 8, 5, 6


@pytest.fixture(scope="module")
def trait() -> Split:
    """Each user has a favourite brand. Items come in threes: any item, one of a kind, one of that kind and the brand.

    The items before show the kind of the next one but not its brand: without knowing the user, one can only guess one
    of five.
    """
    random = np.random.default_rng(0)
    users = 300
    brand = random.integers(0, BRANDS, (users, 1))
    anything = random.permuted(np.tile(np.arange(10), (users, 1)), axis=1)[:, :ROUNDS]
    kind = random.permuted(np.tile(np.arange(KINDS), (users, 1)), axis=1)[:, :ROUNDS]
    question = 10 + 2 * kind + random.integers(0, 2, kind.shape)
    answer = 10 + 2 * KINDS + BRANDS * kind + brand
    items = np.stack([anything, question, answer], axis=2).reshape(users, -1)
    frame = pl.DataFrame({"user_id": np.repeat(np.arange(users), items.shape[1]), "item_id": items.ravel()})
    return split_last_two(prepare(frame))


def trained(model: Model, split: Split) -> Model:
    config = TrainConfig(
        loss="sampled-softmax", negatives=32, epochs=100, batch_size=64, learning_rate=0.01, evaluate_every=0,
        device="cpu",
    )  # fmt: skip
    train(model, split, config)
    return model


def ssept(split: Split, sse_user: float) -> SSEPT:
    torch.manual_seed(0)
    config = SSEPTConfig(
        max_length=2,
        embedding_dim=16,
        user_dim=16,
        num_blocks=1,
        dropout=0.1,
        sse_user=sse_user,
        sse_item=0.0,
        random_start=1.0,
    )
    return SSEPT(config, split.train.dataset.num_items, split.train.dataset.num_users)


@pytest.fixture(scope="module")
def personal(trait: Split) -> Model:
    return trained(ssept(trait, sse_user=0.2), trait)


def accuracy(model: Model, split: Split, users: np.ndarray | None = None, k: int = 1, keep_seen: bool = False) -> float:
    known = split.test.histories
    asked = known if users is None else Histories(known.dataset, users, known.starts, known.ends)
    return float((best(model, asked, k, keep_seen=keep_seen)[0] == split.test.items[:, None]).any(axis=1).mean())


@pytest.mark.slow
def test_it_learns_what_the_user_likes(trait, personal):
    assert personal.user_embedding.sparse
    assert personal.item_embedding.sparse
    torch.manual_seed(0)
    data = trait.train.dataset
    sasrec = SASRec(SASRecConfig(max_length=2, embedding_dim=32, num_blocks=1, dropout=0.1), data.num_items)
    sasrec.random_start = 1.0
    trained(sasrec, trait)
    popularity = Popularity(PopularityConfig(), data.num_items)
    popularity.count(trait.train)
    assert accuracy(personal, trait) > 0.9
    assert 0.1 < accuracy(sasrec, trait) < 0.35  # guessing one of five gives 0.2
    assert accuracy(sasrec, trait, k=BRANDS) > 0.95
    assert accuracy(popularity, trait) < 0.1


@pytest.mark.slow
def test_strangers_get_what_the_history_says(trait, personal):
    strangers = np.full(len(trait.test), -1)
    others = np.roll(np.arange(len(trait.test)), 1)
    for users in (strangers, others):
        assert accuracy(personal, trait, users) < 0.35
        assert accuracy(personal, trait, users, k=BRANDS) > 0.9


@pytest.mark.slow
def test_sharing_embeddings_keeps_users_from_being_learnt_by_heart(trait, personal):
    # Nothing is removed from the ranking here: for memorised users, it puts items of the history first.
    alone = trained(ssept(trait, sse_user=0.0), trait)
    assert accuracy(personal, trait, keep_seen=True) > 0.9
    assert accuracy(alone, trait, keep_seen=True) < 0.7


# ---------------------------------------------------------------- initial weights, penalty, configuration


def test_fit_recommend_save_and_load(tmp_path):
    random = np.random.default_rng(0)
    rows = [(user, int(item)) for user in range(40) for item in random.permutation(25)[:8]]
    log = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    options = {"max_length": 6, "embedding_dim": 8, "user_dim": 4, "sse_item": 0.1, "random_start": 0.5, "epochs": 2}
    fitted = Recommender("ssept", **options, device="cpu").fit(log)
    ours = fitted.recommend(users=[3, 4], k=5)
    history = log.filter(pl.col("user_id") == 3)["item_id"].to_list()
    stranger = fitted.recommend(histories=[history], k=5)
    assert ours.height == 10
    assert stranger.height == 5
    assert not set(stranger["item_id"]) & set(history)
    assert stranger["score"].to_list() != ours.filter(pl.col("user_id") == 3)["score"].to_list()
    fitted.save(tmp_path / "run")
    loaded = Recommender.load(tmp_path / "run")
    assert loaded.recommend(users=[3, 4], k=5).equals(ours)
    assert loaded.recommend(histories=[history], k=5).equals(stranger)
    assert asdict(loaded.model_config)["random_start"] == 0.5


def test_the_start():
    model = SSEPT(SSEPTConfig(), 2000, 1000)
    assert (model.item_embedding.weight[0] == 0).all()
    assert (model.user_embedding.weight[-1] == 0).all()
    for table in (model.item_embedding, model.user_embedding, model.position_embedding):
        assert table.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.position_embedding.weight.shape == (50, 128)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset()
    for name, value in model.state_dict().items():
        assert value.std().item() == pytest.approx(start[name].std().item(), rel=0.2, abs=1e-6), name


def test_penalty():
    dataset = dataset_of([[1, 2, 3], [4, 5]])
    batch = pack(all_histories(dataset), 10, with_targets=True)
    assert model_of(dataset).penalty(batch) is None
    model = model_of(dataset, l2=0.7)
    items, users = (table.weight.detach().double() for table in (model.item_embedding, model.user_embedding))
    looked_up = items[[1, 2, 4, 2, 3, 5]]
    expected = 0.7 * float(looked_up.square().sum() / 6 + users[:2].square().sum() / 2)
    assert model.penalty(batch).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"embedding_dim": 0}, "embedding_dim is 0; give 1 or more"),
        ({"user_dim": -1}, "user_dim is -1; give 1 or more"),
        ({"sse_user": 1.5}, "sse_user is 1.5; give 0 to 1"),
        ({"sse_item": -0.1}, "sse_item is -0.1; give 0 to 1"),
        ({"sse_target": 2.0}, "sse_target is 2.0; give 0 to 1"),
        ({"random_start": float("nan")}, "random_start is nan; give 0 to 1"),
        ({"max_length": 0}, "max_length is 0"),
        ({"num_heads": 3}, "attention_dim 128 is not a multiple of num_heads 3"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "none"}, "norm is 'none'; give paper, pre or post"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        SSEPTConfig(**values)
    assert "\n" not in str(raised.value)
