"""Checks that training can succeed. Impossible trainings are refused before they start; doubtful ones warn."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console

from seqrec.data.batches import trainable
from seqrec.data.negatives import Sampler, UniformSampler
from seqrec.data.split import Histories, Split, SplitConfig
from seqrec.device import memory, pick_device
from seqrec.errors import InputError, TrainingWarning, one_line, warn
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.models.outline import Outline
from seqrec.training.config import TrainConfig
from seqrec.training.objective import Objective, Task
from seqrec.training.step import epoch_of

_PART = 2**20  # numbers summed at once
MOST_TENSORS = 5_000  # weight tensors of a model; with more, building it takes long and training is impractical
COPIES = 3  # copies of the weights during training on the CPU: the weights and Adam's two moments


def objective_of(model: Model | type[Model], num_items: int, config: TrainConfig) -> Objective:
    """The objective of training, with every default resolved."""
    settled = config.resolved_for(model.LOSS, num_items)
    assert settled.loss is not None
    names = ("negatives", "bpr_penalty", "calibration", "logq_correction")
    options = {name: getattr(settled, name) for name in names}
    return Objective(loss=settled.loss, popularity=settled.popularity or 0.0, **options)


def settle_split(split: Split, config: SplitConfig) -> SplitConfig:
    """The options of a split with every choice resolved: how it is made, and whether rankings include seen items."""
    made = config.split if split.name == "custom" else split.name
    return replace(config, split=made, keep_seen=settle_seen(split, config))


def say(lines: Sequence[str], console: Console | None) -> None:
    """Print lines, if there are any and there is a console."""
    if console is not None and lines:
        console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def say_split(split: Split, console: Console | None) -> None:
    """Say how a log was split and what the check found. Without a console, warn if the times of the log are ignored."""
    found = split.check()
    say(found.lines(), console)
    if console is not None:
        return
    if split.reason and split.name != "time" and split.train.dataset.has_timestamps:
        warn(f"the log has times, but the split is last-two, because {split.reason}", TrainingWarning)


def settle_seen(split: Split, config: SplitConfig) -> bool:
    """Decide whether rankings include items of the history, and warn about an unsuitable split.

    By default they do if most validation items (or test items, if there is no validation) were in the history already:
    a ranking without the history would count each of these as a miss, whatever the model has learnt.
    """
    missing = [name for name, targets in (("validates", split.valid), ("tests", split.test)) if len(targets) == 0]
    if missing:
        why = "no user has 3 interactions" if split.name == "last-two" else (
            "no user has interactions both before and in the period; give other cut points (--valid-from, --test-from)"
        )  # fmt: skip
        warn(f"nothing {' or '.join(missing)}: {why}", TrainingWarning)
    targets, name = (split.valid, "validation") if len(split.valid) else (split.test, "test")
    share = targets.repeated()
    if config.keep_seen is None and share > 0.5:
        warn(
            f"{share:.0%} of the {name} items were in the user's history already, so items of the history stay in the "
            "rankings that validate and test, and in what is recommended; --keep-seen=false removes them",
            TrainingWarning,
        )
    elif config.keep_seen is False and share > 0.5:
        warn(
            f"{share:.0%} of the {name} items were in the user's history already, and count as misses because items of "
            "the history are removed; --keep-seen ranks them",
            TrainingWarning,
        )
    return share > 0.5 if config.keep_seen is None else config.keep_seen


def check_trainable(split: Split, config: TrainConfig, model: Model | type[Model]) -> None:
    """Raise an InputError if training is impossible or useless."""
    pick_device(config.device)
    users = trainable(split.train)
    if len(users) == 0:
        raise InputError("no user has two interactions to train on; give a longer log or looser filters")
    num_items = split.train.dataset.num_items
    if num_items == 1:
        raise InputError("the catalogue has only one item, so there is nothing to rank; give a log with more items")
    kinds = [model] if isinstance(model, type) else model.parts
    if config.item_init == "spectral" and not all(kind.VECTORS_OF_ITEMS for kind in kinds):
        *able, last = (name for name, kind in MODELS.items() if kind.VECTORS_OF_ITEMS)
        raise InputError(f"item_init is spectral, which is for {', '.join(able)} and {last}; leave it out")
    objective = objective_of(model, num_items, config)
    if objective.loss == "cross-entropy":
        return
    drawn = objective.negatives or 0
    if objective.loss == "bce":
        drawn *= min(config.resolved().batch_size or 1, len(users))
    elif objective.popularity == 0:
        drawn = min(drawn, num_items)
    if 8 * drawn > memory():
        raise InputError(f"negatives is {objective.negatives}, too many for the memory of this machine; give fewer")
    without = users_without_negatives(users, objective.sampler(split.train))
    if without == len(users) or (without and objective.loss == "bce"):
        raise InputError(_without_negatives(without, len(users), objective.loss))


def check_passes(model: Model, histories: Histories, config: TrainConfig) -> None:
    """Raise an InputError if options of windows, epochs and warm-up contradict each other."""
    if model.random_start and config.windows == "all":
        raise InputError(
            "random_start draws one window of a long history, but windows=all uses all of them; leave out one option"
        )
    total = config.epochs * len(epoch_of(model, histories, config))
    if config.warmup_steps > total:
        raise InputError(f"warmup_steps is {config.warmup_steps:g}, but training has {total:,} steps; give fewer")


def warn_of_users_without_negatives(split: Split, objective: Objective, sampler: Sampler) -> None:
    """Warn if the loss learns nothing from some users."""
    users = trainable(split.train)
    without = 0 if objective.loss == "cross-entropy" else users_without_negatives(users, sampler)
    if without:
        text = _without_negatives(without, len(users), objective.loss)
        warn(f"{text}; the model learns nothing from them", TrainingWarning)


def users_without_negatives(users: Histories, sampler: Sampler) -> int:
    """The number of users whose history contains every item that can be drawn as a negative."""
    if isinstance(sampler, UniformSampler):
        drawable = sampler.num_items
    else:
        drawable = int(np.count_nonzero(sampler.probabilities))
    long = users.take(users.lengths >= drawable)  # shorter histories cannot contain them all
    if len(long) == 0:
        return 0
    rows, items = long.flat()
    keys = np.unique(rows * (sampler.num_items + 1) + items)
    met = np.bincount(keys // (sampler.num_items + 1), minlength=len(long))
    return int(np.count_nonzero(met >= drawable))


def _without_negatives(without: int, users: int, loss: str) -> str:
    return (
        f"{without:,} of {users:,} users have seen every item that can be drawn, so {loss} has no negative for them; "
        "give --loss cross-entropy, which needs none"
    )


class FirstEpoch:
    """Watches the first epoch, and raises an error or warns if the model learnt nothing.

    Args:
        model: model with its initial weights.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.before = _sums(model)
        self.predictions, self.idle = 0, 0

    def watch(self, tasks: Iterator[Task]) -> Iterator[Task]:
        """The same tasks, which are on the CPU. Each is counted when it is drawn."""
        for task in tasks:
            self.saw(task)
            yield task

    def saw(self, task: Task) -> None:
        """Count the predictions, and those whose negatives are all items of the user."""
        self.predictions += len(task.items)
        if task.left_out is None or task.shared is None:
            return
        tokens, negatives = (part.numpy() for part in task.left_out)
        count = len(task.shared)
        # An item that occurs twice in the history is left out twice.
        many = np.bincount(tokens, minlength=len(task.items)) >= count
        pairs = np.unique((tokens * count + negatives)[many[tokens]])
        self.idle += int(np.count_nonzero(np.bincount(pairs // count) == count))

    def check(self, loss: float) -> None:
        """Check the result of the epoch. The optimizer must have brought the weights up to date.

        Raises:
            InputError: the loss is exactly 0, or no weight has changed.
        """
        if loss == 0:
            raise InputError(
                "the loss of the first epoch is exactly 0, so the model learns nothing: no prediction has a negative; "
                "give --loss cross-entropy, more negatives, or a log with more items"
            )
        if _sums(self.model) == self.before:
            raise InputError(
                "the first epoch changed no weight, so the model learns nothing; give a higher learning rate, or a "
                "larger clip norm"
            )
        if 2 * self.idle > self.predictions:
            warn(
                f"{self.idle / self.predictions:.0%} of the predictions of the first epoch had no negative, so the "
                "model learns nothing from them; give more negatives or --loss cross-entropy",
                TrainingWarning,
            )


def _sums(model: Model) -> list[float]:
    """A checksum for each trained tensor."""
    weights = [weight.detach() for weight in model.parameters() if weight.requires_grad]
    kinds = [torch.float32 if weight.device.type == "mps" else torch.float64 for weight in weights]
    # In parts, because torch copies its input into the wider type before it sums.
    return [
        sum(part.sum(dtype=kind).item() for part in weight.reshape(-1).split(_PART))
        for weight, kind in zip(weights, kinds, strict=True)
    ]


def check_sizes(build: Callable[[], Model], copies: int) -> None:
    """Refuse a model that does not fit into memory before anything large is allocated.

    Args:
        build: function that builds the model. It is called on the device "meta", which allocates nothing.
        copies: number of copies of the weights that must fit into memory.

    Raises:
        InputError: the weights need too much memory, or there are too many tensors.
    """
    sizes = _Sizes(memory(), copies)
    try:
        with torch.device("meta"), sizes:
            build()
    except InputError:
        raise
    except Exception as error:
        if sizes.refused is not None:
            raise InputError(sizes.refused) from error
        # Other errors may come from the meta device. If the sizes are wrong, building the model reports it.


def build_checked(build: Callable[[], Model], name: str, copies: int) -> Model:
    """Build a model, or raise an InputError if its sizes are impossible."""
    check_sizes(build, copies)
    try:
        return build()
    except InputError:
        raise
    except (RuntimeError, MemoryError, OverflowError, TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be built with these sizes ({one_line(error)}); give smaller ones") from error


class _Sizes(Outline):
    """Counts tensors and bytes as they are created, and raises an error when there are too many."""

    def __init__(self, room: int, copies: int) -> None:
        super().__init__()
        self.room, self.copies = room, copies
        self.bytes, self.tensors = 0, 0
        self.refused: str | None = None

    def created(self, tensor: torch.Tensor) -> None:
        self.bytes += tensor.numel() * tensor.element_size()
        self.tensors += 1
        if self.copies * self.bytes > self.room:
            times = f", and training holds them {self.copies} times" if self.copies > 1 else ""
            self.refused = (
                f"a model of these sizes has {self.bytes / 1e9:,.1f} GB of weights or more{times}; this machine "
                f"has {self.room / 1e9:,.1f} GB of memory; give smaller sizes"
            )
        elif self.tensors > MOST_TENSORS:
            self.refused = f"a model of these sizes has more than {MOST_TENSORS:,} weight tensors; give smaller sizes"
        if self.refused is not None:
            raise RuntimeError(self.refused)
