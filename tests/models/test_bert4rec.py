import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from seqrec import Recommender, TrainConfig, prepare, split_last_two
from seqrec.data.batches import Batch, histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.data.draws import Draws
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.bert4rec import BERT4Rec, BERT4RecConfig
from seqrec.models.popularity import Popularity, PopularityConfig
from seqrec.ranking.protocols import evaluate
from seqrec.training.loop import train

NUM_ITEMS = 30


def batch_of(item_lists: list[list[int]], max_length: int, with_targets: bool = False) -> Batch:
    dataset = prepare(pl.DataFrame({"user_id": [1] * NUM_ITEMS, "item_id": list(range(1, NUM_ITEMS + 1))}))
    return pack(histories_of(dataset, [np.array(i, dtype=np.int64) for i in item_lists]), max_length, with_targets)


def random_lists(seed: int = 0, users: int = 12, longest: int = 14, shortest: int = 1) -> list[list[int]]:
    random = np.random.default_rng(seed)
    lengths = [shortest, shortest + 1, longest, *random.integers(shortest, longest + 1, users - 3)]
    return [random.integers(1, NUM_ITEMS + 1, length).tolist() for length in lengths]


def model_of(seed: int = 0, **values) -> BERT4Rec:
    torch.manual_seed(seed)
    model = BERT4Rec(BERT4RecConfig(**{"max_length": 10, "embedding_dim": 8, "dropout": 0.0} | values), NUM_ITEMS)
    with torch.no_grad():  # away from the small or neutral initial values
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


# ---------------------------------------------------------------- an independent implementation


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scaled = centred / ((centred**2).mean(dim=-1, keepdim=True) + 1e-12).sqrt()
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def states_one_by_one(model: BERT4Rec, items: list[int]) -> Tensor:
    """Output states [n, d + 1] of one history (0 is the mask), in float64 and directly from the equations."""
    config = model.config
    d, heads = config.embedding_dim, config.num_heads
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    vectors = [weights["mask_embedding"] if i == 0 else weights["item_embedding.weight"][i, :d] for i in items]
    x = torch.stack(vectors) + weights["position_embedding.weight"][config.max_length + 1 - len(items) :]
    x = norm(x, weights, "embedding_norm")
    for b in range(config.num_blocks):
        name = f"blocks.{b}"
        query = linear(x, weights, f"{name}.attention.query")
        key, value = linear(x, weights, f"{name}.attention.key_value").split(d, dim=1)
        mixed = []
        for part in torch.arange(d).chunk(heads):
            shares = (query[:, part] @ key[:, part].T / math.sqrt(d / heads)).softmax(dim=1)
            mixed.append(shares @ value[:, part])
        attended = linear(torch.cat(mixed, dim=1), weights, f"{name}.attention_output")
        x = norm(x + attended, weights, f"{name}.attention_norm")
        wide = gelu(linear(x, weights, f"{name}.inner"))
        x = norm(x + linear(wide, weights, f"{name}.outer"), weights, f"{name}.feedforward_norm")
    out = norm(gelu(linear(x, weights, "transform")), weights, "transform_norm")
    return torch.cat([out, torch.ones(len(items), 1, dtype=torch.float64)], dim=1)


CONFIGS = [
    {},
    {"num_heads": 1},
    {"num_heads": 8, "num_blocks": 3},
    {"num_blocks": 0},
    {"feedforward_dim": 5},
    {"max_length": 1},
    {"max_length": 80},  # longer than a row of the grouping
]


@pytest.mark.slow_but_one
@pytest.mark.parametrize("values", CONFIGS, ids=str)
def test_packed_is_one_by_one(values):
    model = model_of(**values)
    lists = random_lists(users=5, longest=70) if values.get("max_length") == 80 else random_lists()
    batch = batch_of(lists, model.config.max_length)
    table = model.item_embedding.weight.detach().double()
    with torch.no_grad():
        shown, predicting = model.train().encode(batch), model.eval().encode(batch)
        scores = model.score(predicting)
    for row, items in enumerate(lists):
        items = items[-model.config.max_length :]
        part = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        # In training the tokens as they are. Otherwise a mask follows, and its state replaces the last one's.
        torch.testing.assert_close(shown[part].double(), states_one_by_one(model, items), rtol=1e-4, atol=1e-4)
        after = states_one_by_one(model, [*items, 0])
        torch.testing.assert_close(predicting[part][:-1].double(), after[:-2], rtol=1e-4, atol=1e-4)
        last = predicting[batch.last[row]].double()
        torch.testing.assert_close(last, after[-1], rtol=1e-4, atol=1e-4)
        expected = after[-1, :-1] @ table[:, :-1].T + table[:, -1]
        torch.testing.assert_close(scores[batch.last[row]].double(), expected, rtol=1e-4, atol=1e-4)


