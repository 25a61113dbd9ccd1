"""The models with self-attention on padded histories: sasrec, ssept, bert4rec, tisasrec, esasrec and hstu."""

from collections.abc import Callable

import numpy as np
from torch import Tensor, nn

from seqrec.export.graph import Graph, Value
from seqrec.export.inputs import Padded, embedded
from seqrec.models.bert4rec import BERT4Rec, BERT4RecBlock
from seqrec.models.blocks import Attention, FeedForward, UserEmbedding
from seqrec.models.esasrec import ESASRec, LiGRBlock, SwiGLU
from seqrec.models.hstu import HSTU, HSTUBlock, time_edges
from seqrec.models.sasrec import SASRec, SASRecBlock
from seqrec.models.ssept import SSEPT
from seqrec.models.tisasrec import TiSASRec, TiSASRecBlock


def linear(layer: nn.Linear, x: Value) -> Value:
    """A linear layer, ``[..., in]`` to ``[..., out]``."""
    out = x @ x.graph.constant(layer.weight.T)
    return out if layer.bias is None else out + x.graph.constant(layer.bias)


def normed(layer: nn.LayerNorm, x: Value) -> Value:
    """A layer norm over the last axis."""
    gain, bias = x.graph.constant(layer.weight), x.graph.constant(layer.bias)
    return x.op("LayerNormalization", gain, bias, axis=-1, epsilon=layer.eps)


def gelu(x: Value) -> Value:
    """GELU, exactly."""
    return x * 0.5 * ((x * 0.5**0.5).op("Erf") + 1.0)


def user_vectors(table: UserEmbedding, users: Value) -> Value:
    """Embeddings ``[B, D]`` of users; the mean of the trained ones for those without an embedding of their own."""
    weight = table.weight.detach().clone()
    weight[-1] = 0
    weight[~(weight != 0).any(dim=1)] = table.mean()
    known = (users >= 0) & (users < table.num_users)
    return users.graph.constant(weight).rows(known.where(users, table.num_users))


def sasrec(model: SASRec, padded: Padded) -> Value:
    """Hidden states ``[B, D]`` of :class:`SASRec`."""
    graph = padded.graph
    x = embedded(model.item_embedding, model.user_encoder, padded) * model.config.embedding_dim**0.5
    x = x + _positions(model.position_embedding.weight, padded.length, graph)
    return normed(model.final_norm, _through_blocks(model.blocks, x, padded))


def ssept(model: SSEPT, padded: Padded) -> Value:
    """Hidden states ``[B, embedding_dim + 1]`` of :class:`SSEPT`."""
    graph, config = padded.graph, model.config
    assert padded.users is not None
    items = embedded(model.item_embedding, model.user_encoder, padded) * config.embedding_dim**0.5
    users = user_vectors(model.user_embedding, padded.users) * config.user_dim**0.5
    beside = users.unsqueeze(1).expand(1, padded.length, 1)
    x = graph.concat([items, beside], -1) + _positions(model.position_embedding.weight, padded.length, graph)
    x = normed(model.final_norm, _through_blocks(model.blocks, x, padded))
    item_part, user_part = x.slice(1, 0, config.embedding_dim), x.slice(1, config.embedding_dim)
    return graph.concat([item_part, (user_part * users).reduce("Sum", 1, keep=True)], 1)


def bert4rec(model: BERT4Rec, padded: Padded) -> Value:
    """Hidden states ``[B, embedding_dim + 1]`` of the masks after the histories; the last column is 1."""
    graph = padded.graph
    x = graph.constant(model.item_embedding.weight[:, :-1]).rows(padded.items)
    mask = graph.constant(model.mask_embedding).reshape(1, 1, -1).expand(padded.rows, 1, 1)
    x = graph.concat([x, mask], 1) + _positions(model.position_embedding.weight, padded.length + 1, graph)
    x = normed(model.embedding_norm, x)
    # The mask is a key of all queries.
    hidden = graph.concat([padded.hidden_keys, graph.zeros("float32", padded.rows, 1, 1, 1)], 3)
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, BERT4RecBlock)
        queries = x.slice(1, -1) if number == len(model.blocks) else x
        mixed = linear(block.attention_output, _attention(block.attention, queries, x, hidden))
        x = normed(block.attention_norm, queries + mixed)
        x = normed(block.feedforward_norm, x + linear(block.outer, gelu(linear(block.inner, x))))
    states = normed(model.transform_norm, gelu(linear(model.transform, _last(x))))
    return graph.concat([states, graph.number(1.0, "float32").expand(padded.rows, 1)], 1)


