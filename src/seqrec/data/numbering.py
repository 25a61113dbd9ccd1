"""Numbers ids from 0 on, and takes rows of columns, with several threads where there are many rows."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

LEAST_ROWS = 500_000  # for each thread, or starting it costs more than it saves


def indexed(ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Dense ``int32`` indices, and the sorted ids that they refer to."""
    name = ids.name
    if ids.dtype.is_integer():
        low, high = int(ids.min()), int(ids.max())  # type: ignore[arg-type]
        if high - low < 4 * len(ids) + 1024:
            # The ids are close enough together for a lookup table, which needs no sorting.
            table = np.zeros(high - low + 1, dtype=bool)
            for rows in pieces(len(ids)):
                table[ids[rows].to_numpy() - low] = True
            known = np.flatnonzero(table)
            position = np.cumsum(table, dtype=np.int32)
            position -= np.int32(1)
            index = np.empty(len(ids), dtype=np.int32)
            for rows in pieces(len(ids)):
                index[rows] = position[ids[rows].to_numpy() - low]
            return index, pl.Series(name, known + low)
    index = _numbered(ids, hashed=ids.dtype == pl.String)  # numbers of 64 bits are found faster than texts
    known_ids = ids[_a_row_of_each(index)]
    with ThreadPoolExecutor(len(split_evenly(len(ids)))) as pool:
        right = list(pool.map(lambda rows: (known_ids[index[rows]] == ids[rows]).all(), pieces(len(ids))))
    if not all(right):  # two texts have the same hash
        index = _numbered(ids, hashed=False)
        known_ids = ids[_a_row_of_each(index)]
    order = known_ids.arg_sort().to_numpy()
    position = np.empty(len(order), dtype=np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    return taken([position], index)[0], known_ids[order]


def _numbered(values: pl.Series, hashed: bool) -> np.ndarray:
    """Values, or their hashes, as ``int32`` from 0 on, in any order."""
    import pyarrow as pa  # slow to import, and most logs of integers do not need it

    def encoded(rows: slice) -> Any:
        part = (values[rows].hash() if hashed else values[rows]).rechunk()
        return part.to_arrow().dictionary_encode()

    parts = split_evenly(len(values))
    index = np.empty(len(values), dtype=np.int32)
    with ThreadPoolExecutor(len(parts)) as pool:
        found = list(pool.map(encoded, parts))
        together = pa.concat_arrays([part.dictionary for part in found]).dictionary_encode().indices.to_numpy()
        starts = np.cumsum([0, *(len(part.dictionary) for part in found)])
        numbers = [together[low:high] for low, high in pairwise(starts)]
        places = [part.indices.to_numpy() for part in found]
        list(pool.map(lambda own, place, rows: _take(own, place, index[rows]), numbers, places, parts))
    return index


def _a_row_of_each(index: np.ndarray) -> np.ndarray:
    """A row, ``int64``, of each number from 0 to the highest one."""
    row = np.empty(int(index.max(initial=-1)) + 1, dtype=np.int64)
    for rows in pieces(len(index)):
        row[index[rows]] = np.arange(rows.start, rows.stop)
    return row


def taken(columns: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """The rows of each column, by several threads. The columns are taken out of the list, so that they can be freed."""
    results = []
    parts = split_evenly(len(rows))
    with ThreadPoolExecutor(len(parts)) as pool:
        while columns:
            column = columns.pop(0)
            result = np.empty(len(rows), dtype=column.dtype)
            list(pool.map(lambda part, a=column, to=result: _take(a, rows[part], to[part]), parts))
            results.append(result)
    return results


def _take(values: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Write the values at these places, which exist; numpy would check them in a copy of ``out``."""
    values.take(places, out=out, mode="clip")


def pieces(rows: int) -> list[slice]:
    """Parts that are so small that little memory is needed for each."""
    return [slice(at, min(at + LEAST_ROWS, rows)) for at in range(0, rows, LEAST_ROWS)]


def split_evenly(rows: int) -> list[slice]:
    """Parts of about the same size, one for each thread of polars if there are enough rows."""
    count = max(1, min(pl.thread_pool_size(), rows // LEAST_ROWS))
    bounds = [rows * part // count for part in range(count + 1)]
    return [slice(low, high) for low, high in pairwise(bounds)]
