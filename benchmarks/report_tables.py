"""The tables of the documents: which columns of which results file, under which headings, in which form."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pie_engine.benchmarks.harness import results
from pie_engine.benchmarks.report_rows import Group, ReportError, Row, Source, select

# Units of columns, by the ends of their names, in seconds, bytes and shares of one.
_SCALES = {"_us": 1e-6, "_ms": 1e-3, "_percent": 1e-2, "_kb": 1e3, "_mb": 1e6, "_gb": 1e9}

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
REGIONAL = Source("regional", ("box",), ("backend", "steps"), ("backend", "steps"), run=())
BUILD_TIMES = Source("build_times", ("what", "component", "backend", "precision", "flavour"), ("model", "resolution"),
                     ("model", "resolution", "threads"))  # fmt: skip
PEERS = Source("peers", ("variant",), ("resolution", "steps"), ("resolution", "steps"))
GPU_STEP, GPU_KERNELS, GPU_PROGRESSION, GPU_ERRORS = (
    Source(f"gpu_{name}", key, options=(), run=(), script="gpu_check")
    for name, key in {"step": ("dtype", "variant"), "kernels": ("part", "group"), "progression": ("variant",),
                      "errors": ("variant",)}.items()
)  # fmt: skip

# By table, its rows and its headings; a column whose cells are all empty is left out.
TABLES = {
    "progression": (PROGRESSION, "variant | median | p20 to p80 | speed-up | its p20 to p80 | warm-up | loading | "
                                 "PSNR, dB | host memory | device memory | note"),
    "floor": (PROGRESSION, "variant | TFLOP | peak, GFLOP/s | floor | median | times the floor | share of peak"),
    "ladder": (LADDER, "rung | median | p20 to p80 | over the one before | its p20 to p80 | over the first | "
                       "PSNR, dB | host memory | device memory"),
    "components": (COMPONENTS, "component | variant | precision | median | p20 to p80 | GFLOP/s | share of peak | "
                               "GB/s | share of copy | note"),
    "components-floor": (COMPONENTS,
                         "component | variant | precision | TFLOP | peak, GFLOP/s | floor | median | times the floor"),
    "throughput": (THROUGHPUT, "variant | batch | median | progressions per second | guided steps per second | "
                               "gain per item | share of peak | host memory | device memory | note"),
    "growth": (GROWTH, "varied | variant | rounds | side | batch | median | one round | one round of one item | "
                       "host memory | device memory | note"),
    "denoise-step": (DENOISE_STEP,
                     "dtype | K | variant | median | p20 to p80 | speed-up | GB/s | share of copy"),
    "denoise-step-floor": (DENOISE_STEP, "dtype | K | variant | moved | copy, GB/s | floor | median"),
    "round-share": (ROUND_SHARE, "variant | one round | U-Net | fused step | decoding | rest"),
    "build-times": (BUILD_TIMES, "what | component | by | precision | time | host memory | graph | plan | attentions | "
                                 "fused | note"),
    "regional": (REGIONAL, "box | ten rounds | speed-up | recorded | checked | in the box | step | picture | "
                           "recording | host memory"),
    "peers": (PEERS, "variant | first frame, cold | first frame, warm | one round | host memory | packages"),
    "gpu-step": (GPU_STEP, "what is on | guided step | p20 to p80 | floor | share of peak | speed-up | decoding | "
                           "its floor | its share | its speed-up | device memory"),
    "gpu-kernels": (GPU_KERNELS, "part | kernels | time | share"),
    "gpu-progression": (GPU_PROGRESSION,
                        "run | whole | preparing | rounds | their steps and decodings alone | after"),
    "gpu-errors": (GPU_ERRORS, "what is on | latent, largest | rms | eager's largest | eager's rms"),
}  # fmt: skip
# By heading, the columns that may stand below it: the first that a row has, as a number if it has a unit.
# `low..high` is a range; names that begin with `=` are computed by `derived`. Other headings are columns.
HEADINGS = {
    "rung": "variant", "what is on": "variant", "run": "variant", "kernels": "group", "varied": "factor",
    "side": "resolution", "K": "kept", "by": "flavour backend",
    "median": "median_s", "p20 to p80": "p20_s..p80_s p20_ms..p80_ms", "warm-up": "warm_up_s", "loading": "load_s",
    "time": "median_s seconds time_us", "one round": "round_s", "one round of one item": "round_and_item_s",
    "guided step": "step_ms", "decoding": "decode_ms decode_share", "whole": "seconds", "preparing": "prepare_s",
    "rounds": "rounds_s rounds", "their steps and decodings alone": "steps_s", "after": "after_s",
    "speed-up": "speedup", "over the first": "speedup",
    "its p20 to p80": "speedup_over_previous_p20..speedup_over_previous_p80 speedup_p20..speedup_p80",
    "over the one before": "speedup_over_previous", "gain per item": "speedup", "its speed-up": "decode_speedup",
    "host memory": "host_peak_mb host_memory_mb host_memory_gb", "device memory": "device_peak_mb",
    "ten rounds": "ten_rounds_s", "recorded": "recorded_s", "checked": "checked_s", "in the box": "inside_s",
    "step": "step_s", "picture": "picture_s", "recording": "recording_mb",
    "first frame, cold": "first_cold_s", "first frame, warm": "first_warm_s",
    "graph": "graph_mb", "plan": "plan_mb", "moved": "moved_mb", "PSNR, dB": "psnr_db",
    "TFLOP": "tflop", "GFLOP/s": "gflop_per_s", "peak, GFLOP/s": "peak_gflop_per_s", "GB/s": "gb_per_s",
    "copy, GB/s": "=copy_gb_per_s", "floor": "=floor_s", "its floor": "=decode_floor_s",
    "times the floor": "=floor_speedup",
    "share of peak": "share", "share of copy": "share_of_copy", "share": "time_share", "its share": "decode_share",
    "U-Net": "unet_share", "fused step": "step_share", "rest": "rest_share",
    "progressions per second": "items_per_s", "guided steps per second": "evaluations_per_s",
    "latent, largest": "latent_max", "rms": "latent_rmse", "eager's largest": "eager_latent_max",
    "eager's rms": "eager_latent_rmse",
}  # fmt: skip
_TEXTS = {"variant", "group", "factor", "resolution", "kept", "flavour", "backend", "rounds"}


def value(row: Row, *names: str) -> float | None:
    """The first of the named columns that the row has a number in, in seconds, bytes or as a share of one."""
    for name in names:
        try:
            number = float(row.get(name) or "")
        except ValueError:
            continue
        return number * next((scale for end, scale in _SCALES.items() if name.endswith(end)), 1.0)
    return None


def form(name: str, number: float) -> str:
    """A number as a column of this name is read: three digits, times and memory with their unit."""
    if name.endswith(("_mb", "_gb", "_kb")):
        units = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
        unit, scale = next((one for one in units if number >= one[1]), units[-1])
        return f"{digits(number / scale)} {unit}"
    if "speedup" in name:
        return f"{number:.2f}" if number < 10 else digits(number)
    if name == "psnr_db" and math.isinf(number):
        return "equal"
    if name.endswith(("share", "_percent", "share_of_copy")):
        return f"{100 * number:.1f} %"
    if name == "seconds" or (name.endswith(("_s", "_us", "_ms")) and not name.endswith("_per_s")):
        return seconds(number)
    return digits(number)


def seconds(number: float) -> str:
    """Three digits, with the unit that they call for."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(number) >= scale:
            return f"{digits(number / scale)} {unit}"
    return f"{digits(number * 1e6)} us"


