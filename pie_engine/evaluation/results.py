"""What a study writes: tables, plots and a summary that lists them, in one folder, whole or not at all."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pie_engine.config.checks import one_of
from pie_engine.errors import OutputError
from pie_engine.files import check_folder, new_folder
from pie_engine.outputs.figure import FORMATS

SUMMARY, MEANS = "summary.json", "means.csv"


def check_results(output: Path, figures: str) -> None:
    """Refuse before anything is measured what could not be written.

    Args:
        figures: of `FORMATS`.

    Raises:
        ConfigError: an unknown format. OutputError: `output` holds something else or cannot be written, or matplotlib
            is not installed.
    """
    one_of("figures", figures, FORMATS)
    check_folder(output, replaceable=SUMMARY)
    check_plots()


def check_plots() -> None:
    """Refuse before any work is done.

    Raises:
        OutputError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise OutputError("plots need matplotlib, which is not installed; pip install 'pie-engine[eval]'")


def write_results(output: Path, summary: dict[str, Any], files: Mapping[str, str | bytes]) -> None:
    """Write files by their names, and summary.json, which lists all of them under "files".

    Raises:
        OutputError: `output` holds something else, or cannot be written.
    """
    summary["files"] = [*files, SUMMARY]
    with new_folder(output, replaceable=SUMMARY) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
