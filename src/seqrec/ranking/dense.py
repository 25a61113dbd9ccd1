"""The highest numbers of each row of a matrix of scores, and the check that scores are numbers."""

import numpy as np
import torch
from torch import Tensor

from seqrec.errors import InputError


def largest(scores: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of each row of ``scores[R, C]``: ``columns int64[R, k]``, ``values float32[R, k]``.

    They are sorted by value, highest first, then by column. -1 and -inf follow if fewer than k are above -inf.

    Raises:
        InputError: a score is NaN.
    """
    rows, width = scores.shape
    columns, values = np.full((rows, k), -1, dtype=np.int64), np.full((rows, k), -np.inf, dtype=np.float32)
    if rows == 0 or width == 0:
        return columns, values
    k = min(k, width)
    # One more than k shows whether the last place is tied. For so few numbers numpy is faster than torch.
    top, place = (part.cpu().numpy() for part in torch.topk(scores, min(k + 1, width), dim=1))
    require(not np.isnan(top[:, 0]).any())  # NaN sorts first
    if k < width:
        top, place = top[:, :k], _settle_ties(scores, top, place)
    order = np.lexsort((place, -top), axis=1)
    top, place = np.take_along_axis(top, order, 1), np.take_along_axis(place, order, 1)
    values[:, :k] = top
    columns[:, :k] = np.where(top > -np.inf, place, -1)
    return columns, values


def _settle_ties(scores: Tensor, top: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The columns of the first k of the k + 1 highest; among columns that tie for the last place, the lowest ones.

    ``torch.topk`` returns arbitrary ones of them. Only rows in which a tied column is left out need a correction.
    """
    k = top.shape[1] - 1
    cut = top[:, k - 1]
    tied = np.flatnonzero((cut == top[:, k]) & (cut > -np.inf)).tolist()
    if tied:
        # Usually only a few rows, but all of them for a model that scores by counts.
        all_scores = scores.cpu().numpy()
        for row in tied:
            above = np.count_nonzero(top[row, :k] > cut[row])
            place[row, above:k] = np.flatnonzero(all_scores[row] == cut[row])[: k - above]
    return place[:, :k]


def require_numbers(scores: Tensor) -> None:
    """Raise an InputError if a score is NaN."""
    require(not bool(scores.isnan().any()))


def require(numbers: bool) -> None:
    """Raise an InputError unless all scores are numbers."""
    if not numbers:
        raise InputError("the model's scores are not numbers: its training diverged; lower the learning rate")
