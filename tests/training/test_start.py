"""Item vectors that training starts from: against eigenvectors of a dense matrix that a naive loop filled."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from seqrec import InputError, Recommender, TrainConfig, prepare, split_last_two, train
from seqrec.data.dataset import Dataset
from seqrec.data.split import all_histories
from seqrec.models import build_model
from seqrec.models.ensemble import Ensemble
from seqrec.training.start import DISTANCE, SHRINKAGE, SPREAD, spectral_vectors, start_from_neighbours


def log(users: int, items: int, seed: int = 0, longest: int = 30) -> pl.DataFrame:
    """Users who stay within a few neighbouring items; items above 9 of 10 of the catalogue occur only once each."""
    random = np.random.default_rng(seed)
    common = max(2, items * 9 // 10)
    rows = [(-1, item, item) for item in range(items)]  # everyone's neighbour, so that all items are in the catalogue
    for user in range(users):
        start = random.integers(common)
        found = (start + random.integers(0, 6, random.integers(2, longest))) % common
        rows += [(user, int(item), n) for n, item in enumerate(found)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def dataset(users: int = 60, items: int = 30, seed: int = 0, longest: int = 30) -> Dataset:
    return prepare(log(users, items, seed, longest))


def naive(data: Dataset) -> np.ndarray:
    """The cosines of the items, in float64."""
    histories = all_histories(data)
    found = np.zeros((data.num_items + 1,) * 2)
    for start, end in zip(histories.starts, histories.ends, strict=True):
        for p in range(start, end):
            for q in range(p + 1, min(p + DISTANCE + 1, end)):
                i, j = data.items[p], data.items[q]
                if i != j:
                    found[i, j] += 1
                    found[j, i] += 1
    factors = 1 / np.sqrt(histories.item_counts() + SHRINKAGE)
    return found * factors[:, None] * factors


@pytest.mark.parametrize(("users", "items", "width"), [(60, 20, 8), (5, 7, 3), (200, 60, 50), (3, 4, 16)])
def test_products_are_those_of_the_highest_eigenvectors(users: int, items: int, width: int) -> None:
    data = dataset(users, items)
    found = spectral_vectors(all_histories(data), width).astype(np.float64)
    assert found.shape == (data.num_items + 1, width)
    values, vectors = np.linalg.eigh(naive(data))
    best = np.argsort(-values)[: min(width, len(values))]
    expected = vectors[:, best] * np.sqrt(np.maximum(values[best], 0))
    expected *= SPREAD / np.sqrt((expected[1:] ** 2).sum() / (data.num_items * width))
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3 * np.abs(expected @ expected.T).max())
    assert np.sqrt((found[1:] ** 2).mean()) == pytest.approx(SPREAD, rel=1e-4)
    assert not found[0].any()


def test_eigenvalues_of_a_catalogue_that_is_larger_than_the_subspace() -> None:
    data = dataset(2000, 400, longest=12)
    found = spectral_vectors(all_histories(data), 16).astype(np.float64)
    own = np.linalg.eigvalsh(found.T @ found)[::-1]
    expected = np.linalg.eigvalsh(naive(data))[::-1][:16]
    np.testing.assert_allclose(own / own.sum(), expected / expected.sum(), rtol=0.05)


def test_items_without_neighbours_keep_their_start() -> None:
    rows = [("a", "x", 1), ("a", "y", 2), ("b", "y", 1), ("b", "x", 2), ("c", "alone", 1)]
    data = prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    alone = int((data.item_counts == 1).nonzero()[0][0])
    histories = all_histories(data)
    assert not spectral_vectors(histories, 4)[alone].any()
    model = build_model("sasrec", {"embedding_dim": 4, "max_length": 5, "dropout": 0.0}, data.num_items, data.num_users)
    before = model.item_embedding.weight.detach().clone()
    start_from_neighbours(model, histories, 0)
    changed = (model.item_embedding.weight != before).any(dim=1)
    assert changed.tolist() == [False] + [item != alone for item in range(1, data.num_items + 1)]


def test_nothing_to_count() -> None:
    rows = [("a", "x", 1), ("b", "y", 1)]
    data = prepare(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"))
    assert not spectral_vectors(all_histories(data), 4).any()


def test_members_differ_by_a_rotation() -> None:
    data = dataset()
    sizes = {"embedding_dim": 8, "max_length": 6}
    kinds = ("sasrec", "ssept", "gru4rec", "sasrec")

    def started(seed: int) -> list[torch.Tensor]:
        model = Ensemble([build_model(kind, sizes, data.num_items, data.num_users) for kind in kinds])
        start_from_neighbours(model, all_histories(data), seed)
        return [part.item_embedding.weight.detach()[1:] for part in model.parts]

    tables = started(3)
    for table in tables[1:]:
        torch.testing.assert_close(table @ table.T, tables[0] @ tables[0].T, atol=1e-5, rtol=1e-3)
        assert not torch.allclose(table, tables[0])
    assert all(torch.equal(one, other) for one, other in zip(tables, started(3), strict=True))
    assert not torch.allclose(tables[0], started(4)[0])


def test_the_start_does_not_know_held_out_items() -> None:
    frame = log(40, 20).filter(pl.len().over("user_id") >= 3)  # of shorter histories nothing is held out
    last = frame.group_by("user_id").agg(pl.col("timestamp").sort().tail(2)).explode("timestamp")
    held = frame.join(last, on=["user_id", "timestamp"], how="semi")
    other = frame.join(held, on=["user_id", "timestamp"], how="anti").vstack(
        held.with_columns(pl.col("item_id").reverse())
    )
    vectors = [spectral_vectors(split_last_two(prepare(one)).train, 4) for one in (frame, other)]
    np.testing.assert_array_equal(*vectors)


@pytest.mark.parametrize("name", ["sasrec", "ssept", "gru4rec", "tisasrec", "esasrec", "lrurec", "hstu"])
def test_training_starts_from_the_vectors(name: str) -> None:
    split = split_last_two(dataset())
    starts, options = {}, {"epochs": 1, "learning_rate": 1e-9, "average_decay": 0.0, "evaluate_every": 0, "threads": 1}
    for start in ("random", "spectral"):
        model = build_model(name, {"embedding_dim": 8, "max_length": 6}, split.train.dataset.num_items, 61)
        train(model, split, TrainConfig(item_init=start, **options))
        starts[start] = model.item_embedding.weight.detach()[1:]
    expected = torch.from_numpy(spectral_vectors(split.train, 8))[1:]
    known = expected.any(dim=1)
    products = (starts["spectral"] @ starts["spectral"].T)[known][:, known]
    torch.testing.assert_close(products, (expected @ expected.T)[known][:, known], atol=1e-4, rtol=1e-2)
    assert not torch.allclose(
        starts["random"] @ starts["random"].T, starts["spectral"] @ starts["spectral"].T, atol=1e-3
    )


@pytest.mark.parametrize("name", ["caser", "slirec", "bert4rec"])
def test_other_models_are_refused(name: str, tmp_path: Path) -> None:
    able = "sasrec, ssept, gru4rec, tisasrec, esasrec, lrurec and hstu"
    with pytest.raises(InputError, match=f"item_init is spectral, which is for {able}; leave it out"):
        Recommender(name, item_init="spectral", epochs=1).fit(log(20, 10), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"embedding_dim": 8, "num_blocks": 1, "ensemble": 1, "split": "last-two", "item_init": "spectral"}
    Recommender(**options, epochs=1).fit(log(30, 15), tmp_path / "run")

    def fail(*given: object) -> None:
        raise AssertionError("started again")

    monkeypatch.setattr("seqrec.training.loop.start_from_neighbours", fail)
    Recommender(**options, epochs=2).fit(log(30, 15), tmp_path / "run", resume=True)
    assert pl.read_csv(tmp_path / "run" / "epochs.csv").height == 2
