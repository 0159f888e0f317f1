"""The plots of the documents: small SVG files that are the same bytes for the same rows.

Bars and lines differ by hatching and markers as well as by colour, so that they can be told apart in grey.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Plot:
    """A picture of one group of rows: what it shows, the columns that it needs, what draws it, its height in inches."""

    title: str
    source: Source
    needs: tuple[str, ...]
    paint: Callable[[Figure, tuple[Row, ...]], None]
    height: float | None = None  # None: by the number of rows

    def rows(self, group: Group) -> tuple[Row, ...]:
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


def _whiskers(rows: tuple[Row, ...]) -> list[list[float]]:
    """Distances from the medians to p20 and p80."""
    ends = ((value(row, "p20_s"), value(row, "median_s") or 0.0, value(row, "p80_s")) for row in rows)
    pairs = [
        (max(0.0, centre - (centre if low is None else low)), max(0.0, (centre if high is None else high) - centre))
        for low, centre, high in ends
    ]
    return [list(side) for side in zip(*pairs, strict=True)]


def _bars(axes: Axes, names: list[str], lengths: list[float], labels: list[str], spread: Any = None) -> None:
    """Horizontal bars from the top down with their labels at the ends; eager ones are grey."""
    places = range(len(names))
    colours = [_GREY if name.startswith("eager") else _PLAIN for name in names]
    axes.barh(places, lengths, height=0.65, color=colours, edgecolor=_INK, linewidth=0.6)
    if spread is not None:
        axes.errorbar(lengths, places, xerr=spread, fmt="none", ecolor=_INK, elinewidth=1, capsize=2.5)
    longest = max(lengths)
    for i, label in enumerate(labels):
        end = lengths[i] + (spread[1][i] if spread is not None else 0)
        axes.text(end + 0.012 * longest, i, label, va="center", fontsize=8, color=_INK)
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * longest)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)


def _progression(figure: Figure, rows: tuple[Row, ...]) -> None:
    axes = figure.subplots()
    times = [value(row, "median_s") or 0.0 for row in rows]
    speedups = [value(row, "speedup") for row in rows]
    labels = [
        seconds(time) + (f", {speedup:.2f} x" if speedup is not None else "")
        for time, speedup in zip(times, speedups, strict=True)
    ]
    _bars(axes, [row["variant"] for row in rows], times, labels, _whiskers(rows))
    axes.set_xlabel("median seconds, whiskers p20 to p80; x: speed-up")


def _ladder(figure: Figure, rows: tuple[Row, ...]) -> None:
    axes = figure.subplots()
    ratios = [value(row, "speedup") or 0.0 for row in rows]
    labels = []
    for ratio, row in zip(ratios, rows, strict=True):
        distance = value(row, "psnr_db")
        said = "" if distance is None else ", equal" if math.isinf(distance) else f", {digits(distance)} dB"
        labels.append(f"{ratio:.2f}{said}")
    _bars(axes, [row["variant"] for row in rows], ratios, labels)
    axes.set_xlabel("speed-up over the first; dB: PSNR against eager fp32")


def _components(figure: Figure, rows: tuple[Row, ...]) -> None:
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


def _throughput(figure: Figure, rows: tuple[Row, ...]) -> None:
    axes = figure.subplots()
    _lines(axes, rows, lambda row: value(row, "batch"), lambda row: value(row, "items_per_s"))
    axes.set_xlabel("items in a batch")
    axes.set_ylabel("progressions per second")
    _legend(figure, axes)


def _growth(figure: Figure, rows: tuple[Row, ...]) -> None:
    factors = list(dict.fromkeys(row["factor"] for row in rows))
    panels = figure.subplots(2, len(factors), squeeze=False, sharex="col")
    on_gpu = any(value(row, "device_peak_mb") for row in rows)
    column = "device_peak_mb" if on_gpu else "host_peak_mb"
    for i, factor in enumerate(factors):
        varied = tuple(row for row in rows if row["factor"] == factor)
        _lines(panels[0, i], varied, lambda row: value(row, "value"), lambda row: value(row, "median_s"))
        _lines(panels[1, i], varied, lambda row: value(row, "value"), lambda row: (value(row, column) or 0.0) / 1e9)
        names = [name for name in ("resolution", "rounds", "batch") if name != factor and varied[0].get(name)]
        panels[0, i].set_title(", ".join(in_words(name, varied[0][name]) for name in names), fontsize=8, color=_INK)
        panels[1, i].set_xlabel({"resolution": "side, pixels", "batch": "items in a batch"}.get(factor, factor))
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel(f"{'device' if on_gpu else 'host'} memory, GB")
    _legend(figure, panels[0, 0])


def _denoise_step(figure: Figure, rows: tuple[Row, ...]) -> None:
    axes = figure.subplots()
    rates = [value(row, "gb_per_s") or 0.0 for row in rows]
    labels = [
        f"{digits(rate)}, {seconds(value(row, 'median_s') or 0.0)}" for rate, row in zip(rates, rows, strict=True)
    ]
    names = [f"{row['variant']}, {row.get('dtype', '')}, K = {row.get('kept', '')}" for row in rows]
    _bars(axes, names, rates, labels)
    for i, row in enumerate(rows):
        peak = tables.derived(row, "copy_gb_per_s")
        if peak is not None:
            label = "copy of a large tensor" if i == 0 else None
            axes.plot([peak, peak], [i - 0.45, i + 0.45], color="#D55E00", linewidth=2, linestyle="--", label=label)
    furthest = max([*rates, *(tables.derived(row, "copy_gb_per_s") or 0.0 for row in rows)])
    axes.set_xlim(0, 1.25 * furthest)
    axes.set_xlabel("GB/s of what has to be moved")
    _legend(figure, axes)


def _lines(
    axes: Axes, rows: tuple[Row, ...], x: Callable[[Row], float | None], y: Callable[[Row], float | None]
) -> None:
    """One line per variant over what was measured."""
    for i, variant in enumerate(dict.fromkeys(row["variant"] for row in rows)):
        colour, _, marker, line = _SERIES[i % len(_SERIES)]
        points = [(x(row) or 0.0, y(row) or 0.0) for row in rows if row["variant"] == variant]
        xs, ys = zip(*points, strict=True)
        look = {"color": colour, "linestyle": line, "marker": marker, "label": variant}
        axes.plot(xs, ys, markeredgecolor=_INK, markeredgewidth=0.5, **look)
    ticks: list[float] = []
    values = sorted({x(row) or 0.0 for row in rows})
    for place in values:  # labels that would run into the one before are left out
        if not ticks or place - ticks[-1] > 0.1 * (values[-1] - values[0]):
            ticks.append(place)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_ylim(0, 1.1 * max(y(row) or 0.0 for row in rows) or 1)
    axes.grid(color="#DDDDDD", linewidth=0.6)


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside the axes, so that it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8, handlelength=2.6)


PLOTS = {
    "progression": Plot("Time of one progression on loaded models", tables.PROGRESSION, ("median_s",), _progression),
    "ladder": Plot("What each optimisation adds", tables.LADDER, ("speedup",), _ladder),
    "components": Plot("Share of the machine's arithmetic peak, by component", tables.COMPONENTS, ("share",),
                       _components, 3.4),
    "throughput": Plot("Progressions finished per second", tables.THROUGHPUT, ("items_per_s",), _throughput, 3.4),
    "growth": Plot("Time and memory of one progression as it grows", tables.GROWTH, ("factor", "median_s"), _growth,
                   4.6),
    "denoise-step": Plot("The fused step: bytes moved per second", tables.DENOISE_STEP, ("gb_per_s",), _denoise_step),
}  # fmt: skip
