"""Evaluation protocols: metrics of a model on targets, with confidence intervals."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from seqrec.data.negatives import distinct_negatives_for
from seqrec.data.split import Targets, TrainedOn
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.ranking import metrics, scoring, statistics
from seqrec.ranking.additions import rank_after, score_after
from seqrec.ranking.groups import Group, grouped
from seqrec.ranking.paired import Difference, differences
from seqrec.ranking.scoring import Catalogue, evaluation_mode, last_states, require_numbers
from seqrec.ranking.topk import check_keep_seen

Protocol = Literal["full", "sampled"]
# Number of targets whose negatives are drawn with one seed. Changing it changes every sampled result.
_DRAWN_TOGETHER = 1024


@dataclass(frozen=True)
class Scores:
    """Metrics of one model by name, such as ``ndcg@10``, and their 95 % confidence intervals.

    ``groups`` has the main metrics for groups of users: by ``history``, the length of the history, and by
    ``popularity``, the number of interactions that the target has in training.
    """

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    groups: dict[str, list[Group]] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Evaluation(Scores):
    """The result of :func:`evaluate`.

    Args:
        protocol: ``full`` or ``sampled``.
        split: name of the targets: ``valid`` or ``test``.
        held_out: what the targets are, in a few words.
        users: number of targets, one per user.
        seen: whether items of the history were ``removed`` from the ranking or ``kept``.
        negatives: number of negatives that a target was ranked against; None for ``full``.
        seed: seed of the negatives, and of the bootstrap for the coverage's interval.
        unreachable: number of targets that are in the user's history while such items are removed. No list can contain
            them, so they count as misses. 0 for ``sampled``, where the target is always a candidate.
        cold: number of targets without interactions in training.
        fewest_negatives: lowest number of negatives of any user, as there may be fewer unseen items than ``negatives``;
            None for ``full``.
        seconds: time of the evaluation, including the baselines.
        baselines: metrics, intervals and groups of other models on the same targets and negatives.
        differences: how much better the NDCG@10 is than that of each baseline; see :class:`Difference`.
        groups: NDCG@10 and HR@10 with intervals for groups of users, by ``history``, the length of the history, and by
            ``popularity``, the number of interactions that the target has in training; see :class:`Group`.
        trained_on: what all of them were trained on; None if it is not known. ``train``: the training histories;
            ``train+valid``: the validation items too; ``all``: the whole log.
    """

    protocol: Protocol
    split: str
    held_out: str
    users: int
    seen: Literal["removed", "kept"]
    negatives: int | None
    seed: int
    unreachable: int
    cold: int
    fewest_negatives: int | None
    seconds: float
    baselines: dict[str, Scores] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    trained_on: TrainedOn | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as types that JSON has. Intervals are ``[low, high]``."""
        found = asdict(self)
        for scores in (found, *found["baselines"].values()):
            for part in (scores, *(group for groups in scores["groups"].values() for group in groups)):
                part["intervals"] = {name: list(ends) for name, ends in part["intervals"].items()}
        for difference in found["differences"].values():
            difference["interval"] = list(difference["interval"])
        return found