def test_masked_tokens_see_both_sides():
    model = model_of().train()
    histories = [[5, 6, 0, 7, 8], [5, 6, 0, 7, 9], [4, 6, 0, 7, 8]]
    batch = batch_of([[5, 6, 1, 7, 8]] * 3, 10)
    batch = replace(batch, items=torch.tensor(histories).flatten())
    hidden = model.encode(batch).view(3, 5, -1)
    for row, items in enumerate(histories):
        expected = states_one_by_one(model, items)
        torch.testing.assert_close(hidden[row].double(), expected, rtol=1e-4, atol=1e-4)
    assert (hidden[0, 2] - hidden[1, 2]).abs().max() > 1e-3  # depends on later items
    assert (hidden[0, 2] - hidden[2, 2]).abs().max() > 1e-3  # depends on earlier items


def test_gradients_of_packed_and_one_by_one():
    model = model_of().double().train()
    lists = random_lists(3, shortest=2)
    shown = model.corrupt(batch_of(lists, 10, with_targets=True), Draws([0]))
    tokens, items = model.training_targets(shown)
    together = torch.nn.functional.cross_entropy(model.score(model.encode(shown)[tokens]), items, reduction="sum")
    gradients = torch.autograd.grad(together, list(model.parameters()))
    alone = torch.zeros((), dtype=torch.float64)
    for row in range(len(lists)):
        part = slice(int(shown.offsets[row]), int(shown.offsets[row + 1]))
        names = ("items", "targets", "positions", "timestamps")
        values = {name: getattr(shown, name)[part] for name in names}
        length = part.stop - part.start
        one = Batch(**values, offsets=torch.tensor([0, length]), users=shown.users[row : row + 1])
        tokens, items = model.training_targets(one)
        logits = model.score(model.encode(one)[tokens])
        alone = alone + torch.nn.functional.cross_entropy(logits, items, reduction="sum")
    expected = torch.autograd.grad(alone, list(model.parameters()))
    for (name, _), a, b in zip(model.named_parameters(), gradients, expected, strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")


def test_only_the_last_max_length_items_matter():
    model = model_of(max_length=4).eval()
    scores = []
    for items in ([9, 8, 1, 2, 3, 4], [1, 2, 3, 4], [5, 1, 2, 3, 4]):
        scores.append(model.score(model.encode(batch_of([items], 4))))
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[1], scores[2])


def test_an_empty_batch_and_users_without_items():
    model = model_of().eval()
    assert model.encode(batch_of([], 10)).shape == (0, 9)
    assert model.encode(batch_of([[], []], 10)).shape == (0, 9)
    lists = [[], [3, 4], [], [5], []]
    torch.testing.assert_close(model.encode(batch_of(lists, 10)), model.encode(batch_of([[3, 4], [5]], 10)))


# ---------------------------------------------------------------- masking


def unmasked(batch: Batch) -> list[list[int]]:
    items = torch.where(batch.items == 0, batch.targets, batch.items).tolist()
    return [items[a:b] for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]


@pytest.mark.parametrize("probability", [0.05, 0.2, 0.5, 1.0])
def test_a_share_of_each_history_is_masked(probability):
    model = model_of(mask_probability=probability, last_probability=0.0)
    lists = random_lists(1, users=40, shortest=2)
    batch = batch_of(lists, 10, with_targets=True)
    before = {name: value.clone() for name, value in vars(batch).items() if torch.is_tensor(value)}
    shown = model.corrupt(batch, Draws([0]))
    for name, value in before.items():
        assert torch.equal(getattr(batch, name), value), name
    assert unmasked(shown) == [items[-11:] for items in lists]  # the last target is a token too
    lengths = np.array([min(len(items), 11) for items in lists])
    assert shown.lengths.tolist() == lengths.tolist()
    assert torch.equal(shown.positions, torch.cat([torch.arange(length) for length in lengths]))
    assert torch.equal(shown.users, batch.users)
    assert shown.timestamps.shape == shown.items.shape
    masked = np.bincount(shown.rows[shown.items == 0], minlength=len(lists))
    assert masked.tolist() == [max(1, round(length * probability)) for length in lengths.tolist()]
    tokens, items = model.training_targets(shown)
    assert (tokens.diff() > 0).all()
    assert torch.equal(tokens, (shown.items == 0).nonzero()[:, 0])
    assert (items > 0).all()
    assert torch.equal(items, shown.targets[tokens])
    assert (shown.targets[shown.items != 0] == 0).all()


