"""The graph of a run: from histories to the scores of all items, or to the best items."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from seqrec.errors import InputError
from seqrec.export.attention import bert4rec, esasrec, hstu, sasrec, ssept, tisasrec
from seqrec.export.counted import scores_by_counts, with_transitions
from seqrec.export.graph import Graph, Value
from seqrec.export.inputs import Padded, compact, given
from seqrec.export.recurrent import caser, gru4rec, lrurec, slirec, slirec_scores
from seqrec.models.base import Model
from seqrec.models.bert4rec import BERT4Rec
from seqrec.models.caser import Caser
from seqrec.models.ensemble import Ensemble
from seqrec.models.esasrec import ESASRec
from seqrec.models.gru4rec import GRU4Rec
from seqrec.models.hstu import HSTU
from seqrec.models.lrurec import LRURec
from seqrec.models.sasrec import SASRec
from seqrec.models.slirec import SLiRec
from seqrec.models.ssept import SSEPT
from seqrec.models.tisasrec import TiSASRec

ENCODERS: dict[type[Model], Callable[[Any, Padded], Value]] = {
    SASRec: sasrec,
    SSEPT: ssept,
    GRU4Rec: gru4rec,
    Caser: caser,
    SLiRec: slirec,
    BERT4Rec: bert4rec,
    TiSASRec: tisasrec,
    ESASRec: esasrec,
    LRURec: lrurec,
    HSTU: hstu,
}


def hidden_states(model: Model, padded: Padded) -> Value:
    """Hidden states ``[B, D]`` after the histories, as from ``model.encode_last``.

    Raises:
        InputError: there is no graph for the model.
    """
    if isinstance(model, Ensemble):
        parts = [hidden_states(part, padded) for part in model.parts]
        return padded.graph.concat(parts, 1) / len(parts)
    if type(model) not in ENCODERS:
        raise InputError(f"there is no ONNX graph for models of the kind {type(model).__name__}; export another model")
    return ENCODERS[type(model)](model, padded.newest(model.max_length))


def encoder_graph(model: Model) -> Any:
    """The graph of :func:`hidden_states`, for histories that are padded on the left and not longer than the model sees.

    Inputs as for :func:`seqrec.export.inputs.given`; output ``hidden float32[batch, D]``.
    """
    graph = Graph()
    hidden = hidden_states(model, given(graph, model))
    return graph.made("encoder", [hidden.named("hidden")], [["batch", None]])


def run_graph(model: Model, popularity: np.ndarray, top_k: int | None = None, keep_seen: bool = False) -> Any:
    """The graph that a file holds, with the model's addition. Its inputs may have padding (0) anywhere.

    Args:
        model: any model, in evaluation mode.
        popularity: interactions of each item, ``int64[I + 1]``: the scores after an empty history.
        top_k: number of items in the outputs ``top_items int64[batch, K]`` and ``top_scores float32[batch, K]``; 0 and
            -inf if fewer are left. None for the output ``scores float32[batch, I + 1]``, -inf for the padding.
        keep_seen: whether items of the history may be among the best.
    """
    graph = Graph()
    padded = compact(given(graph, model), model.num_items)
    addition = model.addition if model.addition is not None and model.addition.weight else None
    scores = scores_by_counts(model, padded) if model.COUNTED else _scores(model, padded)
    if addition is not None:
        recent = addition.transitions.recent_scores()
        if recent is not None:
            scores = scores + graph.constant(addition.weight * recent)
        scores = with_transitions(addition.transitions, addition.weight, scores, padded)
    scores = padded.empty.unsqueeze(1).where(graph.constant(popularity.astype(np.float32)), scores)
    if top_k is None:
        padding = graph.constant(np.arange(model.num_items + 1) == 0)
        return graph.made("scores", [padding.where(-np.inf, scores).named("scores")], [["batch", model.num_items + 1]])
    left_out = graph.zeros("int64", padded.rows, 1)  # the padding
    if not keep_seen:
        left_out = graph.concat([left_out, padded.items], 1)
    lowest = graph.number(-np.inf, "float32").expand(padded.rows, left_out.size(1))
    k = graph.constant(np.array([top_k], dtype=np.int64))
    found, items = graph.ops("TopK", scores.put(left_out, lowest, axis=1), k, dtypes=["float32", "int64"], axis=1)
    items = found.equals(-np.inf).where(0, items)
    sizes = [["batch", top_k]] * 2
    return graph.made("recommendations", [items.named("top_items"), found.named("top_scores")], sizes)


def _scores(model: Model, padded: Padded) -> Value:
    """Scores ``[B, I + 1]`` of a trained model."""
    if isinstance(model, Ensemble):
        parts = [_scores(part, padded) for part in model.parts]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total / len(parts)
    hidden = hidden_states(model, padded)
    graph = hidden.graph
    if isinstance(model, SLiRec):
        return slirec_scores(model, hidden)
    if isinstance(model, GRU4Rec | LRURec | SSEPT):  # the input's table again, without a copy
        dim = model.item_vectors().shape[1] - 1
        states, rest = hidden.slice(1, 0, dim), hidden.slice(1, dim)
        if isinstance(model, SSEPT):
            return _product(states, graph.constant(model.item_embedding.weight)) + rest
        table: nn.Embedding = model.item_embedding
        elu = 0.0
        if isinstance(model, GRU4Rec):
            table, elu = model.output_embedding or table, model.config.elu
        logits = _product(states, graph.constant(table.weight), graph.constant(model.item_bias.weight[:, 0]))
        return logits.op("Elu", alpha=elu) if elu else logits
    if isinstance(model, HSTU) and model.final_norm is None:  # the same table again, instead of its rows of length 1
        weight = model.item_embedding.weight
        return _product(hidden, graph.constant(weight)) / graph.constant(weight.norm(dim=1).clamp_min(1e-12))
    assert model.FACTORED
    return _product(hidden, graph.constant(model.item_vectors()))


def _product(states: Value, vectors: Value, *bias: Value) -> Value:
    """``states @ vectors.T + bias``."""
    return states.op("Gemm", vectors, *bias, transB=1)
