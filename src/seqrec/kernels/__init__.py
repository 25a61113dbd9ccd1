"""Compiled inner loops for the CPU, each with an equivalent in torch.

The C++ sources in this folder are compiled when the package is installed, if there is a C++ compiler. Without one, on
other devices and for types other than float32, torch computes the same more slowly. All calls go through ``arrays.py``,
which checks their arguments. ``SEQREC_KERNELS=0`` in the environment turns the loops off. benchmarks/RESULTS.md shows
how much time they save.
"""

from seqrec.kernels.adam import Drifts, adam_catch_up, adam_dense, adam_step, adam_sum
from seqrec.kernels.arrays import Remembered
from seqrec.kernels.block import attention_block
from seqrec.kernels.codes import Codes, RankedByCodes, codes_are_fast, codes_of, rank_by_codes
from seqrec.kernels.counts import Rows, sum_rows, sums_at, weigh_pairs
from seqrec.kernels.gated import gated_attention, time_buckets
from seqrec.kernels.layers import attention, dropout, dropped_words, feedforward, positions
from seqrec.kernels.loader import library, usable
from seqrec.kernels.recurrence import recurrent_block
from seqrec.kernels.sasrec import Dense, Encoder, Shared, sasrec_gradients, words_of_encoder
from seqrec.kernels.scores import Ranked, binary_loss, cross_entropy, product, rank, score, score_items, softmax_loss
from seqrec.kernels.sparse import rank_sparse

__all__ = [
    "Codes", "Dense", "Drifts", "Encoder", "Ranked", "RankedByCodes", "Remembered", "Rows", "Shared",
    "adam_catch_up", "adam_dense", "adam_step", "adam_sum", "attention", "attention_block", "binary_loss",
    "codes_are_fast", "codes_of", "cross_entropy", "dropout", "dropped_words", "feedforward", "gated_attention",
    "library", "positions", "product", "rank", "rank_by_codes", "rank_sparse", "recurrent_block", "sasrec_gradients",
    "score", "score_items", "softmax_loss", "sum_rows", "sums_at", "time_buckets", "usable", "weigh_pairs",
    "words_of_encoder",
]  # fmt: skip