def tisasrec(model: TiSASRec, padded: Padded) -> Value:
    """Hidden states ``[B, D]`` of :class:`TiSASRec`."""
    graph = padded.graph
    x = embedded(model.item_embedding, model.user_encoder, padded) * model.config.embedding_dim**0.5
    positions = _positions(model.position_embedding.weight, padded.length, graph)
    intervals = _intervals(padded, model.config.time_span)
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, TiSASRecBlock)
        last = number == len(model.blocks)
        queries = normed(block.attention_norm, x.slice(1, -1) if last else x)
        hidden = padded.hidden_keys if last else padded.causal
        own = intervals.slice(1, -1) if last else intervals
        mixed = _time_attention(block, queries, x, positions, model.interval_vectors, own, hidden)
        x = normed(block.feedforward_norm, queries + mixed)
        x = _feedforward(block.feedforward, x) + x
    return normed(model.final_norm, _last(x))


def esasrec(model: ESASRec, padded: Padded) -> Value:
    """Hidden states ``[B, D]`` of :class:`ESASRec`. The last block computes only the last column."""
    graph = padded.graph
    x = embedded(model.item_embedding, model.user_encoder, padded)
    x = x + _positions(model.position_embedding.weight, padded.length, graph)
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, LiGRBlock)
        keys = normed(block.attention_norm, x)
        last = number == len(model.blocks)
        queries, x = (keys.slice(1, -1), x.slice(1, -1)) if last else (keys, x)
        mixed = _attention(block.attention, queries, keys, padded.hidden_keys if last else padded.causal)
        x = x + linear(block.attention_gate, x).op("Sigmoid") * mixed
        wide = _swiglu(block.feedforward, normed(block.feedforward_norm, x))
        x = x + linear(block.feedforward_gate, x).op("Sigmoid") * wide
    return _last(x)


def _swiglu(network: SwiGLU, x: Value) -> Value:
    """The point-wise network of :class:`LiGRBlock`."""
    both, width = linear(network.gate_value, x), network.output.in_features
    gate, value = both.slice(2, 0, width), both.slice(2, width)
    return linear(network.output, gate * gate.op("Sigmoid") * value)


def hstu(model: HSTU, padded: Padded) -> Value:
    """Hidden states ``[B, D]`` of :class:`HSTU`."""
    graph, config = padded.graph, model.config
    x = embedded(model.item_embedding, model.user_encoder, padded) * config.embedding_dim**0.5
    x = x + _positions(model.position_embedding.weight, padded.length, graph)
    place = graph.arange(padded.length)
    distances = (place.unsqueeze(1) - place.unsqueeze(0)).op("Max", 0)
    buckets = _time_buckets(padded, config.time_buckets) if config.time_buckets else None
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, HSTUBlock)
        bias = graph.constant(block.position_bias).rows(distances).unsqueeze(0)  # [1, L, L]
        if buckets is not None:
            assert block.time_bias is not None
            bias = bias + graph.constant(block.time_bias).rows(buckets)
        seen = (padded.causal >= 0).cast("float32")
        x = _gated(block, x, bias.unsqueeze(1), seen, number == len(model.blocks))
    x = _last(x)
    if model.final_norm is not None:
        return normed(model.final_norm, x)
    return x / ((x * x).reduce("Sum", 1, keep=True).op("Sqrt").op("Max", 1e-12) * config.temperature)


