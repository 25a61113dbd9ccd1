"""The weights of another run that training starts from, in ``state/start.safetensors``.

The run keeps them, so that it can be resumed and refitted when the other run is gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqrec.errors import InputError, one_line
from seqrec.models.base import Model
from seqrec.models.features import SIZES
from seqrec.run.config import RunConfig
from seqrec.run.layout import START
from seqrec.run.tensors import check_finite, checksum, load_tensors, mark_of, read_header, write_tensors

PART = "start"
_WEIGHT, _ROWS = "weight.", "rows."
_MOST = 10**5  # weight tensors of a model


@dataclass(frozen=True, eq=False)
class Start:
    """Weights to start from. Of tables with a row per item, user, category or feature, only rows that are taken over.

    Args:
        weights: weight by name.
        rows: for ``items``, ``users``, ``categories``, ``features`` and ``user_features``, where the rows of such
            tables belong in the tables of the model that starts: ``int64[K]``, ascending.
        kinds: which of these the rows of a weight are, by name; see :func:`row_kinds`.
    """

    weights: dict[str, Tensor]
    rows: dict[str, Tensor]
    kinds: dict[str, str]


def row_kinds(config: RunConfig) -> dict[str, str]:
    """What the weights with a row per item, user, category or feature have rows of, by name: ``items``, ...

    The shapes of models with one more of these tell, so that no model has to declare it.
    """

    def shapes(**changes: Any) -> dict[str, tuple[int, ...]]:
        model = replace(config, **changes).outline(_MOST)
        return {name: tuple(weight.shape) for name, weight in model.named_parameters()}

    plain = shapes()
    larger = {
        "items": shapes(num_items=config.num_items + 1),
        "users": shapes(num_users=config.num_users + 1),
    }
    if most := config.model_config.get("num_categories"):
        larger["categories"] = shapes(model_config=config.model_config | {"num_categories": most + 1})
    for option, (codes, _) in SIZES.items():
        if most := config.model_config.get(codes):
            larger[option] = shapes(model_config=config.model_config | {codes: most + 1})
    return {name: kind for kind, found in larger.items() for name, shape in found.items() if shape != plain[name]}


def write_start(folder: Path, run: str, start: Start | None) -> None:
    """Write the weights into a new run folder, if it starts from any. ``run`` is the run's id."""
    if start is None:
        return
    tensors = {f"{_WEIGHT}{name}": weight for name, weight in start.weights.items()}
    tensors |= {f"{_ROWS}{kind}": rows for kind, rows in start.rows.items()}
    (folder / START).parent.mkdir()
    write_tensors(folder / START, tensors, mark_of(run, PART, tensors))


def read_start(folder: Path, run: str, config: RunConfig, model: Model) -> Start:
    """The weights that a run starts from, memory-mapped.

    Args:
        folder: run folder.
        run: id of the run.
        config: its configuration.
        model: model of its sizes, whose weights are not read.

    Raises:
        InputError: the file is missing or damaged, of another run, or does not fit the model.
    """
    path = folder / START
    header = read_header(path)
    mark = header.check_mark(run, PART)
    kinds = row_kinds(config)
    expected: dict[str, Tensor] = {}
    for kind in {*kinds.values()}:
        count = (*header.names.get(f"{_ROWS}{kind}", ("", ()))[1], 0)[0]
        expected[f"{_ROWS}{kind}"] = torch.empty(count, dtype=torch.int64, device="meta")
    for name, weight in model.named_parameters():
        shape = tuple(weight.shape)
        if name in kinds:
            shape = (len(expected[f"{_ROWS}{kinds[name]}"]), *shape[1:])
        expected[f"{_WEIGHT}{name}"] = torch.empty(shape, dtype=weight.dtype, device="meta")
    header.check_shapes(expected)
    tensors = load_tensors(header)
    check_finite(path, tensors.items())
    if mark.get("crc32") != checksum(tensors):
        raise InputError(f"{path}: is damaged (its checksum differs); copy it back or train again")
    start = Start(
        {name.removeprefix(_WEIGHT): tensor for name, tensor in tensors.items() if name.startswith(_WEIGHT)},
        {name.removeprefix(_ROWS): tensor for name, tensor in tensors.items() if name.startswith(_ROWS)},
        kinds,
    )
    try:
        check_rows(start, dict(model.named_parameters()))
    except ValueError as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); train again with --overwrite") from error
    return start


def check_rows(start: Start, tables: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a row belongs nowhere in one of the tables, by name, or two belong in one place."""
    for name, kind in start.kinds.items():
        rows, size = start.rows[kind], len(tables[name])
        if len(rows) and (int(rows[0]) < 0 or int(rows[-1]) >= size or bool((rows.diff() <= 0).any())):
            raise ValueError(f"the rows of {kind} are not ascending from 0 to {size - 1}")
