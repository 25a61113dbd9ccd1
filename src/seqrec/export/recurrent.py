"""The other trained models on padded histories: gru4rec, lrurec, caser and slirec."""

import math

import numpy as np
import torch
from torch import nn

from seqrec.export.attention import gelu, linear, normed, user_vectors
from seqrec.export.graph import Graph, Value
from seqrec.export.inputs import Padded, embedded
from seqrec.models.caser import Caser
from seqrec.models.gru4rec import GRU, GRU4Rec
from seqrec.models.lrurec import LRURec, LRURecBlock
from seqrec.models.slirec import Network, SLiRec

_ITEMS_AT_ONCE = 256  # candidates that slirec scores together
_DAY = 86_400
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.Tanh: "Tanh", nn.Sigmoid: "Sigmoid", nn.ReLU: "Relu"}


def gru4rec(model: GRU4Rec, padded: Padded) -> Value:
    """Hidden states ``[B, D + 1]`` of :class:`GRU4Rec`; the last column is 1."""
    graph = padded.graph
    # ONNX expects the padding after the history.
    place = graph.arange(padded.length).unsqueeze(0) + (padded.length - padded.lengths).unsqueeze(1)
    items = padded.items.picked(place.op("Mod", padded.length), axis=1)
    x = embedded(model.item_embedding, model.user_encoder, padded, items).permute(1, 0, 2)  # [L, B, E]
    x = x * model.item_embedding.embedding_dim**0.5
    lengths = padded.lengths.op("Max", 1).cast("int32")
    for number, layer in enumerate(model.layers, start=1):
        assert isinstance(layer, GRU)
        every, last = graph.ops("GRU", x, *_gru_weights(layer, graph), lengths,
                                dtypes=["float32", "float32"], hidden_size=layer.candidate.shape[0])  # fmt: skip
        x = last if number == len(model.layers) else every.squeeze(1)
    state = x.squeeze(0) * (model.item_vectors().shape[1] - 1) ** 0.5
    return graph.concat([state, graph.number(1.0, "float32").expand(padded.rows, 1)], 1)


def _gru_weights(layer: GRU, graph: Graph) -> list[Value]:
    """W, R and B of ONNX, whose gates are in the order z, r, h and whose z is 1 - z here."""
    reset, update, candidate = layer.input.weight.detach().chunk(3)
    reset_state, update_state = layer.gates.detach().chunk(2)
    bias_r, bias_z, bias_c = layer.input.bias.detach().chunk(3)
    weights = torch.cat([-update, reset, candidate])
    states = torch.cat([-update_state, reset_state, layer.candidate.detach()])
    biases = torch.cat([-bias_z, bias_r, bias_c, torch.zeros(len(layer.input.bias))])
    return [graph.constant(part[None]) for part in (weights, states, biases)]


def lrurec(model: LRURec, padded: Padded) -> Value:
    """Hidden states ``[B, D + 1]`` of :class:`LRURec`; the last column is 1."""
    graph = padded.graph
    x = normed(model.embedding_norm, embedded(model.item_embedding, model.user_encoder, padded))
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, LRURecBlock)
        last = number == len(model.blocks)
        states = _recurrence(block, x, padded, last)
        x = normed(block.recurrence_norm, (x.slice(1, -1) if last else x) + linear(block.output, states))
        x = normed(block.feedforward_norm, x + linear(block.outer, gelu(linear(block.inner, x))))
    return graph.concat([x.slice(1, -1).squeeze(1), graph.number(1.0, "float32").expand(padded.rows, 1)], 1)


def _recurrence(block: LRURecBlock, x: Value, padded: Padded, last: bool) -> Value:
    """States ``[B, L, 2 * N]`` of a block with inputs ``[B, L, D]``, or ``[B, 1, 2 * N]`` of the last column."""
    graph, (weight, bias) = padded.graph, block.scaled_input()
    inputs = x @ graph.constant(weight.detach().T) + graph.constant(bias.detach())
    inputs = inputs * padded.there.cast("float32").unsqueeze(2)  # zero before the history begins, and so the states
    real, imaginary = block.factors().detach().chunk(2)
    own, crossed, size = real.repeat(2), torch.cat([-imaginary, imaginary]), len(real)

    def step(inner: Graph, states: list[Value], given: list[Value]) -> tuple[list[Value], list[Value]]:
        (state,) = states
        swapped = inner.concat([state.slice(1, size), state.slice(1, 0, size)], 1)
        state = given[0] + state * inner.constant(own) + swapped * inner.constant(crossed)
        return [state], [state.op("Identity")]

    final, every = graph.scan(step, [graph.zeros("float32", padded.rows, 2 * size)], [inputs.permute(1, 0, 2)])
    return final.unsqueeze(1) if last else every.permute(1, 0, 2)


