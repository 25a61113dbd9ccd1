"""How a model is trained: every option and its range."""

from dataclasses import dataclass, replace
from typing import get_args

from seqrec.data.batches import Windows
from seqrec.data.fields import plain_options
from seqrec.errors import InputError
from seqrec.models.base import Loss
from seqrec.run.config import RESUMABLE
from seqrec.training.objective import LogQ, check_loss, default_negatives, default_popularity
from seqrec.training.schedule import ScheduleName

BETA1 = 0.9
VALIDATION_STEPS = 100  # between two validations by default, and the least that each one of ``patience`` stands for
MOST_THREADS = 1024  # the system refuses a process that asks for very many, which torch does not say


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Args:
        loss: ``sampled-softmax``, ``gbce``, ``bpr-max`` or ``top1-max`` with negatives that a batch shares, ``bce``
            with negatives of each position as in the SASRec paper, or ``cross-entropy`` over the whole catalogue; what
            the model's own default is (sasrec: sampled-softmax) without it.
        negatives: negatives a batch (without it 1024, for gbce 256) or, for bce, a position (1).
        popularity: power of an item's training count in the probability of being a negative; 0 for uniform. Without
            it 0.25 for sampled-softmax, unless the negatives are the whole catalogue, and 0 for the others.
        bpr_penalty: weight of the score regularisation in bpr-max.
        calibration: how far gbce corrects the confidence that sampled negatives give: 0 not at all, 1 wholly.
        logq_correction: logits from which sampled-softmax subtracts the log-probability of drawing their item: ``all``,
            which makes it an estimate of cross-entropy, or those of the ``negatives`` alone.
        epochs: passes over the training histories, at most.
        batch_size: Windows per step; by default each user has one.
        windows: Windows of a history longer than the model's ``max_length``: ``last`` trains on its end only, ``all``
            cuts it into as many windows as it takes, so that every interaction is predicted once per epoch.
        learning_rate: Adam's, of all but the embedding tables.
        table_learning_rate: Adam's for the embedding tables; the same without it.
        learning_rate_schedule: How the learning rates go on after the warm-up: ``constant``, or falling to 0 over all
            epochs, ``linear`` or ``cosine``.
        warmup_steps: Steps over which the learning rates rise to their full value; below 1, a share of all steps.
        beta2: decay of Adam's second moment; 0.98 as in the SASRec authors' code.
        clip_norm: joint norm that gradients are scaled down to; no clipping without it.
        average_decay: where above 0, what is validated and kept are not the weights themselves but their running
            mean over the ends of epochs, of which each epoch keeps this share; 0 for none.
        evaluate_every: epochs between validations; without it as many as make 100 steps; 0 for none.
        patience: Stop after this many validations without a better NDCG@10, but not before 100 steps have passed for
            each of them; 0 never stops early.
        validation_users: users drawn for validation, at most.
        seed: of everything random; with the same number of threads, the same seed gives the same bytes.
        device: ``auto`` (CUDA, MPS or CPU, in this order), or a torch device.
        threads: of the CPU; without it a core each, as far as affinity, a container's quota and OMP_NUM_THREADS go.
        checkpoint_minutes: minutes between checkpoints inside an epoch, whose end has one too.
    """

    loss: Loss | None = None
    negatives: int | None = None
    popularity: float | None = None
    bpr_penalty: float = 1.0
    calibration: float = 0.75
    logq_correction: LogQ = "all"
    epochs: int = 200
    batch_size: int = 128
    windows: Windows = "last"
    learning_rate: float = 0.001
    table_learning_rate: float | None = None
    learning_rate_schedule: ScheduleName = "constant"
    warmup_steps: float = 0.0
    beta2: float = 0.98
    clip_norm: float | None = None
    average_decay: float = 0.6
    evaluate_every: int | None = None
    patience: int = 5
    validation_users: int = 10_000
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name, value in plain_options(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        check_loss(self.loss)
        for name, known in (("logq_correction", LogQ), ("windows", Windows), ("learning_rate_schedule", ScheduleName)):
            if getattr(self, name) not in get_args(known):
                raise InputError(f"unknown {name} {getattr(self, name)!r}; give {' or '.join(get_args(known))}")
        if self.warmup_steps > 1 and self.warmup_steps % 1:
            raise InputError(f"warmup_steps is {self.warmup_steps}; give a whole number, or a share below 1")
        for name, high, said in (("popularity", 10, "to 10"), ("bpr_penalty", 1e9, "or more"),
                                 ("calibration", 1, "to 1"), ("checkpoint_minutes", 1e9, "or more"),
                                 ("warmup_steps", 1e12, "or more")):  # fmt: skip
            if getattr(self, name) is not None and not 0 <= getattr(self, name) <= high:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 {said}")
        for name, least in (("batch_size", 1), ("epochs", 1), ("negatives", 1), ("evaluate_every", 0), ("patience", 0),
                            ("validation_users", 1), ("seed", 0), ("threads", 1)):  # fmt: skip
            value, most = getattr(self, name), MOST_THREADS if name == "threads" else 2**63 - 1
            if value is not None and not least <= value <= most:
                raise InputError(f"{name} is {value}; give {least} or more, at most {most}")
        for name in ("beta2", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 0 and less than 1")
        if self.beta2 < BETA1:
            raise InputError(f"beta2 is {self.beta2}; give {BETA1:g} or more")
        if self.loss == "cross-entropy" and (self.negatives, self.popularity) != (None, None):
            raise InputError("cross-entropy is over the whole catalogue; leave out negatives and popularity")
        for name in ("learning_rate", "table_learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; give more than 0")

    def resolved(self, loss: Loss, num_items: int) -> "TrainConfig":
        """The same with its loss, negatives and popularity named (but for cross-entropy, which has no negatives).

        Args:
            loss: the model's own.
            num_items: of the catalogue.
        """
        loss = self.loss or loss
        if loss == "cross-entropy":
            return replace(self, loss=loss)
        popularity = self.popularity
        if popularity is None:
            popularity = default_popularity(loss, self.negatives, num_items)
        return replace(self, loss=loss, negatives=self.negatives or default_negatives(loss), popularity=popularity)

    @property
    def resumable(self) -> tuple[str, ...]:
        """The options that may change when a run is resumed.

        The number of epochs is none of them where the learning rate of a step depends on it: the steps that were taken
        would have had other rates.
        """
        spans_epochs = self.learning_rate_schedule != "constant" or 0 < self.warmup_steps < 1
        return tuple(name for name in RESUMABLE if not (spans_epochs and name == "epochs"))
