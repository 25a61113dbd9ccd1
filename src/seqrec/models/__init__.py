"""All models by name. A new model is one file beside this one and one line here."""

from seqrec.models.base import Model
from seqrec.models.sasrec import SASRec

MODELS: dict[str, type[Model]] = {
    "sasrec": SASRec,
}
