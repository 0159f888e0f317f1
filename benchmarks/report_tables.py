"""The tables of the documents: which columns of which results file, under which headings, in which form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pie_engine.benchmarks.report_format import form, value
from pie_engine.benchmarks.report_rows import Group, ReportError, Request, Row, Source, select


@dataclass(frozen=True)
class Column:
    """A heading, and the cell that a row gives; a column whose cells are all empty is left out."""

    heading: str
    cell: Callable[[Row], str]


@dataclass(frozen=True)
class Table:
    """A source and its columns; rows that lack one of `needs` are left out."""

    source: Source
    columns: tuple[Column, ...]
    needs: tuple[str, ...] = ()


def text(heading: str, *names: str) -> Column:
    """A column as it stands in the file."""
    return Column(heading, lambda row: next((row[name] for name in names if row.get(name)), ""))


def number(heading: str, *names: str) -> Column:
    """The first of these columns that a row has, in the form that its name asks for."""

    def cell(row: Row) -> str:
        found = value(row, *names)
        return "" if found is None else form(names[0], found)

    return Column(heading, cell)


def between(heading: str, low: str, high: str, *others: str) -> Column:
    """Two columns as "low to high"; `others` are further pairs, for files that name them differently."""
    lows, highs = (low, *others[::2]), (high, *others[1::2])

    def cell(row: Row) -> str:
        ends = value(row, *lows), value(row, *highs)
        return " to ".join(form(low, end) for end in ends if end is not None) if None not in ends else ""

    return Column(heading, cell)


def memory(heading: str, *names: str) -> Column:
    """Bytes; zero stands for what is not known."""

    def cell(row: Row) -> str:
        found = value(row, *names)
        return form(names[0], found) if found else ""

    return Column(heading, cell)


def floor(row: Row) -> float | None:
    """Seconds that the arithmetic takes at the machine's peak."""
    work, peak = value(row, "tflop"), value(row, "peak_gflop_per_s")
    return work * 1e3 / peak if work is not None and peak else None


def copy_peak(row: Row) -> float | None:
    """GB/s that the machine copied, from a row that says which share of it was reached."""
    peak = value(row, "copy_gb_per_s", "peak_gb_per_s")
    rate, share = value(row, "gb_per_s"), value(row, "share_of_copy")
    return peak if peak is not None else (rate / share if rate and share else None)


def _from(function: Callable[[Row], float | None], name: str) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        found = function(row)
        return "" if found is None else form(name, found)

    return cell


def _times_floor(row: Row) -> float | None:
    lowest, taken = floor(row), value(row, "median_s")
    return taken / lowest if lowest and taken else None


def _bytes_floor(row: Row) -> float | None:
    taken, share = value(row, "median_s", "median_us"), value(row, "share_of_copy")
    return taken * share if taken is not None and share is not None else None


def _of_share(time: str, share: str) -> Callable[[Row], float | None]:
    """Seconds at the peak, of a row that says how long it took and which share of the peak that is."""

    def cell(row: Row) -> float | None:
        taken, reached = value(row, time), value(row, share)
        return None if taken is None or reached is None else taken * reached

    return cell


VARIANT = text("variant", "variant")
MEDIAN = number("median", "median_s")
SPREAD = between("p20 to p80", "p20_s", "p80_s")
SPEEDUP = number("speed-up", "speedup")
SPEEDUP_SPREAD = between("its p20 to p80", "speedup_p20", "speedup_p80")
MEMORY = memory("host memory", "host_peak_mb", "host_memory_mb", "host_memory_gb")
DEVICE_MEMORY = memory("device memory", "device_peak_mb")
PSNR = number("PSNR, dB", "psnr_db")
SHARE = number("share of peak", "share")
RATE = number("GFLOP/s", "gflop_per_s")
WORK = number("TFLOP", "tflop")
PEAK = number("peak, GFLOP/s", "peak_gflop_per_s")
COPY_SHARE = number("share of copy", "share_of_copy")
FLOOR = Column("floor", _from(floor, "floor_s"))
TIMES_FLOOR = Column("times the floor", _from(_times_floor, "speedup"))
BYTES_FLOOR = Column("floor", _from(_bytes_floor, "floor_s"))
NOTE = text("note", "note")

PROGRESSION = Source("progression", ("variant",))
# A rung's speed-up is over the rung before it in the same run.
LADDER = Source("ladder", ("rung", "variant"), options=("model", "resolution", "rounds", "threads"), run=())
COMPONENTS = Source("components", ("component", "variant"), ("model", "resolution", "batch"),
                    ("model", "resolution", "batch", "threads"))  # fmt: skip
