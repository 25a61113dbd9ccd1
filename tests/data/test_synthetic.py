"""The synthetic log: what it looks like, and that its best reachable score is the best and is reached."""

import itertools
import math

import numpy as np
import polars as pl
import pytest

from seqrec.data import synthetic
from seqrec.data.synthetic import SyntheticLog, best_reachable, synthetic_log
from seqrec.errors import InputError

USERS = 3000


@pytest.fixture(scope="module")
def log() -> SyntheticLog:
    return synthetic_log(USERS, seed=3)


@pytest.fixture(scope="module")
def histories(log: SyntheticLog) -> list[np.ndarray]:
    """Item rows of each user in time order, read from the public frame alone."""
    place = {name: row for row, name in enumerate(log.items["item_id"])}
    users = log.frame.sort("user_id", "timestamp").group_by("user_id", maintain_order=True)
    return [np.array([place[name] for name in rows["item_id"]]) for _, rows in users]


def gains(scores: np.ndarray, histories: list[np.ndarray], back: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """NDCG@10 and HR@10 of each user's real target, seen items removed; scores [users, items]."""
    scores = scores.copy()
    ndcg = np.zeros(len(histories))
    for user, history in enumerate(histories):
        target = history[-back]
        scores[user, history[: len(history) - back]] = -np.inf
        rank = 1 + int((scores[user] > scores[user, target]).sum())
        ndcg[user] = 1 / math.log2(rank + 1) if rank <= 10 else 0.0
    return ndcg, (ndcg > 0).astype(float)


def expected_ndcg(scores: np.ndarray, probabilities: np.ndarray) -> float:
    """NDCG@10 that a ranking is worth under the true distribution: no luck of the draw in it."""
    top = np.argsort(-np.where(probabilities > 0, scores, -np.inf), axis=1, kind="stable")[:, :10]
    return float((np.take_along_axis(probabilities, top, 1) / np.log2(np.arange(10) + 2)).sum(1).mean())


def test_shapes_and_order(log: SyntheticLog) -> None:
    assert log.frame.schema == {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Int64,
        "genre": pl.String,
    }
    assert log.items.columns == ["item_id", "genre"]
    assert log.items.height == 800
    assert log.items["item_id"].n_unique() == 800
    assert log.items["genre"].n_unique() == 20
    assert log.frame["user_id"].n_unique() == USERS
    assert log.frame["timestamp"].is_sorted()
    assert log.frame.null_count().row(0) == (0, 0, 0, 0)
    assert log.frame.select("item_id", "genre").unique().join(log.items, on=["item_id", "genre"]).height == (
        log.frame["item_id"].n_unique()
    )


def test_names_are_readable(log: SyntheticLog) -> None:
    assert log.items["item_id"].str.contains(r"^[A-Z][a-z]+ [A-Z][a-z]+ \([a-z]+\)$").all()
    assert log.frame["user_id"].str.contains(r"^u\d{5}$").all()


def test_histories(log: SyntheticLog, histories: list[np.ndarray]) -> None:
    lengths = np.array([len(history) for history in histories])
    assert all(len(np.unique(history)) == len(history) for history in histories)
    assert lengths.min() >= 5
    assert 10 <= np.median(lengths) <= 14
    assert 14 <= lengths.mean() <= 18
    assert lengths.max() > 50
    gaps = log.frame.select(pl.col("timestamp").diff().over("user_id")).drop_nulls().to_series()
    assert gaps.min() > 0
    # Bursts: most gaps are minutes, the rest days.
    assert 0.6 < (gaps < 3600).mean() < 0.8


def test_same_seed_same_log() -> None:
    first, again, other = (synthetic_log(300, seed=seed) for seed in (5, 5, 6))
    assert first.frame.equals(again.frame)
    assert first.items.equals(again.items)
    assert first.best == again.best
    assert first.best_valid == again.best_valid
    assert not first.frame.equals(other.frame)
    assert not first.items.equals(other.items)


def test_popularity_is_skewed(log: SyntheticLog) -> None:
    counts = np.sort(log.frame["item_id"].value_counts()["count"].to_numpy())[::-1]
    assert counts[:80].sum() > 0.2 * counts.sum()  # a tenth of the catalogue


@pytest.mark.parametrize("back", [1, 2])
def test_probabilities(log: SyntheticLog, histories: list[np.ndarray], back: int) -> None:
    probabilities = log.probabilities(back=back)
    assert probabilities.shape == (USERS, 800)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    for row, history in zip(probabilities, histories, strict=True):
        seen = history[: len(history) - back]
        assert (row[seen] == 0).all()
        assert (np.delete(row, seen) > 0).all()
    some = np.array([7, 2, 40])
    np.testing.assert_array_equal(log.probabilities(some, back=back), probabilities[some])


def test_probabilities_against_a_plain_loop(log: SyntheticLog, histories: list[np.ndarray]) -> None:
    """The documented equation, written out for one item at a time."""
    world, per_genre = log._world, 40
    for user in (0, 11, 500):
        seen = histories[user][:-1].tolist()
        taste = [synthetic.TASTE_PRIOR * share for share in world.prior]
        for age, item in enumerate(reversed(seen)):
            genre = item // per_genre
            taste[genre] += (1 - synthetic.TASTE_DRIFT) * synthetic.TASTE_DECAY**age
            taste[(genre + 1) % 20] += synthetic.TASTE_DRIFT * synthetic.TASTE_DECAY**age
        follows = world.follows[world.themes[seen[-1]]]
        weights = [
            0.0
            if item in seen
            else taste[item // per_genre]
            * follows[world.themes[item]]
            * world.popularity[item // per_genre, item % per_genre]
            for item in range(800)
        ]
        expected = np.array(weights) / sum(weights)
        np.testing.assert_allclose(log.probabilities(np.array([user]))[0], expected, rtol=1e-9)


def test_each_theme_has_three_likely_successors(log: SyntheticLog) -> None:
    follows = log._world.follows
    np.testing.assert_allclose(follows.sum(0), 1.0)  # no theme drains the others
    np.testing.assert_allclose(follows.sum(1), 1.0)
    assert ((follows > 0.04).sum(1) == 3).all()


@pytest.mark.parametrize(("back", "name"), [(1, "best"), (2, "best_valid")])
def test_best_is_what_the_true_ranking_scores(
    log: SyntheticLog, histories: list[np.ndarray], back: int, name: str
) -> None:
    best = getattr(log, name)
    assert set(best) == {"ndcg@10", "hr@10"}
    ndcg, hits = gains(log.probabilities(back=back), histories, back)
    for values, wanted in ((ndcg, best["ndcg@10"]), (hits, best["hr@10"])):
        assert abs(values.mean() - wanted) < 3.5 * values.std() / math.sqrt(USERS)


def test_probabilities_are_calibrated(log: SyntheticLog, histories: list[np.ndarray]) -> None:
    """Targets of probability p are drawn with frequency p: by bins of p, and in the mean of p and log p."""
    probabilities = log.probabilities()
    targets = np.array([history[-1] for history in histories])
    drawn = probabilities[np.arange(USERS), targets]
    edges = [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 1.01]
    chi_square = 0.0
    for low, high in itertools.pairwise(edges):
        inside = np.where((probabilities >= low) & (probabilities < high), probabilities, 0.0).sum(1)
        observed = ((drawn >= low) & (drawn < high)).sum()
        chi_square += (observed - inside.sum()) ** 2 / (inside * (1 - inside)).sum()
    assert chi_square < 24.3  # 99.9 % of a chi-square with 7 degrees of freedom
    squares = (probabilities**2).sum(1)
    assert abs(drawn.mean() - squares.mean()) < 3.5 * drawn.std() / math.sqrt(USERS)
    positive = np.where(probabilities > 0, probabilities, 1.0)
    entropy = -(positive * np.log(positive)).sum(1)
    assert abs(-np.log(drawn).mean() - entropy.mean()) < 3.5 * np.log(drawn).std() / math.sqrt(USERS)


def test_simple_rankings_stay_below(log: SyntheticLog, histories: list[np.ndarray]) -> None:
    """Popularity, the taste and the last item each know a part; the optimum needs all of the history."""
    probabilities, items = log.probabilities(), log.items.height
    popularity, follows = np.zeros(items), np.zeros((items, items))
    for history in histories:
        known = history[:-2]
        popularity[known] += 1
        np.add.at(follows, (known[:-1], known[1:]), 1)
    follows /= np.maximum(follows.sum(1, keepdims=True), 1)
    last = np.array([history[-2] for history in histories])
    # Popularity decides among the items that were never seen to follow.
    markov = follows[last] + 1e-6 * popularity
    optimum = log.best["ndcg@10"]
    assert expected_ndcg(probabilities, probabilities) == pytest.approx(optimum)
    assert expected_ndcg(np.tile(popularity, (USERS, 1)), probabilities) < 0.25 * optimum
    assert 0.3 * optimum < expected_ndcg(markov, probabilities) < 0.8 * optimum


def test_best_reachable_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(30, 0.3), size=17)
    for k in (1, 5, 30, 50):
        hits = ndcg = 0.0
        for row in probabilities.tolist():
            for rank, p in enumerate(sorted(row, reverse=True)[:k], start=1):
                hits += p
                ndcg += p / math.log2(rank + 1)
        assert best_reachable(probabilities, k) == pytest.approx({f"hr@{k}": hits / 17, f"ndcg@{k}": ndcg / 17})


def test_best_agrees_with_best_reachable(log: SyntheticLog) -> None:
    assert best_reachable(log.probabilities(), 10) == pytest.approx(log.best)
    assert best_reachable(log.probabilities(back=2), 10) == pytest.approx(log.best_valid)


@pytest.mark.parametrize(
    "shape",
    [
        {"users": 1},
        {"users": 1025, "mean_length": 6.0},  # one user more than a chunk
        {"users": 50, "genres": 2, "items_per_genre": 10},  # histories capped at half the catalogue
        {"users": 20, "genres": 45, "items_per_genre": 70},  # more than the stock of genres and nouns
        {"users": 20, "markov_share": 0.0},
    ],
)
def test_unusual_sizes(shape: dict) -> None:
    log = synthetic_log(**shape)
    assert log.frame["user_id"].n_unique() == shape["users"]
    assert log.items["item_id"].n_unique() == log.items.height
    assert log.items.height == shape.get("genres", 20) * shape.get("items_per_genre", 40)
    assert log.frame.select("user_id", "item_id").is_unique().all()
    assert 0 < log.best["ndcg@10"] <= log.best["hr@10"] <= 1


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"users": 0}, "users"),
        ({"users": -3}, "users"),
        ({"genres": 1}, "genres"),
        ({"items_per_genre": 9}, "items_per_genre"),
        ({"mean_length": 5.0}, "mean_length"),
        ({"mean_length": 51.0}, "mean_length"),
        ({"mean_length": math.nan}, "mean_length"),
        ({"markov_share": 1.0}, "markov_share"),
        ({"markov_share": -0.1}, "markov_share"),
        ({"markov_share": math.nan}, "markov_share"),
    ],
)
def test_silly_parameters(wrong: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        synthetic_log(**wrong)


def test_silly_questions(log: SyntheticLog) -> None:
    with pytest.raises(InputError, match="back"):
        log.probabilities(back=0)
    with pytest.raises(InputError, match="back"):
        log.probabilities(back=5)
    with pytest.raises(InputError, match="k must"):
        best_reachable(np.full((1, 4), 0.25), 0)
    with pytest.raises(InputError, match="not empty"):
        best_reachable(np.zeros((0, 4)), 1)
