"""Features of items: what is learned of a column, against naive loops, and what can't be learned."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from seqrec import InputError
from seqrec.data.features import BINS, Vocabulary, vocabulary_of
from seqrec.data.items import ItemTable


def table(count: int, **columns: Any) -> ItemTable:
    return ItemTable(pl.DataFrame({"item_id": [f"i{n:03d}" for n in range(count)], **columns}))


def random_table(seed: int, count: int = 60) -> ItemTable:
    """A column of every kind, with gaps and repetitions."""
    random = np.random.default_rng(seed)
    words = [f"w{n}" for n in range(9)]
    lists = [random.choice(words, random.integers(0, 5)).tolist() for _ in range(count)]
    vectors = random.standard_normal((count, 3)).astype(np.float32) * 5 + 2
    vectors[random.random(count) < 0.2] = np.nan
    prices = [None if random.random() < 0.2 else float(p) for p in np.round(np.exp(random.standard_normal(count)), 1)]
    return table(
        count,
        title=[f"title {n}" for n in range(count)],
        categories=pl.Series(lists, dtype=pl.List(pl.String)),
        colour=[None if random.random() < 0.1 else str(random.choice(["red", "green", "blue"])) for _ in range(count)],
        price=pl.Series(prices, dtype=pl.Float64),
        vector=pl.Series(vectors, dtype=pl.Array(pl.Float32, 3)),
    )


def naive(vocabulary: Vocabulary, some: ItemTable) -> tuple[list[set[str]], np.ndarray]:
    """The names of the features of each item, and its scaled vector."""
    found: list[set[str]] = [set()]
    vectors = [np.zeros(vocabulary.num_values)]
    frame = some.frame
    for row in frame.iter_rows(named=True):
        names = set()
        for column in vocabulary.coded:
            value = row[column.name]
            if column.edges is not None:
                if value is not None:
                    names.add(f"{column.name}\t{sum(value >= edge for edge in column.edges)}")
            else:
                assert column.values is not None
                known = column.values.series.to_list()
                values = value if isinstance(value, list) else [] if value is None else [value]
                names |= {f"{column.name}\t{one}" for one in values if one in known}
        found.append(names)
        vector = np.array(row["vector"])
        (scaled,) = vocabulary.scaled
        vectors.append(np.zeros(3) if np.isnan(vector).any() else (vector - scaled.mean) * scaled.scale)
    return found, np.array(vectors)


@pytest.mark.parametrize("seed", range(5))
def test_features_are_those_of_a_naive_loop(seed: int):
    some = random_table(seed)
    vocabulary, left_out = vocabulary_of(some, "all")
    assert [one.name for one in vocabulary.coded] == ["categories", "colour", "price"]
    assert left_out == {"title": "its texts differ between most items (give vectors of them)"}
    assert len(vocabulary.names) == len({*vocabulary.names}) == vocabulary.num_codes
    for other in (some, random_table(seed + 100, 17)):  # the second has values that the first has not
        offsets, codes, values = vocabulary.encode(other)
        names, vectors = naive(vocabulary, other)
        assert [offsets[0], offsets[1], offsets[-1], len(offsets)] == [0, 0, len(codes), len(other) + 2]
        for item in range(len(other) + 1):
            own = codes[offsets[item] : offsets[item + 1]]
            assert len(own) == len({*own.tolist()})
            assert {vocabulary.names[code] for code in own} == names[item]
        np.testing.assert_allclose(values, vectors, atol=1e-5)
    known = values_of(vocabulary.encode(some).values)
    assert abs(known.mean()) < 1e-5
    assert known.var(axis=0).mean() == pytest.approx(1, abs=1e-4)


def values_of(values: np.ndarray) -> np.ndarray:
    return values[1:][values[1:].any(axis=1)]


def test_bins_hold_about_as_many_items_each_whatever_the_scale():
    numbers = np.exp(np.random.default_rng(0).standard_normal(2000) * 5)
    for scale in (1e-9, 1.0, 1e9):
        (column,) = vocabulary_of(table(2000, price=numbers * scale), "price")[0].coded
        rows, codes = column.encode(pl.Series(numbers * scale))
        assert len(column) == BINS
        assert np.array_equal(rows, np.arange(2000))
        assert np.bincount(codes).tolist() == [2000 // BINS] * BINS


def test_a_vocabulary_is_found_once_whatever_it_is_called(monkeypatch):
    some = random_table(1)
    vocabulary, left_out = vocabulary_of(some, "all")
    monkeypatch.setattr("seqrec.data.features._learned", None)
    assert vocabulary_of(some, "all") == (vocabulary, left_out)
    assert vocabulary_of(some, "categories,colour,price,vector") == (vocabulary, {})  # the name in a run
    with pytest.raises(TypeError):
        vocabulary_of(random_table(1), "all")  # another table


def test_values_that_tell_nothing_are_left_out():
    lists = [["root", "a"], ["root", "a", "rare"], ["root", "b"], ["b", "root", "b"]]
    vocabulary, _ = vocabulary_of(table(4, categories=pl.Series(lists)), "all")
    assert vocabulary.names == ["categories\ta", "categories\tb"]  # all have root, and one has rare
    offsets, codes, _ = vocabulary.encode(table(4, categories=pl.Series(lists)))
    assert offsets.tolist() == [0, 0, 1, 2, 3, 4]
    assert codes.tolist() == [0, 0, 1, 1]


NAN = float("nan")


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({"price": [1.0, 2.0]}, "colour", "features name 'colour', but the item table has price; give some of these"),
        ({}, "colour", "features name 'colour', but the item table has no columns; give some of these"),
        ({}, "all", "there is nothing to learn of the item table: it has only ids; leave out features"),
        ({"title": ["a", "b"]}, "all", "nothing to learn of the item table: title: its texts differ between most"),
        ({"title": ["a", "b"]}, "title", "features name 'title', but its texts differ between most items"),
        ({"price": [3.0, 3.0]}, "price", "features name 'price', but all its numbers are equal; leave it out"),
        ({"price": pl.Series([None, None], dtype=pl.Float64)}, "price", "but it is empty; leave it out"),
        ({"kind": ["a", "a"]}, "kind", "no value is shared by some items and not by others; leave it out"),
        ({"v": pl.Series([[1.0], [1.0]], dtype=pl.Array(pl.Float32, 1))}, "v", "but all its vectors are equal"),
        ({"v": pl.Series([[NAN], [NAN]], dtype=pl.Array(pl.Float32, 1))}, "v", "but it is empty; leave it out"),
        ({"price": [1.0, 2.0], "kind": ["a", "a"]}, "price,kind", "features name 'kind', but no value is shared"),
        ({"price": [1.0, 2.0]}, "price,", "features name '', but the item table has price"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_is_one_line(columns: dict[str, Any], asked: str, message: str):
    with pytest.raises(InputError) as raised:
        vocabulary_of(table(2, **columns), asked)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_table_without_a_column_that_is_read():
    vocabulary, _ = vocabulary_of(table(4, kind=list("aabb")), "all")
    with pytest.raises(InputError, match="the items have no 'kind', which the model reads; give items with"):
        vocabulary.encode(table(2, price=[1.0, 2.0]))


@pytest.mark.slow_but_one
@pytest.mark.parametrize("seed", range(3))
def test_codes_are_found_in_an_earlier_vocabulary_by_what_they_mean(seed: int) -> None:
    random = np.random.default_rng(seed)
    prices = np.round(random.gamma(2, 20, 300), 1)
    colours = random.choice(["red", "green", "blue"], 300)
    before = vocabulary_of(table(300, price=prices, colour=colours), "price,colour")[0]
    for change in (prices, np.ceil(prices / 50) * 50, prices[::-1] * 0.7 + 9):
        now = table(300, colour=np.where(colours == "red", "pink", colours), price=change)
        vocabulary = vocabulary_of(now, "colour,price")[0]
        places = vocabulary.places_in(before, now)
        named = vocabulary.names
        edges = before.coded[0].edges
        assert edges is not None
        for name, place in zip(named, places, strict=True):
            column, _, value = name.partition("\t")
            if column == "colour":
                assert place == (-1 if value == "pink" else before.names.index(name))
                continue
            (own,) = (one for one in vocabulary.coded if one.name == "price")
            inside = [x for x in change if own.encode(pl.Series([x]))[1][0] == int(value)]
            bins = [sum(x >= edge for edge in edges) for x in inside]
            assert bins.count(place) == max(map(bins.count, bins))
    assert (vocabulary_of(table(300, price=prices), "price")[0].places_in(before, table(300, price=prices)) >= 0).all()
