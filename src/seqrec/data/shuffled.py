"""Histories in random order, to measure what their order is worth."""

from dataclasses import replace

import numpy as np

from seqrec.data.dataset import Dataset
from seqrec.data.histories import Histories, Targets
from seqrec.data.split import Split


def without_order(split: Split, seed: int) -> Split:
    """The same split of a log in which the items of every history are in random order. The targets are the same.

    Training and the histories of validation have each user's training items in one random order; the histories of the
    test have all items before the test in another, validation items among them. Of long histories a model then sees
    random items instead of the last ones, because which items are recent is part of the order.

    The places of a history keep their times, so both orders have the same split. What was met when is lost with the
    order: a model that reads times learns when a user was active, and nothing about the items from that.

    Klenitskiy et al. 2024 ("Does It Look Sequential?", RecSys) shuffle the histories of the test for a model that was
    trained on ordered ones. Such a model also loses because it has never seen a shuffled history. Here training is
    shuffled too, so that the model is as good as one without the order can be.

    Args:
        split: split of a log, as :class:`SplitConfig` makes it.
        seed: seed of the orders.

    Returns:
        The split. Its training and validation belong to one dataset, its test to another.
    """
    random = np.random.default_rng([seed, 7])
    known, before_test = (_shuffled(part, random) for part in (split.train, split.test.histories))
    return replace(
        split,
        train=replace(split.train, dataset=known),
        valid=_of(known, split.valid),
        test=_of(before_test, split.test),
        before_test=None,
    )


def _of(dataset: Dataset, targets: Targets) -> Targets:
    """The same targets after the same ranges of another dataset."""
    return replace(targets, histories=replace(targets.histories, dataset=dataset))


def _shuffled(histories: Histories, random: np.random.Generator) -> Dataset:
    """The dataset with the items of each of these histories in random order."""
    order = np.argsort(histories.starts, kind="stable")
    rows, found = histories.take(order).flat()
    places = np.lexsort((random.random(len(rows)), rows))
    items = np.array(histories.dataset.items)
    items[histories.mask()] = found[places]
    return replace(histories.dataset, items=items)
