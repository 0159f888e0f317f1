"""Results out: frames, animations, sheets, difference maps, report and provenance."""

from pie_engine.outputs.clinical import check_source
from pie_engine.outputs.result import Result
from pie_engine.outputs.write import check_outputs

__all__ = ["Result", "check_outputs", "check_source"]
