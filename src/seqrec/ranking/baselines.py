"""The models that only count, evaluated beside every other model."""

from typing import Any

from seqrec.data.split import Histories, Split, TrainedOn
from seqrec.models import build_model
from seqrec.models.base import Model
from seqrec.ranking.protocols import Evaluation, evaluate

NAMES = ("popularity", "recent-popularity", "markov")


def counted_baselines(histories: Histories, but: str = "") -> dict[str, Model]:
    """The baselines by name, counted on some histories. Those that need timestamps are left out if there are none.

    Args:
        histories: histories that the model beside them was trained on.
        but: name of a baseline to leave out, because it is that model.
    """
    dataset = histories.dataset
    found = {}
    for name in NAMES:
        if name != but and (dataset.has_timestamps or name != "recent-popularity"):
            found[name] = build_model(name, {}, dataset.num_items, dataset.num_users)
            found[name].count(histories)
    return found


def evaluate_beside(
    model: Model,
    name: str,
    split: Split,
    trained_on: TrainedOn,
    part: str = "test",
    baselines: bool = True,
    **more: Any,
) -> Evaluation:
    """Evaluate a model on a part of a split, with baselines that were counted on the histories it was trained on.

    Args:
        model: model to evaluate.
        name: its name, which is then no baseline.
        split: split of the log.
        trained_on: what the model was trained on.
        part: held-out items to rank: ``test`` or ``valid``.
        baselines: whether to evaluate baselines too.
        more: other keywords of :func:`seqrec.evaluate`.
    """
    histories = split.histories(trained_on)
    return evaluate(
        model,
        split.targets(part),
        split=part,
        train_counts=histories.item_counts(),
        baselines=counted_baselines(histories, but=name) if baselines else {},
        trained_on=trained_on,
        **more,
    )
