"""report.html: one page that shows a progression and needs nothing else."""

from pie_engine.outputs.report.folder import REPORT, add_measures, find_report, make_report

__all__ = ["REPORT", "add_measures", "find_report", "make_report"]
