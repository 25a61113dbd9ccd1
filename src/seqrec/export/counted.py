"""The scores of the models that count, and of transition counts that are added to those of another model."""

import numpy as np
import torch
from torch import Tensor

from seqrec.export.graph import Graph, Value
from seqrec.export.inputs import Padded
from seqrec.models.base import Model
from seqrec.models.ease import EASE
from seqrec.models.markov import Markov
from seqrec.models.popularity import Popularity
from seqrec.models.recent_popularity import RecentPopularity
from seqrec.models.transitions import Transitions


def scores_by_counts(model: Model, padded: Padded) -> Value:
    """Scores ``[B, I + 1]`` of a model with ``COUNTED``."""
    if isinstance(model, Popularity | RecentPopularity):
        return _for_everybody(model.prior(), padded)
    if isinstance(model, Transitions):
        return with_transitions(model, 1.0, _for_everybody(model.prior(), padded), padded)
    if isinstance(model, Markov):
        return _markov(model, padded)
    assert isinstance(model, EASE)
    return _ease(model, padded.newest(model.max_length))


def with_transitions(model: Transitions, weight: float, scores: Value, padded: Padded) -> Value:
    """Scores ``[B, I + 1]`` with the counts after each history added, but not what follows from recent interactions."""
    graph, decay = scores.graph, model.config.decay
    assert decay is not None
    newest = padded.items.slice(1, -model.reach)
    length = newest.size(1)
    ages = graph.arange(length).op("Neg").op("Add", length - 1)
    # In double precision, as in Transitions.rows.
    powers = graph.number(decay, "float64").op("Pow", ages.cast("float64")) * (newest > 0).cast("float64")
    shares = powers / powers.reduce("Sum", 1, keep=True).op("Max", 1e-30)
    columns, values, there = _rows(graph, model.offsets, [model.columns, model.values], newest)
    added = values * shares.cast("float32").unsqueeze(2) * there.cast("float32")
    counts = (scores * 0.0).put(_flat(columns), _flat(added), axis=1, add=True)
    return scores + counts * float(np.float32(weight))


def _rows(graph: Graph, offsets: Tensor, columns: list[Tensor], rows: Value) -> tuple[Value, Value, Value]:
    """Rows of a table in compressed form: places ``[..., W]``, values ``[..., W]``, and where there are any."""
    table = graph.constant(offsets)
    starts = table.rows(rows)
    lengths = table.rows(rows + 1) - starts
    widest = lengths.reshape(-1).reduce("Max", 0).op("Max", 1).reshape()  # at least 1: 0 means otherwise to Reshape
    place = graph.arange(widest)
    there = place < lengths.unsqueeze(-1)
    entries = there.where(starts.unsqueeze(-1) + place, 0)
    found = [graph.constant(one if len(one) else one.new_zeros(1)).rows(entries) for one in columns]
    return there.where(found[0].cast("int64"), 0), found[1], there


def _flat(x: Value) -> Value:
    return x.reshape(x.size(0), x.size(1) * x.size(2))


def _for_everybody(values: Tensor, padded: Padded) -> Value:
    return padded.graph.constant(values).unsqueeze(0).expand(padded.rows, 1)


def _markov(model: Markov, padded: Padded) -> Value:
    """``log P(item | last)``: the prior, over which the few items that ever followed the last one are written."""
    graph, prior = padded.graph, model.pseudo_counts()
    followers = model.keys % (model.num_items + 1)
    values = torch.log(model.times + prior[followers])
    last = padded.items.slice(1, -1).squeeze(1)
    columns, logs, there = _rows(graph, model.starts, [followers.to(torch.int32), values], last)
    logits = _for_everybody(torch.log(prior), padded).put(columns, there.where(logs, 0.0), axis=1)
    norms = torch.log(model.outgoing.to(prior.dtype) + model.config.alpha)
    return logits - graph.constant(norms).rows(last).unsqueeze(1)


def _ease(model: EASE, padded: Padded) -> Value:
    """Sums of the rows of the different items of each history, one history at a time to bound the memory."""
    graph = padded.graph
    place = graph.arange(padded.length)
    same = padded.items.unsqueeze(2).equals(padded.items.unsqueeze(1)) & (place.unsqueeze(0) < place.unsqueeze(1))
    again = same.cast("int64").reduce("Max", 2)
    once = padded.there.cast("float32") * (1 - again).cast("float32")

    def step(inner: Graph, states: list[Value], given: list[Value]) -> tuple[list[Value], list[Value]]:
        items, weights = given
        return states, [(weights.unsqueeze(0) @ inner.constant(model.weights).rows(items)).squeeze(0)]

    return graph.scan(step, [], [padded.items, once])[0]
