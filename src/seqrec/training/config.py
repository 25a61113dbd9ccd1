"""How a model is trained: every option and its range."""

from dataclasses import dataclass
from typing import get_args

from seqrec.errors import InputError
from seqrec.models.base import Loss
from seqrec.training.objective import LogQ, check_loss

BETA1 = 0.9
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
        batch_size: users a step.
        learning_rate: Adam's, of all but the embedding tables.
        table_learning_rate: Adam's for the embedding tables; the same without it.
        beta2: decay of Adam's second moment; 0.98 as in the SASRec authors' code.
        clip_norm: joint norm that gradients are scaled down to; no clipping without it.
        average_decay: where above 0, what is validated and kept are not the weights themselves but their running
            mean over the ends of epochs, of which each epoch keeps this share; 0 for none.
        evaluate_every: epochs between validations; without it as many as make 100 steps; 0 for none.
        patience: validations without a better NDCG@10 before training stops; 0 for never.
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
    learning_rate: float = 0.001
    table_learning_rate: float | None = None
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
        check_loss(self.loss)
        if self.logq_correction not in get_args(LogQ):
            raise InputError(f"unknown logq_correction {self.logq_correction!r}; give {' or '.join(get_args(LogQ))}")
        for name, high, said in (("popularity", 10, "to 10"), ("bpr_penalty", 1e9, "or more"),
                                 ("calibration", 1, "to 1"), ("checkpoint_minutes", 1e9, "or more")):  # fmt: skip
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
