"""Item vectors that training starts from: items that occur together in histories start near each other."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from seqrec.data.split import Histories
from seqrec.models.base import Model
from seqrec.models.counting import Rows, weigh_pairs
from seqrec.models.transitions import SHRINKAGE

DISTANCE = 20  # steps between two items of a history that count as together
MOST, ENTRIES = 400, 3 * 10**7  # entries per item that are kept, and in all
SPREAD = 0.05  # root mean square of the vectors' numbers
SPARE, ROUNDS = 16, 5  # vectors beyond those asked for, and rounds, of the iteration that finds the eigenvectors


def start_from_neighbours(model: Model, histories: Histories, seed: int) -> None:
    """Let the item embeddings of a model, or of each member of an ensemble, start as :func:`spectral_vectors`.

    Each member gets them turned by its own random rotation, which keeps their products and makes the members differ.
    Items without a vector keep their own start.

    Args:
        model: model with fresh weights, whose parts have ``VECTORS_OF_ITEMS``.
        histories: training histories.
        seed: seed of the rotations.
    """
    vectors: dict[int, np.ndarray] = {}
    for number, part in enumerate(model.parts):
        table: Tensor = part.item_embedding.weight  # type: ignore[union-attr, assignment]
        width = table.shape[1]
        if width not in vectors:
            vectors[width] = spectral_vectors(histories, width, seed)
        known = vectors[width].any(axis=1)
        random = np.random.default_rng([seed, 5, number])
        rotation = np.linalg.qr(random.standard_normal((width, width)))[0].astype(np.float32)
        found = torch.from_numpy(vectors[width][known] @ rotation)
        with torch.no_grad():
            table[torch.from_numpy(np.flatnonzero(known)).to(table.device)] = found.to(table.device, table.dtype)


@torch.no_grad()
def start_near_neighbours(tables: Sequence[Tensor], known: np.ndarray, histories: Histories) -> None:
    """Let items without a vector start at the mean of the vectors of known items that they occur together with.

    The mean is weighted by the cosines of :func:`spectral_vectors`. Items that occur with none keep their own start.

    Args:
        tables: tables with a row per item, ``[I + 1, D]`` each, which are changed.
        known: which rows are vectors that were learnt, ``bool[I + 1]``.
        histories: training histories.
    """
    found = _cosines(histories, wanted=~known)
    near = known[found.columns] & (found.columns > 0)
    rows, columns, cosines = found.owners[near], found.columns[near].astype(np.int64), found.values[near]
    if len(rows) == 0:
        return
    items, starts = np.unique(rows, return_index=True)
    shares = cosines / np.repeat(np.add.reduceat(cosines, starts), np.diff(np.append(starts, len(rows))))
    for table in tables:
        entries, offsets, weights, places = (
            torch.from_numpy(part).to(table.device) for part in (columns, starts, shares.astype(np.float32), items)
        )
        table[places] = F.embedding_bag(
            entries, table.detach(), offsets, mode="sum", per_sample_weights=weights.to(table.dtype)
        )


def spectral_vectors(histories: Histories, width: int, seed: int = 0) -> np.ndarray:
    """Vectors whose products approach the cosines of items over the histories that hold both.

    With n_i interactions of item i, and S_ij the number of times that i and j were at most ``DISTANCE`` steps apart,
    they are the eigenvectors of S_ij / sqrt((n_i + 5) (n_j + 5)) with the highest eigenvalues, times the roots of
    these, and then scaled. Levy & Goldberg, "Neural Word Embedding as Implicit Matrix Factorization" (NIPS 2014),
    factorise co-occurrences in this form.

    Args:
        histories: training histories.
        width: length of the vectors.
        seed: seed of the vectors that the iteration starts from.

    Returns:
        ``float32[I + 1, width]`` with a root mean square of ``SPREAD`` over the items that have neighbours; 0 for
        the others and for the padding.
    """
    table = _cosines(histories)
    size = len(table.offsets) - 1
    values, vectors = _highest_eigenvectors(table, min(width, size), seed)
    found = np.zeros((size, width), dtype=np.float32)
    found[:, : len(values)] = vectors * np.sqrt(np.maximum(values, 0.0))
    known = np.diff(table.offsets) > 0
    found[~known] = 0
    spread = float(np.sqrt((found[known] ** 2).mean())) if known.any() else 0.0
    return found * np.float32(SPREAD / spread) if spread > 0 else found


def _cosines(histories: Histories, wanted: np.ndarray | None = None) -> Rows:
    """The sparse matrix of :func:`spectral_vectors`, or only its rows of the items ``wanted``, ``bool[I + 1]``."""
    counts = histories.item_counts()
    size = len(counts)
    return weigh_pairs(
        histories.dataset.items, histories.starts, histories.ends,
        after=np.empty(0, dtype=np.float32),
        beside=np.ones(DISTANCE, dtype=np.float32),
        gains=np.ones(size, dtype=np.float32),
        factors=(1 / np.sqrt(counts + SHRINKAGE)).astype(np.float32),
        most=max(1, min(MOST, ENTRIES // size, size)),
        wanted=wanted,
    )  # fmt: skip


def _highest_eigenvectors(table: Rows, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The highest eigenvalues of a symmetric sparse matrix, nearly, and their vectors ``float32[I + 1, count]``.

    By subspace iteration with a start of random vectors (Halko, Martinsson & Tropp 2011, algorithm 4.4). The matrix
    may differ a little from its transpose, where entries were left out.
    """
    size = len(table.offsets) - 1
    columns, weights = torch.from_numpy(table.columns.astype(np.int32, copy=False)), torch.from_numpy(table.values)
    offsets = torch.from_numpy(table.offsets[:-1].astype(np.int32))  # there are at most ENTRIES

    def times(vectors: Tensor) -> Tensor:
        return F.embedding_bag(columns, vectors, offsets, mode="sum", per_sample_weights=weights)

    random = np.random.default_rng([seed, 6]).standard_normal((size, min(size, count + SPARE)), dtype=np.float32)
    basis = torch.linalg.qr(torch.from_numpy(random))[0]
    for _ in range(ROUNDS):
        basis = torch.linalg.qr(times(basis))[0]
    small = (basis.T @ times(basis)).double()
    values, inner = torch.linalg.eigh((small + small.T) / 2)
    chosen = inner[:, -count:].flip(1).float()
    return values[-count:].flip(0).numpy(), (basis @ chosen).numpy()
