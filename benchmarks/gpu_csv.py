"""What a GPU check found, as rows of the results files that the documents show.

    python benchmarks/gpu_csv.py DIR/gpu-check.json [--output benchmarks/results]

Adds to gpu_step.csv (a guided step and a decoding at full size, by what is switched on), gpu_kernels.csv (where their
time goes), gpu_progression.csv (a whole progression) and gpu_errors.csv (each switch beside eager PyTorch). What
failed or was cut short leaves no row.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pie_engine.benchmarks.harness import results

VERSIONS = ("torch", "triton", "diffusers", "transformers")
# As gpu_subject.Size has it at full size.
MODEL = {"model": "sd", "resolution": 512}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="gpu-check.json of a check")
    parser.add_argument("--output", type=Path, default=results.FOLDER, help="folder of the CSV files")
    arguments = parser.parse_args()
    for name, rows in tables(json.loads(arguments.report.read_text(encoding="utf-8"))).items():
        if rows:
            results.append(arguments.output / f"{name}.csv", rows)
            sys.stdout.write(f"{len(rows)} rows added to {arguments.output / name}.csv\n")
    return 0


def tables(report: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows by file, each with where and when it was measured."""
    environment = report["environment"]
    versions = {"python": environment["python"], **{name: environment["versions"][name] for name in VERSIONS}}
    versions["cudnn"] = environment["cudnn"]
    key = {
        "date": report["date"], "device": environment["device"], "threads": "",
        "versions": "; ".join(f"{name} {version}" for name, version in versions.items() if version),
        "revision": report["revision"],
    }  # fmt: skip
    held = [
        [one for one in report["sections"].get(section, {}).get("results", []) if one.get("ok", True)]
        for section in ("full_size", "parity")
    ]
    made = {
        "gpu_step": _steps(held[0]), "gpu_kernels": _kernels(held[0]), "gpu_progression": _progressions(held[0]),
        "gpu_errors": _errors(held[1]),
    }  # fmt: skip
    return {name: [{**key, **row} for row in rows] for name, rows in made.items()}


def _steps(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    baseline: dict[str, Any] = {}
    for one in entries:
        if "ms_per_guided_step" not in one:
            continue
        baseline = baseline or one
        yield {
            **MODEL, "batch": one["batch"], "dtype": one["dtype"], "variant": one["rung"],
            "p20_ms": one["p20"], "step_ms": one["ms_per_guided_step"], "p80_ms": one["p80"],
            # Of the p20, as the host's launches, which others disturb, are what eager PyTorch waits for.
            "speedup": baseline["p20"] / one["p20"], "share": one["share_of_790"], "decode_ms": one["decode_ms"],
            "decode_speedup": baseline["decode_ms"] / one["decode_ms"], "decode_share": one["decode_share_of_790"],
            "device_peak_mb": one["peak_gib"] * 2**30 / 1e6 if one.get("peak_gib") else "",
        }  # fmt: skip


def _kernels(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in entries:
        for group, microseconds in one.get("groups", {}).items():
            yield {
                **MODEL, "batch": 1, "part": one["rung"].removeprefix("kernels of "), "group": group,
                "time_us": microseconds, "time_share": microseconds / one["us"],
            }  # fmt: skip


def _progressions(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in entries:
        if "after_rounds_s" in one:
            yield {
                **MODEL, "rounds": one["rounds"], "batch": 1, "variant": one["rung"].rpartition(", ")[2],
                "seconds": one["seconds"], "prepare_s": one["prepare_s"], "rounds_s": one["rounds_s"],
                "steps_s": one["steps_and_decodes_s"], "after_s": one["after_rounds_s"],
            }  # fmt: skip


def _errors(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in entries:
        if "latent_max" in one:
            yield {
                "model": "demo", "variant": one["rung"], "latent_max": one["latent_max"],
                "latent_rmse": one["latent_rmse"], "eager_latent_max": one.get("eager_latent_max", ""),
                "eager_latent_rmse": one.get("eager_latent_rmse", ""),
            }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