def caser(model: Caser, padded: Padded) -> Value:
    """Hidden states ``[B, embedding_dim + user_dim + 1]`` of :class:`Caser`."""
    graph, window = padded.graph, model.config.window
    items = graph.concat([graph.zeros("int64", padded.rows, window - 1), padded.items], 1).slice(1, -window)
    x = graph.constant(model.item_embedding.weight).rows(items) * (items > 0).cast("float32").unsqueeze(2)
    parts = []
    if model.vertical is not None:
        parts.append((graph.constant(model.vertical) @ x).reshape(0, len(model.vertical) * model.config.embedding_dim))
    if model.horizontal_bias is not None:
        across, count = x.permute(0, 2, 1), model.config.horizontal_filters
        for height in range(1, window + 1):
            taps = [
                model.horizontal[j].detach()[(height - j - 1) * count : (height - j) * count] for j in range(height)
            ]
            kernel = torch.stack(taps[::-1], dim=2)  # the oldest item first
            bias = model.horizontal_bias.detach()[(height - 1) * count : height * count]
            found = graph.op("Conv", across, graph.constant(kernel), kernel_shape=[height])
            parts.append((found.reduce("Max", 2) + graph.constant(bias)).op("Relu"))
    state = linear(model.fully_connected, graph.concat(parts, 1)).op("Relu")
    outputs = [state, graph.number(1.0, "float32").expand(padded.rows, 1)]
    if model.user_embedding is not None:
        assert padded.users is not None
        outputs.insert(1, user_vectors(model.user_embedding, padded.users))
    return graph.concat(outputs, 1)


def slirec(model: SLiRec, padded: Padded) -> Value:
    """Hidden states ``[B, D + 2 + A + A * D]`` of :class:`SLiRec`."""
    graph, times, slots = padded.graph, padded.times, model.slots
    assert times is not None
    x = graph.constant(model.vectors(torch.arange(model.num_items + 1)).detach()).rows(padded.items)
    there = padded.there.cast("float32")
    before = graph.concat([times.slice(1, 0, 1), times.slice(1, 0, -1)], 1)
    count = padded.there.cast("int64").cumsum(1)
    first = times.picked((padded.length - padded.lengths).op("Min", padded.length - 1).unsqueeze(1), axis=1)
    since_last = _log_interval(times - before) * (count > 1).cast("float32")
    since_first = _log_interval(times - first)
    states = _time_lstm(model, x, since_last, since_first, there, padded)
    # The newest states, most recent first; there may be fewer columns than slots.
    missing = graph.zeros("float32", slots, padded.rows, model.config.embedding_dim)
    newest = graph.concat([missing, states], 0).slice(0, -slots)
    newest = newest.rows(graph.constant(np.arange(slots)[::-1].copy()))
    flat = newest.permute(1, 0, 2).reshape(padded.rows, slots * model.config.embedding_dim)
    ages = _log_interval(times.slice(1, -1) - times) * there
    ages = graph.concat([graph.zeros("float32", padded.rows, slots), ages], 1).slice(1, -slots)
    ages = ages.rows(graph.constant(np.arange(slots)[::-1].copy()), axis=1)
    held = padded.lengths.op("Min", slots).cast("float32").unsqueeze(1)
    logits = _network(model.long_attention, linear(model.long_attention.first, x)).permute(0, 2, 1)
    long = ((logits + padded.hidden_keys.squeeze(1)).softmax() @ x).squeeze(1)
    return graph.concat([long, since_last.slice(1, -1), held, ages, flat], 1)


def _log_interval(seconds: Value) -> Value:
    return (seconds.op("Abs").cast("float32") + 1.0).op("Log") / math.log1p(_DAY)


def _time_lstm(model: SLiRec, x: Value, since_last: Value, since_first: Value, there: Value, padded: Padded) -> Value:
    """States ``[L, B, D]`` of :class:`TimeLSTM`; 0 before the history begins."""
    graph, network, dim = padded.graph, model.short_term, model.config.embedding_dim
    by_last = linear(network.last_gates, linear(network.since_last, since_last.unsqueeze(2)).op("Tanh"))
    by_first = linear(network.first_gates, linear(network.since_first, since_first.unsqueeze(2)).op("Tanh"))
    inputs = linear(network.input, x)  # i, f, o, j, T_delta, T_s

    def part(value: Value, number: int, count: int = 1) -> Value:
        return value.slice(2, number * dim, (number + count) * dim)

    output = part(inputs, 2) + part(by_last, 0) + part(by_first, 0)
    moved = graph.concat([part(inputs, 0, 2), output, part(inputs, 3)], 2)
    forget = (part(inputs, 4) + part(by_last, 1)).op("Sigmoid")
    write = (part(inputs, 5) + part(by_first, 1)).op("Sigmoid") * there.unsqueeze(2)
    weight = network.recurrent.weight.T

    def step(inner: Graph, states: list[Value], given: list[Value]) -> tuple[list[Value], list[Value]]:
        memory, hidden = states
        moved, forget, write = given
        moved = moved + hidden @ inner.constant(weight)
        put, kept, output = ((moved.slice(1, n * dim, (n + 1) * dim)).op("Sigmoid") for n in range(3))
        memory = kept * forget * memory + put * write * moved.slice(1, 3 * dim).op("Tanh")
        hidden = output * memory.op("Tanh")
        return [memory, hidden], [hidden.op("Identity")]

    nothing = graph.zeros("float32", padded.rows, dim)
    by_time = [one.permute(1, 0, 2) for one in (moved, forget, write)]
    return graph.scan(step, [nothing, nothing], by_time)[2]


