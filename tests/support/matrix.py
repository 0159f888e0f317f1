"""Demo and tests in fresh environments: every Python that is found, with the CPU's and the CUDA build of torch.

    python tests/support/matrix.py [--pythons 3.12,3.13] [--builds cpu,cuda] [--quick]

Each row is a fresh clone of the commit, set up and run with the README's own commands; its environment is deleted
after it. Rows of one commit are kept in build/matrix/results.json, so that the table can be made in several sittings.
What cannot be downloaded is skipped, with the reason. Standard library only: it runs where nothing is installed yet.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OLDEST = (3, 11)
BUILDS = ("cpu", "cuda", "any")  # "any" is the one that a plain `pip install torch` takes
NEEDED_BYTES = 10e9  # an environment with a CUDA build, and what pip unpacks beside it
# pip's words where an index, a file on it or the room for it is not there; anything else is a failure of ours.
_NOT_HERE = re.compile(
    r"No matching distribution found.*|Could not find a version that satisfies.*"
    r"|.*[Cc]onnection.*(?:refused|reset|broken).*|.*(?:NewConnectionError|ReadTimeout|timed out).*"
    r"|.*(?:Max retries exceeded|Temporary failure in name resolution).*"
    r"|.*(?:No space left on device|HTTP error \d+|\d{3} (?:Client|Server) Error).*"
)
Row = dict[str, Any]


class Stop(Exception):
    """A row ends here: "failed" or "skipped", and why."""

    def __init__(self, status: str, reason: str, output: str = ""):
        super().__init__(reason)
        self.status, self.reason, self.output = status, reason, output


def find_pythons(environment: Mapping[str, str]) -> dict[str, Path]:
    """Version ("3.13") -> an interpreter that runs and can make environments, oldest first.

    From PATH (python3.N), then from pyenv's folders, the newest patch first.
    """
    places = [Path(folder) for folder in environment.get("PATH", "").split(os.pathsep) if folder]
    candidates = [found for folder in places for found in sorted(folder.glob("python3.*"))]
    pyenv = Path(environment.get("PYENV_ROOT") or Path(environment.get("HOME", "~")).expanduser() / ".pyenv")
    own = sorted(pyenv.glob("versions/3.*/bin/python3"), key=lambda path: _numbers(path.parts[-3]), reverse=True)
    found: dict[tuple[int, ...], Path] = {}
    for candidate in [*candidates, *own]:
        named = _numbers(candidate.parts[-3] if candidate.name == "python3" else candidate.name)[:2]
        if len(named) == 2 and named >= OLDEST and named not in found and version_of(candidate) == named:
            found[named] = candidate
    return {".".join(map(str, version)): found[version] for version in sorted(found)}


def version_of(python: Path) -> tuple[int, ...] | None:
    """(3, 13), or None: it does not start (a shim of a version that is not there), or cannot make environments."""
    program = "import ensurepip, venv, sys; print(*sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 and done.stdout.strip() else None


def choose(found: Mapping[str, Path], asked: str) -> dict[str, Path]:
    """Those that are asked for: "all", "second" (the newest that is not the one running), versions or paths."""
    if asked == "all":
        return dict(found)
    if asked == "second":
        running = ".".join(map(str, sys.version_info[:2]))
        others = [version for version in found if version != running]
        return {others[-1]: found[others[-1]]} if others else {}
    chosen = {}
    for word in asked.split(","):
        version = version_of(Path(word)) if os.sep in word else None
        if version is not None:
            chosen[".".join(map(str, version))] = Path(word)
        elif word in found:
            chosen[word] = found[word]
        else:
            raise SystemExit(f"error: Python {word} is not found; found: {', '.join(found) or 'none'}")
    return chosen


def requirement(build: str, constraints: str) -> str:
    """What pip is asked for: the tested version in one build, or whichever build comes.

    === compares as text: == 2.13.0 would take 2.13.0+cpu too, and PyPI's CUDA build calls itself 2.13.0.
    """
    pinned = re.search(r"^torch==(\S+)$", constraints, re.MULTILINE)
    if build == "any" or pinned is None:
        return "torch"
    return f"torch==={pinned[1]}{'+cpu' if build == 'cpu' else ''}"


def not_here(output: str) -> str | None:
    """What pip's output says cannot be had here, in one line, or None."""
    # With constraints pip calls it a conflict where the one build that is asked for is not there.
    if absent := re.search(r"Cannot install torch===(\S+) because these package versions have conflicting", output):
        return f"no wheel of torch {absent[1]} for this Python on the index"
    lines = (line.removeprefix("ERROR: ").strip() for line in reversed(output.splitlines()))
    return next((line[:200] for line in lines if _NOT_HERE.fullmatch(line)), None)


