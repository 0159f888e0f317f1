"""The plots of the documents: small SVG files that are the same bytes for the same rows.

Bars and lines differ by hatching and markers as well as by colour, so that they can be told apart in grey.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.benchmarks import report_tables as tables
from pie_engine.benchmarks.harness import results
from pie_engine.benchmarks.report_rows import Group, ReportError, Row, Source, in_words, select, slug
from pie_engine.benchmarks.report_tables import digits, seconds, value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
_MARK = "pie-engine data "
_STYLE: Any = {
    "svg.hashsalt": "pie-engine", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "hatch.linewidth": 0.6,
    "path.simplify": False,
}  # fmt: skip
# Okabe and Ito's colours, which the colour-blind tell apart, ordered so that neighbours differ in lightness.
_SERIES = (
    ("#0072B2", "", "o", "-"), ("#E69F00", "//", "s", "--"), ("#009E73", "\\\\", "^", "-."),
    ("#F0E442", "||", "D", ":"), ("#CC79A7", "xx", "v", "-"), ("#56B4E9", "--", "P", "--"),
    ("#D55E00", "++", "X", "-."), ("#999999", "", "*", ":"),
)  # fmt: skip
_PLAIN, _GREY = "#0072B2", "#BBBBBB"
_INK = "#222222"
Rows = tuple[Row, ...]


@dataclass(frozen=True)
class Plot:
    """A picture of one group of rows: what it shows, the columns that it needs, what draws it, its height in inches."""

    title: str
    source: Source
    needs: tuple[str, ...]
    paint: Callable[[Figure, Rows], None]
    height: float | None = None  # None: by the number of rows

    def rows(self, group: Group) -> Rows:
        """The rows that have what is drawn."""
        return tuple(row for row in group.rows if all(row.get(column) for column in self.needs))


def plot(name: str, *, check: bool = False, root: Path = ROOT, **filters: Any) -> str:
    """Links to a plot per machine and setting, which are drawn if their rows have changed.

    Args:
        check: draw nothing; say what is to be drawn instead of the link to it.
        filters: as of `table`.

    Raises:
        ReportError: there is no such plot, or matplotlib is not installed.
    """
    if name not in PLOTS:
        raise ReportError(f"plot {name!r} is unknown; pass one of {', '.join(PLOTS)}")
    made, wanted, lines = PLOTS[name], {column: str(one) for column, one in filters.items()}, []
    for group in select(made.source, wanted, root / results.FOLDER.relative_to(ROOT)):
        if not made.rows(group):
            continue
        path = root / "docs" / "plots" / f"{slug(name, *wanted.values(), group.slug)}.svg"
        current = digest_of(path) == group.digest(name)
        if not (current or check):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(draw(name, group))
        shown = path.relative_to(root / "docs").as_posix()
        label = f"{made.title}: {', '.join(filter(None, (group.setting, group.machine)))}"
        lines.append(f"![{label}]({shown})" if current or not check else f"{shown} is not drawn from these results")
    return "\n\n".join(lines) or tables.missing(made.source, wanted)


def draw(name: str, group: Group) -> bytes:
    """The plot as an SVG file, with what it was drawn from in its metadata.

    Raises:
        ReportError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ReportError("plots need matplotlib, which is not installed: pip install '.[bench]'") from None
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    made = PLOTS[name]
    rows = made.rows(group)
    with matplotlib.rc_context(_STYLE):
        height = made.height or 1.4 + 0.3 * len(rows)
        figure = Figure(figsize=(8, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
        made.paint(figure, rows)
        title = "\n".join(filter(None, (made.title, group.setting)))
        figure.suptitle(title, x=0.012, ha="left", fontsize=10, color=_INK)
        figure.supxlabel(f"{group.machine}; {group.revisions}", x=0.012, ha="left", fontsize=7, color="#555555")
        file = io.BytesIO()
        # No date and no version of matplotlib, which would change the bytes and nothing that is seen.
        facts = {"Date": None, "Creator": "pie-engine", "Description": _MARK + group.digest(name)}
        figure.savefig(file, format="svg", metadata=facts)
    # Readers have other fonts than the one that the text was measured in.
    drawn = file.getvalue().replace(b"'DejaVu Sans'", b"'DejaVu Sans', Verdana, sans-serif")
    return b"\n".join(line.rstrip() for line in drawn.splitlines()) + b"\n"


def digest_of(path: Path) -> str:
    """What a plot says that it was drawn from; empty for other files and for none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return text.partition(_MARK)[2][:16]


def _bars(
    figure: Figure,
    rows: Rows,
    column: str,
    label: Callable[[Row], str],
    xlabel: str,
    name: Callable[[Row], str] = lambda row: row["variant"],
    spread: tuple[str, str] | None = None,
    peak: str = "",
) -> None:
    """Horizontal bars from the top down, labels at their ends, whiskers, a mark at a peak; eager ones are grey."""
    axes = figure.subplots()
    lengths = [value(row, column) or 0.0 for row in rows]
    ends = list(lengths)
    colours = [_GREY if row["variant"].startswith("eager") else _PLAIN for row in rows]
    axes.barh(range(len(rows)), lengths, height=0.65, color=colours, edgecolor=_INK, linewidth=0.6)
    if spread:
        lows, ends = ([value(row, end) or length for row, length in zip(rows, lengths, strict=True)] for end in spread)
        sides = [
            [max(0.0, length - low) for length, low in zip(lengths, lows, strict=True)],
            [max(0.0, high - length) for length, high in zip(lengths, ends, strict=True)],
        ]
        axes.errorbar(lengths, range(len(rows)), xerr=sides, fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5)
    for i, row in enumerate(rows):
        axes.text(ends[i] + 0.012 * max(lengths), i, label(row), va="center", fontsize=8, color=_INK)
    peaks = [tables.derived(row, peak) if peak else None for row in rows]
    for i, limit in enumerate(peaks):
        if limit is not None:
            look: Any = {"color": "#D55E00", "linewidth": 2, "linestyle": "--"}
            axes.plot([limit] * 2, [i - 0.45, i + 0.45], label="copy of a large tensor" if i == 0 else None, **look)
    axes.set_yticks(range(len(rows)), [name(row) for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max([*lengths, *(limit or 0.0 for limit in peaks)]) if peak else 1.3 * max(lengths))
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_xlabel(xlabel)
    _legend(figure, axes)


def _clusters(figure: Figure, rows: Rows) -> None:
    """Bars of each component's share of the peak side by side."""
    axes = figure.subplots()
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    components = list(dict.fromkeys(row["component"] for row in rows))
    shares = {(row["component"], row["variant"]): 100 * (value(row, "share") or 0.0) for row in rows}
    width = 0.8 / len(variants)
    for i, variant in enumerate(variants):
        colour, hatch, *_ = _SERIES[i % len(_SERIES)]
        places = [j + (i - (len(variants) - 1) / 2) * width for j in range(len(components))]
        heights = [shares.get((component, variant), 0.0) for component in components]
        axes.bar(places, heights, 0.92 * width, color=colour, hatch=hatch, edgecolor=_INK, linewidth=0.6, label=variant)
        for place, height in zip(places, heights, strict=True):
            axes.text(place, height, f"{height:.0f}" if height else "", ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(components)), [component.replace("_", " ") for component in components])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("share of the arithmetic peak, %")
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    _legend(figure, axes)


def _throughput(figure: Figure, rows: Rows) -> None:
    axes = figure.subplots()
    _lines(axes, rows, "batch", "items_per_s")
    axes.set(xlabel="items in a batch", ylabel="progressions per second")
    _legend(figure, axes)


def _growth(figure: Figure, rows: Rows) -> None:
    factors = list(dict.fromkeys(row["factor"] for row in rows))
    panels = figure.subplots(2, len(factors), squeeze=False, sharex="col")
    where = "device" if any(value(row, "device_peak_mb") for row in rows) else "host"
    for i, factor in enumerate(factors):
        varied = tuple(row for row in rows if row["factor"] == factor)
        _lines(panels[0, i], varied, "value", "median_s")
        _lines(panels[1, i], varied, "value", f"{where}_peak_mb", 1e9)
        names = [name for name in ("resolution", "rounds", "batch") if name != factor and varied[0].get(name)]
        panels[0, i].set_title(", ".join(in_words(name, varied[0][name]) for name in names), fontsize=8, color=_INK)
        panels[1, i].set_xlabel({"resolution": "side, pixels", "batch": "items in a batch"}.get(factor, factor))
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel(f"{where} memory, GB")
    _legend(figure, panels[0, 0])


def _lines(axes: Axes, rows: Rows, x: str, y: str, unit: float = 1.0) -> None:
    """One line per variant over what was measured."""
    points = [(row["variant"], value(row, x) or 0.0, (value(row, y) or 0.0) / unit) for row in rows]
    for i, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
        colour, _, marker, line = _SERIES[i % len(_SERIES)]
        look: Any = {"color": colour, "linestyle": line, "marker": marker, "label": variant}
        xs, ys = zip(*((a, b) for name, a, b in points if name == variant), strict=True)
        axes.plot(xs, ys, markeredgecolor=_INK, markeredgewidth=0.5, **look)
    ticks: list[float] = []
    places = sorted({place for _, place, _ in points})
    for place in places:  # labels that would run into the one before are left out
        if not ticks or place - ticks[-1] > 0.1 * (places[-1] - places[0]):
            ticks.append(place)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(0, 1.1 * max(height for *_, height in points) or 1)
    axes.grid(color="#DDDDDD", linewidth=0.6)


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside the axes, so that it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, handlelength=2.6)


