"""What config.json holds."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqrec.data.dataset import Dataset
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import SplitConfig
from seqrec.models import build_model
from seqrec.models.base import Model

FORMAT_VERSION = 1
CONFIG = "config.json"


@dataclass(frozen=True)
class RunConfig:
    """What ``config.json`` holds; ``training`` is empty for a model that was only counted."""

    model: str
    model_config: dict[str, Any]
    num_items: int
    num_users: int
    has_timestamps: bool
    fingerprint: str
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    training: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Model:
        """A model of these sizes with fresh weights."""
        return build_model(self.model, self.model_config, self.num_items, self.num_users)


def fingerprint(dataset: Dataset) -> str:
    """A digest of a dataset's interactions and ids, to tell on resume whether the log is the same."""
    digest = hashlib.sha256()
    for array in (dataset.items, dataset.timestamps, dataset.offsets):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    for ids in (dataset.user_ids, dataset.item_ids):
        digest.update(str(ids.dtype).encode())
        if ids.dtype.is_integer():
            digest.update(ids.to_numpy().astype(np.int64).tobytes())
        else:
            # The lengths tell "ab", "c" from "a", "bc".
            digest.update(ids.str.len_bytes().to_numpy().astype(np.int64).tobytes())
            digest.update("".join(ids.to_list()).encode())
    return digest.hexdigest()