def evaluate(
    model: Model,
    targets: Targets,
    *,
    train_counts: np.ndarray,
    protocol: Protocol = "full",
    negatives: int = 100,
    seed: int = 0,
    k: Sequence[int] = (5, 10, 20),
    keep_seen: bool = False,
    baselines: Mapping[str, Model] | None = None,
    split: str = "test",
    trained_on: TrainedOn | None = None,
    batch_size: int = 512,
) -> Evaluation:
    """Rank the target of every user among its candidates, and compute metrics.

    ``full`` ranks the target in the complete catalogue, without the items of the history unless ``keep_seen``.
    ``sampled`` ranks it against ``negatives`` different items, drawn uniformly from the items that the user never
    interacted with in the log (Kang & McAuley 2018, section IV-A). Its values are much higher and can even order models
    differently (Krichene & Rendle 2020), so compare them only with other sampled ones.

    Metrics: ``hr@k``, ``recall@k``, ``ndcg@k`` and ``mrr@k`` for each k, and ``mrr``. ``full`` also makes lists, and
    adds ``coverage@k``, ``popularity@k`` and ``novelty@k`` (:mod:`seqrec.ranking.metrics`). Confidence intervals are
    over users (:mod:`seqrec.ranking.statistics`): they show how much results vary between samples of users, not between
    training runs.

    Args:
        model: any model; it sees the last ``max_length`` items of each history.
        targets: one target per user.
        train_counts: interactions of each item in training, ``int64[I + 1]``.
        protocol: ``full`` or ``sampled``.
        negatives: number of negatives per target for ``sampled``. They depend only on the seed and the targets, so they
            are the same for all models and batch sizes. If fewer items are left for a user, all of them are used.
        seed: seed of the negatives, and of the bootstrap for the coverage's interval.
        k: lengths of the lists.
        keep_seen: whether the items of the history are ranked too. ``sampled`` never draws them.
        baselines: other models by name.
        split: name of the targets, for the report.
        trained_on: what the models were trained on, for the report; see :class:`Evaluation`.
        batch_size: number of users encoded and scored at once.

    Raises:
        InputError: no targets, an unknown protocol, scores that are not numbers, or transition counts to add that are
            of more than training, as those of a :class:`Recommender` are.
    """
    begin = time.perf_counter()
    cutoffs = _cutoffs(k)
    negatives = _checked(targets, protocol, negatives, seed)
    _check_counts(model, train_counts)
    models, drawn = [model, *(baselines or {}).values()], negatives if protocol == "sampled" else None
    rankings = _rank(models, targets, drawn, seed, keep_seen, cutoffs[-1] if drawn is None else 0, batch_size)
    sizes = {"history": targets.histories.lengths, "popularity": train_counts[targets.items]}
    scores = [_scores(ranking, cutoffs, train_counts, seed, sizes) for ranking in rankings]
    found: dict[str, Any] = {"protocol": protocol, "split": split, "trained_on": trained_on, "seed": seed}
    found |= {"seen": "kept" if keep_seen else "removed", "unreachable": rankings[0].unreachable}
    found |= vars(scores[0]) | _facts(targets, train_counts, drawn) | _compared(rankings, scores, list(baselines or {}))
    return Evaluation(**found, seconds=time.perf_counter() - begin)


def _check_counts(model: Model, train_counts: np.ndarray) -> None:
    """Refuse a model whose transition counts may have seen the targets."""
    if model.addition is not None and model.addition.weight:
        counts = model.addition.transitions.counts.cpu().numpy()
        if (counts > train_counts).any():
            raise InputError(
                f"the transition counts that the model adds are of {counts.sum():,} interactions, but training has "
                f"{train_counts.sum():,}, so they may have seen the items to evaluate; use Recommender.evaluate"
            )


def _compared(rankings: Sequence["_Ranking"], scores: Sequence[Scores], names: Sequence[str]) -> dict[str, Any]:
    """The fields of an evaluation about baselines, whose rankings and scores come after those of the model."""
    main = [metrics.named(metrics.MAIN[0], ranking.greater, ranking.ties) for ranking in rankings]
    others = dict(zip(names, main[1:], strict=True))
    return {"baselines": dict(zip(names, scores[1:], strict=True)), "differences": differences(main[0], others)}


def _cutoffs(k: Sequence[int]) -> list[int]:
    """Different lengths of the lists, in ascending order."""
    cutoffs = sorted(set(k))
    if not cutoffs or cutoffs[0] < 1:
        raise InputError(f"the lengths of the lists are {tuple(k)}; give 1 or more for each")
    return cutoffs


def _facts(targets: Targets, train_counts: np.ndarray, negatives: int | None) -> dict[str, Any]:
    """The fields of an evaluation that describe the targets."""
    return {
        "held_out": targets.held_out,
        "users": len(targets),
        "negatives": negatives,
        "cold": int(np.count_nonzero(train_counts[targets.items] == 0)),
        "fewest_negatives": None if negatives is None else _fewest(targets, negatives),
    }


