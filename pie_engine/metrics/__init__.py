"""Measures of a progression that need no model."""

from pie_engine.metrics.change import Change, measure_change

__all__ = ["Change", "measure_change"]
