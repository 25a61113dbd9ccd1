"""Writes a run as an ONNX file, which gives the same recommendations without seqrec and without torch."""

from seqrec.export.session import OnnxModel, onnx_predictor
from seqrec.export.write import Exported, export_onnx

__all__ = ["Exported", "OnnxModel", "export_onnx", "onnx_predictor"]
