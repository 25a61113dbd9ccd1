"""Configuration, split and model of a fit, checked before anything is written."""

from dataclasses import asdict, replace
from typing import Any

import torch

from seqrec.data.dataset import Dataset
from seqrec.data.prepare import PrepareConfig, filters_of
from seqrec.data.split import Split, SplitConfig
from seqrec.device import own_random_state, pick_device
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.run.config import RunConfig, fingerprint
from seqrec.training.checks import COPIES, build_checked, check_passes, check_trainable, settle_seen
from seqrec.training.config import TrainConfig


def planned(
    dataset: Dataset,
    name: str,
    sizes: Any,
    training: TrainConfig,
    filters: PrepareConfig,
    split_config: SplitConfig,
) -> tuple[RunConfig, Split, Model]:
    """The configuration of a run, its split, and its model with fresh weights.

    Args:
        dataset: the dataset to fit.
        name: name of the model.
        sizes: the model's config.
        training: options of training.
        filters: the filters that the dataset was prepared with.
        split_config: how to split the dataset; if ``keep_seen`` is open, the data decide.

    Raises:
        InputError: an option does not fit the data or this machine.
    """
    filters = filters_of(dataset, filters)
    split = split_config.apply(dataset)
    counted = MODELS[name].COUNTED
    if not counted:
        check_trainable(split, training, MODELS[name])
    config = RunConfig(
        model=name,
        model_config=asdict(sizes),
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
        model = build_checked(config.build, name, copies)
    if not counted:
        check_passes(model, split.train, training)
    return config, split, model
