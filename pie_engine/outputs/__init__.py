"""Results out: frames, animations, sheets, difference maps, report and provenance."""

from pie_engine.outputs.clinical import check_source
from pie_engine.outputs.result import Progression
from pie_engine.outputs.saving import Result
from pie_engine.outputs.write import check_outputs

__all__ = ["Progression", "Result", "check_outputs", "check_source"]
