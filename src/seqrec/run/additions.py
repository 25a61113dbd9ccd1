"""The transition counts of a run, in ``transitions.safetensors``: their table, their constants and their weight."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqrec.data.checked import read_json
from seqrec.errors import InputError, RunWarning, one_line, warn
from seqrec.files import replacing
from seqrec.models.transitions import Addition, Transitions, TransitionsConfig
from seqrec.run.layout import METRICS, TRANSITIONS
from seqrec.run.tensors import check_finite, checksum, load_tensors, mark_of, read_header, write_tensors

PART = "transitions"
LARGEST = 1e9  # weight; one that is chosen is far below. It keeps sums finite


def write_addition(folder: Path, run: str, addition: Addition | None) -> None:
    """Replace the file of a run's counts, or remove it if there are none. ``run`` is the run's id."""
    path = folder / TRANSITIONS
    if addition is None:
        path.unlink(missing_ok=True)
        return
    tensors = addition.transitions.state_dict()
    facts: dict[str, Any] = {"weight": addition.weight, "config": asdict(addition.transitions.config)}
    mark = mark_of(run, PART, **facts, crc32=checksum(tensors, json.dumps(facts)))
    with replacing(path) as new:
        write_tensors(new, tensors, mark)


def read_addition(folder: Path, run: str, num_items: int) -> Addition | None:
    """The counts of a run, or None if it has none. If its metrics are with counts, a warning says that they are gone.

    Raises:
        InputError: the file is damaged, of another run, or holds impossible counts.
    """
    path = folder / TRANSITIONS
    if not path.exists():
        if _is_missed(folder / METRICS):
            warn(
                f"{path}: is missing, so the model ranks without the transition counts that its figures were measured "
                "with; copy it back or train again",
                RunWarning,
            )
        return None
    header = read_header(path)
    mark: dict[str, Any] = header.check_mark(run, PART)
    try:
        weight = float(mark["weight"])
        transitions = Transitions(TransitionsConfig(**mark["config"]), num_items)
        if not 0 <= weight <= LARGEST:
            raise ValueError(f"the weight is {weight}")
        header.check_shapes(transitions.state_dict(), transitions.LENGTHS_OF_THE_LOG)
        tensors = load_tensors(header)
        check_finite(path, tensors.items())
        if mark.get("crc32") != checksum(tensors, json.dumps({name: mark[name] for name in ("weight", "config")})):
            raise ValueError("its checksum differs")
        transitions.load_state_dict(tensors)
        transitions.check_weights()
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError) and str(error).startswith(str(path)):
            raise
        raise InputError(f"{path}: is damaged ({one_line(error)}); copy it back or train again") from error
    return Addition(transitions.eval(), weight)


def _is_missed(metrics: Path) -> bool:
    """Whether the metrics of a run, if they can be read, were measured with transition counts."""
    try:
        weight = read_json(metrics)["transitions"]["weight"] if metrics.exists() else 0
        return bool(weight > 0)
    except (InputError, LookupError, TypeError):
        return False
