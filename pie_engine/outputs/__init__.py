"""Results out: frames, animation, contact sheet and provenance."""

from pie_engine.outputs.result import Result

__all__ = ["Result"]
