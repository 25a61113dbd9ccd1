"""The content of ``config.json``."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from seqrec.data.dataset import fingerprint
from seqrec.data.fields import Range, check_fields, fits
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import SplitConfig
from seqrec.errors import InputError, one_line
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.models.ensemble import Ensemble, kinds_of, sizes_beside
from seqrec.models.features import WITHOUT
from seqrec.models.outline import Outline
from seqrec.models.transitions import TransitionsConfig
from seqrec.run.additions import LARGEST
from seqrec.run.layout import CONFIG, RESUMABLE

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "RESUMABLE",
    "Refit",
    "RunConfig",
    "check_same",
    "config_of",
    "fingerprint",
    "run_id",
]

FORMAT_VERSION = 2
MOST_CONFIG = 2**20  # bytes
Refit = Literal["off", "all", "valid"]


@dataclass(frozen=True)
class RunConfig:
    """The content of ``config.json``. ``training`` is empty for a model that only counts.

    ``refit`` says on what the recipe is trained again after the test: ``all``, or all but the test items (``valid``).
    ``recipe`` has the reason for each option that was chosen from the log. ``init_from`` says which run the weights
    started from, how many of its items and users were kept, and the constants of its transition counts; it is empty if
    they started anew.
    """

    model: str
    model_config: dict[str, Any]
    num_items: Annotated[int, Range(1, 2**31 - 1)]
    num_users: Annotated[int, Range(1, 2**31 - 1)]
    has_timestamps: bool
    fingerprint: str
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    training: dict[str, Any] = field(default_factory=dict)
    refit: Refit = "off"
    recipe: dict[str, str] = field(default_factory=dict)
    init_from: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The model's name in tables."""
        return "mixed ensemble" if self.training.get("ensemble_kinds") == "mixed" else self.model

    @property
    def options(self) -> dict[str, Any]:
        """The options of the model, of training, and of preparing and splitting the log."""
        return self.model_config | self.training | asdict(self.prepare) | asdict(self.split)

    def build(self) -> Model:
        """A model of these sizes with fresh weights."""

        def member(kind: str) -> Model:
            own = kind == self.model
            sizes = self.model_config if own else sizes_beside(MODELS[kind].Config, self.model_config)
            return build_model(kind, sizes, self.num_items, self.num_users)

        count, kinds = self.training.get("ensemble") or 1, self.training.get("ensemble_kinds") or "same"
        found = [member(kind) for kind in kinds_of(self.model, count, kinds)]
        return found[0] if count == 1 else Ensemble(found)

    def outline(self, most: int) -> Model:
        """A model of these sizes on the device "meta", so that its weights take no memory.

        Args:
            most: number of weight tensors in the file. Building a model with many more stops early.

        Raises:
            ValueError, TypeError, RuntimeError, OverflowError: the sizes are impossible, or there are too many tensors.
        """
        with torch.device("meta"), _TensorLimit(4 * most + 64):
            return self.build()


def config_of(values: Mapping[str, Any], path: Path) -> RunConfig:
    """The configuration from a JSON object, after checking each value."""
    values = dict(values)
    version = values.pop("format_version", None)
    if type(version) is not int or version < 1:
        raise InputError(f"{path}: has no format_version; give a folder that seqrec fit wrote")
    if version > FORMAT_VERSION:
        raise InputError(f"{path}: format {version} is newer than this seqrec's {FORMAT_VERSION}; update seqrec")
    if version < FORMAT_VERSION:
        raise InputError(
            f"{path}: format {version} is from an earlier seqrec, which kept users and items in other files; train "
            f"again: seqrec fit LOG --out {path.parent} --overwrite"
        )
    try:
        for name, kind in (("prepare", PrepareConfig), ("split", SplitConfig)):
            if not isinstance(values.get(name), dict):
                raise InputError(f"{name} is missing or not an object")
            values[name] = kind(**check_fields(kind, values[name]))
        config = RunConfig(**check_fields(RunConfig, values, complete=True))
        if config.model not in MODELS:
            raise InputError(f"model is {config.model[:80]!r}, not one of {', '.join(MODELS)}")
        check_fields(MODELS[config.model].Config, config.model_config)
        _check_start(config.init_from)
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); train again") from error
    return config


def run_id(values: Mapping[str, Any]) -> str:
    """A digest of ``config.json``: of the fingerprint of the data, and of every option that the weights depend on.

    Each weight file contains it, so that files of another run are recognised. It depends only on the configuration, so
    the same log, options and seed give the same bytes again. ``refit`` is not part of it, because it does not change
    the first training; the weights of a refit say so themselves. Nor are the reasons in ``recipe``, or the path in
    ``init_from``.
    """
    known = {name: value for name, value in values.items() if name not in ("format_version", "refit", "recipe")}
    start = known.pop("init_from", {})
    if start:  # so that runs that start anew have the ids that they always had
        known["init_from"] = {name: value for name, value in start.items() if name != "run"}
    known["training"] = {name: value for name, value in known["training"].items() if name not in RESUMABLE}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def check_same(folder: Path, before: RunConfig, now: RunConfig, but: Sequence[str]) -> None:
    """Refuse to resume a run with another log or other options; only the options in ``but`` may differ.

    A refit may be added to a run, or changed, because the first training is the same with every kind of it.
    """
    old, new = asdict(before), asdict(now)
    if old["fingerprint"] != new["fingerprint"]:
        raise InputError(f"{folder}: the run was started on another log; give that log, or --overwrite")
    options = new["model_config"]
    old["model_config"] = {name: off for name, off in WITHOUT.items() if name in options} | old["model_config"]
    for one in (old, new):
        one["init_from"] = one["init_from"].get("run")
    parts = ("model", "init_from", "model_config", "prepare", "split", "training", *["refit"] * (now.refit == "off"))
    for part in parts:
        given = [value if isinstance(value, dict) else {part: value} for value in (old[part], new[part])]
        for name in given[1] | given[0]:  # earlier versions had fewer options
            plain = [list(v) if isinstance(v, tuple) else v for v in (values.get(name) for values in given)]
            if plain[0] != plain[1] and name not in but:
                raise InputError(
                    f"{folder}: the run was started with {name} = {given[0].get(name)}, not {given[1].get(name)}; "
                    "resume with the same options, or --overwrite"
                )


def _check_start(facts: Mapping[str, Any]) -> None:
    """Check what a run says of the one that it started from."""
    try:
        TransitionsConfig(**facts.get("constants", {}))
    except (InputError, TypeError) as error:
        raise InputError(f"init_from has constants that do not fit ({one_line(error)})") from error
    if not (fits(facts.get("weight", 0.0), float) and 0 <= facts.get("weight", 0.0) <= LARGEST):
        raise InputError(f"init_from has the weight {facts['weight']!r}; it is a number from 0 to {LARGEST:g}")
    kinds = [value for name, value in facts.items() if isinstance(value, dict) and name != "constants"]
    counts = [[kind.get(name) for name in ("kept", "new", "gone")] for kind in kinds]
    if facts and not (isinstance(facts.get("run"), str) and all(type(one) is int for count in counts for one in count)):
        raise InputError("init_from does not say how many items and users were kept")


class _TensorLimit(Outline):
    """A context in which creating more than ``most`` tensors is an error."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def created(self, tensor: torch.Tensor) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it asks for more weights than there are")
