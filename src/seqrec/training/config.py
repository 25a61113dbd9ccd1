"""How a model is trained: every option, its range and its default."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from seqrec.data.fields import Count, Options, Range, Weight
from seqrec.data.negatives import Loss
from seqrec.data.split import Windows
from seqrec.errors import InputError
from seqrec.run.layout import RESUMABLE
from seqrec.training.schedule import ScheduleName

BETA1 = 0.9
VALIDATION_STEPS = 100  # between two validations by default, and the least that each one of ``patience`` stands for

LogQ = Literal["all", "negatives"]


@dataclass(frozen=True)
class TrainConfig(Options):
    """How a model is trained.

    Args:
        epochs: Maximum number of passes over the training histories.
        batch_size: Number of windows per step; by default each user has one.
        learning_rate: Adam's learning rate, for everything but the embedding tables.
        learning_rate_schedule: How the learning rates continue after the warm-up: constant, or falling to 0 over all
            epochs, linear or cosine.
        warmup_steps: Steps over which the learning rates rise to their full value; below 1, a share of all steps.
        windows: Windows of a history longer than the model's ``max_length``. last trains on its end only; all cuts it
            into as many windows as it takes, so that every interaction is predicted once per epoch.
        loss: Loss function. sampled-softmax, gbce, bpr-max and top1-max share their negatives within a batch; bce draws
            its own for every position, as the SASRec paper does; cross-entropy compares with the whole catalogue. By
            default the one that suits the model (bce for caser and slirec, sampled-softmax for the others).
        negatives: Number of negatives: per batch for the losses that share them (default 1024; gbce 256), per position
            for bce (default 1).
        popularity: Draw negatives in proportion to their training count raised to this power; 0 draws uniformly. By
            default 0.25 for sampled-softmax, unless the negatives are the whole catalogue, and 0 for the other losses.
        patience: Stop after this many validations without a better NDCG@10, but not before 100 steps have passed for
            each of them; 0 never stops early.
        evaluate_every: Validate every this many epochs. By default about every 100 steps; 0 turns validation off.
        validation_users: Maximum number of users to validate on; more are sampled down to it.
        device: Device to train on: auto (the first of CUDA, MPS and CPU that is there) or the name of a torch device.
        threads: Number of CPU threads. By default one per core, within the limits of CPU affinity, the container's
            quota and OMP_NUM_THREADS.
        seed: Random seed. The same seed and number of threads reproduce the same weights, byte for byte.
        table_learning_rate: Adam's learning rate for the embedding tables. By default ``learning_rate``.
        beta2: Decay of Adam's second moment; 0.98 as in the SASRec authors' code.
        clip_norm: Scale gradients down to this joint norm. By default they are not clipped.
        average_decay: Decay of the running average of the weights, updated once per epoch. The averaged weights are
            what gets validated and saved. 0 turns averaging off.
        logq_correction: Logits that sampled-softmax corrects for the probability of drawing their item. all: those of
            targets and negatives, which makes it an estimate of cross-entropy; negatives: those of the negatives only.
        calibration: How far gbce corrects the overconfidence that sampled negatives cause: 0 not at all, 1 fully.
        bpr_penalty: Weight of the score regularisation in bpr-max.
        checkpoint_minutes: Minutes between checkpoints within an epoch. One is always written at its end.
    """

    epochs: Count = 200
    batch_size: Count = 128
    learning_rate: Annotated[float, Range(above=0)] = 0.001
    learning_rate_schedule: ScheduleName = "constant"
    warmup_steps: Annotated[float, Range(0, 10**12)] = 0.0
    windows: Windows = "last"
    loss: Loss | None = None
    negatives: Count | None = None
    popularity: Annotated[float, Range(0, 10)] | None = None
    patience: Annotated[int, Range(0)] = 5
    evaluate_every: Annotated[int, Range(0)] | None = None
    validation_users: Count = 10_000
    device: str = "auto"
    # The system refuses a process that asks for very many threads, which torch does not say.
    threads: Annotated[int, Range(1, 1024)] | None = None
    seed: Annotated[int, Range(0)] = 0
    table_learning_rate: Annotated[float, Range(above=0)] | None = None
    beta2: Annotated[float, Range(BETA1, below=1)] = 0.98
    clip_norm: Annotated[float, Range(above=0)] | None = None
    average_decay: Annotated[float, Range(0, below=1)] = 0.6
    logq_correction: LogQ = "all"
    calibration: Annotated[float, Range(0, 1)] = 0.75
    bpr_penalty: Weight = 1.0
    checkpoint_minutes: Annotated[float, Range(0, 10**6)] = 10.0

    def check(self) -> None:
        """Refuse negatives for a loss that has none, and a part of a step."""
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise InputError(f"warmup_steps is {self.warmup_steps}; give a whole number, or a share below 1")
        if self.loss == "cross-entropy" and (self.negatives, self.popularity) != (None, None):
            raise InputError("cross-entropy is over the whole catalogue; leave out negatives and popularity")

    def resolved_for(self, loss: Loss, num_items: int, steps: int | None = None) -> "TrainConfig":
        """With what training really uses in place of None; ``threads`` and ``device`` stay, they are the machine's.

        Args:
            loss: the model's default.
            num_items: size of the catalogue.
            steps: steps per epoch; None leaves ``evaluate_every`` open.
        """
        loss = self.loss or loss
        negatives, popularity = self.negatives, self.popularity
        if loss == "cross-entropy" and (negatives, popularity) != (None, None):
            raise InputError("this model trains with cross-entropy by default; name a --loss that has negatives")
        if loss != "cross-entropy":
            negatives = negatives or default_negatives(loss)
            if popularity is None:
                popularity = default_popularity(loss, negatives, num_items)
        every = self.evaluate_every
        if every is None and steps is not None:
            every = -(-VALIDATION_STEPS // steps)
        return replace(
            self,
            loss=loss,
            negatives=negatives,
            popularity=popularity,
            evaluate_every=every,
            table_learning_rate=self.table_learning_rate or self.learning_rate,
        )

    @property
    def resumable(self) -> tuple[str, ...]:
        """The options that may change when a run is resumed.

        The number of epochs may not if the learning rate of a step depends on it: the steps that were taken would have
        had other rates.
        """
        spans_epochs = self.learning_rate_schedule != "constant" or 0 < self.warmup_steps < 1
        return tuple(name for name in RESUMABLE if not (spans_epochs and name == "epochs"))


def default_negatives(loss: Loss) -> int:
    """The number of negatives where none is given."""
    return {"bce": 1, "gbce": 256}.get(loss, 1024)


def default_popularity(loss: Loss, negatives: int, num_items: int) -> float:
    """The ``popularity`` where none is given.

    Sampled softmax does better with negatives that are somewhat popular: items that are rare in training are not
    pushed down at every opportunity (games.txt: benchmarks/RESULTS.md). Where all items are negatives there is nothing
    to choose, and the papers of the other losses draw uniformly.
    """
    return 0.25 if loss == "sampled-softmax" and negatives < num_items else 0.0