THROUGHPUT = Source("throughput", ("variant", "batch"), ("model", "resolution", "rounds", "evaluations"),
                    ("model", "resolution", "rounds", "threads"))  # fmt: skip
# Points of one line keep the same values of what is not varied.
GROWTH = Source("growth", ("factor", "variant", "value"), ("model",), ("model", "threads"), run=("factor", "variant"))
DENOISE_STEP = Source("denoise_step", ("dtype", "kept", "variant"), ("shape",), ("dtype", "kept", "threads"))
ROUND_SHARE = Source("round_share", ("variant",))
BUILD_TIMES = Source("build_times", ("what", "component", "backend", "precision", "flavour"), ("model", "resolution"),
                     ("model", "resolution", "threads"))  # fmt: skip
GPU_STEP, GPU_KERNELS, GPU_PROGRESSION, GPU_ERRORS = (
    Source(f"gpu_{name}", key, options=(), run=(), script="gpu_check")
    for name, key in (
        ("step", ("dtype", "variant")), ("kernels", ("part", "group")), ("progression", ("variant",)),
        ("errors", ("variant",)),
    )
)  # fmt: skip

# fmt: off
TABLES = {
    "progression": Table(PROGRESSION, (VARIANT, MEDIAN, SPEEDUP, SPEEDUP_SPREAD, MEMORY, DEVICE_MEMORY)),
    "progression-times": Table(PROGRESSION, (
        VARIANT, MEDIAN, SPREAD, SPEEDUP, SPEEDUP_SPREAD, number("warm-up", "warm_up_s"), PSNR, NOTE,
    )),
    "progression-memory": Table(PROGRESSION, (VARIANT, number("loading", "load_s"), MEMORY, DEVICE_MEMORY)),
    "floor": Table(PROGRESSION, (VARIANT, WORK, PEAK, FLOOR, MEDIAN, TIMES_FLOOR, SHARE)),
    "ladder": Table(LADDER, (
        text("rung", "variant"), MEDIAN, SPREAD, number("over the one before", "step_speedup"),
        between("its p20 to p80", "step_speedup_p20", "step_speedup_p80"), number("over the first", "speedup"), PSNR,
        MEMORY, DEVICE_MEMORY,
    )),
    "components": Table(COMPONENTS, (
        text("component", "component"), VARIANT, text("precision", "precision"), MEDIAN, SPREAD, RATE, SHARE,
        number("GB/s", "gb_per_s"), COPY_SHARE, NOTE,
    )),
    "components-floor": Table(COMPONENTS, (
        text("component", "component"), VARIANT, text("precision", "precision"), WORK, PEAK, FLOOR, MEDIAN, TIMES_FLOOR,
    ), needs=("tflop",)),
    "throughput": Table(THROUGHPUT, (
        VARIANT, text("batch", "batch"), MEDIAN, number("progressions per second", "items_per_s"),
        number("guided steps per second", "evaluations_per_s"), number("gain per item", "speedup"), SHARE, MEMORY,
        DEVICE_MEMORY, NOTE,
    )),
    "growth": Table(GROWTH, (
        text("varied", "factor"), VARIANT, text("rounds", "rounds"), text("side", "resolution"), text("batch", "batch"),
        MEDIAN, number("one round", "round_s"), number("one round of one item", "round_and_item_s"), MEMORY,
        DEVICE_MEMORY, NOTE,
    )),
    "denoise-step": Table(DENOISE_STEP, (
        text("dtype", "dtype"), text("K", "kept"), VARIANT, MEDIAN, SPREAD, SPEEDUP, number("GB/s", "gb_per_s"),
        COPY_SHARE,
    )),
    "denoise-step-floor": Table(DENOISE_STEP, (
        text("dtype", "dtype"), text("K", "kept"), VARIANT, memory("moved", "moved_mb"),
        Column("copy, GB/s", _from(copy_peak, "gb_per_s")), BYTES_FLOOR, MEDIAN,
    )),
    "round-share": Table(ROUND_SHARE, (
        VARIANT, number("one round", "round_s"), number("U-Net", "unet_share"), number("fused step", "step_share"),
        number("decoding", "decode_share"), number("rest", "rest_share"),
    )),
    "build-times": Table(BUILD_TIMES, (
        text("what", "what"), text("component", "component"), text("by", "flavour", "backend"),
        text("precision", "precision"), number("time", "median_s", "seconds"), MEMORY, memory("graph", "graph_mb"),
        memory("plan", "plan_mb"), text("attentions", "attentions"), text("fused", "fused"), NOTE,
    )),
    "gpu-step": Table(GPU_STEP, (
        text("what is on", "variant"), number("guided step", "step_ms"), between("p20 to p80", "p20_ms", "p80_ms"),
        Column("floor", _from(_of_share("step_ms", "share"), "floor_s")), SHARE, number("speed-up", "speedup"),
        number("decoding", "decode_ms"), Column("its floor", _from(_of_share("decode_ms", "decode_share"), "floor_s")),
        number("its share", "decode_share"), number("its speed-up", "decode_speedup"), DEVICE_MEMORY,
    )),
    "gpu-kernels": Table(GPU_KERNELS, (
        text("part", "part"), text("kernels", "group"), number("time", "time_us"), number("share", "time_share"),
    )),
    "gpu-progression": Table(GPU_PROGRESSION, (
        text("run", "variant"), number("whole", "seconds"), number("preparing", "prepare_s"),
        number("rounds", "rounds_s"), number("their steps and decodings alone", "steps_s"),
        number("after", "after_s"),
    )),
    "gpu-errors": Table(GPU_ERRORS, (
        text("what is on", "variant"), number("latent, largest", "latent_max"), number("rms", "latent_rmse"),
        number("eager's largest", "eager_latent_max"), number("eager's rms", "eager_latent_rmse"),
    )),
}
# fmt: on


