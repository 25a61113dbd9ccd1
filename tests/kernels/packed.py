"""Packed batches for the tests of compiled loops."""

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths).tolist()], dtype=torch.int64)


def batch_of(lengths: list[int]) -> Batch:
    offsets = offsets_of(lengths)
    zeros = torch.zeros(int(offsets[-1]), dtype=torch.int64)
    return Batch(zeros + 1, zeros, zeros, offsets, torch.arange(len(lengths)), zeros)
