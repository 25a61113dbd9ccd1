"""A time limit for a whole command, and how much of it training may use."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from seqrec.errors import InputError

MOST_MINUTES = 10**6
#: Share of the limit, and seconds, that are kept back for what nobody estimates: writing files, tables, leaving Python.
SHARE_KEPT, SECONDS_KEPT = 0.01, 0.5


class Budget:
    """A time limit that has begun.

    Args:
        minutes: the limit.
        begun: reading of the clock when it began. By default now.
        clock: function that returns seconds. By default ``time.monotonic``.

    Raises:
        InputError: ``minutes`` is not a number above 0, or above a million.
    """

    def __init__(self, minutes: float, begun: float | None = None, clock: Callable[[], float] | None = None) -> None:
        is_number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
        if not is_number or not 0 < minutes <= MOST_MINUTES:
            raise InputError(f"minutes is {minutes!r}; give a number above 0, up to {MOST_MINUTES:,}")
        self.minutes, self.clock = minutes, clock or time.monotonic
        self.begun = self.clock() if begun is None else begun

    def left(self) -> float:
        """Seconds until the limit, below 0 after it."""
        return self.begun + 60 * self.minutes - self.clock()


def budget_of(minutes: Any) -> Budget | None:
    """A budget from minutes that begin now, from one that has begun, or None for no limit."""
    return minutes if minutes is None or isinstance(minutes, Budget) else Budget(minutes)


@dataclass(frozen=True)
class Ahead:
    """Estimated seconds of what follows the last step of training.

    Args:
        after: seconds that do not depend on how long training takes: the last validation, the choice of the weight of
            transition counts, tests, counting on the whole log.
        refit: how many times as long an epoch of the refit takes as one of training; 0 without a refit.
    """

    after: float
    refit: float = 0.0


class Limit:
    """Ends training so that what follows fits into the budget; called after every step.

    A refit trains whole epochs, as many as validation chooses, which may be all of them. So no epoch begins unless
    there is time to train it again.

    Args:
        budget: time limit of the command.
        ahead: estimate of what follows training.
        steps: steps per epoch.
        epochs: epochs that earlier processes trained.
        stop: another function that ends training by returning True.
        seconds: seconds of each of these epochs, used until this process has trained as many steps as an epoch has.
    """

    def __init__(
        self,
        budget: Budget,
        ahead: Ahead,
        steps: int,
        epochs: int = 0,
        stop: Callable[[], bool] | None = None,
        seconds: float | None = None,
    ) -> None:
        self.budget, self.ahead, self.stop = budget, ahead, stop
        self.steps, self.epochs, self.seconds = steps, epochs, seconds
        self.begun, self.done = budget.clock(), 0
        self.latest = self.begun
        self.reached = False

    def __call__(self) -> bool:
        """Whether training has to end now."""
        self.done += 1
        self.latest = self.budget.clock()
        if self.stop is not None and self.stop():
            return True
        self.reached = self.left() <= 0
        return self.reached

    def left(self) -> float:
        """Seconds that are left for training, if it goes on for another step."""
        kept = max(SECONDS_KEPT, SHARE_KEPT * 60 * self.budget.minutes)
        epochs = self.epochs + self.done // self.steps + 1
        return self.budget.left() - kept - self.ahead.after - self.refit(epochs)

    def refit(self, epochs: int) -> float:
        """Estimated seconds of a refit of so many epochs."""
        epoch = self.steps * (self.latest - self.begun) / max(1, self.done)
        if self.seconds is not None and self.done < self.steps:
            epoch = self.seconds
        return self.ahead.refit * epochs * epoch


def extrapolated(work: Callable[[int], Any], users: int, sizes: tuple[int, int], clock: Callable[[], float]) -> float:
    """Estimated seconds of ``work(users)``, from the seconds of ``work`` on two smaller numbers of users.

    The larger one is timed first, so that whatever the first call does only once counts as work per user: the estimate
    is rather too high than too low.
    """
    few, many = (min(size, users) for size in sizes)
    seconds = []
    for count in (many, few):
        begin = clock()
        work(count)
        seconds.append(clock() - begin)
    if many == few:
        return seconds[0]
    each = max(0.0, (seconds[0] - seconds[1]) / (many - few))
    return seconds[0] + each * (users - many)
