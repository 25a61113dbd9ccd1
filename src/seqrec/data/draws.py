"""Random numbers of a training step, which do not depend on how many processes share the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

#: What random numbers are drawn for: rows of a batch, their tokens, pairs of a token and one that is not later, or all
#: pairs of tokens of a row.
Unit = Literal["rows", "tokens", "pairs", "squares"]

_PER_WORD = 4  # 16-bit numbers in one 64-bit number of the generator
_OWN = 2**32  # no purpose of a seed is as large


class Span(NamedTuple):
    """``size`` of ``total`` numbers, from ``start`` on."""

    start: int
    size: int
    total: int


@dataclass(frozen=True, eq=False)
class Part:
    """The rows of a batch that one of several processes computes: ``first`` to ``last``, without the last.

    Args:
        lengths: ``int64[B]``, number of tokens of every row of the batch, over all processes.
        first: first row of the process.
        last: row after its last one.
        rank: number of the process.
    """

    lengths: np.ndarray
    first: int
    last: int
    rank: int

    @property
    def is_empty(self) -> bool:
        """Whether the process has no row."""
        return self.first == self.last

    def span(self, unit: Unit, count: int) -> Span | None:
        """Which of the numbers of all processes belong to this one.

        Args:
            unit: what the numbers are drawn for.
            count: number of units of this process. It tells whether rows have one more token than in the epoch, as
                those of BERT4Rec do.

        Returns:
            None if the units are not those of these rows.
        """
        for more in (0, 1):
            lengths = self.lengths + more
            each = {"rows": np.ones_like(lengths), "tokens": lengths, "pairs": lengths * (lengths + 1) // 2,
                    "squares": lengths**2}[unit]  # fmt: skip
            if int(each[self.first : self.last].sum()) == count:
                return Span(int(each[: self.first].sum()), count, int(each.sum()))
        return None


class Draws:
    """Random numbers of one purpose in a step, a function of the seed alone.

    Several processes that share a batch each get those numbers that one process would draw for their rows: the
    generator skips the numbers of the others, which costs nothing. So the number of processes changes no result beyond
    rounding.

    Args:
        seed: seed of the numbers.
        part: rows of this process. By default there is only one process.
    """

    def __init__(self, seed: Sequence[int], part: Part | None = None) -> None:
        self.seed, self.part = [*seed], part
        self._drawn = 0  # numbers that the generator has drawn or skipped
        self._used = 0  # numbers of all processes that are used up
        self._others: np.random.PCG64DXSM | None = None

    @cached_property
    def _generator(self) -> np.random.PCG64DXSM:
        # Made when it is first asked for: many draws only have children.
        return np.random.PCG64DXSM(np.random.SeedSequence(self.seed))

    def child(self, number: int) -> "Draws":
        """Other random numbers for the same rows."""
        return Draws([*self.seed, 1 + number], self.part)  # numpy ignores zeros at the end of a short seed

    def common(self) -> np.random.Generator:
        """A generator that is the same in every process."""
        return np.random.default_rng(self.seed)

    def uniform(self, unit: Unit, count: int, width: int = 1) -> np.ndarray:
        """Uniform numbers from 0 to below 1, ``float64[count * width]``: ``width`` for each of ``count`` units."""
        raw = self._raw(self._span(unit, count), width, 1, 1)
        return (raw >> np.uint64(11)) * 2.0**-53

    def words(self, unit: Unit, count: int, width: int = 1, times: int = 1) -> np.ndarray:
        """Random 16-bit numbers, ``int16[times * count * width]``, ordered by repetition, unit and place."""
        return self._raw(self._span(unit, count), width, times, _PER_WORD)

    def own_words(self, count: int) -> np.ndarray:
        """Random 16-bit numbers, ``int16[count]``, for an order that depends on all rows of this process."""
        if self.part is None:
            return self.words("rows", count)
        if self._others is None:
            self._others = np.random.PCG64DXSM(np.random.SeedSequence([*self.seed, _OWN, self.part.rank]))
        raw = self._others.random_raw(-(-count // _PER_WORD))
        return raw.view(np.int16)[:count]

    def _span(self, unit: Unit, count: int) -> Span:
        if self.part is None:
            return Span(0, count, count)
        span = self.part.span(unit, count)
        if span is None:
            raise ValueError(f"{count} {unit} are not those of rows {self.part.first} to {self.part.last - 1}")
        return span

    def _raw(self, span: Span, width: int, times: int, per: int) -> np.ndarray:
        """The numbers of this process, ``per`` of which are in one number of the generator."""
        base = self._used
        self._used += -(-times * span.total * width // per)
        kind = {1: np.uint64, _PER_WORD: np.int16}[per]
        pieces = []
        for begin in range(span.start, times * span.total, max(span.total, 1)):
            low, high = begin * width, (begin + span.size) * width
            skipped = low // per
            raw = self._take(base + skipped, -(-high // per) - skipped)
            pieces.append(raw.view(kind)[low - per * skipped : high - per * skipped])
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty(0, kind), *pieces])

    def _take(self, place: int, count: int) -> np.ndarray:
        if place != self._drawn:
            self._generator.advance(place - self._drawn)
        self._drawn = place + count
        raw: np.ndarray = self._generator.random_raw(count)
        return raw


class TokenDraws:
    """Uniform numbers for draws that may be repeated, each for one token.

    Args:
        draws: random numbers that nothing else uses.
        tokens: number of tokens of this process.
        which: ``int64[R]``, the token of each row of the result. By default every token once.
    """

    def __init__(self, draws: Draws, tokens: int, which: np.ndarray | None = None) -> None:
        self.draws, self.tokens, self.which = draws, tokens, which

    def again(self, places: np.ndarray | None, width: int) -> np.ndarray:
        """Another uniform number for each place of ``[R, width]``, flat; ``None`` means all places."""
        numbers = self.draws.uniform("tokens", self.tokens, width).reshape(self.tokens, width)
        chosen = (numbers if self.which is None else numbers[self.which]).reshape(-1)
        return chosen if places is None else chosen[places]
