"""A first pass over a large catalogue in 8 bits, whose candidates are then ranked exactly, and a check of both."""

from typing import NamedTuple

import numpy as np

from seqrec import kernels
from seqrec.data.dataset import Dataset
from seqrec.data.split import histories_of_users
from seqrec.errors import InputError, RunWarning, warn
from seqrec.ranking.scoring import FEW, Catalogue, last_states
from seqrec.ranking.topk import best_of

LEAST_ITEMS = 20_000  # in smaller catalogues, a pass over the codes saves less than the check takes
USERS, K = 128, 10  # histories and places that the check compares
LEAST_RECALL = 0.99
#: Share of the catalogue that the first pass may leave on average. With more, exact scores of all items are as fast.
MOST_SCORED = 0.05


class Recall(NamedTuple):
    """How much of the exact ranking the first pass finds, on a sample of the run's histories.

    Attributes:
        share: mean share of the exact best ``k`` items that are found, from 0 to 1.
        k: number of items per history that were compared.
        histories: number of histories in the sample.
        scored: mean number of candidates that the first pass left, which were scored exactly.
    """

    share: float
    k: int
    histories: int
    scored: float


def with_first_pass(
    catalogue: Catalogue, dataset: Dataset, wanted: bool | None, keep_seen: bool
) -> tuple[Catalogue, Recall | None]:
    """The catalogue with the codes of a first pass, if that is faster, and the measured recall. Call in inference mode.

    Args:
        catalogue: catalogue of all items.
        dataset: dataset with the histories to measure the recall on.
        wanted: whether to use a first pass. None decides by the number of items and the number of candidates that the
            first pass leaves.
        keep_seen: whether the measured rankings include items of the history.

    Returns:
        The catalogue itself and None if all items shall be scored exactly.

    Raises:
        InputError: a first pass is ``wanted`` but not possible, or ``wanted`` is another value.
    """
    if wanted not in (None, True, False):  # the text "false" would count as true
        raise InputError(f"first_pass is {wanted!r}; give True, False or None")
    if wanted is False or (wanted is None and catalogue.columns <= LEAST_ITEMS):
        return catalogue, None
    reason = _why_not(catalogue)
    if reason:
        if wanted:
            raise InputError(f"a first pass is not possible: {reason}; leave first_pass out")
        return catalogue, None
    coded = catalogue.coded()
    recall = _measured(catalogue, coded, dataset, keep_seen)
    if recall is None:  # no history to measure with
        return (coded, None) if wanted else (catalogue, None)
    if recall.share < LEAST_RECALL:
        found = f"{recall.share:.1%} of the best {recall.k} items"
        warn(f"the first pass finds only {found}; ranking scores all items", RunWarning)
        return catalogue, None
    if wanted is None and recall.scored > MOST_SCORED * catalogue.columns:
        share = f"{recall.scored / catalogue.columns:.0%} of the catalogue"
        why = "probably because a few items have much larger vectors than the others"
        warn(f"the first pass leaves {share}, {why}; ranking scores all items", RunWarning)
        return catalogue, None
    return coded, recall


def _why_not(catalogue: Catalogue) -> str:
    """Why a first pass is not possible, in words; empty if it is."""
    if catalogue.vectors is None:
        return "the model does not score by products with item vectors"
    if not kernels.usable(catalogue.vectors):
        return "it needs the compiled loops, and float32 weights on the CPU"
    if not catalogue.vectors.isfinite().all():
        return "some weights are not finite numbers"
    return ""


def _measured(exact: Catalogue, coded: Catalogue, dataset: Dataset, keep_seen: bool) -> Recall | None:
    """The recall on histories of users that are evenly spaced in the dataset, or None if there are none."""
    users = np.unique(np.linspace(0, dataset.num_users - 1, min(USERS, dataset.num_users)).astype(np.int64))
    people = histories_of_users(dataset, users)
    people = people.take(np.flatnonzero(people.lengths > 0))
    if len(people) == 0:
        return None
    wanted = best_of(exact, people, K, keep_seen=keep_seen)[0]
    # A few at once, because only those always go through the first pass.
    groups = [people.take(slice(start, start + FEW - 1)) for start in range(0, len(people), FEW - 1)]
    found = np.concatenate([best_of(coded, group, K, keep_seen=keep_seen)[0] for group in groups])
    pairs = zip(wanted, found, strict=True)
    shares = [len(np.intersect1d(a[a > 0], b)) / np.count_nonzero(a) for a, b in pairs if a.any()]
    assert coded.vectors is not None
    assert coded.codes is not None
    states = coded.with_constant(last_states(coded.model, people))
    left = kernels.rank_by_codes(states, coded.vectors, coded.codes, min(K, coded.columns))
    return Recall(float(np.mean(shares)) if shares else 1.0, K, len(people), float(left.scored.double().mean()))