def read_tests(output: str) -> dict[str, int]:
    """passed, failed (with errors) and skipped of pytest's closing line. Empty: there is none."""
    closing = re.findall(r"^=* ?((?:\d+ \w+, )*\d+ \w+) in [\d.]+s", output, re.MULTILINE)
    if not closing:
        return {}
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", closing[-1])}
    failed = sum(counts.get(word, 0) for word in ("failed", "error", "errors"))
    return {"passed": counts.get("passed", 0), "failed": failed, "skipped": counts.get("skipped", 0)}


def folder_bytes(folder: Path) -> int:
    """What a folder takes on the disk, hard links once."""
    seen, total = set(), 0
    for file in folder.rglob("*"):
        facts = file.lstat()
        if facts.st_ino not in seen:
            seen.add(facts.st_ino)
            total += facts.st_blocks * 512
    return total


def table(rows: Iterable[Row]) -> str:
    """Markdown, one line for each row."""
    head = ("Python", "torch", "set-up", "size", "demo", "tests", "size with tests", "passed", "failed", "skipped", "")
    lines = [head, ("---",) * len(head)]
    for row in rows:
        tests = row.get("tests", {})
        note = "ok" if row["status"] == "ok" else f"{row['status']}: {row['reason']}"
        lines.append((
            row.get("full_version") or row["python"], row.get("torch") or row["build"],
            _seconds(row.get("setup_seconds")), _gigabytes(row.get("bytes")),
            _seconds(row.get("demo_seconds")), _seconds(row.get("test_seconds")), _gigabytes(row.get("test_bytes")),
            *(str(tests.get(name, "")) for name in ("passed", "failed", "skipped")), note.replace("|", "/"),
        ))  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Runner:
    """Runs one row; every command's output goes to its log."""

    def __init__(self, folder: Path, log: Path, environment: Mapping[str, str]):
        self.folder, self._log = folder, log
        hidden = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "MAKEFLAGS", "MAKELEVEL", "MFLAGS", "TORCH", "TORCH_INDEX")
        self._environment = {name: value for name, value in environment.items() if name not in hidden}
        self._environment["PIE_ENGINE_CACHE"] = str(folder / "cache")

    def __call__(self, *command: str, limit: float, what: str, missing: str = "failed") -> str:
        """Its output; raises Stop if it fails (as `missing` if something cannot be had) or takes longer."""
        with self._log.open("a+", encoding="utf-8", errors="replace") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command, cwd=self.folder / "source", env=self._environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                raise Stop(missing, f"{what} took longer than {limit:.0f} s") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            log.seek(start)
            output = log.read()
        if code:
            if missing == "skipped" and (reason := not_here(output)):
                raise Stop(missing, reason, output)
            raise Stop("failed", f"{what} ended with {code}; see {self._log}", output)
        return output


def run_row(python: str, interpreter: Path, build: str, base: Path, asked: argparse.Namespace) -> Row:
    """Set up, demo, doctor, bench, tests."""
    row: Row = {"python": python, "build": build, "quick": asked.quick, "status": "ok", "reason": ""}
    folder, log = base / f"{python}-{build}", base / f"{python}-{build}.log"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log.unlink(missing_ok=True)
    run = Runner(folder, log, os.environ)
    try:
        if shutil.disk_usage(folder).free < NEEDED_BYTES:
            raise Stop("skipped", f"less than {NEEDED_BYTES / 1e9:.0f} GB are free")
        subprocess.run(["git", "clone", "--quiet", ROOT, folder / "source"], check=True)
        for stage in _stages(row, run, interpreter, build, asked):
            print(f"  Python {python}, torch {build}: {stage}", flush=True)
    except Stop as stop:
        row["status"], row["reason"] = stop.status, stop.reason
        print("".join(f"    {line}\n" for line in stop.output.splitlines()[-30:]), end="")
        print(f"  Python {python}, torch {build}: {stop.status}: {stop.reason}", flush=True)
    finally:
        if not asked.keep:
            shutil.rmtree(folder, ignore_errors=True)
    return row


