"""rank(): compiled loops and torch give the same, for any blocks, filters and ties."""

from typing import Any

import numpy as np
import pytest
import torch

from seqrec.errors import InputError
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.ranking.dense import largest
from seqrec.ranking.scoring import Catalogue, Ranking, evaluation_mode, rank

ITEMS = 60


@pytest.fixture(scope="module")
def model() -> SASRec:
    torch.manual_seed(0)
    made = SASRec(SASRecConfig(max_length=6, embedding_dim=8, num_blocks=1), ITEMS)
    with torch.no_grad():  # whole numbers, for ties without rounding
        made.item_embedding.weight.copy_(torch.randint(-1, 2, made.item_embedding.weight.shape))
    return made.eval()


def brute(
    scores: np.ndarray, columns: list[int], k: int, left_out: set[tuple[int, int]], target: int, row: int
) -> tuple[list[int], int, int]:
    """The best columns of one row of scores, and how many score above the target and equal to it."""
    usable = [column for column in columns if (row, column) not in left_out]
    usable.sort(key=lambda column: (-scores[column], column))
    above = sum(scores[column] > scores[target] for column in usable)
    return usable[:k], above, sum(scores[column] == scores[target] for column in usable) - 1


@pytest.mark.parametrize("rows", [1, 7, 8, 30])
@pytest.mark.parametrize("items", [None, [3, 5, 8, 9, 20, 21, 22, 59]])
@pytest.mark.parametrize("way", ["as it is", "few", "blocks", "double"])
def test_rank_is_a_full_sort(
    model: SASRec, monkeypatch: pytest.MonkeyPatch, rows: int, items: list[int] | None, way: str
) -> None:
    if way == "few":
        monkeypatch.setattr("seqrec.ranking.scoring.FEW", 1)
    elif way == "blocks":
        monkeypatch.setattr("seqrec.ranking.scoring.FEW", 1000)
        monkeypatch.setattr("seqrec.ranking.scoring.CELLS", 200)
    random = np.random.default_rng(rows)
    kind = torch.float64 if way == "double" else torch.float32  # float64 uses torch, not the compiled loops
    states = torch.from_numpy(random.integers(-1, 2, (rows, 8))).to(kind)
    with evaluation_mode(model):
        catalogue = Catalogue(model, None if items is None else np.array(items))
        if way == "double":
            assert catalogue.vectors is not None
            catalogue = Catalogue(model, catalogue.items, catalogue.vectors.double())
        columns = list(range(1, ITEMS + 1)) if items is None else list(range(len(items)))
        vectors = model.item_embedding.weight.numpy()[slice(None) if items is None else items]
        targets = random.choice(columns[-4:], rows)
        pairs = sorted({(int(random.integers(rows)), int(random.choice(columns[:-4]))) for _ in range(3 * rows)})
        left_out = np.array([row for row, _ in pairs]), np.array([column for _, column in pairs])
        denied = np.array([columns[0], columns[3]])
        more = np.unique(random.integers(rows * (ITEMS + 1), size=10 * rows))
        added = catalogue.added_columns(
            (more // (ITEMS + 1), more % (ITEMS + 1), random.integers(-2, 3, len(more)).astype(np.float32))
        )
        usable = [column for column in columns if column not in denied]
        asked: list[dict[str, Any]] = [{}, {"targets": targets}, {"added": added}, {"added": added, "targets": targets}]
        for extra in asked:
            scores = states.numpy() @ vectors.T
            if "added" in extra:
                np.add.at(scores, added[:2], added[2])
            found = rank(catalogue, states, 9, left_out=left_out, denied=denied, batch_size=11, **extra)
            for row in range(rows):
                best, above, ties = brute(scores[row], usable, 9, set(pairs), int(targets[row]), row)
                rest = 9 - len(best)
                assert found.columns[row].tolist() == best + [-1] * rest
                assert found.scores[row].tolist() == [*scores[row, best].tolist(), *[-np.inf] * rest]
                if "targets" in extra:
                    assert found.greater is not None
                    assert found.ties is not None
                    assert (found.greater[row], found.ties[row]) == (above, ties)
                else:
                    assert found.greater is found.ties is None


def test_nothing_to_rank(model: SASRec) -> None:
    with evaluation_mode(model):
        nothing = Catalogue(model, np.empty(0, dtype=np.int64))
        found = rank(nothing, torch.ones(2, 8), 3, left_out=(np.array([0]), np.array([5])))
        assert (found.columns == -1).all()
        assert np.isneginf(found.scores).all()
        assert nothing.items_of(found.columns).tolist() == [[0, 0, 0]] * 2
        nobody = rank(Catalogue(model), torch.ones(0, 8), 3)
    assert isinstance(nobody, Ranking)
    assert nobody.columns.shape == (0, 3)


@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("k", [0, 4])
def test_scores_that_are_not_numbers_are_refused(model: SASRec, rows: int, k: int) -> None:
    states = torch.ones(rows, 8)
    states[-1, 0] = torch.nan
    with evaluation_mode(model), pytest.raises(InputError, match="lower the learning rate"):
        rank(Catalogue(model), states, k, targets=None if k else np.ones(rows, dtype=np.int64))


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_ends(model: SASRec, training: bool) -> None:
    model.train(training)
    with evaluation_mode(model):
        assert not model.training
        assert torch.is_inference_mode_enabled()
    assert model.training is model.blocks[0].training is training
    assert not torch.is_inference_mode_enabled()
    model.eval()


@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("width", [1, 5, 6, 200])
def test_largest_settles_ties_by_column(levels, width):
    scores = np.random.default_rng(levels).integers(levels, size=(20, width)).astype(np.float32)
    scores[:, 1::3] = -np.inf
    columns, values = largest(torch.from_numpy(scores), 5)
    for row in range(20):
        order = sorted(range(width), key=lambda column: (-scores[row, column], column))
        order = [column for column in order if scores[row, column] > -np.inf][:5]
        padding = 5 - len(order)
        assert columns[row].tolist() == order + [-1] * padding
        assert values[row].tolist() == [*scores[row, order].tolist(), *[-np.inf] * padding]


@pytest.mark.loops
def test_codes_of_many_states_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed at the first use, only where they pay, and the answers are those of all scores."""
    torch.manual_seed(1)
    large = SASRec(SASRecConfig(max_length=6, embedding_dim=8, num_blocks=1), 900).eval()
    with torch.no_grad():
        large.item_embedding.weight[451:] = large.item_embedding.weight[1:451].clone()  # ties
    states = torch.randn(50, 8)
    pairs = np.repeat(np.arange(50), 3), np.random.default_rng(0).integers(0, 901, 150)
    ways: list[dict[str, Any]] = [{}, {"left_out": pairs, "denied": np.arange(3, 400)}, {"denied": np.arange(1, 901)}]
    with evaluation_mode(large):
        expected = [rank(Catalogue(large), states, 2, **way) for way in ways]
        monkeypatch.setattr("seqrec.ranking.scoring.MANY", 50)
        monkeypatch.setattr("seqrec.ranking.scoring.LEAST_COLUMNS", 900)
        monkeypatch.setattr("seqrec.kernels.codes_are_fast", lambda: True)  # in the plain build too
        catalogue = Catalogue(large)
        for count, k, added in ((49, 2, False), (50, 3, False), (50, 2, True)):
            assert catalogue.codes_for(count, k, added) is None
        for way, without in zip(ways, expected, strict=True):
            found = rank(catalogue, states, 2, **way)
            np.testing.assert_array_equal(found.columns, without.columns)
            np.testing.assert_array_equal(found.scores, without.scores)
        assert "_codes_for_many" in vars(catalogue)
        states[7, 3] = torch.nan
        with pytest.raises(InputError, match="lower the learning rate"):
            rank(catalogue, states, 2)
        large.item_embedding.weight.data[5] = torch.inf
        assert Catalogue(large).codes_for(50, 2, False) is None
