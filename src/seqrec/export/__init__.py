"""Writes a run as an ONNX file, which gives the same recommendations without seqrec and without torch."""