def _stages(row: Row, run: Runner, interpreter: Path, build: str, asked: argparse.Namespace) -> Iterator[str]:
    venv = run.folder / "source" / ".venv"
    python = str(venv / "bin" / "python")
    torch = requirement(build, (run.folder / "source" / "constraints.txt").read_text())
    make = ["make", f"PYTHON={interpreter}", f"TORCH={torch}"]
    make += [f"TORCH_INDEX={asked.torch_index}"] if asked.torch_index and build == "cpu" else []

    def timed(key: str, *command: str, **options: Any) -> str:
        start = time.monotonic()
        output = run(*command, **options)
        row[key] = round(time.monotonic() - start)
        return output

    yield "set-up"
    setup = ("setup_seconds", *make, ".venv/.demo")
    timed(*setup, limit=asked.setup_limit, what="the set-up", missing="skipped")
    row["bytes"] = folder_bytes(venv)
    program = "import platform, torch; print('facts', platform.python_version(), torch.__version__)"
    facts = run(python, "-c", program, limit=300, what="torch")
    row["full_version"], row["torch"] = re.findall(r"facts (\S+) (\S+)", facts)[0]
    yield "demo"
    timed("demo_seconds", *make, "demo", limit=asked.test_limit, what="the demo")
    run(str(venv / "bin" / "pie-engine"), "doctor", limit=300, what="doctor")
    if not asked.quick:
        yield "bench"
        run(str(venv / "bin" / "pie-engine"), "bench", "--quick", limit=900, what="bench")
    yield "tests"
    target, needs = ("smoke", ".venv/.smoke") if asked.quick else ("test", ".venv/.dev")
    run(*make, needs, limit=asked.setup_limit, what="the tests' set-up", missing="skipped")
    row["test_bytes"] = folder_bytes(venv)
    try:
        output = timed("test_seconds", *make, target, limit=asked.test_limit, what=f"make {target}")
    except Stop as stop:
        row["tests"] = read_tests(stop.output)
        raise
    row["tests"] = read_tests(output)
    counts = row["tests"]
    yield f"{counts.get('passed', 0)} passed, {counts.get('failed', 0)} failed"


def _numbers(text: str) -> tuple[int, ...]:
    found = re.fullmatch(r"(?:python)?(\d+(?:\.\d+)*)", text)
    return tuple(map(int, found[1].split("."))) if found else ()


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value // 60:.0f} min {value % 60:.0f} s"


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.1f} GB"


def _revision() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()

    if git("status", "--porcelain", "--untracked-files=no"):
        print("the working tree differs from its last commit, which is what is tested")
    return git("rev-parse", "--short=8", "HEAD")


def main(words: Sequence[str] | None = None) -> int:
    """0: no row failed; 1: one did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", default="all", help="all, second, or versions or paths with commas between them")
    parser.add_argument("--builds", default="cpu,cuda", help=f"of torch, with commas: {', '.join(BUILDS)} (cpu,cuda)")
    parser.add_argument("--torch-index", help="URL of an index of torch's CPU builds")
    parser.add_argument("--quick", action="store_true", help="the smoke set instead of all tests, and no bench")
    parser.add_argument("--keep", action="store_true", help="leave the environments")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "matrix", help="(build/matrix)")
    parser.add_argument("--setup-limit", type=float, default=3600, help="seconds; longer ones are skipped (3600)")
    parser.add_argument(
        "--test-limit", type=float, default=5400, help="seconds of demo and tests; longer ones have failed (5400)"
    )
    asked = parser.parse_args(words)
    builds = asked.builds.split(",")
    if unknown := set(builds) - set(BUILDS):
        parser.error(f"no build {', '.join(unknown)}; there are {', '.join(BUILDS)}")
    found = find_pythons(os.environ)
    chosen = choose(found, asked.pythons)
    if not chosen:
        print(f"skipped: no second Python of 3.11 or later is found beside {sys.version.split()[0]}")
        return 0
    revision, asked.folder = _revision(), asked.folder.resolve()
    asked.folder.mkdir(parents=True, exist_ok=True)
    kept = asked.folder / "results.json"
    rows = load(kept, revision)
    for python, interpreter in chosen.items():
        for build in builds:
            rows[f"{python} {build} {asked.quick}"] = run_row(python, interpreter, build, asked.folder, asked)
            kept.write_text(json.dumps({"revision": revision, "rows": rows}, indent=2))
    own = [row for row in rows.values() if row["quick"] == asked.quick]
    print(f"\nrevision {revision}{', smoke set' if asked.quick else ''}\n\n{table(own)}")
    return int(any(row["status"] == "failed" for row in own))


def load(path: Path, revision: str) -> dict[str, Row]:
    """The rows of this commit that an earlier call left."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return kept["rows"] if kept["revision"] == revision else {}


if __name__ == "__main__":
    sys.exit(main())
