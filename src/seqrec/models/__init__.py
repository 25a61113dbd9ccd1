"""All models by name. A new model is one file beside this one and one line here."""

from seqrec.models.base import Model
from seqrec.models.bert4rec import BERT4Rec
from seqrec.models.caser import Caser
from seqrec.models.gru4rec import GRU4Rec
from seqrec.models.markov import Markov
from seqrec.models.popularity import Popularity
from seqrec.models.recent_popularity import RecentPopularity
from seqrec.models.sasrec import SASRec
from seqrec.models.slirec import SLiRec
from seqrec.models.ssept import SSEPT
from seqrec.models.tisasrec import TiSASRec

MODELS: dict[str, type[Model]] = {
    "sasrec": SASRec,
    "ssept": SSEPT,
    "gru4rec": GRU4Rec,
    "caser": Caser,
    "slirec": SLiRec,
    "bert4rec": BERT4Rec,
    "tisasrec": TiSASRec,
    "markov": Markov,
    "popularity": Popularity,
    "recent-popularity": RecentPopularity,
}
