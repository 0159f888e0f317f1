"""Figures of studies, drawn with matplotlib: one style, one way into a file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pie_engine.errors import OutputError
from pie_engine.files import check_file, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
# Okabe and Ito, as in the report; markers and dashes tell them apart too.
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#9c4f83", "#6f5500", "#545d68")
MARKERS = ("o", "s", "^", "D", "v", "X")
DASHES: tuple[tuple[float, ...], ...] = ((1, 0), (5, 2), (1, 1.5), (5, 1.5, 1, 1.5), (3, 1), (2, 2))
_NOTE = "Measured on simulated pictures; research use only, not for diagnosis."
_STYLE = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#d0d5db",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "pie-engine",
}


@contextlib.contextmanager
def new_figure(width: float = 6.4, height: float = 4.2) -> Iterator[Figure]:
    """An empty figure of `width` by `height` inches, in the studies' style, for the length of a with block.

    Raises:
        OutputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise OutputError("plots need matplotlib, which is not installed; pip install 'pie-engine[eval]'") from None
    from matplotlib.figure import Figure  # not pyplot, which would keep every figure and choose a window system

    with matplotlib.rc_context(_STYLE):
        yield Figure(figsize=(width, height), layout="constrained")


def encode_figure(figure: Figure, suffix: str) -> bytes:
    """The picture as PNG or SVG, marked synthetic and for research use, the same bytes for the same figure.

    Call it inside the block of `new_figure`.
    """
    figure.text(0.995, 0.002, _NOTE, ha="right", va="bottom", fontsize=7, color="#545d68")
    # No date and no version of matplotlib, which would change the bytes and nothing that is seen.
    metadata = {".png": {"Software": "pie-engine", "Comment": _NOTE}, ".svg": {"Date": None, "Description": _NOTE}}
    picture = io.BytesIO()
    figure.savefig(picture, format=suffix.removeprefix("."), metadata=metadata[suffix], bbox_inches="tight")
    return picture.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write `encode_figure` to `path`, whole or not at all.

    Raises:
        OutputError: the name does not end in .png or .svg, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise OutputError(f"{path} does not end in {' or '.join(SUFFIXES)}; pass another name")
    check_file(path, suffix=path.suffix)
    write_file(path, encode_figure(figure, path.suffix))
