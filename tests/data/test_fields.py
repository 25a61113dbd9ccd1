"""Options of a program in the type that their field declares; no fraction is rounded without a word."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import pytest

from seqrec import MODELS, InputError, PrepareConfig, Recommender, SplitConfig, TrainConfig
from seqrec.cli.commands import ReadConfig
from seqrec.cli.flags import flags_of, texts_of
from seqrec.data.fields import Options, Range, check_fields
from seqrec.tools.config import BenchConfig, CompareConfig

KINDS = [TrainConfig, PrepareConfig, SplitConfig, ReadConfig, CompareConfig, BenchConfig,
         *(model.Config for model in MODELS.values())]  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{"epochs": 2.9}, {"seed": 1.9}, {"epochs": "3"}, {"epochs": None}, {"epochs": True}, {"batch_size": 8.5},
     {"embedding_dim": 8.5}, {"max_length": float("nan")}, {"min_user_interactions": 1.5}, {"patience": float("inf")},
     {"dropout": "x"}, {"dropout": True}, {"keep_seen": 1}, {"feedforward_dims": (2.5,)}, {"feedforward_dims": 8},
     {"learning_rate": [1]}, {"threads": 1 + 0j}],
    ids=str,
)  # fmt: skip
def test_what_a_field_does_not_take(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"{name} is .*; give") as caught:
        Recommender(**options)
    assert "\n" not in str(caught.value)
    if hasattr(TrainConfig, name):
        with pytest.raises(InputError, match=f"{name} is "):
            TrainConfig(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    options = {"epochs": np.int64(3), "seed": 5.0, "dropout": np.float32(0.5), "threads": None,
               "feedforward_dims": [np.int8(4)], "embedding_dim": np.float64(8), "keep_seen": np.False_}  # fmt: skip
    recommender = Recommender(**options)
    config = recommender.train_config
    assert (config.epochs, config.seed, config.threads, recommender.split_config.keep_seen) == (3, 5, None, False)
    assert [type(value) for value in (config.epochs, config.seed, recommender.split_config.keep_seen)] == [
        int,
        int,
        bool,
    ]
    assert (recommender.model_config.dropout, recommender.model_config.feedforward_dims) == (0.5, (4,))
    assert type(recommender.model_config.embedding_dim) is int


@pytest.mark.parametrize(
    "asked", [{"seed": 1.9}, {"negatives": 2.5}, {"negatives": True}, {"negatives": 0}, {"seed": -1}]
)
def test_numbers_of_an_evaluation(asked: dict[str, Any]) -> None:
    recommender = Recommender("markov").fit(pl.DataFrame({"user_id": [1] * 4, "item_id": [1, 2, 3, 4]}))
    with pytest.raises(InputError, match=f"{next(iter(asked))} is "):
        recommender.evaluate("sampled", **asked)


@dataclass(frozen=True)
class Some(Options):
    """Fields of every kind."""

    count: Annotated[int, Range(1, 9)] = 1
    part: Annotated[float, Range(0, below=1)] = 0.5
    above: Annotated[float, Range(above=0)] | None = None
    any: Annotated[float, Range(above=0, most=float("inf"))] = 1.0
    widths: Annotated[tuple[int, ...], Range(1)] = (1,)
    word: Literal["a", "b", "c"] = "a"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": 0}, "count is 0; give 1 to 9"),
        ({"count": 10}, "count is 10; give 1 to 9"),
        ({"count": 10**30}, f"count is {10**30}; give a smaller number"),
        ({"count": float("nan")}, "count is nan; give a whole number"),
        ({"count": None}, "count is None; give a whole number"),
        ({"part": 1}, "part is 1; give at least 0 and less than 1"),
        ({"part": float("nan")}, "part is nan; give at least 0 and less than 1"),
        ({"above": 0}, "above is 0; give more than 0, or leave it out"),
        ({"above": float("inf")}, "above is inf; give more than 0, or leave it out"),
        ({"above": "x"}, "above is 'x'; give a number, or leave it out"),
        ({"any": 0.0}, "any is 0.0; give more than 0"),
        ({"widths": (2, 0)}, "widths is (2, 0); give 1 or more each"),
        ({"widths": ()}, "widths is (); give at least one number"),
        ({"widths": [2, 2.5]}, "widths is (2, 2.5); give a list of whole numbers"),
        ({"word": "d"}, "word is 'd'; give a, b or c"),
        ({"word": 1}, "word is 1; give a, b or c"),
    ],
    ids=str,
)
def test_what_a_range_does_not_hold(values: dict[str, Any], said: str) -> None:
    for make in (lambda: Some(**values), lambda: check_fields(Some, values)):
        with pytest.raises(InputError) as caught:
            make()
        assert str(caught.value) == said


def test_what_a_range_holds() -> None:
    some = Some(count=9.0, part=0, above=np.float32(0.5), any=float("inf"), widths=np.array([3, 4]))  # type: ignore[arg-type]
    assert (some.count, some.part, some.above, some.widths) == (9, 0, 0.5, (3, 4))
    assert [type(value) for value in (some.count, some.above, *some.widths)] == [int, float, int, int]


def test_names_that_are_unknown_or_missing() -> None:
    @dataclass(frozen=True)
    class Needs(Options):
        """A field without a default."""

        name: str

    with pytest.raises(InputError, match="'nam' is unknown; choose from name"):
        check_fields(Needs, {"nam": "x"})
    with pytest.raises(InputError, match="name is missing"):
        check_fields(Needs, {}, complete=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_explained_once_and_its_flag_makes_it(kind: Any) -> None:
    texts = texts_of(kind)
    assert list(texts) == [field.name for field in fields(kind)]
    assert all(text[0].isupper() and "``" not in text for text in texts.values())
    assert type(flags_of(kind)()) is kind
    assert flags_of(kind)() == kind()
