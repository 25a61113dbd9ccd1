"""The options of the tools, apart from what they import, so that their help needs none of it."""

from dataclasses import dataclass
from typing import Annotated

from seqrec.data.fields import Count, Length, Options, Range

_Size = Annotated[int, Range(3)]


@dataclass(frozen=True)
class CompareConfig(Options):
    """What all models of a comparison get alike, beside the training.

    Args:
        minutes: Time limit for the training of each model, validation included. --epochs and --patience may end it
            earlier; the last validation may exceed it. A run that ends by this limit depends on the machine and cannot
            be reproduced byte for byte.
        test_negatives: Number of items that each target is ranked against in the sampled protocol.
        embedding_dim: Width of the embeddings, for models that have them. By default each model's own.
        max_length: Number of most recent items of a history that a model sees. By default each model's own.
    """

    minutes: Annotated[float, Range(above=0, most=float("inf"))] | None = None
    test_negatives: Count = 100
    embedding_dim: Count | None = None
    max_length: Length | None = None


@dataclass(frozen=True)
class BenchConfig(Options):
    """What is measured.

    Args:
        users: Number of users of the generated log.
        items: Number of items of the generated log.
        mean_length: Mean history length of the generated log; lengths are geometric: most short, few long.
        embedding_dim: Width of the model.
        max_length: Number of most recent items of a history that the model sees.
        catalogues: Catalogue sizes of the generated logs that show how a step and its memory scale.
        quick: Use small sizes and few steps, to check that everything works; the figures mean little.
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
        """Items of the generated logs on which growth and memory are measured."""
        return (1000, 3000) if self.quick else self.catalogues

    @property
    def steps(self) -> int:
        """Timed steps of training in each measurement, after a few that are not."""
        return 3 if self.quick else 40
