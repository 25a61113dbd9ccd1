"""The options of the tools, in their own module, so that showing help does not import the tools."""

from dataclasses import dataclass
from typing import Annotated

from seqrec.data.fields import Count, Length, Options, Range
from seqrec.training.budget import MOST_MINUTES

_Size = Annotated[int, Range(3)]


@dataclass(frozen=True)
class CompareConfig(Options):
    """The terms that are the same for all models of a comparison, in addition to the training options.

    Args:
        seeds: Number of trainings of each model, with --seed and the numbers after it as seeds. The results are means
            over them, with intervals that include the variation between trainings. Counted models are trained once.
        shuffled: Also train each trained model on histories in random order, for the same targets and candidates, and
            show which share of NDCG@10 is lost: what order is worth.
        minutes: Time limit for each training, including validation but not the test. Training may end earlier by
            --epochs or --patience. A result that this limit ends cannot be reproduced byte for byte.
        test_negatives: Number of random items that the sampled protocol ranks each target against.
        embedding_dim: Width of the embeddings, for models that have them. By default each model's own.
        max_length: Number of most recent items of a history that a model sees. By default chosen from the log for each
            model.
        features: Columns of the item table (--items FILE) for the models that can learn them: names separated by
            commas, or ``all`` for those that there is something to learn of. By default none.
        user_features: The same of the user table (--users FILE).
    """

    seeds: Count = 1
    shuffled: bool = False
    minutes: Annotated[float, Range(above=0, most=MOST_MINUTES)] | None = None
    test_negatives: Count = 100
    embedding_dim: Count | None = None
    max_length: Length | None = None
    features: str | None = None
    user_features: str | None = None


@dataclass(frozen=True)
class TuneConfig(Options):
    """How long options are searched.

    Args:
        minutes: Time limit for the whole command, the last training and its tests included, kept within about 10 %.
        trials: Number of trials, counted over all commands that worked on the study. By default 30, or with
            ``minutes`` as many as there is time for.
    """

    minutes: Annotated[float, Range(above=0, most=MOST_MINUTES)] | None = None
    trials: Count | None = None

    @property
    def most_trials(self) -> float:
        """Number of trials, or infinity if only the time limits them."""
        if self.trials is not None:
            return self.trials
        return 30 if self.minutes is None else float("inf")


@dataclass(frozen=True)
class BenchConfig(Options):
    """Sizes of the benchmark.

    Args:
        users: Number of users of the generated log.
        items: Number of items of the generated log.
        mean_length: Mean history length of the generated log. The lengths are geometric: most are short, few long.
        embedding_dim: Width of the model.
        max_length: Number of most recent items of a history that the model sees.
        catalogues: Catalogue sizes at which to measure how a step and its memory scale.
        quick: Use small sizes and few steps, to check that everything works. The figures mean little.
        seed: Random seed of the log and the weights.
    """

    users: _Size = 30_000
    items: _Size = 20_000
    mean_length: _Size = 9
    embedding_dim: _Size = 64
    max_length: Annotated[int, Range(3, 2**20)] = 50
    catalogues: Annotated[tuple[int, ...], Range(3)] = (10_000, 100_000, 1_000_000)
    quick: bool = False
    seed: Annotated[int, Range(0)] = 0

    @property
    def sizes_of_catalogues(self) -> tuple[int, ...]:
        """Catalogue sizes at which growth and memory are measured."""
        return (1000, 3000) if self.quick else self.catalogues

    @property
    def steps(self) -> int:
        """Number of timed training steps per measurement, after a few warm-up steps."""
        return 3 if self.quick else 40
