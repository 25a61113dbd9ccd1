"""An item table divided among processes by rows, for catalogues that do not fit into the memory of one.

The rows are cut into blocks, and each process holds about as many of them as the others, with their moments. A lookup
asks the holders for the rows, each once, and its backward pass sends them the gradients. Checkpoints keep each block by
itself, so that any number of processes can read them.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from seqrec.data.split import Targets
from seqrec.device import not_compiled, own_random_state
from seqrec.errors import InputError, TrainingWarning, warn
from seqrec.models import MODELS
from seqrec.models.base import Model
from seqrec.ranking.dense import require_numbers
from seqrec.ranking.scoring import evaluation_mode, last_states
from seqrec.run.config import RunConfig
from seqrec.training.config import TrainConfig
from seqrec.training.processes import Processes

TABLE = "item_embedding"  # the table that can be divided
BLOCKS = 256  # of a table, and so the largest number of processes
_DRAWN = 2**16  # rows whose first values are drawn with one seed
_USERS, _ITEMS = 128, 2**16  # scored at once


class Shard(nn.Embedding):
    """The rows of a process. Their gradients are those of all processes already."""

    divided = True


class ShardedEmbedding(nn.Module):
    """``nn.Embedding`` with its rows divided among processes. All of them must look up at the same time.

    Args:
        rows: number of rows of the whole table.
        dim: width of the table.
        processes: the processes.
    """

    def __init__(self, rows: int, dim: int, processes: Processes) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.processes = rows, dim, processes
        if processes.world > BLOCKS:
            raise InputError(f"shard_items divides a table among {BLOCKS} processes at most; start fewer")
        self.block = -(-rows // BLOCKS)
        self.blocks = -(-rows // self.block)
        shares = [self.blocks * rank // processes.world for rank in range(processes.world + 1)]
        self.edges = [min(rows, share * self.block) for share in shares]
        self.first, self.last = self.edges[processes.rank : processes.rank + 2]
        self.shard = Shard(self.last - self.first, dim, _weight=torch.zeros(self.last - self.first, dim))
        self._edges = torch.tensor(self.edges)

    @property
    def sparse(self) -> bool:
        """Whether the gradients are by row."""
        return self.shard.sparse

    @sparse.setter
    def sparse(self, value: bool) -> None:
        self.shard.sparse = value

    @property
    def weight(self) -> Tensor:
        """The whole table, which no process has."""
        raise InputError("this needs all rows of the item table at once, but shard_items divides it; leave one out")

    def all(self) -> Tensor:
        """As :attr:`weight`."""
        return self.weight

    @not_compiled
    def forward(self, rows: Tensor) -> Tensor:
        """The vectors ``[..., D]`` of rows, ``int64[...]``."""
        distinct, place = torch.unique(rows, return_inverse=True)  # sorted, so those of one holder are together
        sizes = torch.searchsorted(distinct, self._edges).diff()
        asked_sizes = torch.empty_like(sizes)
        dist.all_to_all_single(asked_sizes, sizes)
        here, there = asked_sizes.tolist(), sizes.tolist()
        asked = distinct.new_empty(sum(here))
        dist.all_to_all_single(asked, distinct, here, there)
        vectors = self.shard(asked - self.first)
        self.processes.bytes_sent += 8 * len(distinct) + 4 * vectors.numel() * (2 if torch.is_grad_enabled() else 1)
        found: Tensor = _Exchange.apply(vectors, here, there)
        return found[place]


class _Exchange(torch.autograd.Function):
    """Sends rows ``[sum(sent), D]`` to the processes, and receives ``[sum(received), D]``; the gradients go back."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.sizes = sent, received
        found = rows.new_empty(sum(received), rows.shape[1])
        dist.all_to_all_single(found, rows, received, sent)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        sent, received = ctx.sizes
        found = gradients[0].new_empty(sum(sent), gradients[0].shape[1])
        dist.all_to_all_single(found, gradients[0].contiguous(), sent, received)
        return found, None, None


