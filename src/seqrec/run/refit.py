"""A refit in a run folder: its files, and how its weights take the place of the first ones."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from seqrec.data.split import TrainedOn
from seqrec.files import replacing
from seqrec.run.config import Refit
from seqrec.run.folder import PARTS, Run
from seqrec.run.layout import TRAIN_WEIGHTS, WEIGHTS
from seqrec.run.tensors import mark_of, read_header, save_tensors

#: What each kind of refit trains on.
REFITS: dict[Refit, TrainedOn] = {"valid": "train+valid", "all": "all"}


@dataclass(frozen=True)
class RefitPlan:
    """A training without validation: its kind, ``all`` or ``valid``, and its number of epochs."""

    kind: Refit
    epochs: int

    @property
    def trained_on(self) -> TrainedOn:
        """What it trains on."""
        return REFITS[self.kind]


class RefitRun(Run):
    """A run folder in which a refit trains. The state of the first training stays, so that it can be resumed too.

    Saving the weights ends the refit: until then the first weights are the ones in use, and after that they are kept in
    ``weights-train.safetensors``.
    """

    def __init__(self, run: Run, plan: RefitPlan) -> None:
        super().__init__(run.folder, run.place)
        self.plan, self.trains = plan, plan.trained_on
        self.prefix = f"refit-{plan.kind}-{plan.epochs}-"

    @property
    def complete(self) -> bool:
        """Whether the weights in use are already those of this refit."""
        mark = read_header(self.folder / WEIGHTS).check_mark(self.id, *PARTS.values())
        return (mark["part"], mark.get("epochs")) == (PARTS[self.trains], self.plan.epochs)

    def save_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Put the weights of the refit into use, and keep the first ones in another file."""
        self.check_there()
        kept = self.folder / TRAIN_WEIGHTS
        if not kept.exists():
            with replacing(kept) as new:
                shutil.copyfile(self.folder / WEIGHTS, new)
        mark = mark_of(self.id, PARTS[self.trains], weights, epochs=self.plan.epochs)
        save_tensors(self.folder / WEIGHTS, weights, mark)

    def save_epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing: ``epochs.csv`` is of the first training."""

    def forget_states(self, but: str = "") -> None:
        """Remove the states of all refits, except files whose names begin with ``but``."""
        for path in self.folder.glob("state/refit-*"):
            if but and path.name.startswith(but):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
