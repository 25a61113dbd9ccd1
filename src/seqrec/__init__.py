"""Next-item recommendations from an interaction log: SASRec, trained fast, evaluated honestly, ready to use."""

from seqrec.data.dataset import Dataset, Statistics
from seqrec.data.fetch import fetch
from seqrec.data.formats.items import read_items
from seqrec.data.formats.read import read_log
from seqrec.data.items import ItemTable
from seqrec.data.prepare import PrepareConfig, prepare
from seqrec.data.split import Split, SplitConfig, split_by_time, split_last_two
from seqrec.data.synthetic import SyntheticLog, synthetic_log
from seqrec.errors import InputError, LogWarning, MissingTimesWarning, RunWarning, TrainingWarning, UnknownIdWarning
from seqrec.models import MODELS
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.predictor import Predictor, Recommendations
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
    "Recommendations",
    "Recommender",
    "Run",
    "RunWarning",
    "SASRec",
    "SASRecConfig",
    "Split",
    "SplitConfig",
    "Statistics",
    "SyntheticLog",
    "TrainConfig",
    "TrainingWarning",
    "UnknownIdWarning",
    "evaluate",
    "fetch",
    "prepare",
    "read_items",
    "read_log",
    "split_by_time",
    "split_last_two",
    "synthetic_log",
    "train",
]
