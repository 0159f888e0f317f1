"""What needs a GPU, measured by one command within a given time: `make gpu-check SECONDS=300 RESULTS=DIR`.

    python benchmarks/gpu_check.py --seconds 300 --results DIR [--wheels DIR] [--sections full_size parity ...]
    python benchmarks/gpu_check.py --seconds 300 --results DIR --device cpu    # tries the script itself, on small sizes

Sections run in the order of what is worth most, each in a process of its own with its own limit, so that one that
crashes or hangs costs itself only. DIR/gpu-check.json is written anew after each measurement and DIR/SECTION.log as
the section goes, so that a run which is cut short leaves what it had. All of it takes at most the given seconds. This
file needs nothing but Python: on a machine that has torch, triton and transformers, give it a folder of wheels for the
rest (`make gpu-wheels`).

Exit code: 0 if all was run and held, 1 if something failed or was cut short, 2 if there is no GPU.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Section -> its largest share of the time, in the order in which they run; what one leaves is there for the next.
SHARES = {
    "full_size": 0.45, "parity": 0.2, "kernels": 0.15, "compiled": 0.4, "tests": 0.25, "batch": 0.2, "eager_fp32": 0.15,
}  # fmt: skip
# Where they are named: rounds in a box, and the libraries of which most machines have neither.
OPTIONAL = {"regional": 0.5, "tensorrt": 1.0}
NO_GPU = 3  # a section's exit code
LEAST = 8.0  # seconds without which no section begins: its imports take as long
LOG_BYTES = 4_000_000
TEST_NOTICE = 8.0  # seconds before its limit that pytest is asked to end, so that it prints its summary


class Results:
    """Everything found so far, and the file that always holds it."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "gpu-check.json"
        self.report: dict[str, Any] = {**about, "environment": None, "sections": {}}
        self._lock = threading.Lock()

    def begin(self, section: str, limit: float) -> None:
        entry = {"outcome": "running", "limit": round(max(limit, 0.0), 1), "seconds": None, "results": []}
        with self._lock:
            self.report["sections"][section] = entry
        self.write()

    def add(self, section: str, result: dict[str, Any]) -> None:
        with self._lock:
            if "environment" in result:
                self.report["environment"] = self.report["environment"] or result["environment"]
            else:
                self.report["sections"][section]["results"].append(result)
        self.write()

    def write(self) -> None:
        with self._lock:
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.report, indent=1) + "\n")
            partial.replace(self.path)


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=ROOT / "build" / "gpu-check", help="folder of gpu-check.json and the logs"
    )
    parser.add_argument("--seconds", type=float, default=300, help="time for everything (300)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for what this machine lacks")
    parser.add_argument("--sections", nargs="+", choices=[*SHARES, *OPTIONAL], default=list(SHARES))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--revision", help="of the sources, where they are a plain copy")
    arguments = parser.parse_args()
    if arguments.wheels is not None and not list(arguments.wheels.glob("*.whl")):
        parser.error(f"no wheels in {arguments.wheels}; fetch them with: make gpu-wheels WHEELS={arguments.wheels}")
    # A few seconds are kept for killing the last section and for the table.
    deadline = began + arguments.seconds - min(6.0, 0.1 * arguments.seconds)
    results = Results(
        arguments.results,
        {
            "command": " ".join(sys.argv), "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "revision": arguments.revision or revision(), "seconds": arguments.seconds,
        },
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a section's processes end with this one
    # Sections inherit a SIGINT that is ignored, as it is in a background job: pytest could not be interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="pie-gpu-check-", ignore_cleanup_errors=True) as folder:
        try:
            environment = prepare(Path(folder), arguments.wheels)
            for section in arguments.sections:
                left = deadline - time.monotonic()
                # The environment is what every section tells but the tests.
                share = 1.0 if arguments.device == "cpu" else {**SHARES, **OPTIONAL}[section]
                if run_section(section, arguments.device, environment, left, share, results) == NO_GPU:
                    sys.stderr.write("gpu-check: this machine shows no NVIDIA GPU\n")
                    return 2
            if results.report["environment"] is None and deadline - time.monotonic() > LEAST:
                command = [sys.executable, str(ROOT / "benchmarks" / "gpu_sections.py"), "environment"]
                Run("environment", [*command, "--device", arguments.device], environment, results).wait(20)
        finally:
            results.report["took"] = round(time.monotonic() - began, 1)
            results.write()
            table = [sys.executable, str(Path(__file__).with_name("gpu_table.py")), str(results.path)]
            subprocess.run(table, check=False, timeout=10)
    return 0 if all(entry["outcome"] == "ok" for entry in results.report["sections"].values()) else 1


def prepare(folder: Path, wheels: Path | None) -> dict[str, str]:
    """The environment for the sections: wheels unpacked, and the package laid out if it is not installed."""
    paths = []
    if wheels is not None:
        site = folder / "site"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        wheel_files = map(str, sorted(wheels.resolve().glob("*.whl")))
        subprocess.run([*command, "--target", str(site), *wheel_files], check=True)
        paths.append(str(site))
    # From a directory without the sources: here, half of the package would be found in any case.
    installed = [sys.executable, "-P", "-c", "import pie_engine.kernels, pie_engine.benchmarks"]
    if subprocess.run(installed, capture_output=True, cwd=folder, check=False).returncode:
        package = folder / "tree" / "pie_engine"
        package.mkdir(parents=True)
        for source in (
            *(ROOT / "pie_engine").iterdir(),
            *(ROOT / name for name in ("export", "kernels", "cpp_ext", "benchmarks")),
        ):
            (package / source.name).symlink_to(source)
        paths.append(str(package.parent))
    search = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    return {
        **os.environ,
        "PYTHONPATH": search,
        # The safe path leaves the working directory out, where half of the package would be found first.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "TEARDOWN_CUPTI": "0",  # the profiler runs twice, and graphs were captured before it
        "PIE_ENGINE_CACHE": str(folder / "cache"),
        "PIE_TESTS_TELL": "1",  # why a test failed at once, as the tests may be cut short
    }


def revision() -> str | None:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def run_section(
    section: str, device: str, environment: dict[str, str], left: float, share: float, results: Results
) -> int | None:
    """Run one section in a process of its own, for its share of the whole time and at most for what is left.

    Returns:
        Its exit code; None if it was not begun or killed at its limit.
    """
    limit = min(left, share * results.report["seconds"])
    results.begin(section, limit)
    entry = results.report["sections"][section]
    if left < min(LEAST, 0.5 * results.report["seconds"]):
        entry["outcome"] = "skipped: no time left"
        results.write()
        return None
    began = time.monotonic()
    if section == "tests":
        run = Run(section, tests_command(device), environment, results)
        code = run.wait(limit, TEST_NOTICE)
        counted = count_tests(run.lines)
        results.add(section, counted)
    else:
        command = [sys.executable, str(ROOT / "benchmarks" / "gpu_sections.py"), section, "--device", device]
        command.append(f"--deadline={time.time() + limit}")
        run = Run(section, command, environment, results)
        code = run.wait(limit)
        # A library that crashes takes the process with it: what comes after that rung is measured in another one.
        while code is not None and code < 0 and run.rung is not None and limit > time.monotonic() - began + LEAST:
            results.add(section, {"rung": run.rung[1], "ok": False, "error": f"crashed by signal {-code}"})
            run = Run(section, [*command, f"--start={run.rung[0] + 1}", "--failed"], environment, results, "a")
            code = run.wait(limit - (time.monotonic() - began))
    entry["outcome"] = "ok"
    if code is None:
        entry["outcome"] = f"cut short after {limit:.0f} s"
    elif code != 0:
        entry["outcome"] = f"failed with exit code {code}"
    elif not all(result.get("ok", True) for result in entry["results"]):
        entry["outcome"] = "failed: see results that are not ok"
    if entry["outcome"] != "ok":
        entry["log"] = list(run.lines)[-30:]
    entry["seconds"] = round(time.monotonic() - began, 1)
    results.write()
    sys.stdout.write(f"{section}: {entry['outcome']}, {entry['seconds']} s, {len(entry['results'])} results\n")
    sys.stdout.flush()
    return code


def tests_command(device: str) -> list[str]:
    """pytest on the files that hold GPU tests: collecting all others takes longer than running these."""
    files = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"mark\.gpu\b", path.read_text(encoding="utf-8"))
    ]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider"]
    if device == "cuda" and importlib.util.find_spec("xdist"):
        command += ["-n", "8"]
    if importlib.util.find_spec("pytest_timeout"):
        command += ["--timeout", "60"]
    return [*command, "--continue-on-collection-errors", *files]


