"""All models by name. A new model is one file beside this one and one line here."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from seqrec.errors import InputError
from seqrec.models.base import Model
from seqrec.models.bert4rec import BERT4Rec
from seqrec.models.caser import Caser
from seqrec.models.ease import EASE
from seqrec.models.esasrec import ESASRec
from seqrec.models.gru4rec import GRU4Rec
from seqrec.models.hstu import HSTU
from seqrec.models.lrurec import LRURec
from seqrec.models.markov import Markov
from seqrec.models.popularity import Popularity
from seqrec.models.recent_popularity import RecentPopularity
from seqrec.models.sasrec import SASRec
from seqrec.models.slirec import SLiRec
from seqrec.models.ssept import SSEPT
from seqrec.models.tisasrec import TiSASRec
from seqrec.models.transitions import Transitions

MODELS: dict[str, type[Model]] = {
    "sasrec": SASRec,
    "ssept": SSEPT,
    "gru4rec": GRU4Rec,
    "caser": Caser,
    "slirec": SLiRec,
    "bert4rec": BERT4Rec,
    "tisasrec": TiSASRec,
    "esasrec": ESASRec,
    "lrurec": LRURec,
    "hstu": HSTU,
    "transitions": Transitions,
    "ease": EASE,
    "markov": Markov,
    "popularity": Popularity,
    "recent-popularity": RecentPopularity,
}


#: The name that stands for sasrec, which other kinds may accompany in an ensemble.
AUTO = "auto"


def named_model(name: str) -> tuple[str, bool]:
    """The model that a name stands for, and whether an ensemble may be of several kinds, because nobody chose one.

    Raises:
        InputError: unknown model.
    """
    if name == AUTO:
        return "sasrec", True
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; choose one of {', '.join((AUTO, *MODELS))}")
    return name, False


def build_model(name: str, config: Mapping[str, Any], num_items: int, num_users: int) -> Model:
    """Build a model by name, with the fields of its ``Config`` taken from a mapping.

    Raises:
        InputError: unknown model or field.
    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    kind = MODELS[name]
    known = {f.name for f in fields(kind.Config)}
    unknown = sorted(set(config) - known)
    if unknown:
        raise InputError(f"{name} has no {', '.join(unknown)}; it takes {', '.join(sorted(known))}")
    return kind(kind.Config(**config), num_items, num_users)
