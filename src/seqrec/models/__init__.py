"""All models by name. A new model is one file beside this one and one line here."""

from seqrec.models.base import Model
from seqrec.models.markov import Markov
from seqrec.models.popularity import Popularity
from seqrec.models.recent_popularity import RecentPopularity
from seqrec.models.sasrec import SASRec

MODELS: dict[str, type[Model]] = {
    "sasrec": SASRec,
    "markov": Markov,
    "popularity": Popularity,
    "recent-popularity": RecentPopularity,
}