def test_every_place_is_masked_as_often():
    model = model_of(mask_probability=0.25, last_probability=0.0)
    batch = batch_of([[1, 2, 3, 4, 5, 6, 7, 8]] * 200, 10, with_targets=True)
    draws = Draws([0])
    masked = sum((model.corrupt(batch, draws).items.view(200, 8) == 0).double().mean(dim=0) for _ in range(10)) / 10
    assert masked.sum().item() == pytest.approx(2)
    assert (masked - 0.25).abs().max() < 0.05  # 5 standard deviations


def test_the_last_alone_is_masked_in_a_share_of_histories():
    lists = [[1, 2, 3, 4, 5, 6, 7, 8]] * 1000
    batch = batch_of(lists, 10, with_targets=True)
    for share in (0.0, 0.3, 1.0):
        model = model_of(mask_probability=0.5, last_probability=share)
        masked = model.corrupt(batch, Draws([0])).items.view(1000, 8) == 0
        alone = masked.sum(dim=1) == 1
        assert alone.double().mean().item() == pytest.approx(share, abs=0.08)
        assert masked[alone, -1].all()
        assert (masked[~alone].sum(dim=1) == 4).all()


def test_masks_are_drawn_from_the_given_randomness():
    model = model_of()
    batch = batch_of(random_lists(shortest=2), 10, with_targets=True)
    one, same, other = (model.corrupt(batch, Draws([seed])).items for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    empty = model.corrupt(batch_of([], 10, with_targets=True), Draws([0]))
    assert len(empty.items) == 0
    assert len(model.training_targets(empty)[1]) == 0


def test_the_mask_has_a_vector_of_its_own():
    model = model_of().train()
    shown = model.corrupt(batch_of(random_lists(shortest=2), 10, with_targets=True), Draws([0]))
    model.encode(shown).square().sum().backward()
    assert (model.mask_embedding.grad != 0).any()
    assert (model.item_embedding.weight.grad[0] == 0).all()
    assert (model.item_embedding.weight.grad[:, -1] == 0).all()  # only the output uses the bias
    with torch.no_grad():
        before = model.encode(shown)
        model.item_embedding.weight[0] = 5
        assert torch.equal(model.encode(shown), before)


def test_vectors_are_the_table_itself():
    model = model_of()
    assert model.item_vectors().data_ptr() == model.item_embedding.weight.data_ptr()


# ---------------------------------------------------------------- initial weights and configuration


def test_the_start():
    model = BERT4Rec(BERT4RecConfig(), 5000)
    assert (model.item_embedding.weight[0] == 0).all()
    assert (model.item_embedding.weight[:, -1] == 0).all()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            rows, columns = (
                (64, 64) if "key_value" in name else parameter.shape[-2:] if parameter.dim() == 2 else (0, 0)
            )
            table = "embedding" in name
            expected = 0.88 * 0.02 if table else (2 / (rows + columns)) ** 0.5  # truncated at two standard deviations
            assert parameter.std().item() == pytest.approx(expected, rel=0.3 if table else 0.05), name
            assert not table or parameter.abs().max() <= 0.04, name
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset()
    for name, value in model.state_dict().items():
        assert value.std().item() == pytest.approx(start[name].std().item(), rel=0.3, abs=1e-6), name
    torch.manual_seed(2)
    fresh = BERT4Rec(BERT4RecConfig(), 50)
    torch.manual_seed(2)
    for name, value in BERT4Rec(BERT4RecConfig(), 50).state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name  # a seed fixes the initial weights


@pytest.mark.parametrize("values", [{"dropout": 0.5}, {"dropout": 0.5, "attention_dropout": 0.0}])
def test_dropout_acts_in_training_alone(values):
    model = model_of(**values).train()
    batch = batch_of(random_lists(), 10)
    assert not torch.equal(model.encode(batch), model.encode(batch))
    model.eval()
    assert torch.equal(model.encode(batch), model.encode(batch))


def test_attention_dropout_is_that_of_attention():
    model = model_of(dropout=0.0, attention_dropout=0.5).train()
    batch = batch_of(random_lists(), 10)
    assert not torch.equal(model.encode(batch), model.encode(batch))
    assert {block.attention.dropout.probability for block in model.blocks} == {0.5}
    assert {block.dropout.probability for block in model.blocks} == {model.dropout.probability} == {0.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "max_length is 0; give 1 to 1048576"),
        ({"embedding_dim": -1}, "embedding_dim is -1"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_blocks": -1}, "num_blocks is -1; give 0 or more"),
        ({"feedforward_dim": 0}, "feedforward_dim is 0; give 1 or more, or leave it out"),
        ({"embedding_dim": 10, "num_heads": 3}, "embedding_dim 10 is not a multiple of num_heads 3"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"attention_dropout": -0.5}, "attention_dropout is -0.5"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"mask_probability": 0.0}, "mask_probability is 0.0; give more than 0 and at most 1"),
        ({"mask_probability": 1.5}, "mask_probability is 1.5"),
        ({"last_probability": 1.1}, "last_probability is 1.1; give 0 to 1"),
        ({"random_start": -0.1}, "random_start is -0.1; give 0 to 1"),
    ],
)
def test_bad_configs(values, message):
    with pytest.raises(InputError, match=message) as raised:
        BERT4RecConfig(**values)
    assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- learning


