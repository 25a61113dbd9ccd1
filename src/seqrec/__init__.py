"""Next-item recommendations from an interaction log: SASRec, trained fast, evaluated honestly, ready to use."""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqrec.data.dataset import Dataset, Statistics
    from seqrec.data.fetch import fetch
    from seqrec.data.formats.items import read_items
    from seqrec.data.formats.read import read_log
    from seqrec.data.items import ItemTable
    from seqrec.data.leaks import SplitCheck
    from seqrec.data.prepare import PrepareConfig, prepare
    from seqrec.data.split import Split, SplitConfig, split_by_time, split_last_two
    from seqrec.data.synthetic import SyntheticLog, synthetic_log
    from seqrec.errors import InputError, LogWarning, MissingTimesWarning, RunWarning, TrainingWarning, UnknownIdWarning
    from seqrec.export.session import onnx_predictor
    from seqrec.export.write import export_onnx
    from seqrec.models import MODELS
    from seqrec.models.sasrec import SASRec, SASRecConfig
    from seqrec.models.transitions import Transitions, TransitionsConfig
    from seqrec.predictor import Predictor, Recommendations
    from seqrec.ranking.approximate import Recall
    from seqrec.ranking.protocols import Evaluation, evaluate
    from seqrec.recommender import Recommender
    from seqrec.run.folder import Run
    from seqrec.training.config import TrainConfig
    from seqrec.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "Dataset",
    "Evaluation",
    "InputError",
    "ItemTable",
    "LogWarning",
    "MissingTimesWarning",
    "Predictor",
    "PrepareConfig",
    "Recall",
    "Recommendations",
    "Recommender",
    "Run",
    "RunWarning",
    "SASRec",
    "SASRecConfig",
    "Split",
    "SplitCheck",
    "SplitConfig",
    "Statistics",
    "SyntheticLog",
    "TrainConfig",
    "TrainingWarning",
    "Transitions",
    "TransitionsConfig",
    "UnknownIdWarning",
    "evaluate",
    "export_onnx",
    "fetch",
    "onnx_predictor",
    "prepare",
    "read_items",
    "read_log",
    "split_by_time",
    "split_last_two",
    "synthetic_log",
    "train",
]

#: The module of each public name. It is imported on first use, because importing torch takes seconds.
_MODULES = {
    "MODELS": "models",
    "Dataset": "data.dataset",
    "Evaluation": "ranking.protocols",
    "InputError": "errors",
    "ItemTable": "data.items",
    "LogWarning": "errors",
    "MissingTimesWarning": "errors",
    "Predictor": "predictor",
    "PrepareConfig": "data.prepare",
    "Recall": "ranking.approximate",
    "Recommendations": "predictor",
    "Recommender": "recommender",
    "Run": "run.folder",
    "RunWarning": "errors",
    "SASRec": "models.sasrec",
    "SASRecConfig": "models.sasrec",
    "Split": "data.split",
    "SplitCheck": "data.leaks",
    "SplitConfig": "data.split",
    "Statistics": "data.dataset",
    "SyntheticLog": "data.synthetic",
    "TrainConfig": "training.config",
    "TrainingWarning": "errors",
    "Transitions": "models.transitions",
    "TransitionsConfig": "models.transitions",
    "UnknownIdWarning": "errors",
    "evaluate": "ranking.protocols",
    "export_onnx": "export.write",
    "fetch": "data.fetch",
    "onnx_predictor": "export.session",
    "prepare": "data.prepare",
    "read_items": "data.formats.items",
    "read_log": "data.formats.read",
    "split_by_time": "data.split",
    "split_last_two": "data.split",
    "synthetic_log": "data.synthetic",
    "train": "training.loop",
}


def __getattr__(name: str) -> object:
    """Import a public name, or a module of the package, on first use."""
    if name in _MODULES:
        value: object = getattr(_import_module(f"{__name__}.{_MODULES[name]}"), name)
    elif not name.startswith("_") and _find_spec(f"{__name__}.{name}"):
        value = _import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