def _scores(
    ranking: "_Ranking", cutoffs: Sequence[int], train_counts: np.ndarray, seed: int, sizes: Mapping[str, np.ndarray]
) -> Scores:
    """Metrics of one model and their intervals, also for groups of users by each of the sizes."""
    values = _per_user(ranking, cutoffs, train_counts)
    most_novel = float(metrics.novelty(np.array([[train_counts[1:].argmin() + 1]]), train_counts)[0])
    value = dict(zip(values, statistics.mean(np.column_stack([*values.values()])).tolist(), strict=True))
    interval = {name: _interval(name, column[:, None], most_novel) for name, column in values.items()}
    num_items = len(train_counts) - 1
    for length in cutoffs if ranking.lists.shape[1] else ():
        lists = ranking.lists[:, :length]
        value[f"coverage@{length}"] = metrics.coverage(lists, num_items)
        interval[f"coverage@{length}"] = statistics.coverage_interval(lists, num_items, seed=seed)
    main = {name: metrics.named(name, ranking.greater, ranking.ties) for name in metrics.MAIN}
    return Scores(value, interval, groups={by: grouped(by, size, main) for by, size in sizes.items()})


def _interval(name: str, values: np.ndarray, most_novel: float) -> tuple[float, float]:
    """Interval of the mean of a metric with the values ``float64[M, 1]``."""
    if name.startswith(("popularity", "novelty")):
        ends = statistics.mean_intervals(values, 1.0 if name.startswith("popularity") else most_novel)
    else:
        ends = statistics.gain_intervals(values)
    return float(ends[0, 0]), float(ends[0, 1])


def ranks(
    model: Model,
    targets: Targets,
    *,
    protocol: Protocol = "full",
    negatives: int = 100,
    seed: int = 0,
    keep_seen: bool = False,
    batch_size: int = 512,
) -> tuple[np.ndarray, np.ndarray]:
    """The rank of each target as ``greater int64[M]`` and ``ties int64[M]``; see :mod:`seqrec.ranking.metrics`.

    Arguments are as for :func:`evaluate`. With the same arguments, rows of different models belong to the same user, so
    they can be compared in a paired test.
    """
    negatives = _checked(targets, protocol, negatives, seed)
    drawn = negatives if protocol == "sampled" else None
    (ranking,) = _rank([model], targets, drawn, seed, keep_seen, 0, batch_size)
    return ranking.greater, ranking.ties