def planted_log(users: int = 500, items: int = 20, length: int = 12, seed: int = 0) -> pl.DataFrame:
    """Three interleaved walks: an item follows from the one three places before it; one in ten is noise."""
    random = np.random.default_rng(seed)
    walk = random.integers(items, size=(users, length))
    for step in range(3, length):
        walk[:, step] = np.where(random.random(users) < 0.9, (walk[:, step - 3] + 7) % items, walk[:, step])
    times = np.tile(np.arange(length), users)
    return pl.DataFrame({"user_id": np.repeat(np.arange(users), length), "item_id": walk.ravel(), "timestamp": times})


def hit_rate(model: Model, dataset: Dataset, **options) -> float:
    """HR@1 after training."""
    split = split_last_two(dataset)
    if model.COUNTED:
        model.count(split.train)
    else:
        train(
            model,
            split,
            TrainConfig(loss="cross-entropy", learning_rate=0.003, batch_size=64, evaluate_every=0, **options),
        )
    found = evaluate(model, split.test, train_counts=split.train.item_counts(), k=(1,), keep_seen=True)
    return found.metrics["hr@1"]


@pytest.mark.slow
def test_it_learns_what_came_three_before():
    dataset = prepare(planted_log())
    sizes = {"max_length": 11, "embedding_dim": 32, "dropout": 0.1}
    torch.manual_seed(0)
    found = hit_rate(BERT4Rec(BERT4RecConfig(**sizes), 20), dataset, epochs=25)
    torch.manual_seed(0)
    blind = hit_rate(BERT4Rec(BERT4RecConfig(**sizes, num_blocks=0), 20), dataset, epochs=5)
    popularity = hit_rate(Popularity(PopularityConfig(), 20), dataset)
    assert found > 0.7
    assert max(blind, popularity) < 0.15


def test_a_random_start_shows_other_windows():
    assert BERT4Rec(BERT4RecConfig(), 5).random_start == 0.0
    model = BERT4Rec(BERT4RecConfig(max_length=4, embedding_dim=8, random_start=0.5), 20)
    assert model.random_start == 0.5
    assert 0 <= hit_rate(model, prepare(planted_log(users=60)), epochs=1) <= 1


def test_save_load_recommend(tmp_path: Path):
    log = planted_log(users=60)
    recommender = Recommender("bert4rec", embedding_dim=8, max_length=6, epochs=2, loss="cross-entropy")
    recommender.fit(log, tmp_path / "run")
    again = Recommender.load(tmp_path / "run")
    assert again.model_config == recommender.model_config.resolved()
    expected = recommender.recommend(users=[3, 5], k=2, keep_seen=True)
    assert expected.height == 4
    assert again.recommend(users=[3, 5], k=2, keep_seen=True).equals(expected)
    assert again.recommend(histories=[[1, 2, 9]], k=3).height == 3
    assert again.similar([4], k=2).height == 2
