"""The state of a training with a divided item table: each process keeps and restores its own rows."""

import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoints
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from seqrec.data.checked import read_json
from seqrec.errors import InputError, one_line
from seqrec.files import replacing
from seqrec.models.base import Model
from seqrec.run.folder import PARTS, Run
from seqrec.run.tensors import write_in_blocks
from seqrec.training.averaging import exchanged
from seqrec.training.optim import RowAdam
from seqrec.training.processes import Processes
from seqrec.training.sharded import TABLE
from seqrec.training.state import FACTS, TrainingState, check_facts

_SENT = 2**16  # rows that are sent at once


class ShardedState(TrainingState):
    """As :class:`TrainingState`, for a model from :func:`seqrec.training.sharded.sharded_model`.

    Checkpoints are written by all processes, as files of safetensors (torch.distributed.checkpoint), and can be read by
    any number of processes. Every method is called by all processes together.
    """

    def __init__(self, model: Model, optimizer: RowAdam, run: Run | None, processes: Processes) -> None:
        super().__init__(model, optimizer, run, average_decay=0.0)  # every process keeps the best weights of its rows
        self.processes = processes
        self.folder: Path = self._found()

    def _found(self) -> Path:
        """The folder of the checkpoints, which moves when the run takes the place of another."""
        own = None if self.run is None else str((self.run.folder / "state").resolve())
        return Path(self.processes.same_on_all(own))

    def _write(self) -> None:
        """Write everything that :meth:`restored` needs. What was written before stays until this is complete."""
        prefix, self.folder = self.run.prefix if self.run is not None else "", self._found()
        name = self.processes.same_on_all(f"{prefix}sharded-{self.epoch}-{self.step}")
        if self.run is not None:
            self.run.check_there()
            self.folder.mkdir(exist_ok=True)
            shutil.rmtree(self.folder / name, ignore_errors=True)  # left by a process that was killed
        self.processes.wait()
        state = self.optimizer.state_dict()
        steps = int(state.pop("steps"))
        writer = checkpoints.HuggingFaceStorageWriter(
            str(self.folder / name), self._files(state), save_distributed=True
        )
        with _quiet():
            checkpoints.save(self._in_blocks(state), storage_writer=writer)
        if self.unsaved:
            self._save_best()
            self.unsaved = False
        if self.run is not None:
            facts = {one: getattr(self, one) for one in FACTS} | {"loss_sum": self.loss_sum.item(), "steps": steps}
            facts |= {"run": self.run.id, "folder": name, "moments": [*state]}
            with replacing(self._facts_path(prefix)) as new:
                new.write_text(json.dumps(facts))
            for old in self.folder.glob(f"{prefix}sharded-*-*"):
                if old.name != name and old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)

    def _begun(self) -> bool:
        return bool(self.processes.same_on_all(self.run is not None and self.run.begun))

    def _save_best(self) -> None:
        """Write the best weights of all processes into one file, as those of every other model."""
        assert self.best is not None
        with exchanged(self.model.state_dict(keep_vars=True), self.best):
            write_together(self.run, self.model, self.processes)

    def restored(self, resume: bool, steps: int) -> bool:
        """Continue from the last checkpoint if the first process asks for it and there is one."""
        facts = self.processes.same_on_all(self._facts(steps) if resume and self.run is not None else None)
        if facts is None:
            return False
        own = self.optimizer.state_dict()
        expected = self.optimizer.expected_state(facts["moments"])
        state = {name: own[name] if name in own else torch.empty_like(expected[name]) for name in facts["moments"]}
        path = self.folder / facts["folder"]
        try:
            with _quiet():
                checkpoints.load(self._in_blocks(state), storage_reader=checkpoints.HuggingFaceStorageReader(str(path)))
            self.optimizer.load_state_dict(state | {"steps": torch.tensor(facts["steps"])})
        except (OSError, KeyError, RuntimeError, ValueError, CheckpointException) as error:
            raise InputError(f"{path}: can't be read ({one_line(error)}); train again with --overwrite") from error
        for name in FACTS:
            setattr(self, name, facts[name])
        self.loss_sum.fill_(facts["loss_sum"])
        return True

    def start_as_first(self, processes: Processes) -> None:
        """Nothing, as every process has restored, or drawn, what is its own."""

    def finish(self, save_current: bool) -> None:
        """Save the current weights if none were kept and ``save_current`` asks for it; close the optimizer."""
        if self.best_epoch == 0:
            self.optimizer.catch_up()
            if save_current:
                write_together(self.run, self.model, self.processes)
        self.optimizer.close()
        self.model.eval()

    def _facts_path(self, prefix: str) -> Path:
        return self.folder / f"{prefix}sharded.json"

    def _facts(self, steps: int) -> dict[str, Any] | None:
        """The facts of the last checkpoint, checked; None if there is none."""
        assert self.run is not None
        path = self._facts_path(self.run.prefix)
        if not path.exists():
            return None
        facts = read_json(path, "train again with --overwrite")
        try:
            check_facts(facts, steps)
            names = facts["moments"], facts["folder"], facts["steps"]
            if facts["run"] != self.run.id:
                raise ValueError("it belongs to another run")
            if not (isinstance(names[0], list) and isinstance(names[2], int) and str(names[1]).count("/") == 0):
                raise ValueError("a value has the wrong type")
            if unknown := {*names[0]} - {*self.optimizer.expected_state(names[0])}:
                raise ValueError(f"{min(unknown)!r} is unknown")
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: does not fit the run ({one_line(error)}); train again with --overwrite"
            ) from error
        return facts

    def _files(self, state: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of the file, from 1, of every tensor of all processes.

        A file is put together in memory, so each block has its own; what is not in blocks is in the first.
        """
        table: Any = getattr(self.model, TABLE)
        names = [f"model.{name}" for name in self.model.state_dict()] + [f"optimizer.{name}" for name in state]
        whole = {name: 1 for name in names if not _is_divided(name)}
        divided = [name for name in names if _is_divided(name)]
        return whole | {f"{name}#{block}": 1 + block for name in divided for block in range(table.blocks)}

    def _in_blocks(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights and moments by name; of the divided table the blocks that this process holds, as ``name#block``."""
        table: Any = getattr(self.model, TABLE)
        parts = {f"model.{name}": value.detach() for name, value in self.model.state_dict().items()}
        parts |= {f"optimizer.{name}": value.detach() for name, value in state.items()}
        found = {}
        for name, value in parts.items():
            if not _is_divided(name):
                found[name] = value.view(-1) if value.dim() == 0 else value
                continue
            for start in range(table.first, table.last, table.block):
                stop = min(start + table.block, table.last)
                found[f"{name}#{start // table.block}"] = value[start - table.first : stop - table.first]
        return found


def _is_divided(name: str) -> bool:
    return f"{TABLE}.shard.weight" in name


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide warnings of torch about things that are as they should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_together(run: Run | None, model: Model, processes: Processes) -> None:
    """Write the weights of all processes into the file of the first one's run, which has the whole table.

    It receives the table in blocks, so that no process needs memory for all of it.
    """
    if run is None:
        for _ in _blocks(model, processes):
            pass
        return
    run.check_there()
    table: Any = getattr(model, TABLE)
    weights = {name: value.detach() for name, value in model.state_dict().items() if not _is_divided(name)}
    shapes = {name: (value.dtype, tuple(value.shape)) for name, value in weights.items()}
    shapes[f"{TABLE}.weight"] = (torch.float32, (table.num_embeddings, table.embedding_dim))

    def content(name: str) -> Iterator[Tensor]:
        return _blocks(model, processes) if name not in weights else iter([weights[name]])

    with replacing(run.weights_path("train")) as new:
        write_in_blocks(new, shapes, content, run.id, PARTS["train"])


def _blocks(model: Model, processes: Processes) -> Iterator[Tensor]:
    """The table's rows in order, in the first process; nothing in the others, which send theirs."""
    table: Any = getattr(model, TABLE)
    for rank in range(processes.world):
        low, high = table.edges[rank : rank + 2]
        for start in range(low, high, _SENT):
            stop = min(start + _SENT, high)
            if rank == processes.rank:
                own = table.shard.weight.detach()[start - low : stop - low]
                if processes.is_first:
                    yield own
                else:
                    dist.send(own.contiguous(), 0)
            elif processes.is_first:
                block = torch.empty(stop - start, table.embedding_dim)
                dist.recv(block, rank)
                yield block
