"""A synthetic log for which the best possible score is known, with readable items and drifting tastes.

The true distribution of the next item is a function of the items before it (`_next_item_probabilities`), without any
hidden state. So ranking by it is Bayes-optimal, and its expected score is an upper bound for every model that sees the
log. An item has a genre and a theme, and its name shows both: "Quiet Harbour (mystery)" is a quiet mystery. Users never
repeat an item:

    p(j | history)  ∝  [j unseen] · taste(genre of j) · follows(theme of j | theme of the last item)
                       · popularity(j | genre)
    taste(g)        ∝  prior(g) + Σ_t decay^age(t) · affinity(genre of item t, g)

- `taste` drifts: every interaction strengthens its genre and, a little, the neighbouring one; old interactions fade.
  It depends on all of the history.
- `follows` is a Markov chain: each theme has three likely successors. It depends only on the last item.
- `popularity` follows Zipf's law within a genre, and genres differ in popularity too.

The factors multiply, so the sum of two embeddings (genre and theme) can describe an item. A small model can learn that
from about ten thousand interactions, while a table of item-to-item counts would be too sparse.

The lengths of histories and the times of interactions are drawn independently of the items, so they say nothing about
the next item.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import polars as pl

from seqrec.errors import InputError

MIN_LENGTH = 5  # leave-last-two-out still leaves a history of three
MAX_LENGTH = 100
SUCCESSOR_SHARES = np.array([0.85, 0.10, 0.05])  # of a theme's three successors, likeliest first
TASTE_PRIOR = 0.2  # weight of the general taste, in interactions
TASTE_DECAY = 0.9  # factor of an interaction's weight for each later interaction
TASTE_DRIFT = 0.15  # share of an interaction's affinity that goes to the neighbouring genre
GENRE_SKEW = 0.5  # Zipf exponent over genres
ITEM_SKEW = 0.5  # Zipf exponent inside a genre

# Number of users computed together. It bounds the memory (a few times 8 bytes · items · users) and determines the order
# of random draws, so changing it changes the log.
_CHUNK = 1024

# Texts, split when they are used, because they are easier to read than lists of quoted words.
_GENRES = (
    "mystery crime thriller horror gothic fantasy fairytale adventure western war history biography travel "
    "nature science cyberpunk comedy satire romance poetry"
)
_THEMES = (
    "Quiet Golden Broken Hidden Silver Distant Burning Frozen Hollow Crimson Gentle Restless Ancient Paper "
    "Velvet Electric Wandering Midnight Forgotten Northern"
)
_NOUNS = (
    "Harbour Garden River Lantern Orchard Station Mirror Island Letter Bridge Winter Forest Clock Meadow "
    "Window Tower Voyage Shadow Kingdom Lighthouse Compass Violin Desert Machine Circus Archive Falcon "
    "Cathedral Market Signal Summer Canyon Library Storm Key Map Ferry Chapel Labyrinth Horizon Engine Tide "
    "Ballroom Valley Witness Comet Hour Stranger"
)


@dataclass(frozen=True)
class SyntheticLog:
    """A synthetic log, with the best score that any model can reach on it.

    `frame` has the columns user_id (String, "u00042"), item_id (String, the item's readable name), timestamp
    (Int64, unix seconds, strictly increasing within a user) and genre (String), ordered by time over all users.
    `items` has item_id and genre, one row per item, including items without interactions.

    `best` is the expected score of the Bayes-optimal ranking of the test target, each user's last item: 'hr@10' and
    'ndcg@10' over the complete catalogue with seen items removed, averaged over the users. `best_valid` is the same for
    the second-last item. Both are expectations: on the items that were actually drawn, the optimal ranking scores
    higher or lower by chance (about 0.4 / sqrt(users) for NDCG@10).
    """

    frame: pl.DataFrame
    items: pl.DataFrame
    best: dict[str, float]
    best_valid: dict[str, float]
    _world: _World = field(repr=False, compare=False)
    _histories: np.ndarray = field(repr=False, compare=False)  # [users, longest] item rows, -1 after the end
    _lengths: np.ndarray = field(repr=False, compare=False)  # [users]

    def probabilities(self, users: np.ndarray | None = None, *, back: int = 1) -> np.ndarray:
        """True distribution of one item per user, given all the items before it.

        Args:
            users: user numbers (42 for "u00042"). By default all users.
            back: which item, counted from the end of the history: 1 for the last one (test target), 2 for the
                second-last (validation target).

        Returns:
            float64[users, items] in the order of `items`. Rows sum to one; seen items have probability 0.

        Raises:
            InputError: `back` is out of range.
        """
        if not 1 <= back < MIN_LENGTH:
            raise InputError(f"back must be between 1 and {MIN_LENGTH - 1}, not {back}")
        rows = np.arange(len(self._lengths)) if users is None else np.asarray(users)
        return _next_item_probabilities(self._world, self._histories[rows], self._lengths[rows] - back)


@dataclass(frozen=True)
class _World:
    """The parameters that all users share. Items are numbered genre by genre."""

    prior: np.ndarray  # [genres] general taste, sums to one
    neighbour: np.ndarray  # [genres] the genre that tastes drift to
    popularity: np.ndarray  # [genres, items per genre] rows sum to one
    themes: np.ndarray  # [items] theme of each item
    follows: np.ndarray  # [themes, themes] rows sum to one


def synthetic_log(
    users: int = 6000,
    *,
    seed: int = 0,
    genres: int = 20,
    items_per_genre: int = 40,
    mean_length: float = 16.0,
    markov_share: float = 0.95,
) -> SyntheticLog:
    """Draw a log of `users` histories over `genres` · `items_per_genre` items; same seed, same bytes.

    Args:
        users: number of users.
        seed: random seed.
        genres: number of genres.
        items_per_genre: number of items per genre.
        mean_length: approximate mean length of histories. Lengths are skewed: at least 5, by default with a median of
            about 12 and a few above 50, and at most 100 or half the catalogue.
        markov_share: probability, before tastes and seen items are considered, that the next theme is one of the last
            theme's three successors. All themes share the rest equally.

    Raises:
        InputError: a parameter is out of range.
    """
    _check(users, genres, items_per_genre, mean_length, markov_share)
    rng = np.random.default_rng(seed)
    world = _draw_world(rng, genres, items_per_genre, markov_share)
    items = _draw_names(rng, genres, world.themes)
    lengths = _draw_lengths(rng, users, mean_length, longest=min(MAX_LENGTH, items.height // 2))
    timestamps = _draw_timestamps(rng, lengths)
    histories = _draw_histories(rng, world, lengths)

    user_rows, steps = np.nonzero(histories >= 0)
    order = np.lexsort((user_rows, timestamps[user_rows, steps]))
    user_rows, steps = user_rows[order], steps[order]
    names = pl.Series("user_id", [f"u{user:05d}" for user in range(users)])
    item_rows = histories[user_rows, steps]
    frame = pl.DataFrame(
        {
            "user_id": names.gather(user_rows),
            "item_id": items["item_id"].gather(item_rows),
            "timestamp": timestamps[user_rows, steps],
            "genre": items["genre"].gather(item_rows),
        }
    )
    best, best_valid = (_best(world, histories, lengths - back) for back in (1, 2))
    return SyntheticLog(frame, items, best, best_valid, world, histories, lengths)


def best_reachable(probabilities: np.ndarray, k: int = 10) -> dict[str, float]:
    """Expected HR@k and NDCG@k of the Bayes-optimal ranking, averaged over users.

    `probabilities` [users, items] is the true distribution of each user's target. No ranking is better than sorting by
    it. With p_(r) the r-th largest probability, HR@k = Σ_{r≤k} p_(r) and NDCG@k = Σ_{r≤k} p_(r) / log2(r + 1).
    """
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}")
    if probabilities.ndim != 2 or probabilities.size == 0:
        raise InputError(f"probabilities must be [users, items] and not empty, not {probabilities.shape}")
    kept = min(k, probabilities.shape[1])
    top = np.sort(np.partition(probabilities, -kept, axis=1)[:, -kept:], axis=1)[:, ::-1]
    discounts = 1.0 / np.log2(np.arange(kept) + 2.0)
    return {f"hr@{k}": float(top.sum(1).mean()), f"ndcg@{k}": float((top * discounts).sum(1).mean())}


def _check(users: int, genres: int, items_per_genre: int, mean_length: float, markov_share: float) -> None:
    if users < 1:
        raise InputError(f"users must be at least 1, not {users}")
    if genres < 2:
        raise InputError(f"genres must be at least 2 (tastes drift between them), not {genres}")
    if items_per_genre < 10:
        raise InputError(f"items_per_genre must be at least 10, not {items_per_genre}")
    if not MIN_LENGTH < mean_length <= MAX_LENGTH / 2:
        limits = f"above {MIN_LENGTH} and at most {MAX_LENGTH // 2}"
        raise InputError(f"mean_length must be {limits}, not {mean_length}")
    if not 0 <= markov_share < 1:
        # At 1, a user who has seen all items of the three successors would have no next item.
        raise InputError(f"markov_share must be at least 0 and below 1, not {markov_share}")


def _draw_world(rng: np.random.Generator, genres: int, items_per_genre: int, markov_share: float) -> _World:
    prior = _zipf(genres, GENRE_SKEW)[rng.permutation(genres)]
    neighbour = (np.arange(genres) + 1) % genres  # a ring, so no genre drains the others
    zipf = _zipf(items_per_genre, ITEM_SKEW)
    popularity = np.stack([zipf[rng.permutation(items_per_genre)] for _ in range(genres)])

    count = min(len(_THEMES.split()), items_per_genre)
    themes = np.tile(np.arange(items_per_genre) % count, genres)
    # Themes are on a random circle, each followed by the next three. Every theme has as many predecessors as
    # successors, so none drains the others.
    circle = rng.permutation(count)
    follows = np.full((count, count), (1 - markov_share) / count)
    for step, share in enumerate(SUCCESSOR_SHARES, start=1):
        follows[circle, np.roll(circle, -step)] += markov_share * share
    return _World(prior, neighbour, popularity, themes, follows)


def _zipf(count: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return weights / weights.sum()


def _draw_names(rng: np.random.Generator, genres: int, themes: np.ndarray) -> pl.DataFrame:
    """Names such as "Quiet Harbour (mystery)": theme, noun (drawn without repetition within the theme), genre."""
    genre_words, theme_words, noun_words = _GENRES.split(), _THEMES.split(), _NOUNS.split()
    nouns = [rng.permutation(len(noun_words)) for _ in theme_words]
    used = [0] * len(theme_words)
    names, labels = [], []
    for item, theme in enumerate(themes.tolist()):
        volume, which = divmod(item * genres // len(themes), len(genre_words))
        label = genre_words[which] + (f" {volume + 1}" if volume else "")
        # If a theme has more items than there are nouns, sequels follow.
        sequel, place = divmod(used[theme], len(noun_words))
        used[theme] += 1
        noun = noun_words[nouns[theme][place]] + (f" {sequel + 1}" if sequel else "")
        names.append(f"{theme_words[theme]} {noun} ({label})")
        labels.append(label)
    return pl.DataFrame({"item_id": names, "genre": labels})


def _draw_lengths(rng: np.random.Generator, users: int, mean: float, longest: int) -> np.ndarray:
    sigma = 0.9
    extra = rng.lognormal(np.log(mean - MIN_LENGTH) - sigma**2 / 2, sigma, users)
    return np.minimum(MIN_LENGTH + np.rint(extra).astype(np.int64), longest)


def _draw_timestamps(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """Bursts: minutes within a session, days between sessions. int64[users, longest], strictly increasing."""
    shape = (len(lengths), int(lengths.max()))
    minutes = rng.exponential(600.0, shape)
    days = rng.lognormal(np.log(3 * 86400.0), 1.2, shape)
    gaps = 1 + np.where(rng.random(shape) < 0.7, minutes, days).astype(np.int64)
    # Users arrive over two years from 2023-01-01.
    gaps[:, 0] = 1672531200 + rng.integers(0, 2 * 365 * 86400, len(lengths))
    return np.cumsum(gaps, axis=1)


def _draw_histories(rng: np.random.Generator, world: _World, lengths: np.ndarray) -> np.ndarray:
    """All users of a chunk advance together, one item per step. int64[users, longest], -1 after the end."""
    histories = np.full((len(lengths), int(lengths.max())), -1, dtype=np.int64)
    for start in range(0, len(lengths), _CHUNK):
        chunk = histories[start : start + _CHUNK]
        chunk_lengths = lengths[start : start + _CHUNK]
        for step in range(int(chunk_lengths.max())):
            active = np.flatnonzero(chunk_lengths > step)
            steps = np.full(len(active), step)
            probabilities = _next_item_probabilities(world, chunk[active, : max(step, 1)], steps)
            cumulated = np.cumsum(probabilities, axis=1)
            # This never picks a seen item: its cumulated value equals the one before it, and the draw is strictly below
            # the total, so the first value above the draw belongs to an item with positive probability.
            totals = cumulated[:, -1]
            draws = np.minimum(rng.random(len(active)) * totals, np.nextafter(totals, 0.0))
            chunk[active, step] = (cumulated > draws[:, None]).argmax(axis=1)
    return histories


def _next_item_probabilities(world: _World, histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The equation at the top of this file: float64[users, items] after the first `lengths` items of each history.

    It depends only on the world and the history.
    """
    users, width = histories.shape
    genres, items_per_genre = world.popularity.shape
    rows, steps = np.nonzero(np.arange(width) < lengths[:, None])
    items = histories[rows, steps]
    ages = lengths[rows] - 1 - steps

    # No matrix products: their rounding may depend on the number of threads, and then so would the log.
    fading = TASTE_DECAY**ages
    own = items // items_per_genre
    taste = TASTE_PRIOR * world.prior + (
        _scatter(rows, own, (1 - TASTE_DRIFT) * fading, (users, genres))
        + _scatter(rows, world.neighbour[own], TASTE_DRIFT * fading, (users, genres))
    )
    taste /= taste.sum(axis=1, keepdims=True)
    weighted = (taste[:, :, None] * world.popularity).reshape(users, -1)
    # The first item of a history has no item before it, so all themes are equally likely.
    started = lengths > 0
    last = world.themes[histories[np.flatnonzero(started), lengths[started] - 1]]
    follows = np.full((users, len(world.follows)), 1 / len(world.follows))
    follows[started] = world.follows[last]
    probabilities = weighted * follows[:, world.themes]
    probabilities[rows, items] = 0.0
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities


def _scatter(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Zeros of `shape` with the weights added at (rows, columns). Weights at the same place add up."""
    flat = np.bincount(rows * shape[1] + columns, weights=weights, minlength=shape[0] * shape[1])
    return flat.reshape(shape)


def _best(world: _World, histories: np.ndarray, lengths: np.ndarray) -> dict[str, float]:
    """`best_reachable` at 10 over all users, in chunks."""
    totals = {"hr@10": 0.0, "ndcg@10": 0.0}
    for start in range(0, len(lengths), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        score = best_reachable(_next_item_probabilities(world, histories[chunk], lengths[chunk]), 10)
        for name in totals:
            totals[name] += score[name] * len(lengths[chunk])
    return {name: total / len(lengths) for name, total in totals.items()}
