"""Numbers of the results files as they are shown: one unit inside, three digits outside."""

from __future__ import annotations

import math

from pie_engine.benchmarks.report_rows import Row

# Units of columns, by the ends of their names, in seconds, bytes and shares of one.
_SCALES = {"_us": 1e-6, "_ms": 1e-3, "_percent": 1e-2, "_kb": 1e3, "_mb": 1e6, "_gb": 1e9}


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
        unit, scale = next(
            ((unit, scale) for unit, scale in (("GB", 1e9), ("MB", 1e6)) if number >= scale), ("kB", 1e3)
        )
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
