"""Training by several processes, each of which computes its part of every batch (torch.distributed).

Every process holds the whole model and takes the same optimizer steps, so the copies stay equal bit for bit. Gradients
of embedding tables are exchanged by row, together with all others, in one message to every process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seqrec.errors import InputError, one_line
from seqrec.training.objective import Task
from seqrec.training.optim import RowAdam

#: What torch.distributed says if a process has ended.
_LOST = "Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL"
#: How long a process waits for another one, which may validate, test or count meanwhile. The loss of a process ends the
#: wait at once, because its connections close; torchrun and Ray watch over machines.
PATIENCE = timedelta(days=1)
_SPARE = 1.1  # space for more rows than in any step so far, as a factor
_LOSS = 4  # place of the loss in a message
_HEADER = 5  # numbers at the start of a message, before the number of rows of each table
_given: ContextVar["Processes | None"] = ContextVar("processes", default=None)


@contextmanager
def launched() -> Iterator["Processes | None"]:
    """Join the processes that ``torchrun`` started together with this one; yields None if there are no others.

    Raises:
        InputError: the processes can't be joined.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield joined()
        return
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but the other processes can't be joined ({one_line(error)}); "
            "start all of them with torchrun"
        ) from error
    try:
        yield joined()
    except RuntimeError as error:
        if any(words in str(error) for words in _LOST):
            raise InputError(
                "another process of this training has ended; see its message, then go on with --resume"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def joined() -> "Processes | None":
    """The processes of this program's process group; None if it has none, or is alone in it."""
    if (given := _given.get()) is not None:
        return given
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return None
    return Processes(dist.get_rank(), dist.get_world_size())


@contextmanager
def joining(processes: "Processes") -> Iterator[None]:
    """Let :func:`joined` find these processes inside the block, even a single one, such as those of a cluster."""
    token = _given.set(processes)
    try:
        yield
    finally:
        _given.reset(token)


@dataclass(frozen=True)
class Totals:
    """What all processes together had in a step: tokens, and the largest of their requests."""

    tokens: int = 0
    request: int = 0


class Processes:
    """The processes that train one model together.

    Args:
        rank: number of this process; the first one, 0, validates and writes the run.
        world: number of processes.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.request = 0  # what this process asks of all; the next step tells them
        self.totals = Totals()
        self.bytes_sent = 0  # by this process, in all steps so far, to each of the others
        self._room = 0  # 32-bit words that are exchanged at once

    @property
    def is_first(self) -> bool:
        """Whether this process validates and writes the run."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """The shard of an :class:`seqrec.data.batches.Epoch` that this process computes."""
        return self.rank, self.world

    def interrupted(self) -> bool:
        """Whether somebody asked this process to stop, other than by a signal."""
        return False

    def saved(self, folder: Path | None, row: dict[str, Any] | None) -> None:
        """Every process calls this after a checkpoint.

        Args:
            folder: run folder with the checkpoint; None except for the first process.
            row: row of the epoch that ended; None for a checkpoint within an epoch.
        """

    @torch.no_grad()
    def __call__(self, optimizer: RowAdam, task: Task, loss: Tensor) -> Tensor:
        """Turn the gradients of this process into those of all; see :func:`seqrec.training.step.optimizer_step`."""
        dense = [parameter for parameter in optimizer.dense.values() if parameter.requires_grad]
        whole = optimizer.whole_gradients()  # of losses that read every row
        waiting = [dist.all_reduce(part, async_op=True) for part in whole]
        rows = optimizer.row_gradients()
        message = _message([_gradient(one) for one in dense], list(rows.values()), task, loss, self.request)
        messages, headers = self._exchanged(message, len(rows))
        for work in waiting:
            work.wait()
        self.bytes_sent += 4 * sum(part.numel() for part in whole)
        predictions = [head[1] for head in headers]
        self.totals = Totals(sum(head[2] for head in headers), max(head[3] for head in headers))
        share = 1 / max(sum(predictions), 1)
        first = _HEADER + len(rows)
        last = first + sum(one.numel() for one in dense)
        flat = messages[:, first:last].sum(dim=0)
        for part in (flat, *whole, *optimizer.divided_gradients()):
            part.mul_(share)
        for parameter, gradient in zip(dense, flat.split([one.numel() for one in dense]), strict=True):
            parameter.grad = gradient.view_as(parameter)
        widths = [values.shape[1] for _, values in rows.values()]
        found = [_unpacked(one[last:], head[_HEADER:], widths) for one, head in zip(messages, headers, strict=True)]
        for name, parts in zip(rows, zip(*found, strict=True), strict=True):
            numbers, values = (torch.cat(one) for one in zip(*parts, strict=True))
            optimizer.set_row_gradients(name, numbers.long(), values.mul_(share))
        return (messages[:, _LOSS] * messages.new_tensor(predictions)).sum() * share

    def _exchanged(self, message: Tensor, tables: int) -> tuple[Tensor, list[list[int]]]:
        """The messages of all processes, ``float32[world, W]``, and the integers that each begins with.

        Messages have different lengths. Each is sent in the room that was enough for all of them so far. If one is
        longer, which its beginning tells everybody, the rest follows. So nearly every step needs one exchange.
        """
        if self._room == 0:
            longest = torch.tensor([len(message)], device=message.device)
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            self._room = int(_SPARE * int(longest))
        sent = self._all(message[: self._room], self._room)
        heads = sent[:, : _HEADER + tables].contiguous().view(torch.int32).tolist()
        longest_sent = max(head[0] for head in heads)
        if longest_sent > self._room:
            rest = self._all(message[self._room :], longest_sent - self._room)
            sent = torch.cat([sent, rest], dim=1)
            self._room = int(_SPARE * longest_sent)
        return sent, heads

    def _all(self, part: Tensor, size: int) -> Tensor:
        """The parts of all processes, each padded to a size: ``float32[world, size]``."""
        padded = part.new_zeros(self.world, size)
        padded[:, : len(part)] = part
        everything = torch.empty_like(padded)
        dist.all_to_all_single(everything, padded)  # takes gloo a third of the time of its all_gather
        self.bytes_sent += 4 * size
        return everything

    def same_on_all(self, value: Any) -> Any:
        """A value of the first process, such as numbers or options, for all of them."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Wait for the others."""
        dist.barrier()

    def most_of(self, value: int) -> int:
        """The largest of the processes' values."""
        found = torch.tensor([value], device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def copy_from_first(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite the tensors of the other processes with those of the first."""
        for _, tensor in sorted(tensors.items()):
            dist.broadcast(tensor.detach(), src=0)


def _message(dense: list[Tensor], rows: list[tuple[Tensor, Tensor]], task: Task, loss: Tensor, request: int) -> Tensor:
    """What a process tells the others: ``float32[W]``, partly 32-bit integers.

    It begins with W, predictions, tokens, request, loss and the number of rows of each table. Then come the dense
    gradients, and the row numbers and gradients of each table.
    """
    tokens = len(task.batch.items) if task.counts else 0
    head = [0, task.predictions, tokens, request, 0, *(len(numbers) for numbers, _ in rows)]
    head[0] = len(head) + sum(one.numel() for one in (*dense, *(part for pair in rows for part in pair)))
    start = torch.tensor(head, dtype=torch.int32, device=loss.device).view(torch.float32)
    start[_LOSS] = loss
    parts = [start, *(one.reshape(-1) for one in dense)]
    for numbers, values in rows:
        parts += [numbers.to(torch.int32).view(torch.float32), values.reshape(-1)]
    return torch.cat(parts)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _unpacked(message: Tensor, counts: list[int], widths: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Row numbers and gradients of each table, which follow each other."""
    found, place = [], 0
    for count, width in zip(counts, widths, strict=True):
        numbers = message[place : place + count].view(torch.int32)
        place += count
        found.append((numbers, message[place : place + count * width].view(count, width)))
        place += count * width
    return found
