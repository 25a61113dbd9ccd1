"""Options of a program in the type that their field declares; no fraction is rounded without a word."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec import InputError, Recommender, TrainConfig


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
