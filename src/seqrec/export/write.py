"""Writes a run as an ONNX file with its ids beside it, after comparing it with the run."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from seqrec import __version__
from seqrec.data.batches import histories_of, pack
from seqrec.data.split import Histories, histories_of_users
from seqrec.errors import InputError
from seqrec.export.inputs import uses_users
from seqrec.export.model_file import model_bytes
from seqrec.export.scores import run_graph
from seqrec.export.session import feeds_of, session_of
from seqrec.files import replacing
from seqrec.predictor import Predictor
from seqrec.ranking.additions import recounted, score_after
from seqrec.ranking.scoring import last_states
from seqrec.ranking.topk import check_k, check_keep_seen
from seqrec.run.folder import Run
from seqrec.run.outputs import check_outputs
from seqrec.run.place import reading

TOLERANCE = 1e-4  # largest difference from the run's scores, relative to the score if that is above 1
_PEOPLE, _ITEMS = 8, 64  # users and items whose scores are compared


@dataclass(frozen=True)
class Exported:
    """What :func:`export_onnx` wrote.

    Args:
        file: the ONNX file.
        ids: the file of ids.
        metadata: the metadata of the ONNX file.
        size: its size in bytes.
        difference: largest difference from the run's scores, relative to those above 1, on a few users of the run.
    """

    file: Path
    ids: Path
    metadata: dict[str, str]
    size: int
    difference: float


def ids_path(file: str | Path) -> Path:
    """The file of ids that belongs to an ONNX file: ``NAME.ids.json``."""
    return Path(f"{file}.ids.json")


def export_onnx(
    folder: str | Path,
    file: str | Path,
    *,
    top_k: int | None = None,
    keep_seen: bool | None = None,
    counts: Literal["auto", "off"] = "auto",
) -> Exported:
    """Write a run as one ONNX file, and beside it ``FILE.ids.json`` with the ids.

    Inputs of the graph are ``items int64[batch, length]``, indices of items in time order, with 0 for padding and for
    unknown items anywhere; ``timestamps int64[batch, length]`` for models that use times; and ``users int64[batch]``
    for models that know users, -1 for anyone else. Histories may be of any length. After an empty one, the scores are
    the items' numbers of interactions.

    Both files are replaced only after the scores of a few users were compared with those of the run.

    Args:
        folder: run folder.
        file: file to write.
        top_k: number of best items to return: ``top_items int64[batch, K]`` and ``top_scores float32[batch, K]``, 0 and
            -inf if there are fewer. By default ``scores float32[batch, I + 1]`` of all items, -inf for the padding.
        keep_seen: whether the best items may be items of the history. By default as in the run's validation. Only with
            ``top_k``.
        counts: whether to add the run's transition counts, if it has them (``auto``), or never (``off``).

    Raises:
        InputError: the run is damaged, an option is out of range, the file cannot be written, or the extra ``onnx`` is
            not installed.
    """
    check_outputs(file, ids_path(file), run=folder)
    check_keep_seen(keep_seen)
    if counts not in ("auto", "off"):
        raise InputError(f"counts is {counts!r}; give auto or off")
    if top_k is None and keep_seen is not None:
        raise InputError("keep_seen has an effect only on the best items; give top_k too")
    run, predictor = reading(folder, lambda: (Run(folder), Predictor.load(folder)))
    if top_k is not None:
        check_k(top_k, predictor.dataset.num_items)
    model = predictor.model if counts == "auto" else recounted(predictor.model, None)
    predictor = replace(predictor, model=model, keep_seen=predictor.keep_seen if keep_seen is None else keep_seen)
    metadata = _metadata(run, predictor, top_k)
    graph = run_graph(model, predictor.dataset.item_counts, top_k, predictor.keep_seen)
    content = model_bytes(graph, metadata)
    difference = _difference(content, predictor, top_k)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{file}: not written, because its scores differ from those of the run by {difference:.2g}")
    with replacing(ids_path(file)) as new_ids, replacing(file) as new:
        new.write_bytes(content)
        new_ids.write_text(json.dumps(_ids(run, predictor), ensure_ascii=False), encoding="utf-8")
    return Exported(Path(file), ids_path(file), metadata, len(content), difference)


def _metadata(run: Run, predictor: Predictor, top_k: int | None) -> dict[str, str]:
    model, dataset = predictor.model, predictor.dataset
    found: dict[str, Any] = {
        "seqrec_version": __version__,
        "run": run.id,
        "model": run.config.label,
        "members": len(model.parts),
        "num_items": model.num_items,
        "max_length": model.max_length,
        "transition_counts": "yes" if model.addition is not None and model.addition.weight else "no",
    }
    if model.USES_TIMES:
        found["timestamps"] = "seconds since 1970" if dataset.has_timestamps else "places in the history: 0, 1, 2, ..."
    if uses_users(model):
        found["num_users"] = dataset.num_users
    if top_k is not None:
        found |= {"top_k": top_k, "keep_seen": "yes" if predictor.keep_seen else "no"}
    return {name: str(value) for name, value in found.items()}


def _ids(run: Run, predictor: Predictor) -> dict[str, Any]:
    """``items``: the id at each index, null for the padding; ``users`` likewise, if the model knows users."""
    ids: dict[str, Any] = {"run": run.id, "items": [None, *predictor.dataset.item_ids.to_list()]}
    if uses_users(predictor.model):
        ids["users"] = predictor.dataset.user_ids.to_list()
    return ids


def _some_people(predictor: Predictor) -> Histories:
    """A few users of the run with their histories, and one whose history is empty."""
    dataset = predictor.dataset
    users = np.unique(np.linspace(0, dataset.num_users - 1, _PEOPLE).astype(np.int64))
    own = histories_of_users(dataset, users)
    parts = [slice(start, stop) for start, stop in zip(own.starts.tolist(), own.ends.tolist(), strict=True)]
    items, times = ([np.asarray(values[part]) for part in parts] for values in (dataset.items, dataset.timestamps))
    nothing = np.empty(0, dtype=np.int64)
    found = histories_of(dataset, [*items, nothing], [*times, nothing])
    # The graph does not know what else the users met.
    plain = replace(found.dataset, met_items=None, met_offsets=None)
    return replace(found, dataset=plain, users=np.append(users, -1))


def _difference(content: bytes, predictor: Predictor, top_k: int | None) -> float:
    """The largest difference of the scores from those of the predictor, relative to those above 1."""
    people, model = _some_people(predictor), predictor.model
    most = max(int(people.lengths.max()), 1)
    found = session_of(content).run(None, feeds_of(model, pack(people, most)))
    if top_k is not None:
        ((_, wanted),) = predictor.rank(people, top_k)
        return largest_difference(found[1], wanted)
    some = people.take(people.lengths > 0)
    columns = np.unique(np.linspace(1, model.num_items, _ITEMS).astype(np.int64))
    own = torch.from_numpy(np.tile(columns, (len(some), 1)))
    with torch.inference_mode():
        wanted = score_after(model, some, last_states(model, some), own).numpy()
    empty = predictor.dataset.item_counts[columns].astype(np.float32)
    return largest_difference(found[0][:, columns], np.concatenate([wanted, empty[None]]))


def largest_difference(found: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of numbers that may be -inf, relative to the wanted ones above 1."""
    same = found == wanted  # both may be -inf
    with np.errstate(invalid="ignore"):
        differences = np.abs(found - wanted) / np.maximum(np.abs(wanted), 1)
    return float(np.where(same, 0, np.nan_to_num(differences, nan=np.inf)).max(initial=0))
