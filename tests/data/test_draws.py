"""Random numbers of a step: any number of processes draws the same ones."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrec.data.draws import Draws, Part, TokenDraws


def parts_of(lengths, cuts):
    ends = [0, *sorted(cuts), len(lengths)]
    return [Part(np.array(lengths), first, last, rank) for rank, (first, last) in enumerate(pairwise(ends))]


def sizes_of(unit, lengths):
    return {"rows": 1, "tokens": lengths, "pairs": lengths * (lengths + 1) // 2, "squares": lengths**2}[
        unit
    ] + 0 * lengths


CALLS = st.lists(
    st.tuples(st.sampled_from(["rows", "tokens", "pairs", "squares"]), st.integers(1, 7), st.integers(1, 3)),
    min_size=1,
    max_size=5,
)


@given(
    data=st.data(), lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), calls=CALLS, more=st.integers(0, 1)
)
def test_parts_together_draw_what_one_process_draws(data, lengths, calls, more):
    cuts = data.draw(st.lists(st.integers(0, len(lengths)), max_size=4))
    alone, parts = Draws([1, 2]), parts_of(lengths, cuts)
    shares = [Draws([1, 2], part) for part in parts]
    whole = np.array(lengths) + more
    for unit, width, times in calls:
        sizes = sizes_of(unit, whole)
        everything = alone.words(unit, int(sizes.sum()), width, times).reshape(times, -1)
        uniform = alone.uniform(unit, int(sizes.sum()), width)
        found, numbers = [], []
        for share, part in zip(shares, parts, strict=True):
            mine = int(sizes[part.first : part.last].sum())
            found.append(share.words(unit, mine, width, times).reshape(times, -1))
            numbers.append(share.uniform(unit, mine, width))
        assert np.array_equal(np.concatenate(found, axis=1), everything)
        assert np.array_equal(np.concatenate(numbers), uniform)


def test_numbers_are_uniform_and_independent():
    draws = Draws([0])
    uniform = draws.uniform("tokens", 100_000, 2).reshape(-1, 2)
    assert 0 <= uniform.min() < 1e-4
    assert 1 - 1e-4 < uniform.max() < 1
    assert np.abs(np.histogram(uniform, 20, (0, 1))[0] / 10_000 - 1).max() < 0.05
    assert abs(np.corrcoef(uniform.T)[0, 1]) < 0.02
    words = draws.words("tokens", 50_000, 3)
    assert words.dtype == np.int16
    assert abs(words.astype(float).mean()) < 300  # 5 standard deviations
    assert np.unique(words).size > 55_000


def test_seeds_purposes_and_processes_differ():
    seeds = [Draws([1]), Draws([2]), Draws([1]).child(0), Draws([1]).child(1)]
    assert len({draws.uniform("rows", 1)[0] for draws in seeds}) == 4
    assert Draws([1]).child(0).common().random() == Draws([1, 1]).common().random()
    one, two = (Draws([1], part) for part in parts_of([3, 3], [1]))
    assert one.common().random() == two.common().random()
    assert not np.array_equal(one.own_words(8), two.own_words(8))
    assert len(Draws([1]).own_words(7)) == 7


def test_units_of_other_rows_are_refused():
    part = Part(np.array([2, 3, 4]), 1, 3, 0)
    assert part.span("tokens", 7) == (2, 7, 9)
    assert part.span("tokens", 9) == (3, 9, 12)  # one more token per row
    assert part.span("pairs", 16) == (3, 16, 19)
    assert part.span("tokens", 8) is None
    with pytest.raises(ValueError, match="8 tokens are not those of rows 1 to 2"):
        Draws([0], part).uniform("tokens", 8)


def test_draws_for_some_tokens():
    again = TokenDraws(Draws([3]), 5, np.array([4, 0, 0]))
    numbers = Draws([3]).uniform("tokens", 5, 2).reshape(5, 2)
    assert np.array_equal(again.again(None, 2), numbers[[4, 0, 0]].ravel())
    other = again.again(np.array([1, 4]), 2)
    assert len(other) == 2
    assert not np.isin(other, numbers).any()
