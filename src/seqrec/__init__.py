"""Next-item recommendations from an interaction log: SASRec, trained fast, evaluated honestly, ready to use."""

from seqrec.data.fetch import fetch
from seqrec.data.prepare import Dataset, PrepareConfig, Statistics, prepare
from seqrec.data.read import read_log
from seqrec.data.split import Split, split_by_time, split_last_two
from seqrec.data.synthetic import SyntheticLog, synthetic_log
from seqrec.errors import InputError
from seqrec.evaluate import Evaluation, evaluate
from seqrec.models import MODELS
from seqrec.models.sasrec import SASRec, SASRecConfig
from seqrec.recommender import Recommender, UnknownIdWarning
from seqrec.run import Run, SplitConfig
from seqrec.train import TrainConfig, train

__version__ = "0.1.0"

__all__ = [
    "MODELS",
    "Dataset",
    "Evaluation",
    "InputError",
    "PrepareConfig",
    "Recommender",
    "Run",
    "SASRec",
    "SASRecConfig",
    "Split",
    "SplitConfig",
    "Statistics",
    "SyntheticLog",
    "TrainConfig",
    "UnknownIdWarning",
    "evaluate",
    "fetch",
    "prepare",
    "read_log",
    "split_by_time",
    "split_last_two",
    "synthetic_log",
    "train",
]