def checked_options(name: str, sizes: Any, training: TrainConfig) -> TrainConfig:
    """The options of a training that divides the item table, after checking that it can.

    Raises:
        InputError: the model or an option needs the whole table.
    """
    if MODELS[name].COUNTED or {TABLE} != MODELS[name].SPARSE_TABLES:
        able = [one for one, kind in MODELS.items() if {TABLE} == kind.SPARSE_TABLES and kind.FACTORED]
        raise InputError(f"shard_items divides the item table of {', '.join(able)}, but not of {name}; leave it out")
    refused = {"loss": "cross-entropy", "item_init": "spectral", "ensemble_kinds": "mixed"}
    for option, value in refused.items():
        if getattr(training, option) == value:
            raise InputError(f"{option} {value} needs the whole item table, but shard_items divides it; leave one out")
    if getattr(sizes, "features", None):
        raise InputError("features need the whole item table, but shard_items divides it; leave one out")
    if training.clip_norm is not None or (training.ensemble or 1) > 1:
        raise InputError("shard_items trains one model, without clip_norm; leave out --clip-norm and --ensemble")
    if training.average_decay:
        warn("with shard_items, weights are not averaged over epochs (average_decay is 0)", TrainingWarning)
    return replace(
        training, loss=training.loss or "sampled-softmax", average_decay=0.0, item_init="random", ensemble=1,
        ensemble_kinds="same",
    )  # fmt: skip


def sharded_model(config: RunConfig, processes: Processes | None) -> Model:
    """A model with fresh weights whose item table is divided. The weights do not depend on the number of processes.

    Raises:
        InputError: there is only one process.
    """
    if processes is None:
        raise InputError("shard_items divides the item table among several processes; start some, or leave it out")
    seed = config.training["seed"]

    def built(items: int, block: int) -> Model:
        drawn = int(np.random.SeedSequence([seed, block]).generate_state(1)[0])
        with own_random_state(torch.device("cpu"), drawn):
            return replace(config, num_items=items).build()

    model = built(1, 0)
    small: Any = getattr(model, TABLE)
    table = ShardedEmbedding(config.num_items + 1, small.embedding_dim, processes)
    with torch.no_grad():
        # Each block of rows is drawn as the model draws it, by a process that holds some of them.
        for first in range(1, config.num_items + 1, _DRAWN):
            low, high = max(first, table.first), min(first + _DRAWN, table.last)
            if low < high:
                block: Any = getattr(built(_DRAWN, 1 + first // _DRAWN), TABLE)
                rows = block.weight[1 + low - first : 1 + high - first]
                table.shard.weight[low - table.first : high - table.first] = rows
        if table.first == 0:
            table.shard.weight[0] = small.weight[0]  # the padding
    setattr(model, TABLE, table)
    model.num_items = config.num_items
    return model


def sharded_ranks(model: Model, targets: Targets, keep_seen: bool) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`seqrec.ranking.protocols.ranks` in the full ranking: each process counts the items that it holds."""
    table: Any = getattr(model, TABLE)
    counts = torch.zeros(2, len(targets), dtype=torch.int64)
    unreachable = torch.zeros(len(targets), dtype=torch.bool)
    for start in range(0, len(targets), _USERS):
        part = targets.take(slice(start, start + _USERS))
        wanted = torch.from_numpy(part.items.astype(np.int64))
        rows, seen = (torch.from_numpy(one) for one in part.histories.flat())
        if not keep_seen:
            unreachable[start + rows[seen == wanted[rows]]] = True
        with evaluation_mode(model):
            states = last_states(model, part.histories)
            limit = model.score(states, wanted[:, None])
            places = torch.arange(len(part))
            for low in range(table.first, table.last, _ITEMS):
                high = min(low + _ITEMS, table.last)
                vectors = model.output_of(table.shard.weight[low - table.first : high - table.first])
                scores = states @ vectors.T
                require_numbers(scores.amax(dim=1))
                _leave_out(scores, torch.zeros_like(places), places, low)  # the padding
                _leave_out(scores, wanted, places, low)
                if not keep_seen:
                    _leave_out(scores, seen, rows, low)
                counts[0, start : start + len(part)] += (scores > limit).sum(dim=1)
                counts[1, start : start + len(part)] += (scores == limit).sum(dim=1)
    dist.all_reduce(counts)
    counts[0, unreachable], counts[1, unreachable] = -1, 0
    return counts[0].numpy(), counts[1].numpy()


def _leave_out(scores: Tensor, items: Tensor, rows: Tensor, first: int) -> None:
    """Set the scores of items to -inf in some rows; the columns are the items from ``first`` on."""
    here = (items >= first) & (items < first + scores.shape[1])
    scores[rows[here], items[here] - first] = -torch.inf
