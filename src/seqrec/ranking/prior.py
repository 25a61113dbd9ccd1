"""The prior of a model of sparse scores, sorted once for all states that are ranked."""

from dataclasses import dataclass

import numpy as np

from seqrec.models.sparse import SparseModel
from seqrec.ranking.dense import require


@dataclass(frozen=True, eq=False)
class SortedPrior:
    """The scores that the columns of a catalogue have whatever the history.

    Args:
        by_column: score of each column, ``float32[C]``; NaN for those that are never ranked, such as the padding.
        order: the other columns, ``int32[N]``, highest score first, ties by column.
        descending: their scores, ``float32[N]``.
    """

    by_column: np.ndarray
    order: np.ndarray
    descending: np.ndarray

    @classmethod
    def of(cls, model: SparseModel, items: np.ndarray | None) -> "SortedPrior":
        """The prior of the sorted items, ``int64[C]``; None for all, with the padding in column 0.

        Raises:
            InputError: a score is not a number.
        """
        values = model.prior().float().cpu().numpy()
        require(not np.isnan(values[1:]).any())
        if items is not None:
            return sorted_prior(values[items])
        values = values.copy()
        values[0] = np.nan
        return sorted_prior(values)

    def only(self, columns: np.ndarray) -> "SortedPrior":
        """The prior of only these columns, ``int64[C']``."""
        return sorted_prior(self.by_column[columns])

    def without(self, columns: np.ndarray | None) -> "SortedPrior":
        """The same columns, of which some are not ranked, ``int64``."""
        if columns is None or len(columns) == 0:
            return self
        by_column = self.by_column.copy()
        by_column[columns] = np.nan
        left = ~np.isnan(by_column[self.order])
        return SortedPrior(by_column, self.order[left], self.descending[left])


def sorted_prior(by_column: np.ndarray) -> SortedPrior:
    """Sort the columns by their scores ``float32[C]``. Those of NaN are left out."""
    ranked = np.flatnonzero(~np.isnan(by_column))
    # As integers, floats of one sign are in the order of their magnitudes. With the columns in the lower half, one sort
    # of numbers also settles the ties, several times as fast as a stable sort of indices. The sum turns -0 into 0.
    bits = (by_column[ranked] + np.float32(0)).view(np.int32)
    keys = ~(bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64) << 32 | ranked
    keys.sort()
    order = (keys & 0xFFFFFFFF).astype(np.int32)
    return SortedPrior(by_column, order, by_column[order])