def ranks_after(
    catalogue: Catalogue, states: Tensor, targets: Targets, keep_seen: bool
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`ranks` in the full ranking, given the states after the histories. Call it in inference mode."""
    count = len(targets)
    into = _Ranking(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros((count, 0), np.int32))
    _rank_full(catalogue, states, targets, keep_seen, 512, into)
    return into.greater, into.ties


@dataclass
class _Ranking:
    """Ranks and lists from one model, filled block by block."""

    greater: np.ndarray  # int64[M]
    ties: np.ndarray  # int64[M]
    lists: np.ndarray  # int32[M, top]
    unreachable: int = 0


def _fewest(targets: Targets, negatives: int) -> int:
    """Lowest number of negatives of any target, as there may be fewer items that the user has not seen."""
    data = targets.histories.dataset
    seen = np.bincount(np.unique(data.seen_keys) // (data.num_items + 1), minlength=data.num_users)
    return int(min(negatives, data.num_items - seen[targets.histories.users].max()))


def _checked(targets: Targets, protocol: str, negatives: int, seed: int) -> int:
    """Check the arguments, and limit the number of negatives to the size of the catalogue."""
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    if protocol not in ("full", "sampled"):
        raise InputError(f"unknown protocol {protocol!r}; give full or sampled")
    if len(targets) == 0:
        raise InputError("there is nobody to evaluate on: no user has a target; give a longer log or another split")
    if protocol == "sampled":
        if negatives < 1:
            raise InputError(f"negatives is {negatives}; give 1 or more")
        if (targets.histories.users < 0).any():
            raise ValueError("the sampled protocol needs users of the dataset, to know what they have not seen")
    return min(negatives, targets.histories.dataset.num_items)


def _rank(
    models: Sequence[Model],
    targets: Targets,
    negatives: int | None,
    seed: int,
    keep_seen: bool,
    top: int,
    batch_size: int,
) -> list[_Ranking]:
    """Ranks from all models, in one pass over the users, so that negatives are drawn only once."""
    check_keep_seen(keep_seen)
    count = len(targets)
    rankings = [
        _Ranking(np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros((count, top), np.int32)) for _ in models
    ]
    catalogues: list[Catalogue] = []
    for model in models if negatives is None else ():
        with evaluation_mode(model):
            catalogues.append(Catalogue(model))
    for start in range(0, count, scoring.USERS_AT_ONCE):
        chosen = slice(start, start + scoring.USERS_AT_ONCE)
        part = targets.take(chosen)
        drawn = None if negatives is None else _draw(part, negatives, seed, start // _DRAWN_TOGETHER)
        for number, (model, ranking) in enumerate(zip(models, rankings, strict=True)):
            into = _Ranking(ranking.greater[chosen], ranking.ties[chosen], ranking.lists[chosen])
            with evaluation_mode(model):
                states = last_states(model, part.histories, batch_size=batch_size)
                if drawn is not None:
                    _rank_sampled(model, states, part, drawn, batch_size, into)
                else:
                    _rank_full(catalogues[number], states, part, keep_seen, batch_size, into)
            ranking.unreachable += into.unreachable
    return rankings


def _draw(targets: Targets, negatives: int, seed: int, first_block: int) -> np.ndarray:
    """Negatives ``int64[M, negatives]``, 0 if fewer items are left for the user. Each block of targets has a seed."""
    data = targets.histories.dataset
    users = np.asarray(targets.histories.users, dtype=np.int64)
    blocks = [
        distinct_negatives_for(
            np.random.default_rng([seed, first_block + number]),
            data.num_items,
            users[start : start + _DRAWN_TOGETHER],
            negatives,
            data.seen_keys,
        )
        for number, start in enumerate(range(0, len(users), _DRAWN_TOGETHER))
    ]
    return np.concatenate(blocks)


def _rank_sampled(
    model: Model, states: Tensor, targets: Targets, drawn: np.ndarray, batch_size: int, into: _Ranking
) -> None:
    candidates = np.column_stack([targets.items.astype(np.int64), drawn])
    # Every candidate of every user needs a separate vector here. The number of rows keeps them in the cache.
    rows = max(1, min(batch_size, scoring.CELLS // 16 // (candidates.shape[1] * states.shape[1])))
    for start in range(0, len(targets), rows):
        chosen = slice(start, start + rows)
        items = torch.from_numpy(candidates[chosen]).to(states.device)
        scores = score_after(model, targets.histories.take(chosen), states[chosen], items)
        require_numbers(scores)
        real = items[:, 1:] > 0
        target, others = scores[:, :1], scores[:, 1:]
        ranked = target[:, 0] > -torch.inf
        greater = torch.where(ranked, ((others > target) & real).sum(dim=1), -1)
        ties = torch.where(ranked, ((others == target) & real).sum(dim=1), 0)
        into.greater[chosen] = greater.cpu().numpy()
        into.ties[chosen] = ties.cpu().numpy()


def _rank_full(
    catalogue: Catalogue, states: Tensor, targets: Targets, keep_seen: bool, batch_size: int, into: _Ranking
) -> None:
    items = targets.items.astype(np.int64)
    unreachable = np.zeros(len(targets), dtype=bool)
    seen = None
    if not keep_seen:
        rows, seen_items = seen = targets.histories.flat()
        unreachable[rows[seen_items == items[rows]]] = True
    k = into.lists.shape[1]
    ways = {"left_out": seen, "targets": items, "batch_size": batch_size}
    found = rank_after(catalogue, targets.histories, states, k, **ways)  # type: ignore[arg-type]
    assert found.greater is not None
    assert found.ties is not None
    into.unreachable += int(unreachable.sum())
    into.lists[:] = catalogue.items_of(found.columns)
    into.greater[:] = np.where(unreachable, -1, found.greater)
    into.ties[:] = np.where(unreachable, 0, found.ties)


def _per_user(ranking: _Ranking, cutoffs: Sequence[int], train_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Values ``float64[M]`` of each metric, by name."""
    names = [*(f"{name}@{k}" for k in cutoffs for name in metrics.FUNCTIONS), "mrr"]
    found = {name: metrics.named(name, ranking.greater, ranking.ties) for name in names}
    for k in cutoffs if ranking.lists.shape[1] > 0 else ():
        found[f"popularity@{k}"] = metrics.popularity(ranking.lists[:, :k], train_counts)
        found[f"novelty@{k}"] = metrics.novelty(ranking.lists[:, :k], train_counts)
    return found
