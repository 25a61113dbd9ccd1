"""What a report measures of a model itself: what it recommends, what its attention reads, where its items lie."""

from dataclasses import dataclass

import numpy as np
import torch

from seqrec.data.batches import pack
from seqrec.data.dataset import Dataset
from seqrec.data.split import Histories, Split, TrainedOn, all_histories
from seqrec.models.attention import attention_of
from seqrec.models.base import Model
from seqrec.predictor import Predictor
from seqrec.ranking.additions import recounted
from seqrec.ranking.topk import unit_vectors
from seqrec.report.layout import neighbour_map

USERS, LENGTH = 2000, 10  # users in the sample, and items that each is recommended
ON_THE_MAP, NAMED = 1000, 7  # items on the map, and categories that have a colour
_STEPS, _FEWEST = 50, 10  # steps back that the attention is shown for, and histories that each mean needs


@dataclass(frozen=True)
class Attention:
    """Mean weights of the last token, by the number of steps back: 0 is the last item of the history.

    ``weights float64[S]`` are means over ``counts int64[S]`` histories, those that are long enough. ``equal
    float64[S]`` is what equal weights would give in the same histories.
    """

    weights: np.ndarray
    equal: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class ItemMap:
    """Items in the plane: ``places float32[M, 2]``, ``groups int64[M]`` and the names of the groups."""

    places: np.ndarray
    groups: np.ndarray
    names: list[str]
    by_category: bool


@dataclass(frozen=True)
class Measured:
    """What was measured of the model of a run, as it was tested.

    Args:
        people: sample of the histories before the test, or of all histories if nothing was held out.
        next_items: item that came next after each of them, ``int64[R]``; None if nothing was held out.
        lists: recommended items of each, ``int64[R, k]``; 0 if there are fewer.
        in_log: share of the training interactions that each tenth of the catalogue has, most popular first.
        in_lists: share of the recommended items that it has.
        distinct: number of different items in the lists.
        attention: attention by distance; None if the model has none.
        item_map: map of the most popular items; None if the model has no item vectors.
    """

    people: Histories
    next_items: np.ndarray | None
    lists: np.ndarray
    in_log: np.ndarray
    in_lists: np.ndarray
    distinct: int
    attention: Attention | None
    item_map: ItemMap | None


def measure(model: Model, dataset: Dataset, split: Split, trained_on: TrainedOn, keep_seen: bool) -> Measured:
    """Measure a model on a sample of users.

    Args:
        model: model in evaluation mode. Transition counts that it adds, which may be of the whole log, are counted
            again on the histories that it was trained on.
        dataset: its dataset.
        split: split of the dataset.
        trained_on: what the weights were trained on.
        keep_seen: whether items of the history are recommended again.
    """
    known = split.histories(trained_on)
    adds = model.addition is not None and model.addition.weight > 0
    model = recounted(model, known if adds else None)
    tested = split.test if len(split.test) and trained_on != "all" else None
    people = all_histories(dataset) if tested is None else tested.histories
    chosen = np.sort(np.random.default_rng(0).choice(len(people), min(USERS, len(people)), replace=False))
    people = people.take(chosen)
    predictor = Predictor(model, dataset, keep_seen)
    ((lists, _),) = predictor.rank(people, min(LENGTH, dataset.num_items))
    counts = known.item_counts()
    in_log, in_lists = shares_by_popularity(counts, lists)
    return Measured(
        people,
        None if tested is None else tested.items[chosen],
        lists,
        in_log,
        in_lists,
        len(np.unique(lists[lists > 0])),
        attention_by_distance(model, people),
        item_map(model, dataset, counts),
    )


def shares_by_popularity(counts: np.ndarray, lists: np.ndarray, parts: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The shares of interactions and of recommendations that parts of the catalogue have, most popular first.

    Args:
        counts: interactions of each item, ``int64[I + 1]``.
        lists: recommended items, ``int64[R, k]``; 0 for none.
        parts: number of parts, with as many items each as possible; at most the number of items.

    Returns:
        Two arrays ``float64[parts]``, each with the sum 1 (or 0, if there is nothing to count).
    """
    order = np.argsort(-counts[1:], kind="stable") + 1
    recommended = np.bincount(lists.ravel(), minlength=len(counts))
    recommended[0] = 0
    groups = np.array_split(order, min(parts, len(order)))
    found = []
    for values in (counts, recommended):
        sums = np.array([values[group].sum() for group in groups], dtype=np.float64)
        found.append(sums / max(sums.sum(), 1.0))
    return found[0], found[1]


def attention_by_distance(model: Model, people: Histories, batch_size: int = 256) -> Attention | None:
    """The mean attention of the last token by steps back; None if the model has no attention."""
    people = people.take(people.lengths > 0)
    sums, equal, counts = np.zeros(_STEPS), np.zeros(_STEPS), np.zeros(_STEPS, dtype=np.int64)
    for start in range(0, len(people), batch_size):
        found = attention_of(model, pack(people.take(slice(start, start + batch_size)), model.max_length))
        if found is None:
            return None
        for weights in found:
            near = weights[::-1][:_STEPS]
            sums[: len(near)] += near
            equal[: len(near)] += 1 / len(weights)
            counts[: len(near)] += 1
    enough = counts >= min(_FEWEST, max(counts[0], 1))
    return Attention(sums[enough] / counts[enough], equal[enough] / counts[enough], counts[enough])


def item_map(model: Model, dataset: Dataset, counts: np.ndarray) -> ItemMap | None:
    """The map of the most popular items, by category if there are any; None without vectors, or for few items."""
    if model.COUNTED or not model.FACTORED:
        return None
    items = np.argsort(-counts[1:], kind="stable")[:ON_THE_MAP] + 1
    items = items[counts[items] > 0]
    if len(items) < 10:
        return None
    with torch.inference_mode():
        vectors = unit_vectors(model)[torch.from_numpy(items)]
    places = neighbour_map(vectors.cpu()).numpy()
    table = dataset.item_table
    codes, names = table.first_categories(NAMED) if table is not None else (np.zeros(0), [])
    if names:
        own = codes[items]
        return ItemMap(places, np.where(own > 0, own - 1, len(names)), [*names, "other or none"], True)
    edges = np.unique(np.quantile(counts[items], [0.25, 0.5, 0.75]).astype(np.int64))
    groups = np.searchsorted(edges, counts[items], side="left")
    ends = [*edges.tolist(), int(counts[items].max())]
    starts = [int(counts[items].min()), *(end + 1 for end in ends[:-1])]
    return ItemMap(
        places, groups, [f"{a:,} to {b:,}" if b > a else f"{a:,}" for a, b in zip(starts, ends, strict=True)], False
    )
