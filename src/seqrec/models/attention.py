"""Attention weights of the last token of each history, which predicts the next item."""

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.models.base import Model


@torch.inference_mode()
def attention_of(model: Model, batch: Batch) -> list[np.ndarray] | None:
    """How much each item of a history counts in the attention of the last block, for the prediction of the next item.

    The weights are those of the history's last token (in bert4rec, of the mask after it, without the weight on the mask
    itself), as the mean over the heads. For an ensemble, they are the mean over the members that have attention. They
    say what the last block reads, not what caused a recommendation: the states that it reads already mix earlier items.

    Args:
        model: model in evaluation mode.
        batch: packed histories, as from :func:`seqrec.data.batches.pack`, none of them empty.

    Returns:
        For each row of the batch, ``float32[L]`` for its L tokens, in time order, with the sum 1. None if the model has
        no attention.

    Raises:
        ValueError: a history is empty.
    """
    weights = model.attention_of_last(batch)
    if weights is None:
        return None
    return np.split(weights.float().cpu().numpy(), batch.host_offsets[1:-1].numpy()) if len(batch) else []


def weights_of_queries(query: Tensor, key: Tensor, rows: Tensor, num_heads: int) -> Tensor:
    """Attention weights of one query per history over that history's keys: the mean over the heads of
    ``softmax(q k' / sqrt(d))``, where d is the width of a head.

    Args:
        query: ``[B, heads * d]``, one per history.
        key: ``[T, heads * d]``.
        rows: ``int64[T]``, the history of each key.
        num_heads: number of heads.

    Returns:
        ``[T]``; those of one history sum to 1.
    """
    products = (query[rows] * key).view(len(key), num_heads, key.shape[1] // num_heads)
    scores = products.sum(dim=2) * products.shape[2] ** -0.5  # [T, heads]
    highest = scores.new_full((len(query), num_heads), -torch.inf)
    highest = highest.scatter_reduce(0, rows[:, None].expand_as(scores), scores, "amax")
    shares = (scores - highest[rows]).exp()
    sums = torch.zeros_like(highest).index_add(0, rows, shares)
    return (shares / sums[rows]).mean(dim=1)