def table(request: Request, folder: Path) -> str:
    """A table per machine and setting, each with a line on where it comes from, or a line that says it is missing.

    Raises:
        ReportError: there is no such table.
    """
    if request.name == "runs":
        return _runs(folder)
    if request.name not in TABLES:
        raise ReportError(f"table {request.name!r} is unknown; pass one of {', '.join([*TABLES, 'runs'])}")
    made = TABLES[request.name]
    source = made.source
    groups = select(source, request.filters, folder)
    if not groups:
        return missing(source, request.filters)
    parts = []
    for group in groups:
        if group.title:
            parts.append(f"**{group.title}**")
        rows = tuple(row for row in group.rows if all(row.get(name) for name in made.needs))
        parts.append(_markdown(made.columns, rows))
        parts.append(origin(group, source.command(group.shared | request.filters)))
    return "\n\n".join(parts)


def figure(request: Request, folder: Path) -> str:
    """One figure of one row: the marker's second word names its column.

    Raises:
        ReportError: no such table, no column is named, or the filters leave several rows.
    """
    if request.name not in TABLES or len(request.words) != 1:
        raise ReportError(
            f"a value needs a table and a column, as in `value: progression speedup` (got {request.name!r})"
        )
    found = [row for group in select(TABLES[request.name].source, request.filters, folder) for row in group.rows]
    if len(found) > 1:
        raise ReportError(f"{len(found)} rows fit the value {request.name} {request.filters}; add filters")
    (name,) = request.words
    number = value(found[0], name) if found else None
    return "(not measured yet)" if number is None else form(name, number)


def missing(source: Source, filters: dict[str, str]) -> str:
    """What stands where there are no rows."""
    where = ", on a machine with an NVIDIA GPU" if filters.get("kind") == "gpu" else ""
    return f"Not measured yet: `{source.command(filters)}`{where}."


def origin(group: Group, command: str) -> str:
    """The line under a table."""
    return f"<sub>{'; '.join(filter(None, (group.machine, group.setting, group.revisions)))}; `{command}`</sub>"


def _markdown(columns: tuple[Column, ...], rows: tuple[Row, ...]) -> str:
    cells = [[column.cell(row).replace("|", "\\|") for column in columns] for row in rows]
    kept = [i for i in range(len(columns)) if any(line[i] for line in cells)]
    lines = [[columns[i].heading for i in kept], ["---"] * len(kept), *([line[i] for i in kept] for line in cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _runs(folder: Path) -> str:
    """Which versions the shown rows were measured with."""
    lines: dict[tuple[str, ...], str] = {}
    for source in dict.fromkeys(table.source for table in TABLES.values()):
        for group in select(source, {}, folder):
            for row in group.rows:
                run = (f"{source.csv}.csv", group.machine, row["revision"], row.get("versions", ""))
                lines[run] = max(lines.get(run, ""), row["date"][:10])
    if not lines:
        return "Nothing is measured yet."
    columns = ("file", "machine", "revision", "versions", "day")
    shown = tuple(dict(zip(columns, (*run, day), strict=True)) for run, day in lines.items())
    return _markdown(tuple(text(name, name) for name in columns), shown)