def _gated(block: HSTUBlock, x: Value, bias: Value, seen: Value, last: bool) -> Value:
    """One layer of HSTU; with ``last``, only the last column, ``[B, 1, D]``.

    ``bias float32[B or 1, 1, L, L]`` is added to the scores, and ``seen float32[B, 1, L, L]`` multiplies the weights.
    """
    mixed = linear(block.projection, _plainly_normed(block.norm, x))
    mixed = mixed * mixed.op("Sigmoid")
    dim, heads = block.output.in_features, block.num_heads
    gate, value, query, key = (mixed.slice(2, start, start + dim) for start in range(0, 4 * dim, dim))
    if last:
        x, gate, query = (part.slice(1, -1) for part in (x, gate, query))
        bias, seen = bias.slice(2, -1), seen.slice(2, -1)
    scores = _heads(query, heads, dim) @ _heads(key, heads, dim).permute(0, 1, 3, 2) + bias
    weights = scores * scores.op("Sigmoid") * seen / block.max_length
    summed = _joined(weights @ _heads(value, heads, dim))
    return x + linear(block.output, gate * _plainly_normed(block.attention_norm, summed))


def _plainly_normed(layer: nn.LayerNorm, x: Value) -> Value:
    """A layer norm without weights."""
    gain = x.graph.constant(np.ones(layer.normalized_shape, dtype=np.float32))
    return x.op("LayerNormalization", gain, axis=-1, epsilon=layer.eps)


def _time_buckets(padded: Padded, count: int) -> Value:
    """The bucket of the time between all pairs, ``int64[B, L, L]``; see :func:`seqrec.models.hstu.time_edges`.

    The logarithm of a float32 may be one bucket off, which the edges correct.
    """
    graph, times = padded.graph, padded.times
    assert times is not None
    apart = (times.unsqueeze(2) - times.unsqueeze(1)).op("Abs")
    found = (apart.cast("float32").op("Max", 1.0).op("Log") / 0.301).cast("int64").op("Min", count)
    ends = np.iinfo(np.int64)
    edges = np.concatenate([[ends.min], time_edges(count).numpy(), [ends.max]])
    first, after = (graph.constant(edges[start : start + count + 1]).rows(found) for start in (0, 1))
    return found - (apart < first).cast("int64") + (apart >= after).cast("int64")


def _last(x: Value) -> Value:
    """The last column, ``[B, L, D]`` to ``[B, D]``."""
    return x.slice(1, -1).squeeze(1)


def _positions(table: Tensor, length: Value, graph: Graph) -> Value:
    """Embeddings ``[L, D]`` of the last positions."""
    return graph.constant(table).slice(0, graph.number(0, "int64") - length)


def _through_blocks(blocks: nn.ModuleList, x: Value, padded: Padded) -> Value:
    """``[B, L, D]`` through SASRec's blocks, to ``[B, D]``. The last block computes only the last column."""
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, SASRecBlock)
        last = number == len(blocks)
        hidden = padded.hidden_keys if last else padded.causal
        if block.norm == "pre":
            keys = normed(block.attention_norm, x)
            queries, x = (keys.slice(1, -1), x.slice(1, -1)) if last else (keys, x)
            x = x + _attention(block.attention, queries, keys, hidden)
            x = x + _feedforward(block.feedforward, normed(block.feedforward_norm, x))
            continue
        queries = x.slice(1, -1) if last else x
        queries = normed(block.attention_norm, queries) if block.norm == "paper" else queries
        mixed = queries + _attention(block.attention, queries, x, hidden)
        if block.norm == "paper":
            x = normed(block.feedforward_norm, mixed)
            x = x + _feedforward(block.feedforward, x)
        else:
            x = normed(block.attention_norm, mixed)
            x = normed(block.feedforward_norm, x + _feedforward(block.feedforward, x))
    return _last(x)


def _feedforward(network: FeedForward, x: Value) -> Value:
    """The point-wise network, without the residual."""
    for layer in network.layers[:-1]:
        x = linear(layer, x).op("Relu")  # type: ignore[arg-type]
    return linear(network.layers[-1], x)  # type: ignore[arg-type]


