"""Plots of studies, drawn with matplotlib: one style, one way into a file."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pie_engine.errors import OutputError
from pie_engine.files import check_file, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
SUFFIXES = tuple(f".{name}" for name in FORMATS)
# Okabe and Ito, as in the report; markers and dashes distinguish them too.
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#9c4f83", "#6f5500", "#545d68")
MARKERS = ("o", "s", "^", "D", "v", "X")
DASHES: tuple[tuple[float, ...], ...] = ((1, 0), (5, 2), (1, 1.5), (5, 1.5, 1, 1.5), (3, 1), (2, 2))
NOTE = "Measured on simulated pictures; research use only, not for diagnosis."
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
    "svg.fonttype": "none",  # text stays text: small files, which can be edited and searched
    "pdf.fonttype": 42,  # as journals ask
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
    """The picture as PNG, SVG or PDF, marked synthetic and for research use, the same bytes for the same figure.

    Call it once for a figure, inside the block of `new_figure`.
    """
    return _encode(figure, (suffix,))[suffix]


def encode_figures(figure: Figure, name: str, figures: str) -> dict[str, bytes]:
    """Files by their names: the picture as PNG, and beside it as SVG or PDF if `figures` is that; as `encode_figure`.

    Args:
        name: of the files, without a suffix.
        figures: of `FORMATS`.
    """
    found = _encode(figure, dict.fromkeys((".png", f".{figures}")))
    return {name + suffix: content for suffix, content in found.items()}


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write `encode_figure` to `path`, whole or not at all.

    Raises:
        OutputError: the name does not end in one of `SUFFIXES`, or the file cannot be written.
    """
    path = Path(path)
    check_figure(path)
    write_file(path, encode_figure(figure, path.suffix))


def check_figure(path: Path) -> None:
    """Refuse a name that `save_figure` could not write, before any work is done.

    Raises:
        OutputError: the name does not end in one of `SUFFIXES`, or the place cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise OutputError(f"{path} does not end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}; pass another name")
    check_file(path, suffix=path.suffix)


def _encode(figure: Figure, suffixes: Iterable[str]) -> dict[str, bytes]:
    figure.text(0.995, 0.002, NOTE, ha="right", va="bottom", fontsize=7, color="#545d68")
    # No date and no version of matplotlib, which would change the bytes and nothing that is seen.
    metadata: dict[str, dict[str, str | None]] = {
        ".png": {"Software": "pie-engine", "Comment": NOTE},
        ".svg": {"Date": None, "Creator": "pie-engine", "Description": NOTE},
        ".pdf": {"CreationDate": None, "Creator": "pie-engine", "Producer": "pie-engine", "Subject": NOTE},
    }
    found = {}
    for suffix in suffixes:
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix.removeprefix("."), metadata=metadata[suffix], bbox_inches="tight")
        found[suffix] = picture.getvalue()
    return found
