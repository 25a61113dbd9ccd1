"""Transition counts beside a model: their constants and their weight are chosen on validation items."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from seqrec.data.split import Split, Targets
from seqrec.models.base import Model
from seqrec.models.transitions import Addition, Transitions, TransitionsConfig
from seqrec.ranking import metrics, statistics
from seqrec.ranking.protocols import ranks, ranks_after
from seqrec.ranking.scoring import Catalogue, evaluation_mode, last_states

MOST_USERS = 4000  # of the validation that constants and weight are chosen on; more would cost time and change little
TESTED_USERS = 20_000  # of the validation that show whether the counts help; fewer miss small gains
#: Values to try for each constant, one constant after another.
VALUES = {
    "recency": (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "days": (1.0, 3.0, 7.0, 14.0, 30.0),
    "distance": (5, 20, 50),
    "damping": (0.0, 0.25, 0.5),
    "neighbours": (0.0, 1.0, 3.0, 10.0, 30.0),
    "decay": (0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "scale": (1.0, 2.0, 5.0, 10.0, 30.0),
}
NEED_TIMES = ("recency", "days")
WEIGHTS = tuple(2.0**power for power in range(-3, 7))
LEVEL = 0.05  # of the paired test of whether the counts help


@dataclass(frozen=True)
class ChosenWeight:
    """The weight of the counts, and what it gains in NDCG@10 on the validation users that it was chosen on.

    Args:
        weight: factor of the counts; 0 if they do not help.
        alone: NDCG@10 of the model alone.
        summed: NDCG@10 with the best weight.
        p: two-sided p-value of a paired t-test of the two.
        users: number of users.
    """

    weight: float
    alone: float
    summed: float
    p: float
    users: int


def validation_sample(split: Split, seed: int, most: int | None = None) -> Targets:
    """At most ``most`` validation targets, by default ``MOST_USERS``."""
    return split.valid.sampled(most or MOST_USERS, [seed, 4])


def choose_constants(
    config: TransitionsConfig, split: Split, keep_seen: bool, seed: int, near: Mapping[str, float] | None = None
) -> TransitionsConfig:
    """The config with each constant that is not given set to the value of best NDCG@10 on validation items.

    The constants are chosen one after another. Only the successors of items in the histories of these users are
    counted, so this takes little longer than ranking.

    Args:
        config: constants that are given; the others are None.
        split: split of the log.
        keep_seen: whether items of the history are ranked too.
        seed: seed of the sample of validation users.
        near: constants of an earlier run of the same catalogue. The search begins with them and tries only the next
            smaller and the next larger value of each. It begins with plain values of the others, and tries all.
    """
    unknown = () if split.train.dataset.has_timestamps else NEED_TIMES
    open_ones = [name for name in VALUES if getattr(config, name) is None and name not in unknown]
    known = {name: value for name, value in (near or {}).items() if name in open_ones}
    best, targets = replace(config, **known).resolved(), validation_sample(split, seed)  # type: ignore[arg-type]
    if len(targets) == 0:
        return best
    num_items = split.train.dataset.num_items
    wanted = _items_in(targets, best)
    counted: dict[TransitionsConfig, Transitions] = {}

    def quality(asked: TransitionsConfig) -> float:
        table = replace(asked, decay=1.0, recency=float(asked.recency != 0))  # counts do not depend on their values
        if table not in counted:
            counted.clear()
            counted[table] = Transitions(table, num_items)
            counted[table].count(split.train, wanted)
        model = Transitions(asked, num_items).take(counted[table]).eval()
        return float(metrics.named("ndcg@10", *ranks(model, targets, keep_seen=keep_seen)).mean())

    highest = quality(best)
    for name in open_ones:
        for value in _beside(VALUES[name], known.get(name)):
            asked = replace(best, **{name: value})  # type: ignore[arg-type]
            if asked != best and (found := quality(asked)) > highest:
                best, highest = asked, found
    return best


def _beside(values: tuple[float, ...], near: float | None) -> tuple[float, ...]:
    """The next smaller and the next larger of ascending values; all of them if there is nothing to be near."""
    if near is None:
        return values
    smaller, larger = [one for one in values if one < near], [one for one in values if one > near]
    return (*smaller[-1:], *larger[:1])


def choose_weight(
    model: Model,
    constants: TransitionsConfig,
    split: Split,
    keep_seen: bool,
    seed: int,
    counts: Transitions | None = None,
    near: float | None = None,
) -> ChosenWeight:
    """The weight of best NDCG@10 on validation items; 0 unless it is significantly better than the model alone.

    The weight is chosen on at most ``MOST_USERS`` users, and compared with 0 on at most ``TESTED_USERS``.

    Args:
        model: trained model, without an addition.
        constants: constants of the counts, which are of the training histories.
        split: split of the log.
        keep_seen: whether items of the history are ranked too.
        seed: seed of the sample of validation users.
        counts: the counts of the training histories with these constants, if there are any already.
        near: weight of an earlier run of the same catalogue. It and the next smaller and larger ones are tried, by
            default all.
    """
    targets = validation_sample(split, seed)
    if len(targets) == 0:
        return ChosenWeight(0.0, 0.0, 0.0, 1.0, 0)
    tested = validation_sample(split, seed, TESTED_USERS)
    transitions = counts
    if transitions is None:
        transitions = Transitions(constants, model.num_items)
        transitions.count(split.train, _items_in(tested, constants))
    transitions.eval()
    with evaluation_mode(model):
        states = last_states(model, targets.histories)
        weights = (near, *_beside(WEIGHTS, near)) if near else WEIGHTS
        tried = _qualities(model, transitions, targets, states, keep_seen, (0.0, *weights))
        best = _best(tried)
        if best:
            tried |= _qualities(model, transitions, targets, states, keep_seen, (best * 2**-0.5, best * 2**0.5))
            best = _best(tried)
        if best and len(tested) > len(targets):
            states = last_states(model, tested.histories)
            tried = _qualities(model, transitions, tested, states, keep_seen, (0.0, best))
    gains = (tried[best] - tried[0.0])[:, None]
    p = float(statistics.paired_t_test(gains)[0]) if best else 1.0
    alone, summed = (float(tried[weight].mean()) for weight in (0.0, best))
    helps = p < LEVEL and summed > alone
    return ChosenWeight(best if helps else 0.0, alone, summed, p, len(gains))


def _qualities(
    model: Model,
    transitions: Transitions,
    targets: Targets,
    states: Tensor,
    keep_seen: bool,
    weights: Iterable[float],
) -> dict[float, np.ndarray]:
    """NDCG@10 of each target by weight of the counts, ``float64[M]``, given the states after their histories."""
    found: dict[float, np.ndarray] = {}
    try:
        for weight in weights:
            model.addition = Addition(transitions, weight) if weight else None
            ranked = ranks_after(Catalogue(model), states, targets, keep_seen)  # it holds the recent counts
            found[weight] = metrics.named("ndcg@10", *ranked)
    finally:
        model.addition = None
    return found


def _best(tried: dict[float, np.ndarray]) -> float:
    return max(tried, key=lambda weight: float(tried[weight].mean()))


def _items_in(targets: Targets, constants: TransitionsConfig) -> np.ndarray:
    """Mask of the items whose successors may be asked for after the histories, whatever the decay: ``bool[I + 1]``."""
    num_items = targets.histories.dataset.num_items
    found = np.zeros(num_items + 1, dtype=bool)
    found[Transitions(replace(constants, decay=1.0), num_items).newest(targets.histories).cpu().numpy()] = True
    return found


def constants_of(addition: Addition, has_timestamps: bool) -> dict[str, float]:
    """The constants that were chosen. Those of times only if there are times, both in that log and in the next one."""
    names = [name for name in VALUES if has_timestamps or name not in NEED_TIMES]
    return {name: getattr(addition.transitions.config, name) for name in names}


def facts_of(addition: Addition, chosen: ChosenWeight) -> dict[str, Any]:
    """What ``metrics.json`` says about the counts."""
    config = addition.transitions.config
    return {
        "weight": addition.weight,
        "constants": {name: getattr(config, name) for name in (*VALUES, "successors")},
        "validation": {"users": chosen.users, "alone": chosen.alone, "summed": chosen.summed, "p": chosen.p},
    }
