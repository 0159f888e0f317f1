"""What a GPU check found, as text: `python benchmarks/gpu_table.py DIR/gpu-check.json`. What matters most is last."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Only the end of a long output may be seen: the table keeps within this.
LARGEST = 9_500
# What is shown of a result, in this order and under this name; the file has the rest.
KEYS = {
    "ok": "ok", "skipped": "skipped", "error": "error", "note": "note", "ms_per_guided_step": "step ms", "p20": "p20",
    "p80": "p80", "ms_per_item": "per item", "share_of_790": "of 790", "decode_ms": "decode ms",
    "decode_ms_per_item": "per item", "compile_s": "compile s", "latent_max": "max", "latent_rmse": "rmse",
    "roi_rmse": "roi", "seconds": "s", "rounds_s": "rounds s", "after_rounds_s": "after s", "rest_s": "rest s",
    "round_s": "round s", "recorded_s": "recorded s", "checked_s": "checked s", "inside_s": "inside s",
    "recording_gb": "recording GB", "relative_difference": "off by",
    "round_ms_per_item": "round ms per item", "first_s": "first s", "second_s": "second s",
    "first_run_s": "first run s", "peak_gib": "GiB", "implementation": "by", "batch": "batch", "io": "io",
    "microseconds": "us", "gb_per_s": "GB/s", "tflops": "TFLOP/s", "copy_gb_per_s": "copy GB/s", "dtype": "dtype",
    "reruns": "reruns", "not_known": "unknown", "passed": "passed", "failed": "failed", "failures": "failures",
    "flags": "",
}  # fmt: skip
DULL = {"ok": True, "reruns": 0, "not_known": [], "failures": []}


def main() -> int:
    report = json.loads(Path(sys.argv[1]).read_text())
    sys.stdout.write(render(report))
    return 0


def render(report: dict[str, Any]) -> str:
    """Sections in reverse, so that the first of them, and its rungs, come last."""
    blocks = [_section(name, entry) for name, entry in reversed(report["sections"].items())]
    environment = report.get("environment") or {}
    versions = environment.get("versions") or {}
    machine = [environment.get(key) for key in ("device", "capability", "cuda", "cudnn")]
    last = f"{' '.join(str(fact) for fact in machine if fact)}, torch {versions.get('torch')}, "
    last += f"triton {versions.get('triton')}, revision {report.get('revision')}, took {report.get('took')} s\n"
    text = "\n".join(blocks)
    room = LARGEST - len(last)
    if len(text) > room:
        text = "... (see gpu-check.json)\n" + text[len(text) - room :].split("\n", 1)[1]
    return text + last


def _section(name: str, entry: dict[str, Any]) -> str:
    lines = [f"== {name}: {entry['outcome']} ({entry['seconds']} of {entry['limit']} s)"]
    kernels = [result for result in entry["results"] if "top" in result]
    for result in kernels[::-1]:
        lines += _kernels(result)
    lines += _operations([result for result in entry["results"] if "operation" in result])
    lines += [_line(result) for result in entry["results"] if "top" not in result and "operation" not in result]
    if entry["outcome"] != "ok" and not any(result.get("error") for result in entry["results"]):
        lines += [f"  | {line[:140]}" for line in entry.get("log", [])[-5:]]
    return "\n".join(lines) + "\n"


def _line(result: dict[str, Any]) -> str:
    """The name, then a word for each value; in brackets that of eager PyTorch beside it."""
    words = []
    # What others measure has names of their own: then all of it is shown.
    keys = KEYS if any(key in result for key in KEYS) else {key: key for key in result if key != "rung"}
    for key, name in keys.items():
        value = result.get(key)
        if value is None or (key in DULL and value == DULL[key]):
            continue
        if key == "flags":
            words.append(_flags(value))
            continue
        beside = result.get(f"eager_{key}")
        words.append(f"{name} {_short(value)}" + (f" ({_short(beside)})" if beside is not None else ""))
    reasons = [f"{stage}: {why}" for stage, why in (result.get("captured") or {}).items() if isinstance(why, str)]
    words += ["uncaptured " + "; ".join(reasons)] if reasons else []
    return f"  {result.get('rung', ''):20} {'  '.join(words)}"[:260]


def _operations(rows: list[dict[str, Any]]) -> list[str]:
    """Of single kernels, the sums over all shapes of a batch for each implementation, and the first error of each."""
    sums: dict[str, dict[str, float]] = {}
    errors: dict[str, str] = {}
    for row in rows:
        name = f"{row['operation']}, batch {row['shape'][0]}"
        if row.get("error"):
            errors.setdefault(f"{row['operation']}, {row['implementation']}", row["error"])
        elif row.get("us") is not None:
            times = sums.setdefault(name, {})
            times[row["implementation"]] = times.get(row["implementation"], 0.0) + row["us"]
    lines = [f"  {name}: " + ", ".join(f"{by} {us:.0f} us" for by, us in times.items()) for name, times in sums.items()]
    return lines + [f"  {name}: {error[:160]}" for name, error in errors.items()]


def _flags(flags: dict[str, Any]) -> str:
    """tf32 of matrix products and convolutions, and cuDNN's benchmark: + or -."""
    marks = [
        {True: "+", False: "-"}.get(flags.get(name, "?"), "?")
        for name in ("matmul_tf32", "cudnn_tf32", "cudnn_benchmark")
    ]
    return "tf32{}{} bench{}".format(*marks)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, list):
        return ",".join(_short(item) for item in value[:6])
    return str(value)


def _kernels(result: dict[str, Any]) -> list[str]:
    groups = "  ".join(f"{name} {us:.0f}" for name, us in result["groups"].items())
    lines = [f"  {result['rung']}: {result['us']:.0f} us in {result['kernels']:.0f} kernels: {groups}"]
    shown = result["top"][: 16 if result["rung"].endswith("step") else 6]
    return lines + [
        f"    {kernel['share'] * 100:4.1f} % {kernel['count']:5.0f} x {kernel['us']:7.1f} us  {kernel['name'][:78]}"
        for kernel in shown
    ]


if __name__ == "__main__":
    sys.exit(main())
