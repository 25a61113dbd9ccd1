"""How a model is trained: every option, its range and its default."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from seqrec.data.fields import Count, Options, Range, Weight
from seqrec.data.negatives import Loss
from seqrec.data.split import Windows
from seqrec.errors import InputError
from seqrec.run.layout import RESUMABLE
from seqrec.training.schedule import ScheduleName

BETA1 = 0.9
VALIDATION_STEPS = 100  # between validations by default, and the minimum that each validation of ``patience`` counts

LogQ = Literal["all", "negatives"]


@dataclass(frozen=True)
class TrainConfig(Options):
    """How a model is trained.

    Args:
        epochs: Maximum number of passes over the training histories.
        batch_size: Number of windows per step. By default chosen from the log: 128, or fewer if that made few steps.
        learning_rate: Adam's learning rate, for everything but the embedding tables. By default 0.001, or a higher one
            if ``minutes`` allow only few epochs.
        learning_rate_schedule: Learning rates after the warm-up. constant keeps them; linear and cosine lower them to
            0 at the end of the last epoch.
        warmup_steps: Steps over which the learning rates rise to their full value; below 1, a share of all steps.
        windows: Part of a long history to train on, if it exceeds the model's ``max_length``. last: only its end; all:
            cut it into several windows, so that every interaction is predicted once per epoch. By default chosen from
            the log: all if many interactions are older than the last window.
        loss: Loss function. sampled-softmax, gbce, bpr-max and top1-max share their negatives within a batch; bce draws
            its own for every position, as the SASRec paper does; cross-entropy compares with the whole catalogue. By
            default bce for caser and slirec, and sampled-softmax for the other models, of which sasrec, ssept,
            gru4rec and lrurec take cross-entropy if the log is small enough.
        negatives: Number of negatives: per batch for the losses that share them (default 1024; gbce 256), per position
            for bce (default 1).
        popularity: Power of an item's training count that its probability as a negative is proportional to; 0 draws
            uniformly. By default 0.25 for sampled-softmax if it draws fewer negatives than there are items, else 0.
        patience: Stop after this many validations without a better NDCG@10, but only if at least 100 steps per
            validation have passed as well; 0 never stops early.
        min_gain: Share that NDCG@10 must rise by for a validation to count as better for patience. The best weights
            are kept whatever they gain.
        evaluate_every: Validate every this many epochs. By default about every 100 steps; 0 turns validation off.
        validation_users: Maximum number of users to validate on. From more users, a random sample is drawn.
        device: Device to train on: auto (CUDA, MPS or CPU, the first that is available) or the name of a torch device.
        threads: Number of CPU threads. By default one per core, within the limits of CPU affinity, the container's
            quota and OMP_NUM_THREADS.
        seed: Random seed. The same seed and number of threads reproduce the same weights, byte for byte.
        table_learning_rate: Adam's learning rate for the embedding tables. By default ``learning_rate``.
        beta2: Decay of Adam's second moment; 0.98 as in the SASRec authors' code.
        clip_norm: Maximum joint norm of the gradients; larger ones are scaled down. By default they are not clipped.
        average_decay: Decay of the running average of the weights, updated once per epoch. The averaged weights are
            what gets validated and saved. 0 turns averaging off.
        logq_correction: Logits that sampled-softmax corrects for the probability of drawing their items. all: targets
            and negatives, so that the loss estimates cross-entropy; negatives: only the negatives.
        calibration: How far gbce corrects the overconfidence that sampled negatives cause: 0 not at all, 1 fully.
        bpr_penalty: Weight of the score regularisation in bpr-max.
        ensemble: Number of models with different first weights to train side by side. Their scores are averaged, which
            ranks better than one of them; time, memory and size grow with the number. By default chosen from the log.
        ensemble_kinds: Kinds of these models. same: all of the model that is trained; mixed: sasrec, ssept and gru4rec
            take turns, which ranks better than as many of one kind; with hstu also lrurec before them, and with lrurec
            itself. By default chosen from the log.
        item_init: Item embeddings that training starts from. random: small random numbers; spectral: eigenvectors of
            how often items occur together in the training histories, which needs fewer epochs and ranks better, for
            sasrec, ssept, gru4rec, tisasrec, esasrec, lrurec and hstu. By default chosen from the log.
        transitions: Whether transition counts are added to the scores of the trained model. auto: with the weight that
            ranks best on validation items, or not at all if they do not help; off: never.
        shard_items: Divide the item table among the processes that train, by rows, for a catalogue that exceeds the
            memory of one. For models whose only table is that of the items, and losses that draw negatives.
        checkpoint_minutes: Minutes between checkpoints, at most. The end of an epoch has one too, unless writing would
            then take more than a thirtieth of the time, as with a large catalogue and short epochs. The best weights
            are written with it. The end of training always has one.
    """

    PLAIN: ClassVar[Mapping[str, Any]] = {
        "batch_size": 128, "learning_rate": 0.001, "windows": "last", "ensemble": 1, "ensemble_kinds": "same",
        "item_init": "random",
    }  # fmt: skip

    epochs: Count = 200
    batch_size: Count | None = None
    learning_rate: Annotated[float, Range(above=0)] | None = None
    learning_rate_schedule: ScheduleName = "constant"
    warmup_steps: Annotated[float, Range(0, 10**12)] = 0.0
    windows: Windows | None = None
    loss: Loss | None = None
    negatives: Count | None = None
    popularity: Annotated[float, Range(0, 10)] | None = None
    patience: Annotated[int, Range(0)] = 5
    min_gain: Annotated[float, Range(0, below=1)] = 0.0
    evaluate_every: Annotated[int, Range(0)] | None = None
    validation_users: Count = 10_000
    device: str = "auto"
    # The system refuses a process that starts too many threads, and torch does not report it.
    threads: Annotated[int, Range(1, 1024)] | None = None
    seed: Annotated[int, Range(0)] = 0
    table_learning_rate: Annotated[float, Range(above=0)] | None = None
    beta2: Annotated[float, Range(BETA1, below=1)] = 0.98
    clip_norm: Annotated[float, Range(above=0)] | None = None
    average_decay: Annotated[float, Range(0, below=1)] = 0.6
    logq_correction: LogQ = "all"
    calibration: Annotated[float, Range(0, 1)] = 0.75
    bpr_penalty: Weight = 1.0
    ensemble: Annotated[int, Range(1, 100)] | None = None
    ensemble_kinds: Literal["same", "mixed"] | None = None
    item_init: Literal["random", "spectral"] | None = None
    transitions: Literal["auto", "off"] = "auto"
    shard_items: bool = False
    checkpoint_minutes: Annotated[float, Range(0, 10**6)] = 10.0

    def check(self) -> None:
        """Refuse negatives for a loss that has none, a fraction of steps, and several kinds of one model."""
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise InputError(f"warmup_steps is {self.warmup_steps}; give a whole number, or a share below 1")
        if self.loss == "cross-entropy" and (self.negatives, self.popularity) != (None, None):
            raise InputError("cross-entropy compares with the whole catalogue; leave out negatives and popularity")
        if (self.ensemble, self.ensemble_kinds) == (1, "mixed"):
            raise InputError("ensemble_kinds is mixed, but ensemble is 1; give more models, or leave out one option")

    def resolved_for(self, loss: Loss, num_items: int, steps: int | None = None) -> "TrainConfig":
        """The config with every default resolved, except ``threads`` and ``device``, which depend on the machine.

        Args:
            loss: the model's default loss.
            num_items: size of the catalogue.
            steps: number of steps per epoch. None leaves ``evaluate_every`` unresolved.
        """
        plain, loss = self.resolved(), self.loss or loss
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
            plain,
            loss=loss,
            negatives=negatives,
            popularity=popularity,
            evaluate_every=every,
            table_learning_rate=self.table_learning_rate or plain.learning_rate,
        )

    @property
    def resumable(self) -> tuple[str, ...]:
        """The options that may change when a run is resumed.

        The number of epochs may not change if the learning rate depends on it: the steps already taken would have had
        other rates.
        """
        spans_epochs = self.learning_rate_schedule != "constant" or 0 < self.warmup_steps < 1
        return tuple(name for name in RESUMABLE if not (spans_epochs and name == "epochs"))


def default_negatives(loss: Loss) -> int:
    """The default number of negatives for a loss."""
    return {"bce": 1, "gbce": 256}.get(loss, 1024)


def default_popularity(loss: Loss, negatives: int, num_items: int) -> float:
    """The default ``popularity`` for a loss.

    Sampled softmax is more accurate with somewhat popular negatives, which push rare items down less often (games.txt
    in benchmarks/RESULTS.md). If every item is a negative, there is nothing to choose. The papers of the other losses
    draw uniformly.
    """
    return 0.25 if loss == "sampled-softmax" and negatives < num_items else 0.0
