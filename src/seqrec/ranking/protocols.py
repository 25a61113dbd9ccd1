"""Evaluation protocols: metrics of a model on targets, with confidence intervals."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from torch import Tensor

from seqrec.data.split import Targets, TrainedOn
from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.ranking import metrics, statistics
from seqrec.ranking.groups import Group, grouped
from seqrec.ranking.paired import Difference, differences
from seqrec.ranking.ranker import Blocks, Ranker, Ranks, in_turn, rank_full
from seqrec.ranking.scoring import Catalogue
from seqrec.ranking.topk import check_keep_seen

Protocol = Literal["full", "sampled"]


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
    blocks: Blocks = in_turn,
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
        blocks: function that ranks the targets in blocks; by default :func:`seqrec.ranking.ranker.in_turn`.

    Raises:
        InputError: no targets, an unknown protocol, scores that are not numbers, or transition counts to add that are
            of more than training, as those of a :class:`Recommender` are.
    """
    begin = time.perf_counter()
    cutoffs = _cutoffs(k)
    negatives = _checked(targets, protocol, negatives, seed)
    _check_counts(model, train_counts)
    models, drawn = [model, *(baselines or {}).values()], negatives if protocol == "sampled" else None
    rankings = _rank(Ranker(models, drawn, seed, keep_seen, 0 if drawn else cutoffs[-1], batch_size), targets, blocks)
    sizes = {"history": targets.histories.lengths, "popularity": train_counts[targets.items]}
    scores = [_scores(ranking, cutoffs, train_counts, seed, sizes) for ranking in rankings]
    found: dict[str, Any] = {"protocol": protocol, "split": split, "trained_on": trained_on, "seed": seed}
    found |= {"seen": "kept" if keep_seen else "removed", "unreachable": int(rankings[0].unreachable.sum())}
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


def _compared(rankings: Sequence[Ranks], scores: Sequence[Scores], names: Sequence[str]) -> dict[str, Any]:
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
    ranking: Ranks, cutoffs: Sequence[int], train_counts: np.ndarray, seed: int, sizes: Mapping[str, np.ndarray]
) -> Scores:
    """Metrics of one model and their intervals, also for groups of users by each of the sizes."""
    values = _per_user(ranking, cutoffs, train_counts)
    most_novel = float(metrics.novelty(np.array([[train_counts[1:].argmin() + 1]]), train_counts)[0])
    value = dict(zip(values, statistics.mean(np.column_stack([*values.values()])).tolist(), strict=True))
    interval = _intervals(values, most_novel)
    if ranking.lists.shape[1]:
        names, found = [f"coverage@{length}" for length in cutoffs], (ranking.lists, cutoffs, len(train_counts) - 1)
        value |= zip(names, metrics.coverages(*found), strict=True)
        interval |= zip(names, statistics.coverage_intervals(*found, seed=seed), strict=True)
    main = {name: metrics.named(name, ranking.greater, ranking.ties) for name in metrics.MAIN}
    return Scores(value, interval, groups={by: grouped(by, size, main) for by, size in sizes.items()})


def _intervals(values: Mapping[str, np.ndarray], most_novel: float) -> dict[str, tuple[float, float]]:
    """Intervals of the means of metrics, given the values ``float64[M]`` of each by name."""
    gains = [name for name in values if not name.startswith(("popularity", "novelty"))]
    ends = statistics.gain_intervals(np.column_stack([values[name] for name in gains]))
    found = dict(zip(gains, ends.tolist(), strict=True))
    for name in values.keys() - found.keys():
        highest = 1.0 if name.startswith("popularity") else most_novel
        (found[name],) = statistics.mean_intervals(values[name][:, None], highest).tolist()
    return {name: (found[name][0], found[name][1]) for name in values}


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
    (ranking,) = _rank(Ranker([model], drawn, seed, keep_seen, 0, batch_size), targets)
    return ranking.greater, ranking.ties


def ranks_after(
    catalogue: Catalogue, states: Tensor, targets: Targets, keep_seen: bool
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`ranks` in the full ranking, given the states after the histories. Call it in inference mode."""
    found = rank_full(catalogue, states, targets, keep_seen, 0, 512)
    return found.greater, found.ties


def _fewest(targets: Targets, negatives: int) -> int:
    """Lowest number of negatives of any target, as there may be fewer items that the user has not seen."""
    data = targets.histories.dataset
    keys = data.seen_keys
    different = keys[np.diff(keys, prepend=-1) > 0]
    seen = np.bincount(different // (data.num_items + 1), minlength=data.num_users)
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
    return min(negatives, max(1, targets.histories.dataset.num_items - 1))  # all but the target


def _rank(ranker: Ranker, targets: Targets, blocks: Blocks = in_turn) -> list[Ranks]:
    """Ranks of all targets from each model."""
    check_keep_seen(ranker.keep_seen)
    rankings = [Ranks.empty(len(targets), ranker.top) for _ in ranker.models]
    for rows, found in blocks(ranker, targets):
        for ranking, part in zip(rankings, found, strict=True):
            ranking.put(rows, part)
    return rankings


def _per_user(ranking: Ranks, cutoffs: Sequence[int], train_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Values ``float64[M]`` of each metric, by name."""
    names = [*(f"{name}@{k}" for k in cutoffs for name in metrics.FUNCTIONS), "mrr"]
    found = {name: metrics.named(name, ranking.greater, ranking.ties) for name in names}
    for k in cutoffs if ranking.lists.shape[1] > 0 else ():
        found[f"popularity@{k}"] = metrics.popularity(ranking.lists[:, :k], train_counts)
        found[f"novelty@{k}"] = metrics.novelty(ranking.lists[:, :k], train_counts)
    return found
