"""The contract that every model in ``MODELS`` keeps."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import polars as pl
import pytest
import safetensors.torch
import torch
from torch import Tensor

from seqrec.data.batches import Batch, Columns, histories_of, pack
from seqrec.data.dataset import Dataset
from seqrec.data.draws import Draws
from seqrec.data.prepare import prepare
from seqrec.data.split import Histories, all_histories, split_last_two
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.models.blocks import dropouts_of, seed_dropout
from seqrec.ranking.topk import best
from seqrec.training.objective import mark_tables

# Options that make a model small enough to test. Each model takes those that it has.
SMALL = {"embedding_dim": 8, "max_length": 6, "num_blocks": 2, "num_heads": 2, "dropout": 0.3}
NUM_ITEMS = 40

pytestmark = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    random = np.random.default_rng(0)
    lengths = [*range(1, 20), *random.integers(1, 12, 30)]
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = np.r_[np.arange(NUM_ITEMS), random.integers(0, NUM_ITEMS, len(users) - NUM_ITEMS)]
    times = random.integers(10**9, 10**9 + 10**6, len(users))
    return prepare(pl.DataFrame({"user_id": users, "item_id": items, "timestamp": times}))


def model_of(name: str, dataset: Dataset, seed: int = 0) -> Model:
    """A model with asymmetric weights or counts, in eval mode."""
    kind = MODELS[name]
    values = {field.name: SMALL[field.name] for field in fields(kind.Config) if field.name in SMALL}
    torch.manual_seed(seed)
    model = kind(kind.Config(**values), dataset.num_items, dataset.num_users)
    if model.COUNTED:
        model.count(split_last_two(dataset).train)
    else:
        with torch.no_grad():  # breaks the symmetry of fresh weights, as training would
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def scores_of(model: Model, batch: Batch, items: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.score(model.encode(batch), items)


def batch_of(model: Model, histories: Histories, with_targets: bool = False) -> Batch:
    return pack(histories, model.max_length, with_targets)


def predicted(model: Model, dataset: Dataset) -> tuple[Batch, Tensor, Tensor, Tensor]:
    """A corrupted training batch, its hidden states, those that predict, and the items that they predict."""
    histories = all_histories(dataset)
    batch = batch_of(model, histories.take(histories.lengths >= 2), with_targets=True)
    batch = model.corrupt(batch, Draws([0]))
    tokens, items = model.training_targets(batch)
    hidden = model.encode(batch)
    return batch, hidden, hidden if tokens is None else hidden[tokens], items


def test_the_class(name, dataset):
    kind = MODELS[name]
    assert issubclass(kind, Model)
    assert is_dataclass(kind.Config)
    assert kind.Config.__dataclass_params__.frozen
    default = kind.Config()
    model = kind(default, dataset.num_items, dataset.num_users)
    given = {option: value for option, value in vars(default).items() if value is not None}
    assert vars(model.config) == vars(model.config) | given
    assert model.config.max_length == model.max_length >= 1
    assert model.num_items == dataset.num_items
    assert (len(list(model.parameters())) == 0) == kind.COUNTED


def test_sparse_tables_are_those_declared(name, dataset):
    model = model_of(name, dataset).train()
    if model.COUNTED:
        assert not model.SPARSE_TABLES
        return
    assert set(model.sparse_tables()) <= model.SPARSE_TABLES
    declared = {f"{table}.weight" for table in model.sparse_tables()}
    for key, table in model.sparse_tables().items():
        assert model.get_submodule(key) is table
        assert len(table.weight) in (dataset.num_items + 1, dataset.num_users + 1)
    mark_tables(model)
    seed_dropout(dropouts_of(model), Draws([0]))
    _, _, predictions, items = predicted(model, dataset)
    model.score(predictions, torch.stack([items, items % NUM_ITEMS + 1], dim=1)).square().sum().backward()
    assert {
        key for key, value in model.named_parameters() if value.grad is not None and value.grad.is_sparse
    } == declared
    # Every embedding table with a row per item or user has sparse gradients.
    large = {dataset.num_items + 1, dataset.num_users + 1}
    assert declared >= {key for key, value in model.named_parameters() if value.dim() == 2 and len(value) in large}


def test_times_matter_to_those_that_read_them(name, dataset):
    model = model_of(name, dataset)
    batch = batch_of(model, all_histories(dataset))
    later = replace(batch, timestamps=batch.timestamps * 3 + 10**6 * batch.positions**2)
    assert torch.equal(scores_of(model, later), scores_of(model, batch)) != model.USES_TIMES


def test_a_model_sees_as_much_of_a_history_as_it_declares(name, dataset):
    model = model_of(name, dataset)
    length = model.max_length
    items = np.random.default_rng(4).integers(1, NUM_ITEMS + 1, 3 * length)
    changed = items.copy()
    changed[:-length] = changed[:-length] % NUM_ITEMS + 1
    found = [best(model, histories_of(dataset, [one]), 5, keep_seen=True) for one in (items, changed, items[-length:])]
    for other in found[1:]:
        np.testing.assert_array_equal(other[0], found[0][0])


def test_extra_columns_that_it_does_not_declare_change_nothing(name, dataset):
    model = model_of(name, dataset)
    assert all(isinstance(column, str) for column in model.READS)
    columns = Columns(
        interactions={"rating": np.arange(dataset.num_interactions, dtype=np.float32)},
        items={"price": np.arange(dataset.num_items + 1)},
        users={"age": np.arange(dataset.num_users + 1)},
    )
    histories = all_histories(dataset)
    plain = batch_of(model, histories)
    more = pack(histories, model.max_length, columns=columns)
    assert {*more.of_tokens, *more.of_users} == {"rating", "price", "age"}
    assert torch.equal(scores_of(model, more), scores_of(model, plain))
    trained = model.corrupt(pack(histories.take(histories.lengths >= 2), model.max_length, True, columns),
                            Draws([0]))  # fmt: skip
    assert all(len(value) == len(trained.items) for value in trained.of_tokens.values())


@pytest.mark.parametrize("with_targets", [False, True])
def test_a_batch_equals_each_history_alone(name, dataset, with_targets):
    model = model_of(name, dataset)
    histories = all_histories(dataset)
    batch = batch_of(model, histories, with_targets)
    together = scores_of(model, batch)
    assert together.shape == (int(batch.offsets[-1]), NUM_ITEMS + 1)
    assert torch.isfinite(together[:, 1:]).all()  # column 0 is padding, whose score may be -inf
    for row in range(len(histories)):
        alone = batch_of(model, histories.take(slice(row, row + 1)), with_targets)
        if len(alone.items):
            part = together[batch.offsets[row] : batch.offsets[row + 1]]
            torch.testing.assert_close(scores_of(model, alone), part, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_batch_does_not_matter(name, dataset):
    model = model_of(name, dataset)
    histories = all_histories(dataset)
    order = np.random.default_rng(1).permutation(len(histories))
    straight, mixed = batch_of(model, histories), batch_of(model, histories.take(order))
    expected = scores_of(model, straight)[straight.last[order]]
    torch.testing.assert_close(scores_of(model, mixed)[mixed.last], expected, rtol=1e-4, atol=1e-5)


def test_a_saved_state_keeps_the_scores(name, dataset):
    model = model_of(name, dataset)
    kind = MODELS[name]
    batch = batch_of(model, all_histories(dataset))
    state = safetensors.torch.load(safetensors.torch.save(dict(model.state_dict())))
    torch.manual_seed(99)
    again = kind(model.config, dataset.num_items, dataset.num_users)
    again.load_state_dict(state)
    assert torch.equal(scores_of(again.eval(), batch), scores_of(model, batch))
    assert again.state_dict().keys() == model.state_dict().keys()


def test_the_future_does_not_change_the_past(name, dataset):
    # Lengths stay: SASRec counts positions from the end of the window.
    model = model_of(name, dataset)
    length = model.config.max_length
    random = np.random.default_rng(2)
    items = random.integers(1, NUM_ITEMS + 1, (8, length))
    times = np.sort(random.integers(10**9, 10**9 + 10**6, (8, length)), axis=1)
    before = scores_of(model, batch_of(model, histories_of(dataset, list(items), list(times))))
    before = before.view(8, length, -1)
    for cut in range(1, length):
        other, later = items.copy(), times.copy()
        other[:, cut:] = random.integers(1, NUM_ITEMS + 1, (8, length - cut))
        later[:, cut:] += 10**7
        if not model.CAUSAL:  # other users must not change the prediction at the last token
            other[0], later[0] = items[0], times[0]
        after = scores_of(model, batch_of(model, histories_of(dataset, list(other), list(later))))
        after = after.view(8, length, -1)
        if not model.CAUSAL:
            torch.testing.assert_close(after[0, -1], before[0, -1], rtol=1e-4, atol=1e-5)
            continue
        torch.testing.assert_close(after[:, :cut], before[:, :cut], rtol=1e-4, atol=1e-5)


def test_targets_are_never_looked_at(name, dataset):
    model = model_of(name, dataset)
    batch = batch_of(model, all_histories(dataset), with_targets=True)
    shifted = Batch(**{**vars(batch), "targets": batch.targets % NUM_ITEMS + 1})
    assert torch.equal(scores_of(model, batch), scores_of(model, shifted))


def test_the_forms_of_score_agree(name, dataset):
    model = model_of(name, dataset)
    batch = batch_of(model, all_histories(dataset))
    full = scores_of(model, batch)
    random = torch.Generator().manual_seed(3)
    some = torch.randint(1, NUM_ITEMS + 1, (7,), generator=random)
    torch.testing.assert_close(scores_of(model, batch, some), full[:, some], rtol=1e-4, atol=1e-5)
    each = torch.randint(1, NUM_ITEMS + 1, (len(full), 5), generator=random)
    torch.testing.assert_close(scores_of(model, batch, each), full.gather(1, each), rtol=1e-4, atol=1e-5)
    for none in (some[:0], each[:, :0]):
        assert scores_of(model, batch, none).shape == (len(full), 0)
    with torch.no_grad():
        hidden = model.encode(batch)
        assert model.score(hidden[:0]).shape == (0, NUM_ITEMS + 1)
        assert model.score(hidden[:0], some).shape == (0, 7)
        assert model.score(hidden[:0], each[:0]).shape == (0, 5)
        one = model.score(hidden[4:5])
    torch.testing.assert_close(one, full[4:5], rtol=1e-4, atol=1e-5)


def test_a_factored_score_is_the_product_with_the_vectors(name, dataset):
    model = model_of(name, dataset)
    batch = batch_of(model, all_histories(dataset))
    some = torch.tensor([[1, 5], [NUM_ITEMS, 5]])
    with torch.no_grad():
        if not model.FACTORED:
            assert type(model).score is not Model.score
            return
        vectors = model.item_vectors()
        hidden = model.encode(batch)
        assert vectors.shape == (NUM_ITEMS + 1, hidden.shape[1])
        torch.testing.assert_close(model.score(hidden), hidden @ vectors.T)
        assert torch.equal(model.vectors_of(some), vectors[some])


def test_the_last_tokens_alone_are_those_of_all(name, dataset):
    model = model_of(name, dataset)
    batch = batch_of(model, all_histories(dataset))
    with torch.no_grad():
        torch.testing.assert_close(model.encode_last(batch), model.encode(batch)[batch.last])


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 500])
def test_short_and_long_histories(name, dataset, length):
    model = model_of(name, dataset)
    items = np.random.default_rng(length).integers(1, NUM_ITEMS + 1, length)
    batch = batch_of(model, histories_of(dataset, [items]))
    assert len(batch.items) == min(length, model.config.max_length)
    scores = scores_of(model, batch)
    assert torch.isfinite(scores[:, 1:]).all()
    recent = batch_of(model, histories_of(dataset, [items[-model.config.max_length :]]))
    torch.testing.assert_close(scores_of(model, recent), scores, rtol=1e-4, atol=1e-5)


def test_the_same_again_in_eval_mode(name, dataset):
    model = model_of(name, dataset)
    seed_dropout(dropouts_of(model), Draws([1]))
    batch = batch_of(model, all_histories(dataset))
    before = {key: value.clone() for key, value in vars(batch).items() if torch.is_tensor(value)}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first = scores_of(model, batch)
    torch.manual_seed(123)
    seed_dropout(dropouts_of(model), Draws([2]))
    assert torch.equal(scores_of(model, batch), first)
    for key, value in before.items():
        assert torch.equal(value, getattr(batch, key)), f"the batch's {key} changed"
    for key, value in state.items():
        assert torch.equal(value, model.state_dict()[key]), f"the model's {key} changed"


def test_dropout_acts_in_training_alone(name, dataset):
    model = model_of(name, dataset).train()
    batch = batch_of(model, all_histories(dataset))
    drops = any(part.probability for part in dropouts_of(model))
    assert drops or "dropout" not in vars(model.config)
    seed_dropout(dropouts_of(model), Draws([1]))
    first = scores_of(model, batch)
    assert torch.equal(scores_of(model, batch), first) == (not drops)
    seed_dropout(dropouts_of(model), Draws([1]))
    assert torch.equal(scores_of(model, batch), first)
    model.eval()
    assert torch.equal(scores_of(model, batch), scores_of(model, batch))


def test_a_seed_fixes_what_is_learnt(name, dataset):
    batch = batch_of(model_of(name, dataset), all_histories(dataset))
    one, same, other = (scores_of(model_of(name, dataset, seed), batch) for seed in (5, 5, 6))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == MODELS[name].COUNTED


def test_gradients_reach_every_parameter(name, dataset):
    model = model_of(name, dataset).train()
    if model.COUNTED:
        # Counted models have no parameters; counting again must replace, not add.
        batch = batch_of(model, all_histories(dataset))
        before = scores_of(model, batch)
        model.count(split_last_two(dataset).train)
        assert torch.equal(scores_of(model, batch), before)
        return
    seed_dropout(dropouts_of(model), Draws([0]))
    batch, hidden, predictions, items = predicted(model, dataset)
    assert len(hidden) == len(batch.items)
    loss = torch.nn.functional.cross_entropy(model.score(predictions)[:, 1:], items - 1)
    penalty = model.penalty(batch)
    (loss if penalty is None else loss + penalty).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
        assert (parameter.grad != 0).any(), key


def test_recommendations_leave_out_the_seen(name, dataset):
    model = model_of(name, dataset)
    histories = all_histories(dataset)
    items, scores = best(model, histories, 10)
    assert items.shape == scores.shape == (len(histories), 10)
    batch = batch_of(model, histories)
    full = scores_of(model, batch)[batch.last].numpy()
    for row, (start, end) in enumerate(zip(histories.starts, histories.ends, strict=True)):
        seen = set(dataset.items[start:end].tolist())
        chosen = items[row].tolist()
        assert len(set(chosen)) == 10
        assert not seen & {*chosen}
        left = [item for item in range(1, NUM_ITEMS + 1) if item not in seen]
        expected = np.sort(full[row, left])[::-1][:10]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1])
def test_the_last_state_of_an_empty_history_is_refused(name, dataset, place):
    model = model_of(name, dataset)
    lists = [np.array([3, 5, 7]), np.array([2])]
    lists.insert(place, np.array([], dtype=np.int64))
    with torch.no_grad(), pytest.raises(ValueError, match="an empty history has no"):
        model.encode_last(batch_of(model, histories_of(dataset, lists)))