def _network(network: Network, x: Value) -> Value:
    """From the first layer's output ``[..., H]``, before its activation, to ``[..., 1]``."""
    activation = network.activation
    kind = next(
        name for layer, name in _ACTIVATIONS.items() if any(isinstance(one, layer) for one in activation.modules())
    )
    x = x.op(kind)
    for layer in network.middle:
        x = linear(layer, x).op(kind)  # type: ignore[arg-type]
    return linear(network.last, x)


def slirec_scores(model: SLiRec, hidden: Value) -> Value:
    """Scores ``[B, I + 1]`` of all items for hidden states, some candidates at a time."""
    graph = hidden.graph
    vectors = model.vectors(torch.arange(model.num_items + 1)).detach()
    steps = -(-len(vectors) // _ITEMS_AT_ONCE)
    padding = vectors.new_zeros(steps * _ITEMS_AT_ONCE - len(vectors), vectors.shape[1])
    candidates = torch.cat([vectors, padding]).view(steps, _ITEMS_AT_ONCE, -1)

    def step(inner: Graph, states: list[Value], given: list[Value]) -> tuple[list[Value], list[Value]]:
        return states, [_candidate_scores(model, inner, hidden, given[0])]

    found = graph.scan(step, [], [graph.constant(candidates)])[0]  # [steps, B, C]
    return found.permute(1, 0, 2).reshape(0, -1).slice(1, 0, model.num_items + 1)


def _candidate_scores(model: SLiRec, graph: Graph, outer: Value, candidates: Value) -> Value:
    """Scores ``[B, C]`` of candidates ``[C, D]``; see :meth:`SLiRec._score_block`."""
    dim, slots = model.config.embedding_dim, model.slots
    hidden = Value(graph, outer.name, outer.dtype)
    bounds = np.cumsum([0, dim, 1, 1, slots, slots * dim]).tolist()
    long, interval, count, ages, flat = (hidden.slice(1, *bounds[n : n + 2]) for n in range(5))
    states = flat.reshape(-1, slots, dim)

    def times(x: Value, part: torch.Tensor) -> Value:
        return x @ graph.constant(part.detach().T)

    # Attention of the candidate over the states.
    query = linear(model.query, candidates)
    slope = graph.constant(model.query_activation.weight)
    query = query.op("Max", 0.0) + query.op("Min", 0.0) * slope
    first = model.attention.first
    of_state, of_query, of_product, of_age = model.attention.parts(dim, dim, dim, 1)
    x = times(states, of_state) + graph.constant(first.bias) + times(ages.unsqueeze(2), of_age)  # [B, A, H]
    # One matrix per state, multiplied with all candidates.
    by_state = states.unsqueeze(3) * graph.constant(of_product.detach().T)  # [B, A, D, H]
    x = x.unsqueeze(2) + times(query, of_query) + query @ by_state  # [B, A, C, H]
    logits = _network(model.attention, x).squeeze(3)  # [B, A, C]
    held = (graph.constant(np.arange(slots, dtype=np.float32)) < count).unsqueeze(2)
    weights = held.where(logits, -1e30).softmax(axis=1)
    short = weights.permute(0, 2, 1) @ states  # [B, C, D]

    of_candidate, of_long, of_short, of_interval = model.fusion.parts(dim, dim, dim, 1)
    alpha = times(candidates, of_candidate) + graph.constant(model.fusion.first.bias) + times(short, of_short)
    alpha = alpha + (times(long, of_long) + times(interval, of_interval)).unsqueeze(1)
    alpha = _network(model.fusion, alpha).op("Sigmoid")
    preference = short + alpha * (long.unsqueeze(1) - short)

    of_candidate, of_preference = model.prediction.parts(dim, dim)
    x = times(candidates, of_candidate) + graph.constant(model.prediction.first.bias) + times(preference, of_preference)
    return _network(model.prediction, x).squeeze(2)
