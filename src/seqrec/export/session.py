"""Runs graphs with onnxruntime: a session from bytes, and a model that encodes with one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrec.data.batches import Batch
from seqrec.errors import InputError, missing_extra
from seqrec.export.inputs import uses_users
from seqrec.export.model_file import model_bytes
from seqrec.export.scores import encoder_graph
from seqrec.models.base import Model
from seqrec.predictor import Predictor


def session_of(content: bytes, threads: int = 1) -> Any:
    """A session of onnxruntime, which any number of threads may run at once.

    Args:
        content: an ONNX file.
        threads: number of threads that one call computes on.

    Raises:
        InputError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("running an ONNX file", "onnx") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def feeds_of(model: Model, batch: Batch) -> dict[str, np.ndarray]:
    """The inputs of a graph for a batch of histories, padded on the left: ``items``, ``timestamps`` and ``users``."""
    feeds = {"items": _padded(batch, batch.items)}
    if model.USES_TIMES:
        feeds["timestamps"] = _padded(batch, batch.timestamps)
    if uses_users(model):
        feeds["users"] = batch.users.numpy()
    return feeds


def _padded(batch: Batch, values: Tensor) -> np.ndarray:
    """Packed numbers ``int64[T]`` in rows ``int64[B, L]``."""
    if len(batch) == 1:  # the most frequent request of a server
        return values.numpy()[None]
    lengths = batch.lengths.numpy()
    longest = int(lengths.max(initial=0))
    padded = np.zeros((len(lengths), longest), dtype=np.int64)
    padded[np.arange(longest) >= longest - lengths[:, None]] = values.numpy()
    return padded


class OnnxModel(Model):
    """A model whose histories are encoded by onnxruntime. Items are scored as by the model itself.

    Args:
        model: a trained model on the CPU, in evaluation mode.
        threads: number of threads that one call encodes on.

    Raises:
        InputError: the model counts, so it has nothing to encode; or the extra is not installed.
    """

    def __init__(self, model: Model, threads: int = 1) -> None:
        super().__init__()
        if model.COUNTED:
            raise InputError(
                "the run counts and has no network for onnxruntime to run; open it with Predictor.load, or serve it "
                "with --engine torch"
            )
        self.model = model
        self.config, self.num_items, self.num_users = model.config, model.num_items, model.num_users
        self.FACTORED, self.addition = model.FACTORED, model.addition
        self.USES_TIMES, self.READS = model.USES_TIMES, model.READS  # type: ignore[misc]
        self.session = session_of(model_bytes(encoder_graph(model)), threads)
        self.eval()

    @property
    def parts(self) -> list[Model]:
        """Those of the model itself."""
        return self.model.parts

    def encode(self, batch: Batch) -> Tensor:
        """Hidden states ``[T, D]`` of all tokens, computed by the model itself."""
        return self.model.encode(batch)

    def encode_last(self, batch: Batch) -> Tensor:
        """Hidden states ``[B, D]`` of the users' last tokens, computed by onnxruntime.

        Raises:
            ValueError: a history is empty.
        """
        _ = batch.last
        (hidden,) = self.session.run(["hidden"], feeds_of(self.model, batch))
        return torch.from_numpy(hidden)

    def attention_of_last(self, batch: Batch) -> Tensor | None:
        """Those of the model itself."""
        return self.model.attention_of_last(batch)

    def item_vectors(self) -> Tensor:
        """Output vectors ``[I + 1, D]`` of the model."""
        return self.model.item_vectors()

    def vectors_of(self, items: Tensor) -> Tensor:
        """Output vectors ``[..., D]`` of some items."""
        return self.model.vectors_of(items)

    def score(self, hidden: Tensor, items: Tensor | None = None) -> Tensor:
        """Logits, in the shapes of :meth:`Model.score`."""
        return self.model.score(hidden, items)


def onnx_predictor(folder: str | Path, threads: int = 1, mapped: bool = False, new_items: Any = None) -> Predictor:
    """Open a run folder as :meth:`Predictor.load` does, to encode histories with onnxruntime. No file is written.

    Args:
        folder: run folder.
        threads: number of threads that one call encodes on.
        mapped: as for :meth:`Predictor.load`.
        new_items: as for :meth:`Predictor.load`.

    Raises:
        InputError: as for :meth:`Predictor.load`; or the model counts, or the extra ``onnx`` is not installed.
    """
    plain = Predictor.load(folder, False, mapped, new_items)  # the first pass is measured below, once
    return Predictor(OnnxModel(plain.model, threads), plain.dataset, plain.keep_seen)
