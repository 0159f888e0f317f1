"""Everything that needs a GPU, verified by one command within nine minutes: `make gpu-check`.

    python benchmarks/gpu_check.py [--wheels DIR] [--seconds 540] [--output FILE]
    python benchmarks/gpu_check.py --seconds 1600 --sections baselines ladder components throughput step

Runs the GPU tests, then times and compares every implementation and backend that it finds, and writes one JSON file
with device, versions, parity and times to benchmarks/results/. This file needs nothing but Python: on a machine that
has only torch, triton and transformers, give it a folder of wheels for the rest (diffusers and what it needs, and
onnxruntime-gpu if it should be tried). Each section runs in a process of its own, so that one that crashes or hangs
leaves the others be; the file is rewritten after each, so that a run which is cut short still leaves its results. The
second form runs the benchmarks' own scripts on a full-size model; rows are added to the CSV files beside that file.

Exit code: 0 if all was run and held, 1 if something failed, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# 250 guided steps: what is published, what an eager user gets in half precision, and the engine.
BASELINES = (
    "eager fp32, as published; eager fp16, tuned; eager fp16, tuned and compiled; engine, torch fp16; "
    "engine, torch fp16, compiled"
)
# Section -> its largest share of the whole time. The tests come first: they are what a later section relies on.
SHARES = {"environment": 0.15, "kernels": 0.15, "tests": 0.55, "progression": 0.4, "tensorrt": 0.4, "full_size": 0.5}
# The benchmarks of docs/performance.md at full size, each with its largest time in seconds: only where they are named.
SCRIPTS = {
    "baselines": ("progression", 420, ["--model", "sd", "--rounds", "10", "--repeats", "3", "--variants", BASELINES]),
    "ladder": ("ladder", 540, ["--model", "sd", "--rounds", "10", "--repeats", "3"]),
    "components": ("components", 300, ["--model", "sd", "--repeats", "5", "--compile"]),
    "throughput": (
        "throughput", 240,
        ["--model", "sd", "--rounds", "2", "--repeats", "3", "--batches", "1", "8", "--variants", "engine, torch fp16"],
    ),
    "step": ("denoise_step", 120, ["--batch", "1", "8", "--dtype", "fp16", "fp32"]),
}  # fmt: skip
# The same on a processor, to try the sections themselves.
FEW_STEPS = ["--rounds", "1", "--num-inference-steps", "4"]
SMALL = {
    "baselines": [*FEW_STEPS, "--variants", "eager fp32, as published; engine, torch fp32"],
    "ladder": FEW_STEPS,
    "components": ["--components", "text_encoder"],
    "throughput": [*FEW_STEPS, "--batches", "1", "2", "--variants", "engine, torch fp32"],
    "step": [],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what this machine lacks")
    parser.add_argument("--seconds", type=float, default=540, help="time for everything (540)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/gpu-check-DEVICE.json")
    parser.add_argument("--sections", nargs="+", choices=[*SHARES, *SCRIPTS], default=list(SHARES))
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu tries the script itself, on small sizes"
    )
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    with tempfile.TemporaryDirectory(prefix="pie-gpu-check-") as folder:
        environment = prepare(Path(folder), arguments.wheels)
        results: dict[str, Any] = {
            "command": " ".join(sys.argv),
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        folder_of_rows = arguments.output.parent if arguments.output else ROOT / "benchmarks" / "results"
        results["revision"] = revision()
        results["extension"] = build_extension(environment)
        for section in ["environment", *(s for s in arguments.sections if s != "environment")]:
            left = deadline - time.monotonic()
            if left < 10:
                results[section] = {"outcome": "skipped: no time left"}
                continue
            longest = SCRIPTS[section][1] if section in SCRIPTS else arguments.seconds * SHARES[section]
            started = time.monotonic()
            results[section] = run_section(section, arguments.device, environment, min(left, longest), folder_of_rows)
            results[section]["seconds"] = round(time.monotonic() - started, 1)
            report(section, results[section])
            if section == "environment" and results[section]["outcome"] != "ok":
                sys.stderr.write(f"gpu-check: {results[section].get('error', 'no GPU')}\n")
                return 2
            name = re.sub(r"[^a-z0-9]+", "-", results["environment"]["results"][0]["device"].lower()).strip("-")
            output = arguments.output or ROOT / "benchmarks" / "results" / f"gpu-check-{name}.json"
            write(output, results)
    sys.stdout.write(f"{output}\n")
    return 0 if all(results[s]["outcome"] == "ok" for s in arguments.sections) else 1


def prepare(folder: Path, wheels: Path | None) -> dict[str, str]:
    """The environment for the sections: wheels unpacked, and the package laid out if it is not installed."""
    paths = []
    if wheels is not None:
        site = folder / "site"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site)]
        subprocess.run([*command, *map(str, sorted(wheels.glob("*.whl")))], check=True)
        paths.append(str(site))
    if any(importlib.util.find_spec(name) is None for name in ("pie_engine", "pie_engine.kernels")):
        package = folder / "tree" / "pie_engine"
        package.mkdir(parents=True)
        for source in (
            *(ROOT / "pie_engine").iterdir(),
            *(ROOT / name for name in ("export", "kernels", "cpp_ext", "benchmarks")),
        ):
            (package / source.name).symlink_to(source)
        paths.append(str(package.parent))
    search = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    # The safe path leaves the working directory out of the search, where half of the package would be found first.
    return {
        **os.environ,
        "PYTHONPATH": search,
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PIE_ENGINE_CACHE": str(folder / "cache"),
    }


def revision() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def build_extension(environment: dict[str, str]) -> str:
    """Compile the C++ and CUDA step for this machine's torch; what it said."""
    command = [sys.executable, "-m", "pie_engine.cpp_ext"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    return (done.stdout + done.stderr).strip()


def run_section(
    section: str, device: str, environment: dict[str, str], limit: float, folder: Path | None = None
) -> dict[str, Any]:
    """Run one section in a process of its own.

    Args:
        limit: seconds.
        folder: of the CSV files that the benchmarks' scripts add to.

    Returns:
        outcome ("ok", "failed", "timed out"), results (one object per line that it gave) and the end of its log.
    """
    if section == "tests":
        command = [sys.executable, "-m", "pytest", "-m", "gpu" if device == "cuda" else "gpu and not gpu", "-v"]
        command += ["--tb=short", "-p", "no:cacheprovider", "tests"]
    elif section in SCRIPTS:
        script, _, words = SCRIPTS[section]
        if device == "cpu":
            words = [*SMALL[section], "--repeats", "1", "--quick-limits"]
        command = [sys.executable, "-m", f"pie_engine.benchmarks.{script}", *words]
        command += ["--device", device, "--output", str(folder)]
    else:
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_sections.py"), section, "--device", device]
    before = len(read_rows(section, folder))
    outcome, results, log = "ok", [], []
    with tempfile.TemporaryFile("w+") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
            code, outcome = None, f"timed out after {limit:.0f} s"
        stream.seek(0)
        for line in stream:
            if line.startswith("RESULT "):
                results.append(json.loads(line.removeprefix("RESULT ")))
            else:
                log.append(line.rstrip())
    if section in SCRIPTS:
        results = read_rows(section, folder)[before:]
    if section == "tests":
        results = [count_tests(log)]
        if code == 5 and device == "cpu":  # pytest's code for nothing collected
            code = 0
    if code not in (0, None):
        outcome = f"failed with exit code {code}"
    if outcome == "ok" and any(not result.get("ok", True) for result in results):
        outcome = "failed: see results that are not ok"
    section_results: dict[str, Any] = {"outcome": outcome, "results": results}
    if outcome != "ok":
        section_results["log"] = log[-60:]
        section_results["error"] = next((line for line in reversed(log) if line), "")
    return section_results


def read_rows(section: str, folder: Path | None) -> list[dict[str, Any]]:
    """The rows in the CSV file of a benchmark's script."""
    if section not in SCRIPTS or folder is None:
        return []
    path = folder / f"{SCRIPTS[section][0]}.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def count_tests(log: list[str]) -> dict[str, Any]:
    """Outcomes of pytest -v, counted line by line, so that a run which was cut short counts too."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": [], "skips": []}
    for line in log:
        found = re.match(r"(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED)(.*)", line)
        if not found:
            continue
        name, verdict, rest = found.groups()
        if verdict == "PASSED":
            counts["passed"] += 1
        elif verdict == "SKIPPED":
            counts["skipped"] += 1
            counts["skips"].append(f"{name}{rest.split('[')[0]}".strip())
        elif name not in counts["failures"]:
            counts["failed"] += 1
            counts["failures"].append(name)
    counts["ok"] = counts["failed"] == 0
    return counts


def report(section: str, results: dict[str, Any]) -> None:
    """One line per result on the terminal."""
    sys.stdout.write(f"== {section}: {results['outcome']} ({results['seconds']} s)\n")
    for result in results["results"]:
        text = "  ".join(
            f"{key} {value:.6g}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items()
        )
        sys.stdout.write(f"   {text}\n")
    for line in results.get("log", []):
        sys.stdout.write(f"   | {line}\n")
    sys.stdout.flush()


def write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
