"""Tables of ids, in memory or memory-mapped from files. A lookup is a binary search."""

from bisect import bisect_left
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from seqrec.data.ids import integers_of, other_form, texts_of
from seqrec.data.mapped import Mapped
from seqrec.errors import InputError

_LOAD_ALL = 32  # if more than one id in 32 is needed, the whole table is loaded instead of single ids

_ONE_BY_ONE = 100  # up to this many ids, indexing a series is faster than taking a part of it


class IdTable:
    """Ids of users or items, each once: integers or texts, usually sorted, texts by their bytes.

    No method uses polars' thread pool: a forked process does not have it and would wait for it forever.

    Args:
        ids: ids, without repetitions. A dataset sorts them.
    """

    def __init__(self, ids: pl.Series) -> None:
        if ids.dtype.is_integer() and (ids.dtype != pl.UInt64 or ids.is_empty() or int(ids.max()) < 2**63):  # type: ignore[arg-type]
            ids = ids.cast(pl.Int64)
        self.name, self.dtype = ids.name, ids.dtype
        self.series = ids
        self._values: Mapped | None = None
        self._offsets: Mapped | None = None
        self._parts: tuple[IdTable, IdTable] | None = None

    @classmethod
    def mapped(cls, name: str, values: Mapped, offsets: Mapped | None = None) -> "IdTable":
        """A table in memory-mapped files; nothing is read before the first lookup.

        Args:
            name: name of the series of ids.
            values: sorted integers ``int64[M]``; or, with offsets, the concatenated UTF-8 bytes of the texts.
            offsets: ``int64[M + 1]``: text i is ``values[offsets[i]:offsets[i + 1]]``.
        """
        table = cls.__new__(cls)
        table.name, table.dtype = name, pl.Int64() if offsets is None else pl.String()
        table._values, table._offsets, table._parts = values, offsets, None
        return table

    def followed_by(self, ids: pl.Series) -> "IdTable":
        """A table with more ids after its own, in which a lookup costs a binary search in each of the two.

        Args:
            ids: sorted ids of the same type, of which the table has none.
        """
        table = IdTable(pl.concat([self.series, ids.alias(self.name)]))
        table._parts = self, IdTable(ids)
        return table

    def __len__(self) -> int:
        if self._values is None:
            return len(self.series)
        return len(self._values.array) if self._offsets is None else len(self._offsets.array) - 1

    def __repr__(self) -> str:
        return f"IdTable({len(self)} {self.name}, {self.dtype})"

    @cached_property
    def series(self) -> pl.Series:
        """All ids, in memory."""
        assert self._values is not None
        self._values.check()
        if self._offsets is None:
            return pl.Series(self.name, np.array(self._values.array))
        import pyarrow as pa  # slow to import, and few commands need all ids

        self._offsets.check()
        offsets, values = np.asarray(self._offsets.array), np.asarray(self._values.array)
        texts = pa.LargeStringArray.from_buffers(len(self), pa.py_buffer(offsets), pa.py_buffer(values))
        try:
            texts.validate(full=True)
        except pa.ArrowInvalid as error:
            raise self._offsets.damaged("an id is not valid text") from error
        return pl.Series(self.name, pl.from_arrow(texts))

    @property
    def _in_memory(self) -> bool:
        """Whether all ids are in memory; ids from files then match their checksums."""
        return self._values is None or "series" in vars(self)

    def take(self, places: np.ndarray) -> pl.Series:
        """The ids at these places."""
        if self._in_memory or len(places) * _LOAD_ALL >= len(self):
            return self.series[places]  # gather would use the query engine, which costs more than a lookup
        assert self._values is not None
        self._check_places(places)
        if self._offsets is None:
            return pl.Series(self.name, np.array(self._values.array[places]))
        return pl.Series(self.name, [self._text_at(place) for place in places.tolist()], dtype=pl.String)

    def values(self, places: np.ndarray) -> list[Any]:
        """The ids at these places, as a list of Python values."""
        if self._in_memory and len(places) < _ONE_BY_ONE:
            series = self.series
            return [series[place] for place in places.tolist()]
        return self.take(places).to_list()

    def find(self, asked: pl.Series) -> np.ndarray:
        """Place of each id in the table, ``int64``; -1 if it is not there.

        Args:
            asked: ids as :func:`seqrec.data.ids.ids_of` returns them.

        Raises:
            InputError: the table is in a file that is damaged.
        """
        if len(asked) == 0 or len(self) == 0 or asked.dtype == pl.Null:
            return np.full(len(asked), -1, dtype=np.int64)
        if self._parts is not None:
            first, more = self._parts
            found = first.find(asked)
            missing = np.flatnonzero(found < 0)
            places = more.find(asked[missing])
            found[missing] = np.where(places < 0, -1, places + len(first))
            return found
        if self.dtype.is_integer():
            found = self._find_numbers(*integers_of(asked))
        else:
            texts = texts_of(asked)
            found = self._find_texts(texts)
            missing = np.flatnonzero(found < 0)
            again = [other_form(texts[row]) for row in missing.tolist()]
            if any(text is not None for text in again):
                found[missing] = self._find_texts(again)
        if not self._in_memory:
            assert self._values is not None
            if (found < 0).any():  # damage anywhere may have misled the search
                self._values.check()
                if self._offsets is not None:
                    self._offsets.check()
            self._check_places(found[found >= 0])
        return found

    def arrays(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The table as the arrays that :meth:`mapped` takes.

        Raises:
            InputError: an id does not fit into a signed 64-bit integer.
        """
        if self._values is not None:
            return self._values.array, None if self._offsets is None else self._offsets.array
        if self.dtype.is_integer():
            if self.dtype != pl.Int64:
                raise InputError(f"{self.name} holds integers of {2**63} or more; give such ids as text")
            return self.series.to_numpy(), None
        texts: Any = self.series.to_arrow(compat_level=pl.CompatLevel.oldest())
        _, offsets, values = texts.buffers()
        places = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
        content = np.frombuffer(values, dtype=np.uint8) if values is not None else np.empty(0, dtype=np.uint8)
        return content[places[0] : places[-1]], places - places[0]

    def check(self) -> None:
        """Raise if the table is in damaged files, is not sorted, or has an id twice."""
        ids = self.series
        if len(ids) > 1 and not (ids.slice(1) > ids.head(len(ids) - 1)).all():
            if self._values is None:
                raise InputError(f"{self.name}: the ids are not sorted, or one occurs twice; sort them")
            raise self._values.damaged("the ids are not sorted, or one occurs twice")

    def _check_places(self, places: np.ndarray) -> None:
        """Compare the parts of the files that hold these places with their checksums."""
        assert self._values is not None
        if self._offsets is None:
            self._values.check(places, places + 1)
            return
        self._offsets.check(places, places + 2)
        self._values.check(self._offsets.array[places], self._offsets.array[places + 1])

    @cached_property
    def _numbers(self) -> tuple[np.ndarray, np.ndarray | None]:
        """The integers, sorted, and the place of each in the table; None if the table is sorted."""
        if self._values is not None:
            return np.asarray(self._values.array), None
        numbers = self.series.to_numpy()
        if (numbers[1:] >= numbers[:-1]).all():
            return numbers, None
        order = np.argsort(numbers, kind="stable")
        return numbers[order], order

    def _find_numbers(self, asked: np.ndarray, there: np.ndarray) -> np.ndarray:
        numbers, order = self._numbers
        place = np.searchsorted(numbers, asked)
        place[place == len(numbers)] = 0
        there = there & (numbers[place] == asked)
        if order is not None:
            place = order[place]
        return np.where(there, place, -1).astype(np.int64)

    @cached_property
    def _is_sorted(self) -> bool:
        return self._values is not None or self.series.is_sorted()

    def _find_texts(self, asked: list[str | None]) -> np.ndarray:
        if self._is_sorted and len(asked) * _LOAD_ALL < len(self):
            places: Iterable[int] = map(self._place, asked)
        else:
            known = {text: place for place, text in enumerate(self.series.to_list())}
            places = (-1 if text is None else known.get(text, -1) for text in asked)
        return np.fromiter(places, dtype=np.int64, count=len(asked))

    def _place(self, text: str | None) -> int:
        if text is None:
            return -1
        # Comparing bytes and comparing characters gives texts the same order.
        if self._in_memory:
            place = bisect_left(self.series, text)
            return place if place < len(self) and self.series[place] == text else -1
        key = text.encode(errors="surrogatepass")
        place = bisect_left(range(len(self)), key, key=self._bytes_at)
        return place if place < len(self) and self._bytes_at(place) == key else -1

    def _bytes_at(self, place: int) -> bytes:
        assert self._values is not None
        assert self._offsets is not None
        start, end = self._offsets.array[place : place + 2].tolist()
        if not 0 <= start <= end <= len(self._values.array):
            raise self._offsets.damaged("an id lies outside of the table")
        return self._values.array[start:end].tobytes()

    def _text_at(self, place: int) -> str:
        try:
            return self._bytes_at(place).decode()
        except UnicodeDecodeError as error:
            assert self._values is not None
            raise self._values.damaged("an id is not valid text") from error
