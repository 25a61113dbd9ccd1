"""Calls of the compiled loops: arguments that do not fit are refused before anything is read or written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from packed import offsets_of
from torch import Tensor

from seqrec import kernels
from seqrec.kernels import layers, loader
from seqrec.kernels.arrays import Loop

pytestmark = pytest.mark.loops

BETAS = 0.9, 0.999


def floats(*shape: int) -> Tensor:
    return torch.zeros(shape)


def longs(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def words(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int16)


def gaps(*shape: int) -> Tensor:
    return torch.zeros(*shape[:-1], 2 * shape[-1])[..., : shape[-1]]


DRIFTS = kernels.Drifts(torch.zeros(9, 2, dtype=torch.float64), torch.zeros(5, 4, dtype=torch.float64))
SHORT = kernels.Drifts(torch.zeros(3, 2, dtype=torch.float64), torch.zeros(5, 4, dtype=torch.float64))
NARROW = kernels.Drifts(torch.zeros(9, 2, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64))


def parameters(dim: int, hidden: int) -> list[Tensor]:
    shapes = ((dim,), (dim,), (dim, dim), (dim,), (2 * dim, dim), (2 * dim,), (dim,), (dim,), (hidden, dim), (hidden,),
              (dim, hidden), (dim,))  # fmt: skip
    return [floats(*shape) for shape in shapes]


def attention() -> dict[str, Any]:
    return {"query": floats(5, 6), "key_value": floats(5, 12), "offsets": offsets_of([2, 3]), "num_heads": 2,
            "causal": True, "words": words(18), "dropout": 0.5}  # fmt: skip


def last_attention() -> dict[str, Any]:
    return attention() | {"query": floats(2, 6), "words": None, "last_only": True}


def block() -> dict[str, Any]:
    return {"x": floats(5, 6), "offsets": offsets_of([2, 3]), "parameters": parameters(6, 4), "num_heads": 2,
            "norm": "pre", "epsilon": 1e-8, "words": [words(18), words(20), words(30)], "dropout": 0.5}  # fmt: skip


def encoder(**wrong: Any) -> dict[str, Any]:
    made = kernels.Encoder(
        floats(7, 6), floats(3, 6), [parameters(6, 4)] * 2, floats(6), floats(6), 2, "pre", 1e-8, 1.0, 0.5
    )
    return {"encoder": made._replace(**wrong)}


def gradients() -> dict[str, Any]:
    shared = kernels.Shared(longs(1, 6, 0, 2), (longs(0, 4), longs(3, 0)), floats(4))
    return encoder() | {"items": longs(0, 1, 2, 3, 6), "offsets": offsets_of([2, 3]), "shared": shared, "share": 0.2,
                        "asked": longs(1, 2, 3, 4, 5)[:, None], "words": words(32 + 2 * (20 + 20 + 32))}  # fmt: skip


def shared_but(**wrong: Any) -> dict[str, Any]:
    return {"shared": gradients()["shared"]._replace(**wrong)}


def last_block() -> dict[str, Any]:
    return block() | {"words": None, "last_only": True}


def recurrent() -> dict[str, Any]:
    shapes = (8,), (8, 6), (8,), (6, 8), (6,), (6,), (6,), (4, 6), (4,), (6, 4), (6,), (6,), (6,)
    return {"x": floats(5, 6), "offsets": offsets_of([2, 3]), "parameters": [floats(*shape) for shape in shapes],
            "epsilon": 1e-5, "words": [words(30), words(20), words(30)], "dropout": 0.5}  # fmt: skip


def last_recurrent() -> dict[str, Any]:
    return recurrent() | {"words": None, "last_only": True}


def gated() -> dict[str, Any]:
    # Without the loops these tests are only collected.
    cells = layers.weights_of(np.array([2, 3])) if kernels.library() is not None else 5
    return {"mixed": floats(5, 24), "offsets": offsets_of([2, 3]), "positions": floats(3), "num_heads": 2,
            "share": 0.1, "epsilon": 1e-6, "times": floats(4), "buckets": torch.full((cells,), 3, dtype=torch.int32),
            "words": words(30), "dropout": 0.5}  # fmt: skip


def timed() -> dict[str, Any]:
    return {"times": longs(5, 9, 1, 2, 3), "offsets": offsets_of([2, 3]), "edges": longs(1, 2)}


def buckets_but(place: int, value: int) -> dict[str, Any]:
    buckets = gated()["buckets"]
    buckets[place] = value
    return {"buckets": buckets}


def positions() -> dict[str, Any]:
    return {"x": floats(5, 6), "table": floats(3, 6), "offsets": offsets_of([2, 3]), "scale": 1.0, "words": words(30),
            "probability": 0.5}  # fmt: skip


def feedforward() -> dict[str, Any]:
    layers = [(floats(4, 6), floats(4)), (floats(6, 4), floats(6))]
    return {"x": floats(5, 6), "residual": floats(5, 6), "layers": layers, "words": [words(20), words(30)],
            "dropout": 0.5}  # fmt: skip


def table() -> dict[str, Any]:
    return {"rows": longs(1, 2, 1), "step": 4, "betas": BETAS, "rate": 0.1, "epsilon": 1e-8, "drifts": DRIFTS,
            "weight": floats(7, 3), "first": floats(7, 3), "second": floats(7, 3),
            "last": torch.ones(7, dtype=torch.int32)}  # fmt: skip


def step() -> dict[str, Any]:
    return table() | {"gradients": floats(3, 3), "slots": torch.full((7,), -1, dtype=torch.int32)}


def dense() -> dict[str, Any]:
    parts = {name: [floats(3, 2), floats(4)] for name in ("weights", "gradients", "firsts", "seconds")}
    return parts | {"steps": [floats(), floats()], "betas": BETAS, "rate": 0.1, "epsilon": 1e-8}


def softmax_loss() -> dict[str, Any]:
    return {"hidden": floats(5, 3), "vectors": floats(7, 3), "targets": floats(5),
            "left_out": (longs(0, 4), longs(6, 0)), "log_probability": floats(7)}  # fmt: skip


def rank() -> dict[str, Any]:
    return {"states": floats(5, 3), "vectors": floats(7, 3), "k": 2, "left_out": (longs(0, 4), longs(6, 0)),
            "skipped": torch.zeros(7, dtype=torch.bool), "targets": longs(0, 1, 2, 3, 6),
            "added": (longs(0, 0, 4), longs(0, 6, 1), floats(3))}  # fmt: skip


def rank_sparse() -> dict[str, Any]:
    rows = kernels.Rows(longs(0, 1, 1), longs(3), floats(1))
    return {"prior": (floats(4), ints(1, 2, 3), floats(3)), "which": longs(0, 1), "norms": floats(2), "rows": rows,
            "added": False, "k": 5, "left_out": (longs(0, 1), longs(2, 0)), "targets": longs(1, 3)}  # fmt: skip


def entries_but(**wrong: Tensor) -> dict[str, Any]:
    return {"rows": rank_sparse()["rows"]._replace(**wrong)}


def rank_by_codes() -> dict[str, Any]:
    vectors = floats(7, 3)
    return {"states": floats(5, 3), "vectors": vectors, "codes": kernels.codes_of(vectors), "k": 2,
            "left_out": (longs(0, 4), longs(6, 0)), "skipped": torch.zeros(7, dtype=torch.bool),
            "added": (longs(0, 0, 4), longs(0, 6, 1), floats(3))}  # fmt: skip


def codes_but(**wrong: Tensor) -> dict[str, Any]:
    return {"codes": rank_by_codes()["codes"]._replace(**wrong)}


def pairs() -> dict[str, Any]:
    return {"items": ints(1, 2, 0, 3), "starts": longs(0, 2), "ends": longs(2, 4), "after": floats(2),
            "beside": floats(1), "gains": floats(4), "factors": floats(4), "most": 2,
            "wanted": torch.ones(4, dtype=torch.bool)}  # fmt: skip


def sums() -> dict[str, Any]:
    table = kernels.Rows(longs(0, 1, 3, 3), ints(2, 0, 2), floats(3))
    return {"table": table, "offsets": longs(0, 2, 2), "entries": ints(1, 2), "coefficients": floats(2)}


def table_of(**wrong: Tensor) -> dict[str, Any]:
    return {"table": sums()["table"]._replace(**wrong)}


OFFSETS = [
    {"offsets": offsets} for offsets in (longs(0, 9, 5), longs(0, -3, 5), longs(1, 2, 5), longs(0, 2, 4),
                                         longs(0, 2, 6), longs(), longs(0), floats(3), longs(0, 2, 5)[None],
                                         longs(0, 5, 5, 0, 5))
]  # fmt: skip
HEADS = [{"num_heads": heads} for heads in (4, 0, -1, 7)]
PROBABILITIES = [-0.1, 1.1, float("nan"), float("inf")]
MOMENTS = [
    {part: wrong} for part in ("first", "second", "weight")
    for wrong in (floats(6, 3), floats(7, 2), floats(1), gaps(7, 3), floats(7, 3).double())
]  # fmt: skip
CASES: list[tuple[Callable[..., Any], Callable[[], dict[str, Any]], list[dict[str, Any]]]] = [
    (kernels.attention, attention, [
        *OFFSETS, *HEADS, *({"dropout": wrong} for wrong in PROBABILITIES), {"query": floats(4, 6)},
        {"key_value": floats(5, 11)}, {"key_value": floats(4, 12)}, {"words": words(17)}, {"words": floats(18)},
        {"query": floats(5, 6).double()}, {"causal": False}, {"query": torch.zeros(5, 6, device="meta")},
        {"words": words(36)[::2]},
    ]),
    (kernels.attention, last_attention, [*OFFSETS, *HEADS, {"offsets": longs(0, 0, 5)}, {"offsets": longs(0, 5, 5)}]),
    (kernels.attention_block, block, [
        *OFFSETS, *HEADS, *({"dropout": wrong} for wrong in PROBABILITIES), {"x": floats(4, 6)}, {"x": floats(5, 8)},
        {"norm": "none"}, {"parameters": parameters(6, 4)[:11]}, {"parameters": parameters(4, 6)},
        {"parameters": [*parameters(6, 4)[:8], *parameters(6, 5)[8:10], *parameters(6, 4)[10:]]},
        {"words": [words(17), words(20), words(30)]}, {"words": [words(18), words(19), words(30)]},
        {"words": [words(18), words(20), words(29)]}, {"words": [words(18), words(20)]}, {"x": floats(5, 6).double()},
    ]),
    (kernels.sasrec_gradients, gradients, [
        *OFFSETS, {"offsets": offsets_of([1, 4])}, *(encoder(num_heads=heads) for heads in (4, 0, -1, 7)),
        *(encoder(dropout=wrong) for wrong in PROBABILITIES), encoder(norm="none"), encoder(table=floats(6, 6)),
        encoder(table=floats(7, 5)), encoder(table=gaps(7, 6)), encoder(positions=floats(2, 6)),
        encoder(gain=floats(5)), encoder(blocks=[parameters(6, 4), parameters(6, 4)[:11]]),
        encoder(blocks=[parameters(6, 4), parameters(6, 5)]),
        encoder(bias=floats(6).double()), {"items": longs(0, 1, 2, 3)}, {"items": longs(0, 1, 2, 3, 7)},
        {"items": ints(0, 1, 2, 3, 6)}, {"items": longs(0, 1, 2, 3, -1)}, {"asked": longs(1, 2, 3, 4, 7)[:, None]},
        {"asked": longs(1, 2, 3, 4, 5)}, {"asked": longs(1, 2, 3, 4)[:, None]}, {"asked": torch.ones(5, 2).long()},
        {"asked": torch.ones(5, 0).long()}, {"words": words(31 + 144)}, {"words": floats(176)},
        {"to": kernels.Dense(floats(9), [], kernels.Remembered())},
        shared_but(negatives=longs(1, 6, 0, 7)), shared_but(negatives=longs(1, 6)),
        shared_but(log_probability=floats(3)),
        shared_but(left_out=(longs(4, 0), longs(3, 0))), shared_but(left_out=(longs(0, 5), longs(3, 0))),
        shared_but(left_out=(longs(0, 4), longs(4, 0))), shared_but(left_out=(longs(0, 4), longs(3))),
        shared_but(left_out=(longs(0, 4), longs(-1, 0))),
    ]),
    (kernels.recurrent_block, recurrent, [
        *OFFSETS, {"x": floats(4, 6)}, {"x": floats(5, 7)}, {"x": floats(5, 6).double()}, {"dropout": 1.5},
        {"parameters": recurrent()["parameters"][:-1]}, {"parameters": [floats(7), *recurrent()["parameters"][1:]]},
        {"parameters": [floats(6), *recurrent()["parameters"][1:]]}, {"words": [words(3)] * 3}, {"words": [words(30)]},
        {"parameters": [*recurrent()["parameters"][:-1], floats(5)]}, {"words": [words(30), words(19), words(30)]},
    ]),
    (kernels.recurrent_block, last_recurrent, [*OFFSETS, {"offsets": longs(0, 0, 5)}, {"offsets": longs(0, 5, 5)}]),
    (kernels.attention_block, last_block, [*OFFSETS, *HEADS, {"offsets": longs(0, 0, 5)}, {"offsets": longs(0, 5, 5)}]),
    (kernels.gated_attention, gated, [
        *OFFSETS, *HEADS, *({"dropout": wrong} for wrong in PROBABILITIES), {"mixed": floats(4, 24)},
        {"mixed": floats(5, 23)}, {"mixed": floats(24)}, {"mixed": floats(5, 24).double()}, {"positions": floats(2)},
        {"positions": floats(3, 1)}, {"times": None}, {"buckets": None}, {"times": floats(3)}, {"times": floats(4, 1)},
        {"buckets": gated()["buckets"][:-1]}, {"buckets": gated()["buckets"].long()}, buckets_but(0, 4),
        buckets_but(-1, -1), {"words": words(29)}, {"words": floats(30)},
    ]),
    (kernels.time_buckets, timed, [
        *OFFSETS, {"times": longs(5, 9, 1, 2)}, {"times": floats(5)}, {"edges": longs(2, 1)}, {"edges": ints(1, 2)},
        {"edges": longs(1)[None]},
    ]),
    (kernels.dropout, lambda: {"x": floats(4, 5), "words": words(20), "probability": 0.5}, [
        *({"probability": wrong} for wrong in PROBABILITIES), {"words": words(19)}, {"words": longs(*range(20))},
        {"x": floats(4, 5).double()},
    ]),
    (kernels.positions, positions, [
        *OFFSETS, *({"probability": wrong} for wrong in PROBABILITIES), {"table": floats(2, 6)},
        {"table": floats(3, 5)}, {"x": floats(4, 6)}, {"words": words(29)},
    ]),
    (kernels.feedforward, feedforward, [
        *({"dropout": wrong} for wrong in PROBABILITIES), {"residual": floats(4, 6)}, {"residual": floats(1)},
        {"words": [words(20), words(29)]}, {"words": [words(19), words(30)]}, {"words": [words(20)]}, {"layers": []},
    ]),
    (kernels.adam_catch_up, table, [
        *MOMENTS, {"last": torch.ones(6, dtype=torch.int32)}, {"last": longs(*range(7))}, {"drifts": SHORT},
        {"drifts": NARROW}, {"rows": floats(3)}, {"step": 9}, {"step": -1}, {"rows": longs(1)[None]},
    ]),
    (kernels.adam_sum, lambda: {name: step()[name] for name in ("rows", "gradients", "slots")}, [
        {"gradients": floats(2, 3)}, {"gradients": floats(3, 3).double()}, {"rows": longs(1, 2, 7)},
        {"rows": longs(1, 2, -1)}, {"rows": floats(3)}, {"slots": longs(*range(7))},
    ]),
    (kernels.adam_step, step, [
        *MOMENTS, {"last": torch.ones(6, dtype=torch.int32)}, {"slots": torch.ones(6, dtype=torch.int32)},
        {"drifts": SHORT}, {"drifts": NARROW}, {"gradients": floats(2, 3)}, {"gradients": floats(3, 2)},
        {"rows": longs(1, 2, 7)}, {"rows": longs(1, 2, -1)}, {"rows": floats(3)}, {"step": 9}, {"step": 0},
    ]),
    (kernels.adam_dense, dense, [
        {part: wrong} for part in ("firsts", "seconds", "gradients", "weights")
        for wrong in ([floats(3, 2), floats(3)], [floats(3, 2)], [floats(3, 2), floats(4).double()])
    ] + [{"steps": [floats()]}, {"steps": [floats(), floats(2)]}, {"firsts": [gaps(3, 2), floats(4)]}]),
    (kernels.product, lambda: {"a": floats(3, 4), "b": floats(4, 5)}, [
        {"a": floats(3, 5)}, {"b": floats(4)}, {"b": floats(4, 5).double()}, {"a": floats(3, 4, 1)},
    ]),
    (kernels.score, lambda: {"hidden": floats(3, 4), "vectors": floats(3, 5, 4)}, [
        {"hidden": floats(2, 4)}, {"vectors": floats(3, 5, 3)}, {"vectors": floats(3, 4)},
        {"hidden": floats(3, 4).double()},
    ]),
    (kernels.score_items, lambda: {"hidden": floats(3, 4), "vectors": floats(5, 4), "items": longs(0, 4, 1)[:, None]}, [
        {"hidden": floats(2, 4)}, {"vectors": floats(5, 3)}, {"vectors": floats(4, 4)}, {"items": longs(0, 4, 1)},
        {"items": longs(0, -1, 1)[:, None]}, {"items": floats(3, 1)},
    ]),
    (kernels.binary_loss, lambda: {"hidden": floats(3, 4), "vectors": floats(3, 5, 4)}, [
        {"hidden": floats(2, 4)}, {"vectors": floats(3, 5, 3)}, {"vectors": floats(3, 0, 4)}, {"vectors": floats(3, 4)},
    ]),
    (kernels.softmax_loss, softmax_loss, [
        {"hidden": floats(5, 2)}, {"targets": floats(4)}, {"log_probability": floats(6)}, {"vectors": floats(6, 3)},
        {"left_out": (longs(4, 0), longs(6, 0))}, {"left_out": (longs(0, 5), longs(6, 0))},
        {"left_out": (longs(-1, 4), longs(6, 0))}, {"left_out": (longs(0, 4), longs(7, 0))},
        {"left_out": (longs(0, 4), longs(-1, 0))}, {"left_out": (longs(0, 4), longs(6))},
        {"left_out": (floats(2), longs(6, 0))},
    ]),
    (kernels.cross_entropy, lambda: {"hidden": floats(3, 4), "vectors": floats(6, 4), "items": longs(1, 5, 2)}, [
        {"items": longs(1, 6, 2)}, {"items": longs(0, 1, 2)}, {"items": longs(1, 5)}, {"vectors": floats(6, 3)},
        {"vectors": floats(0, 4)}, {"items": floats(3)},
    ]),
    (kernels.rank, rank, [
        {"k": 8}, {"k": -1}, {"targets": longs(0, 1, 2, 3, 7)}, {"targets": longs(0, 1, 2, 3, -1)},
        {"targets": longs(0, 1)}, {"skipped": torch.zeros(6, dtype=torch.bool)}, {"skipped": floats(7)},
        {"left_out": (longs(4, 0), longs(6, 0))}, {"left_out": (longs(0, 5), longs(6, 0))},
        {"left_out": (longs(0, 4), longs(7, 0))}, {"left_out": (longs(0, 4), longs(6))}, {"vectors": floats(7, 2)},
        {"states": floats(5, 3).double()}, {"states": floats(3)},
        {"added": (longs(0, 0, 4), longs(6, 0, 1), floats(3))}, {"added": (longs(4, 0, 0), longs(0, 0, 1), floats(3))},
        {"added": (longs(0, 0, 5), longs(0, 6, 1), floats(3))}, {"added": (longs(0, 0, 4), longs(0, 7, 1), floats(3))},
        {"added": (longs(0, 0, 4), longs(0, 6, -1), floats(3))},
        {"added": (longs(0, 0, 4), longs(0, 6, 1), floats(2))}, {"added": (longs(0, 4), longs(0, 6, 1), floats(3))},
        {"added": (longs(0, 0, 4), longs(0, 6, 1), floats(3).double())},
    ]),
    (kernels.rank_sparse, rank_sparse, [
        {"k": -1}, {"which": longs(0, 2)}, {"which": longs(0, -1)}, {"which": longs(0)}, {"which": floats(2)},
        {"norms": floats(3)}, {"norms": floats(2).double()}, {"targets": longs(1, 4)}, {"targets": longs(1, -1)},
        {"targets": longs(1)}, {"left_out": (longs(1, 0), longs(2, 0))}, {"left_out": (longs(0, 2), longs(2, 0))},
        {"left_out": (longs(0, 1), longs(2, 4))}, {"left_out": (longs(0, 1), longs(2))},
        entries_but(offsets=longs(0, 1)), entries_but(offsets=longs(0, 2, 1)), entries_but(offsets=longs(1, 1, 1)),
        entries_but(offsets=longs(0, 1, 2)), entries_but(columns=longs(4)), entries_but(columns=longs(-1)),
        entries_but(columns=longs(1, 2)), entries_but(values=floats(2)), entries_but(values=floats(1).double()),
        {"prior": (floats(4), ints(1, 2, 4), floats(3))}, {"prior": (floats(4), ints(1, 2, -1), floats(3))},
        {"prior": (floats(4), longs(1, 2, 3), floats(3))}, {"prior": (floats(4), ints(1, 2, 3), floats(2))},
        {"prior": (floats(4).double(), ints(1, 2, 3), floats(3))}, {"prior": (floats(3), ints(1, 2, 0), floats(3))},
    ]),
    (kernels.rank_by_codes, rank_by_codes, [
        {"k": 8}, {"k": 0}, {"states": floats(3)}, {"states": floats(5, 2)}, {"states": floats(5, 3).double()},
        {"vectors": floats(17, 3)}, {"vectors": floats(7, 5)}, codes_but(steps=floats(4)),
        codes_but(blocks=torch.zeros(1, 1, 64)), codes_but(blocks=torch.zeros(1, 2, 64, dtype=torch.uint8)),
        codes_but(order=longs(0, 1)), codes_but(places=longs(0, 1)), codes_but(reach=floats(2)),
        codes_but(centres=floats(4)), codes_but(norms=torch.zeros(2, dtype=torch.float64)),
        {"left_out": (longs(4, 0), longs(6, 0))}, {"left_out": (longs(0, 4), longs(7, 0))},
        {"left_out": (longs(0, 5), longs(6, 0))}, {"skipped": torch.zeros(6, dtype=torch.bool)},
        {"added": (longs(0, 0, 4), longs(6, 0, 1), floats(3))}, {"added": (longs(0, 0, 4), longs(0, 7, 1), floats(3))},
        {"added": (longs(0, 0, 4), longs(0, 6, 1), floats(2))},
    ]),
    (kernels.weigh_pairs, pairs, [
        {"items": ints(1, 2, 0, 4)}, {"items": ints(1, 2, 0, -1)}, {"items": longs(1, 2, 0, 3)}, {"starts": longs(0)},
        {"starts": longs(0, 1)}, {"starts": longs(-1, 2)}, {"ends": longs(2, 5)}, {"ends": longs(2, 1)},
        {"ends": longs(0, 2**62)}, {"starts": floats(2)}, {"starts": longs(1, 0)}, {"most": 0},
        {"after": floats(2, 1)}, {"after": floats(2) + torch.inf}, {"beside": floats(1) + torch.nan},
        {"after": floats(2) - 1}, {"after": floats(2).double()}, {"beside": floats(1).double()}, {"beside": longs(1)},
        {"factors": floats(3)}, {"factors": floats(4) + torch.inf}, {"factors": floats(4) - 1}, {"gains": floats(3)},
        {"gains": floats(4) + torch.nan}, {"gains": floats(4) - 1}, {"gains": floats(4).double()},
        {"gains": floats(3), "factors": floats(3), "wanted": None}, {"gains": floats(0), "factors": floats(0)},
        {"wanted": torch.ones(3, dtype=torch.bool)}, {"wanted": torch.ones(4)}, {"wanted": ints(1, 1, 1, 1)},
    ]),
    (kernels.sum_rows, sums, [
        table_of(offsets=longs(0, 4, 3, 3)), table_of(offsets=longs(0, -1, 3, 3)), table_of(offsets=longs(0, 1, 4, 4)),
        table_of(offsets=longs(0, 3, 1, 3)), table_of(offsets=longs(0, -(2**62), 2**62, 3)), table_of(offsets=longs()),
        table_of(columns=ints(2, 3, 0)), table_of(columns=ints(2, -1, 0)), table_of(columns=longs(2, 0, 2)),
        table_of(values=floats(2)), {"offsets": longs(0, 2, 3)}, {"offsets": longs(0, 2, 1)}, {"entries": ints(1, 3)},
        {"entries": ints(1, -1)}, {"coefficients": floats(3)}, {"entries": longs(1, 2)},
    ]),
    (kernels.sums_at, lambda: sums() | {"asked": longs(1, 2)[:, None]}, [
        table_of(offsets=longs(0, 4, 3, 3)), table_of(columns=ints(2, 3, 0)), table_of(columns=longs(2, 0, 2)),
        {"offsets": longs(0, 2, 3)}, {"entries": ints(1, 3)}, {"coefficients": floats(3)}, {"asked": longs(1, 2)},
        *({"asked": asked} for asked in (longs(1, 3)[:, None], longs(1, -1)[:, None], longs(1)[:, None])),
        {"asked": ints(1, 2)[:, None]}, {"asked": longs(1, 2)[None]},
    ]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("function", "right", "wrong"),
    [(function, right, wrong) for function, right, all_wrong in CASES for wrong in all_wrong],
)
def test_what_does_not_fit_is_refused(function, right, wrong):
    with torch.no_grad():
        function(**right())
        with pytest.raises(ValueError, match=r"\w+"):  # the reasons differ
            function(**right() | wrong)


def test_remembered_tensors_are_checked_again_if_they_change():
    known, tensors = kernels.Remembered(), [floats(3, 2), floats(4)]
    found = known.addresses("weights", tensors, [6, 4])
    assert known.addresses("weights", tensors, [6, 4]) is found
    tensors[0].data = tensors[0].data.clone()
    moved = known.addresses("weights", tensors, [6, 4])
    assert list(moved) == [x.data_ptr() for x in tensors] != list(found)
    for wrong in ([tensors[0]], [tensors[0], tensors[1][:3]], [tensors[0], tensors[1].double()]):
        with pytest.raises(ValueError, match=r"numbers|sizes"):
            known.addresses("weights", wrong, [6, 4])


def test_every_loop_is_in_the_table():
    others = {"Codes", "Dense", "Drifts", "Encoder", "Ranked", "RankedByCodes", "Remembered", "Rows", "Shared",
              "codes_are_fast", "codes_of", "dropped_words", "library", "usable", "words_of_encoder"}  # fmt: skip
    assert {function.__name__ for function, *_ in CASES} == set(kernels.__all__) - others


@pytest.mark.parametrize("count", [0, 1, 300])
def test_gradients_of_the_same_row_are_summed(count):
    rows, gradients = torch.randint(50, (count,)), torch.randn(count, 7)
    slots = torch.randint(-1, 60, (50,), dtype=torch.int32)
    found, sums = kernels.adam_sum(rows, gradients, slots)
    assert found.tolist() == list(dict.fromkeys(rows.tolist()))
    expected = torch.zeros(50, 7, dtype=torch.float64).index_add(0, rows, gradients.double())
    torch.testing.assert_close(sums.double(), expected[found], rtol=1e-5, atol=1e-5)


def test_rows_of_no_table_and_slots_that_hold_anything_do_no_harm():
    given = table() | {"rows": longs(-1, 7, 10**12)}
    kernels.adam_catch_up(**given)
    found = []
    for slots in (torch.full((7,), -1, dtype=torch.int32), torch.tensor([5, 1, 0, 2**30, 2, 2, -(2**30)]).int()):
        given = step() | {"slots": slots, "gradients": torch.arange(9.0).view(3, 3), "weight": floats(7, 3)}
        kernels.adam_step(**given)
        found.append(given["weight"])
    assert torch.equal(*found)
    assert (found[0] != 0).any(dim=1).tolist() == [False, True, True, *[False] * 4]


def test_what_changes_between_the_ways_is_refused():
    """Autograd hooks may return other tensors than those that were saved."""
    x = torch.randn(5, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, lambda saved: saved[:1]):
        out = kernels.attention(x, torch.randn(5, 12), offsets_of([2, 3]), 2, True)
    with pytest.raises((ValueError, RuntimeError)):
        out.sum().backward()


def test_without_the_library_it_says_so(monkeypatch):
    monkeypatch.setattr("seqrec.kernels.arrays.library", lambda: None)
    with pytest.raises(RuntimeError, match="not available"):
        kernels.product(floats(1, 1), floats(1, 1))
    assert loader.library() is not None


@pytest.mark.parametrize("wrong", [-(2**63), -(2**31), -1, 5, 6, 2**31, 2**32, 2**63 - 1])
def test_numbers_at_the_ends_of_their_type_are_not_below(wrong):
    declared = Loop("lanes", "x: int64[N] below E")
    with pytest.raises(ValueError, match="its values are from"):
        declared(x=longs(0, 1, 2, 3, 4, 4, 4, 4, 4, wrong, 1), E=5)


@pytest.mark.parametrize("seed", range(40))
def test_what_numbers_are_is_told_as_numpy_does(seed):
    random = np.random.default_rng(seed)
    values = random.integers(-1, 6, random.integers(1, 7))
    values = np.sort(values) if seed % 2 else values
    x = torch.from_numpy(values)

    def refused(*arguments: str, **given: Any) -> bool:
        declared = Loop("lanes", *arguments)  # a function without parameters, so the call is always safe
        try:
            declared(**given)
        except ValueError:
            return True
        return False

    steps = np.diff(values)
    for least, most in ((0, 9), (1, 9), (0, 2), (1, 2)):
        words = f"rising to E{' by 1' if least else ''}{' up to L' if most < 9 else ''}"
        right = values[0] == 0 and values[-1] == 5 and (steps >= least).all() and (steps <= most).all()
        assert refused(f"x: int64[N] {words}", x=x, E=5, L=most) != right
    assert refused("x: int64[N] below E", x=x, E=5) != ((values >= 0) & (values < 5)).all()
    assert refused("x: int64[N] below E + 1", x=x, E=5) != ((values >= 0) & (values <= 5)).all()
    assert refused("x: int32[N] below E", x=x.int(), E=5) != ((values >= 0) & (values < 5)).all()
    assert refused("x: int64[N] sorted", x=x) != (steps >= 0).all()
    rows = random.integers(0, 2, len(values))
    right = ((steps >= 0) | (np.diff(rows) != 0)).all()
    assert refused("rows: int64[N]", "x: int64[N] sorted within rows", x=x, rows=torch.from_numpy(rows)) != right
