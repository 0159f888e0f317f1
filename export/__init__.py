"""Checkpoint components -> ONNX, each held to its PyTorch module."""