class Run:
    """A process in a session of its own; what it says goes to its log and its results to the file, as it goes."""

    def __init__(
        self, section: str, command: list[str], environment: dict[str, str], results: Results, mode: str = "w"
    ):
        self.lines: collections.deque[str] = collections.deque(maxlen=4000)
        self.rung: tuple[int, str] | None = None  # that it has begun last
        self._section, self._results, self._mode = section, results, mode
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment,
            cwd=ROOT, start_new_session=True, text=True, errors="replace",
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        room = LOG_BYTES
        with (self._results.folder / f"{self._section}.log").open(self._mode, encoding="utf-8") as log:
            for line in self._process.stdout:
                room -= len(line.encode())
                if room > 0:
                    log.write(line)
                    log.flush()
                if line.startswith("RESULT "):
                    try:
                        self._results.add(self._section, json.loads(line.removeprefix("RESULT ")))
                        continue
                    except (ValueError, TypeError, AttributeError):
                        pass  # cut off, or another's: it stays a line of the log
                if begun := re.match(r"begin (\d+): (.*)", line):
                    self.rung = int(begun[1]), begun[2]
                self.lines.append(line.rstrip()[:500])

    def wait(self, limit: float, notice: float = 0.0) -> int | None:
        """Its exit code, or None where it was killed at its limit, with the processes that it started.

        Args:
            notice: seconds before the limit at which it is interrupted, to end by itself.
        """
        end = time.monotonic() + limit
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(max(0.5 * limit, limit - notice) if notice else limit)
            if code is None and notice:
                self._process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(max(0.1, end - time.monotonic()))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3)  # a process that waits for its GPU may take a while to die
            self._reader.join(2)
        return code


def count_tests(log: collections.deque[str] | list[str]) -> dict[str, Any]:
    """Outcomes of pytest -v, counted line by line, so that a run which was cut short counts too."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": [], "reasons": []}
    for line in log:
        if line.startswith(("FAILED ", "ERROR ", "SKIPPED ", "E  ")) and len(counts["reasons"]) < 40:
            counts["reasons"].append(line[:200])
        outcome = re.match(r"(tests/\S.*?) (PASSED|FAILED|ERROR|SKIPPED)\b", line)
        # With several workers the outcome comes first.
        spread = re.match(r"\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED) (tests/.*)", line)
        if not outcome and not spread:
            continue
        name, verdict = outcome.groups() if outcome else spread.groups()[::-1]  # type: ignore[union-attr]
        if verdict == "PASSED":
            counts["passed"] += 1
        elif verdict == "SKIPPED":
            counts["skipped"] += 1
        elif name not in counts["failures"]:
            counts["failed"] += 1
            counts["failures"].append(name)
    counts["ok"] = counts["failed"] == 0
    return counts


if __name__ == "__main__":
    sys.exit(main())