def digits(number: float) -> str:
    """Three significant digits, all of those before the point, and no exponent."""
    if number == 0 or not math.isfinite(number):
        return f"{number:.0f}"
    return f"{number:.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"


def _product(*factors: float | None) -> float | None:
    return None if None in factors else math.prod(factor for factor in factors if factor is not None)


def derived(row: Row, name: str) -> float | None:
    """What is computed from a row: floors in seconds, how often the floor fits into the median, the copy's GB/s."""
    work, peak, taken = value(row, "tflop"), value(row, "peak_gflop_per_s"), value(row, "median_s")
    rate, share = value(row, "gb_per_s"), value(row, "share_of_copy")
    if name == "copy_gb_per_s":
        copied = value(row, "copy_gb_per_s")
        return rate / share if copied is None and rate and share else copied
    if name == "decode_floor_s":
        return _product(value(row, "decode_ms"), value(row, "decode_share"))
    floor = work * 1e3 / peak if work is not None and peak else _product(taken, share)
    if floor is None:
        floor = _product(value(row, "step_ms"), value(row, "share"))
    return floor if name == "floor_s" else taken / floor if taken and floor else None


def _cell(row: Row, heading: str) -> str:
    for name in HEADINGS.get(heading, heading).split():
        low, _, high = name.partition("..")
        if high and None not in (ends := (value(row, low), value(row, high))):
            return " to ".join(form(low, end) for end in ends if end is not None)
        if heading not in HEADINGS or name in _TEXTS:
            if row.get(name):
                return row[name]
            continue
        plain = name.lstrip("=")
        number = derived(row, plain) if name != plain else value(row, name)
        if number is not None and not (number == 0 and name.endswith(("_mb", "_gb"))):  # 0 bytes: not known
            return form(plain, number)
    return ""


