"""Measures: plain functions on arrays. Those that need a package or a model file have modules of their own."""

from pie_engine.metrics.change import Change, ChangeMeter, measure_change
from pie_engine.metrics.overlap import Overlap, measure_overlap

__all__ = ["Change", "ChangeMeter", "Overlap", "measure_change", "measure_overlap"]