def _attention(attention: Attention, queries: Value, keys: Value, hidden: Value) -> Value:
    """Mixed values ``[B, Q, D]`` for queries ``[B, Q, D]``, given what is hidden, ``[B, 1, Q or 1, L]``."""
    heads = attention.num_heads
    query, (key, value) = _heads(linear(attention.query, queries), heads), _keys(attention.key_value, keys, heads)
    weights = ((query @ key) * (attention.query.out_features // heads) ** -0.5 + hidden).softmax()
    mixed = _joined(weights @ value)
    return mixed if attention.output is None else linear(attention.output, mixed)


def _keys(layer: nn.Linear, x: Value, heads: int, more: Callable[[Value], Value] | None = None) -> tuple[Value, Value]:
    """Keys ``[B, H, d, L]`` and values ``[B, H, L, d]`` of a layer that computes both."""
    both = linear(layer, x)
    both = both if more is None else more(both)
    dim = layer.out_features // 2
    keys = both.slice(2, 0, dim).reshape(0, 0, heads, dim // heads).permute(0, 2, 3, 1)
    return keys, _heads(both.slice(2, dim), heads, dim)


def _heads(x: Value, heads: int, dim: int | None = None) -> Value:
    """``[B, L, H * d]`` to ``[B, H, L, d]``."""
    return x.reshape(0, 0, heads, -1 if dim is None else dim // heads).permute(0, 2, 1, 3)


def _joined(x: Value) -> Value:
    """``[B, H, L, d]`` to ``[B, L, H * d]``."""
    return x.permute(0, 2, 1, 3).reshape(0, 0, -1)


def _intervals(padded: Padded, time_span: int) -> Value:
    """The intervals of all pairs of a query and a key, ``int64[B, L, L]``, from 0 to ``time_span``; see
    :func:`seqrec.models.tisasrec.scaled_intervals`."""
    graph, times = padded.graph, padded.times
    assert times is not None
    longest = 2**42
    before = graph.concat([times.slice(1, 0, 1), times.slice(1, 0, -1)], 1)
    first = padded.there.cast("int64").cumsum(1) <= 1  # the first item has no gap before it, nor has padding
    gaps = (times - before).op("Abs")
    gaps = ((gaps > 0) & first.op("Not")).where(gaps.op("Min", longest), graph.number(longest, "int64"))
    place = graph.arange(padded.length)
    later = place.unsqueeze(0) > place.unsqueeze(1)
    until = later.where(graph.number(longest, "int64"), gaps.unsqueeze(1))  # [B, L, L], query before key
    shortest = until.reduce("Min", 2, keep=True)
    return ((times.unsqueeze(2) - times.unsqueeze(1)).op("Abs") / shortest).op("Min", time_span)


def _time_attention(
    block: TiSASRecBlock,
    queries: Value,
    keys: Value,
    positions: Value,
    vectors: Tensor,
    intervals: Value,
    hidden: Value,
) -> Value:
    """Mixed values ``[B, Q, D]``, given the intervals ``int64[B, Q, L]``; see :class:`TimeAttention`."""
    attention, graph = block.attention, queries.graph
    heads, size = attention.num_heads, attention.head_dim
    query = _heads(linear(attention.query, queries), heads) * size**-0.5
    key, value = _keys(attention.key_value, keys, heads, lambda both: both + positions)
    # [2 * H, R, d]: those for keys, then those for values.
    by_head = vectors.detach().view(len(vectors), 2 * heads, size).transpose(0, 1)
    of_keys = graph.constant(np.ascontiguousarray(by_head[:heads].transpose(1, 2)))
    of_values = graph.constant(np.ascontiguousarray(by_head[heads:]))
    by_interval = query @ of_keys  # [B, H, Q, R]
    buckets = intervals.unsqueeze(1).expand(1, heads, 1, 1)
    weights = (query @ key + by_interval.picked(buckets, axis=3) + hidden).softmax()
    spent = (by_interval * 0.0).put(buckets, weights, axis=3, add=True)
    return _joined(weights @ value + spent @ of_values)
