"""Measures of progressions and regions that need no model."""

from pie_engine.metrics.change import Change, measure_change
from pie_engine.metrics.overlap import Overlap, measure_overlap

__all__ = ["Change", "Overlap", "measure_change", "measure_overlap"]
