"""How long everything after training will take, measured before it on a few users."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from seqrec.data.split import Split, Targets
from seqrec.models.base import Model
from seqrec.models.transitions import Transitions, TransitionsConfig
from seqrec.ranking.additions import counted_addition
from seqrec.ranking.protocols import ranks
from seqrec.run.config import RunConfig
from seqrec.training.additions import MOST_USERS, TESTED_USERS, WEIGHTS, choose_constants, choose_weight
from seqrec.training.budget import Ahead, Budget, extrapolated
from seqrec.training.config import TrainConfig

USERS = (50, 500)  # numbers of users that are timed
#: Choosing the constants of transition counts takes about as long as counting them so many times.
TABLES = 20
SHARE = 0.2  # of the time left that choosing these constants may take


def settled_constants(
    split: Split, keep_seen: bool, seed: int, budget: Budget | None = None, near: Mapping[str, float] | None = None
) -> TransitionsConfig:
    """Constants of transition counts, chosen on validation items.

    Args:
        split: split of the log.
        keep_seen: whether items of the history are ranked too.
        seed: seed of the sample of validation users.
        budget: time limit. If it leaves little time, the constants are the plain ones, or those in ``near``.
        near: constants of the run whose weights training started from, if it had counts.
    """
    plain = TransitionsConfig(**near or {}).resolved()  # type: ignore[arg-type]
    if budget is not None:
        begin = budget.clock()
        Transitions(plain, split.train.dataset.num_items).count(split.train)
        if TABLES * (budget.clock() - begin) > SHARE * budget.left():
            return plain
    return choose_constants(TransitionsConfig(), split, keep_seen, seed, near)


def look_ahead(
    model: Model,
    config: RunConfig,
    split: Split,
    training: TrainConfig,
    constants: TransitionsConfig | None,
    test: Callable[[Model, Split], Any] | None,
    clock: Callable[[], float],
) -> Ahead:
    """Measure what will follow training on a few validation users, with the fresh weights, which rank as fast.

    Args:
        model: model with fresh weights.
        config: configuration of the run.
        split: split of the log.
        training: options of training.
        constants: constants of the counts that will be added to the scores of the model, if they help.
        test: function that tests a model on the test items of a split. None if there will be no test.
        clock: function that returns seconds.
    """
    keep_seen, after = bool(config.split.keep_seen), 0.0
    valid, tested = split.valid, min(len(split.valid), len(split.test))

    def some(count: int) -> Targets:
        return valid.take(slice(count))

    if len(valid):
        users = min(len(valid), training.validation_users)
        after += extrapolated(lambda n: ranks(model, some(n), keep_seen=keep_seen), users, USERS, clock)
    addition = None
    if len(valid) and constants is not None:
        after += seconds_of_weight(model, constants, split, keep_seen, training.seed, clock)
        begin = clock()
        addition = counted_addition(constants, 1.0, split.train)
        after += clock() - begin
    if tested and test is not None:
        model.addition = addition
        try:
            once = extrapolated(lambda n: test(model, replace(split, test=some(n))), len(split.test), USERS, clock)
        finally:
            model.addition = None
        after += once * (1 + (config.refit == "valid"))
    return Ahead(after, _refit(split, config.refit))


def seconds_of_weight(
    model: Model, constants: TransitionsConfig, split: Split, keep_seen: bool, seed: int, clock: Callable[[], float]
) -> float:
    """Estimated seconds of choosing the weight of the counts, measured on a few validation users."""
    users, compared = (min(len(split.valid), most) for most in (MOST_USERS, TESTED_USERS))
    seconds = extrapolated(
        lambda n: choose_weight(model, constants, replace(split, valid=split.valid.take(slice(n))), keep_seen, seed),
        users, USERS, clock,
    )  # fmt: skip
    return seconds * (1 + 2 / len(WEIGHTS) * (compared / users if compared > users else 0))


def _refit(split: Split, kind: Any) -> float:
    """How many times as long as the training a refit takes at most: the ratio of the interactions that they see."""
    if kind == "off":
        return 0.0
    again = split.histories("all" if kind == "all" else "train+valid")
    return float(again.lengths.sum() / max(1, split.train.lengths.sum()))
