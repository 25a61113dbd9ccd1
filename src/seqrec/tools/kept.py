"""What a comparison keeps in its folder, so that the same command goes on: terms, finished trainings, checkpoints."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seqrec.data.checked import read_json
from seqrec.data.dataset import Dataset
from seqrec.errors import InputError, one_line
from seqrec.files import replacing
from seqrec.models import MODELS
from seqrec.ranking.protocols import Protocol
from seqrec.recommender import Recommender
from seqrec.run.config import fingerprint
from seqrec.run.layout import RESUMABLE, remove_run
from seqrec.run.lock import Lock
from seqrec.run.records import write_json
from seqrec.run.tensors import checksum, load_tensors, mark_of, read_header, save_tensors
from seqrec.tools.comparison import PROTOCOLS, Entry, Training
from seqrec.tools.config import CompareConfig

FOLDER, TERMS = "trainings", "terms.json"
FORMAT = 1
#: Terms that may differ when a comparison goes on: trainings are added, or rounded differently.
_MAY_DIFFER = {"seeds", *RESUMABLE} - {"epochs"}
#: Facts of an entry that are the same for all of its trainings.
_SHARED = ("config", "training", "recipe", "parameters", "bytes")
_PARTS = "greater", "ties"
_ADVICE = "remove that file to train again, or give --overwrite"

#: Ranks of the test users by protocol: ``greater`` and ``ties``, ``int64[U]``.
Ranks = Mapping[Protocol, tuple[np.ndarray, np.ndarray]]


class Kept:
    """The folder of a comparison, locked by this process inside a ``with`` block.

    Finished trainings are files in ``trainings/``, with the ranks of the test users. An unfinished one is a run folder
    there, which is removed when it has ended.

    Args:
        out: folder of the comparison, which exists.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / FOLDER
        self._lock = Lock(out.resolve(), out)
        self._id = ""

    def __enter__(self) -> "Kept":
        self._lock.take()
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def begin(self, terms: Mapping[str, Any], overwrite: bool) -> bool:
        """Start a comparison, or go on with one. Returns whether it goes on.

        Models may be added when it goes on.

        Raises:
            InputError: the comparison in the folder is of another log or has other terms.
        """
        if overwrite:
            self.clear()
        now: dict[str, Any] = json.loads(json.dumps(terms, default=str))
        goes_on = (self.folder / TERMS).exists()
        models: dict[str, Any] = {}
        if goes_on:
            before = read_json(self.folder / TERMS, "give --overwrite")
            self._check(before, now)
            models = before["models"]
        together = models | now["models"]
        if not goes_on or models != together:
            with replacing(self.folder / TERMS) as new:
                write_json(new, now | {"models": together})
        rest = {name: value for name, value in now.items() if name != "models"}
        self._id = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        return goes_on

    def _check(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Refuse another log or other terms."""
        if before.get("format") != now["format"] or not isinstance(before.get("models"), dict):
            raise InputError(f"{self.out}: holds a comparison of another seqrec; begin anew with --overwrite")
        for name, what in (("fingerprint", "another log"), ("items", "other items"), ("users", "other users")):
            if before.get(name) != now.get(name):
                raise InputError(f"{self.out}: the comparison was started on {what}; give the same, or --overwrite")
        pairs = [("", before.get("terms") or {}, now["terms"])]
        pairs += [(f" of {name}", before["models"].get(name, one), one) for name, one in now["models"].items()]
        for model, old, new in pairs:
            for name in sorted(old | new):
                if old.get(name) != new.get(name):
                    raise InputError(
                        f"{self.out}: the comparison was started with {name}{model} = {old.get(name)}, not "
                        f"{new.get(name)}; give the same options, or --overwrite"
                    )

    def keep(self, name: str, entry: Entry, training: Training, ranks: Ranks) -> None:
        """Keep a finished training, and remove its run folder."""
        facts = {"training": asdict(training), "entry": {one: getattr(entry, one) for one in _SHARED}}
        tensors = {}
        for protocol, pair in ranks.items():
            for part, values in zip(_PARTS, pair, strict=True):
                tensors[f"{protocol}.{part}"] = torch.from_numpy(np.ascontiguousarray(values))
        save_tensors(self._file(name), tensors, mark_of(self._id, name, tensors, facts=facts))
        if self.run(name).is_dir():
            remove_run(self.run(name))

    def read(self, name: str, users: int) -> tuple[Training, dict[str, Any], Ranks] | None:
        """A finished training, what its entry shares with others, and the ranks of the test users; None if not there.

        Raises:
            InputError: the file is damaged, or is of another comparison.
        """
        path = self._file(name)
        if not path.exists():
            return None
        header = read_header(path)
        mark, tensors = header.check_mark(self._id, name), load_tensors(header)
        try:
            wanted = {f"{protocol}.{part}" for protocol in PROTOCOLS for part in _PARTS}
            if set(tensors) != wanted or any(
                one.dtype != torch.int64 or one.shape != (users,) or bool((one < -1).any()) for one in tensors.values()
            ):
                raise ValueError("it does not hold the ranks of the test users")
            if mark["crc32"] != checksum(tensors):
                raise ValueError("its checksum differs")
            facts: Any = mark["facts"]
            training, shared = Training(**facts["training"]), {one: facts["entry"][one] for one in _SHARED}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: is damaged ({one_line(error)}); {_ADVICE}") from error
        found: Ranks = {
            protocol: (tensors[f"{protocol}.greater"].numpy(), tensors[f"{protocol}.ties"].numpy())
            for protocol in PROTOCOLS
        }
        if self.run(name).is_dir():  # a process was killed after it had kept the training
            remove_run(self.run(name))
        return training, shared, found

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def run(self, name: str) -> Path:
        """The run folder of an unfinished training."""
        return self.folder / name

    def clear(self) -> None:
        """Remove everything that a comparison keeps. Files of others stay."""
        if not (self.folder / TERMS).is_file():
            return  # the folder is somebody else's
        for path in self.folder.iterdir():
            if path.is_dir():
                remove_run(path)
            elif path.suffix == ".safetensors":
                path.unlink()
        (self.folder / TERMS).unlink()  # last, so that the next process knows that the rest may be removed
        if not any(self.folder.iterdir()):
            self.folder.rmdir()


def terms_of(dataset: Dataset, config: CompareConfig, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Everything that the results of a comparison depend on, except which models and seeds it has, for JSON.

    Args:
        dataset: dataset that the models are trained on.
        config: terms of the comparison.
        options: options of each model by name.
    """
    models, seed, reads = {}, 0, dict.fromkeys(("items", "users"), False)
    for name, given in options.items():
        try:
            asked = Recommender(name, **given)
        except InputError:
            models[name] = dict(given)  # its entry says what is wrong, and the other models go on
            continue
        parts = (asked.model_config, *([] if MODELS[name].COUNTED else [asked.train_config]))
        parts += (asked.prepare_config, asked.split_config)
        models[name] = {key: value for part in parts for key, value in vars(part).items() if key not in _MAY_DIFFER}
        seed = asked.train_config.seed  # that of the sampled negatives, too
        reads["items"] |= "category" in MODELS[name].READS or bool(getattr(asked.model_config, "features", None))
        reads["users"] |= bool(getattr(asked.model_config, "user_features", None))
    terms = {key: value for key, value in asdict(config).items() if key not in _MAY_DIFFER | {"shuffled"}}
    tables = {"items": dataset.item_table, "users": dataset.user_table}
    digests = {kind: _digest(table.frame) for kind, table in tables.items() if table is not None and reads[kind]}
    return {
        "format": FORMAT, "fingerprint": fingerprint(dataset), "items": None, **digests,
        "terms": terms | {"seed": seed}, "models": models,
    }  # fmt: skip


def _digest(frame: Any) -> str:
    """A digest of the content of a frame."""
    content = io.BytesIO()
    frame.rechunk().write_ipc(content)
    return hashlib.sha256(content.getvalue()).hexdigest()
