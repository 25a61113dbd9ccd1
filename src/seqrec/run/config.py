"""The content of ``config.json``."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from torch.overrides import TorchFunctionMode

from seqrec.data.dataset import fingerprint
from seqrec.data.fields import Range, check_fields
from seqrec.data.prepare import PrepareConfig
from seqrec.data.split import SplitConfig
from seqrec.errors import InputError, one_line
from seqrec.models import MODELS, build_model
from seqrec.models.base import Model
from seqrec.run.layout import CONFIG, RESUMABLE

__all__ = ["CONFIG", "FORMAT_VERSION", "RESUMABLE", "RunConfig", "config_of", "fingerprint", "run_id"]

FORMAT_VERSION = 2
MOST_CONFIG = 2**20  # bytes


@dataclass(frozen=True)
class RunConfig:
    """The content of ``config.json``. ``training`` is empty for a model that only counts."""

    model: str
    model_config: dict[str, Any]
    num_items: Annotated[int, Range(1, 2**31 - 1)]
    num_users: Annotated[int, Range(1, 2**31 - 1)]
    has_timestamps: bool
    fingerprint: str
    prepare: PrepareConfig = field(default_factory=PrepareConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    training: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Model:
        """A model of these sizes with fresh weights."""
        return build_model(self.model, self.model_config, self.num_items, self.num_users)

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
    except (InputError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({one_line(error)}); train again") from error
    return config


def run_id(values: Mapping[str, Any]) -> str:
    """A digest of ``config.json``: of the fingerprint of the data, and of every option that the weights depend on.

    Each weight file contains it, so that files of another run are recognised. It depends only on the configuration, so
    the same log, options and seed give the same bytes again.
    """
    known = {name: value for name, value in values.items() if name != "format_version"}
    known["training"] = {name: value for name, value in known["training"].items() if name not in RESUMABLE}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


class _TensorLimit(TorchFunctionMode):
    """A context in which creating more than ``most`` tensors is an error."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.left = most

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("empty", "zeros", "ones", "full", "rand", "randn", "tensor", "arange"):
            self.left -= 1
            if self.left < 0:
                raise ValueError("it asks for more weights than there are")
        return func(*args, **(kwargs or {}))
