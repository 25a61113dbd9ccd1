"""An ONNX model as bytes: a graph with its version of operators and its metadata."""

from collections.abc import Mapping
from typing import Any

from seqrec.errors import InputError
from seqrec.export.graph import IR_VERSION, OPSET, imported_onnx

MOST_BYTES = 2**31 - 2**20  # protobuf's limit is 2 GiB


def model_bytes(graph: Any, metadata: Mapping[str, str] | None = None) -> bytes:
    """The content of an ONNX file.

    Args:
        graph: graph from :meth:`Graph.made`.
        metadata: names and texts to store beside the graph.

    Raises:
        InputError: the file would be larger than the format allows.
    """
    onnx = imported_onnx()
    size = sum(len(tensor.raw_data) for tensor in graph.initializer)
    if size > MOST_BYTES:
        raise InputError(
            f"the model takes {size / 2**30:.1f} GB, and an ONNX file at most 2; fit one with a smaller embedding_dim "
            "or fewer successors, or leave out the transition counts (--counts off)"
        )
    operators = [onnx.helper.make_opsetid("", OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=operators, ir_version=IR_VERSION, producer_name="seqrec")
    onnx.helper.set_model_props(model, dict(metadata or {}))
    content: bytes = model.SerializeToString(deterministic=True)
    return content
