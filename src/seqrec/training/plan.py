"""What a fit will do, settled and checked before anything is written."""

from dataclasses import asdict, replace
from typing import Any

import torch

from seqrec.data.batches import trainable
from seqrec.data.dataset import Dataset
from seqrec.data.prepare import PrepareConfig, filters_of
from seqrec.data.split import Split, SplitConfig
from seqrec.device import own_random_state, pick_device
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.run.config import RunConfig, fingerprint
from seqrec.training.checks import COPIES, build_checked, check_trainable, settle_seen
from seqrec.training.config import TrainConfig


def planned(
    dataset: Dataset,
    name: str,
    sizes: Any,
    training: TrainConfig,
    filters: PrepareConfig,
    split_config: SplitConfig,
) -> tuple[RunConfig, Split, Model]:
    """The configuration of a run with every default resolved, its split, and its model with fresh weights.

    Args:
        dataset: what is fitted.
        name: of the model.
        sizes: the model's config.
        training: how it is trained.
        filters: what the dataset was to be prepared with.
        split_config: what trains, validates and tests; where it leaves ``keep_seen`` open, the data settle it.

    Raises:
        InputError: something does not fit the data or this machine.
    """
    filters = filters_of(dataset, filters)
    split = split_config.apply(dataset)
    counted = MODELS[name].COUNTED
    if not counted:
        check_trainable(split, training, MODELS[name])
        steps = -(-len(trainable(split.train)) // training.batch_size)
        training = training.resolved_for(MODELS[name].LOSS, dataset.num_items, steps)
    config = RunConfig(
        model=name,
        model_config=asdict(sizes.resolved()),
        num_items=dataset.num_items,
        num_users=dataset.num_users,
        has_timestamps=dataset.has_timestamps,
        fingerprint=fingerprint(dataset),
        prepare=filters,
        split=replace(split_config, keep_seen=settle_seen(split, split_config)),
        training={} if counted else asdict(training),
    )
    copies = COPIES if not counted and pick_device(training.device).type == "cpu" else 1
    with own_random_state(torch.device("cpu"), training.seed):
        return config, split, build_checked(config.build, name, copies)
