"""Checkpoint -> ONNX -> engines -> bundle: each component and each engine cached by its content."""

from pie_engine.bundling.assemble import build_bundle, cached_bundle, model_info
from pie_engine.bundling.graphs import exporter_versions
from pie_engine.bundling.recalled import Recalled
from pie_engine.bundling.regional import regional_graph
from pie_engine.bundling.restore import check_restorable, restore_checkpoint

__all__ = [
    "Recalled", "build_bundle", "cached_bundle", "check_restorable", "exporter_versions", "model_info",
    "regional_graph", "restore_checkpoint",
]  # fmt: skip
