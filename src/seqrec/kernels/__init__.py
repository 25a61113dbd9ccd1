"""Compiled inner loops on the CPU, each with a form in torch that computes the same.

The C++ sources beside this file are built when the package is installed, where there is a C++ compiler; without one, on
another device and for other types than float32, torch does the same work in more and longer steps.
``arrays.py`` is the only door to them, and checks all that passes it.
``SEQREC_KERNELS=0`` in the environment turns them off. What they save is in benchmarks/RESULTS.md.
"""

from seqrec.kernels.adam import Drifts, adam_catch_up, adam_dense, adam_step
from seqrec.kernels.block import block
from seqrec.kernels.layers import attention, dropout, dropped_words, feedforward, positions
from seqrec.kernels.loader import library, usable
from seqrec.kernels.scores import Ranked, binary_loss, cross_entropy, product, rank, score, softmax_loss

__all__ = [
    "Drifts", "Ranked", "adam_catch_up", "adam_dense", "adam_step", "attention", "binary_loss", "block",
    "cross_entropy", "dropout", "dropped_words", "feedforward", "library", "positions", "product", "rank", "score",
    "softmax_loss", "usable",
]  # fmt: skip
