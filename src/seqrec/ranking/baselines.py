"""The models that only count, evaluated beside every other model."""

from dataclasses import asdict
from typing import Any

from seqrec.data.split import Histories, Split, TrainedOn
from seqrec.models import build_model
from seqrec.models.base import Model
from seqrec.models.transitions import Transitions, TransitionsConfig
from seqrec.ranking.additions import recounted
from seqrec.ranking.protocols import Evaluation, evaluate

NAMES = ("popularity", "recent-popularity", "markov", "transitions")


def counted_baselines(
    histories: Histories, but: str = "", constants: TransitionsConfig | None = None
) -> dict[str, Model]:
    """The baselines by name, counted on some histories. Those that need timestamps are left out if there are none.

    Args:
        histories: histories that the model beside them was trained on.
        but: name of a baseline to leave out, because it is that model.
        constants: constants of the transition counts, if they were chosen.
    """
    dataset = histories.dataset
    found = {}
    for name in NAMES:
        if name != but and (dataset.has_timestamps or name != "recent-popularity"):
            config = asdict(constants) if constants is not None and name == "transitions" else {}
            found[name] = build_model(name, config, dataset.num_items, dataset.num_users)
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

    The counts that are added to its scores, which may be of the whole log, are counted on these histories as well. The
    model without them is then one of the baselines, under its name.

    Args:
        model: model to evaluate.
        name: its name, which is otherwise no baseline.
        split: split of the log.
        trained_on: what the model was trained on.
        part: held-out items to rank: ``test`` or ``valid``.
        baselines: whether to evaluate baselines too.
        more: other keywords of :func:`seqrec.evaluate`.
    """
    histories = split.histories(trained_on)
    addition, alone = model.addition, recounted(model, None)
    constants = addition.transitions.config if addition is not None else None
    others = counted_baselines(histories, name, constants) if baselines else {}
    if addition is not None and addition.weight > 0:
        counts = others.get("transitions")  # the same table, already counted
        model = recounted(model, histories, counts if isinstance(counts, Transitions) else None)
        others = {name: alone, **others} if baselines else {}
    else:
        model = alone
    return evaluate(
        model,
        split.targets(part),
        split=part,
        train_counts=histories.item_counts(),
        baselines=others,
        trained_on=trained_on,
        **more,
    )