def table(name: str, folder: Path = results.FOLDER, **filters: Any) -> str:
    """A table per machine and setting, each with a line on where it comes from, or a line that says it is missing.

    Args:
        filters: values of columns, or kind="cpu", kind="gpu".

    Raises:
        ReportError: there is no such table.
    """
    if name == "runs":
        return _runs(folder)
    if name not in TABLES:
        raise ReportError(f"table {name!r} is unknown; pass one of {', '.join([*TABLES, 'runs'])}")
    source, headings = TABLES[name]
    wanted = {column: str(one) for column, one in filters.items()}
    parts = []
    for group in select(source, wanted, folder):
        parts += [f"**{group.title}**"] if group.title else []
        rows = [row for row in group.rows if row.get("tflop") or name != "components-floor"]
        columns = headings.split(" | ")
        parts += [markdown(columns, [[_cell(row, heading) for heading in columns] for row in rows])]
        parts += [origin(group, source.command(group.shared | wanted))]
    return "\n\n".join(parts) or missing(source, wanted)


def missing(source: Source, filters: dict[str, str]) -> str:
    """What stands where there are no rows."""
    where = ", on a machine with an NVIDIA GPU" if filters.get("kind") == "gpu" else ""
    return f"Not measured yet: `{source.command(filters)}`{where}."


def origin(group: Group, command: str) -> str:
    """The line under a table."""
    return f"<sub>{'; '.join(filter(None, (group.machine, group.setting, group.revisions)))}; `{command}`</sub>"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], keep_empty: bool = False) -> str:
    """A Markdown table without the columns that are empty."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    kept = [i for i in range(len(head)) if keep_empty or any(row[i] for row in cells)]
    lines = [f"| {' | '.join(line)} |" for line in ([row[i] for i in kept] for row in [head, *cells])]
    return "\n".join([lines[0], "|" + "---|" * len(kept), *lines[1:]])


def _runs(folder: Path) -> str:
    """Which versions the shown rows were measured with."""
    runs: dict[tuple[str, ...], tuple[set[str], str]] = {}
    for source in dict.fromkeys(source for source, _ in TABLES.values()):
        for group in select(source, {}, folder):
            for row in group.rows:
                run = (group.machine, row["revision"], row.get("versions", ""))
                files, day = runs.get(run, (set(), ""))
                runs[run] = (files | {f"{source.csv}.csv"}, max(day, row["date"][:10]))
    if not runs:
        return "Nothing is measured yet."
    rows = [(*run, day, ", ".join(sorted(files))) for run, (files, day) in runs.items()]
    return markdown(("machine", "revision", "versions", "day", "files"), rows)
