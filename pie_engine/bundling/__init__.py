"""Checkpoint -> ONNX -> engines -> bundle: each component and each engine cached by its content."""

from pie_engine.bundling.assemble import build_bundle, cached_bundle, model_info
from pie_engine.bundling.components import exporter_versions

__all__ = ["build_bundle", "cached_bundle", "exporter_versions", "model_info"]