def _time(row: Row) -> str:
    speedup = value(row, "speedup")
    return seconds(value(row, "median_s") or 0.0) + (f", {speedup:.2f} x" if speedup is not None else "")


def _ratio(row: Row) -> str:
    distance = value(row, "psnr_db")
    said = "" if distance is None else ", equal" if math.isinf(distance) else f", {digits(distance)} dB"
    return f"{value(row, 'speedup') or 0.0:.2f}{said}"


def _rate(row: Row) -> str:
    return f"{digits(value(row, 'gb_per_s') or 0.0)}, {seconds(value(row, 'median_s') or 0.0)}"


PLOTS = {
    "progression": Plot("Time of one progression on loaded models", tables.PROGRESSION, ("median_s",), partial(
        _bars, column="median_s", label=_time, spread=("p20_s", "p80_s"),
        xlabel="median seconds, whiskers p20 to p80; x: speed-up",
    )),
    "ladder": Plot("What each optimisation adds", tables.LADDER, ("speedup",), partial(
        _bars, column="speedup", label=_ratio, xlabel="speed-up over the first; dB: PSNR against eager fp32",
    )),
    "components": Plot("Share of the machine's arithmetic peak, by component", tables.COMPONENTS, ("share",),
                       _clusters, 3.4),
    "throughput": Plot("Progressions finished per second", tables.THROUGHPUT, ("items_per_s",), _throughput, 3.4),
    "growth": Plot("Time and memory of one progression as it grows", tables.GROWTH, ("factor", "median_s"), _growth,
                   4.6),
    "denoise-step": Plot("The fused step: bytes moved per second", tables.DENOISE_STEP, ("gb_per_s",), partial(
        _bars, column="gb_per_s", label=_rate, peak="copy_gb_per_s", xlabel="GB/s of what has to be moved",
        name=lambda row: f"{row['variant']}, {row.get('dtype', '')}, K = {row.get('kept', '')}",
    )),
}  # fmt: skip
