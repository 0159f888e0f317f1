"""`make test-matrix`: which Pythons it finds, what it asks pip for, what it reads off the output, how rows end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import matrix
import pytest

Interpreter = Callable[[str, str], Path]


@pytest.fixture
def interpreter(tmp_path: Path) -> Interpreter:
    """A script that answers as a Python of some version would; an empty answer is a shim of none."""

    def make(place: str, answer: str) -> Path:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.write({answer!r})\nsys.exit({not answer})\n")
        path.chmod(0o755)
        return path

    return make


def test_pythons_of_path_and_pyenv(tmp_path: Path, interpreter: Interpreter) -> None:
    newest = interpreter("a/python3.13", "3 13")
    interpreter("b/python3.13", "3 13")  # later on PATH
    oldest = interpreter("b/python3.11", "3 11")
    interpreter("a/python3.10", "3 10")  # too old
    interpreter("a/python3.14", "")  # a shim of a version that is not there
    interpreter("a/python3.13-config", "3 13")
    interpreter("pyenv/versions/3.12.1/bin/python3", "3 12")
    patched = interpreter("pyenv/versions/3.12.10/bin/python3", "3 12")
    interpreter("pyenv/versions/3.9.18/bin/python3", "3 9")
    (tmp_path / "a" / "python3.15").write_text("not executable")
    environment = {"PATH": f"{tmp_path / 'a'}:{tmp_path / 'b'}::/nonexistent", "PYENV_ROOT": str(tmp_path / "pyenv")}
    assert matrix.find_pythons(environment) == {"3.11": oldest, "3.12": patched, "3.13": newest}
    assert matrix.find_pythons({"PATH": "", "HOME": str(tmp_path)}) == {}


def test_which_of_them_are_asked_for(interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    found = {"3.11": Path("a"), "3.12": Path("b"), "3.13": Path("c")}
    assert matrix.choose(found, "all") == found
    assert matrix.choose(found, "3.12,3.11") == {"3.12": Path("b"), "3.11": Path("a")}
    assert matrix.choose(found, "second") == {"3.13": Path("c")}
    assert matrix.choose({"3.11": Path("a")}, "second") == {}
    own = interpreter("mine/python", "3 14")
    assert matrix.choose(found, str(own)) == {"3.14": own}
    with pytest.raises(SystemExit, match=r"Python 3.15 is not found; found: 3.11, 3.12, 3.13"):
        matrix.choose(found, "3.15")


def test_one_build_of_torch_is_not_taken_for_another() -> None:
    constraints = (matrix.ROOT / "constraints.txt").read_text()
    assert matrix.requirement("cuda", "numpy==2\ntorch==2.13.0\ntorchmetrics==1\n") == "torch===2.13.0"
    assert matrix.requirement("cpu", "torch==2.13.0\n") == "torch===2.13.0+cpu"
    assert matrix.requirement("any", constraints) == matrix.requirement("cpu", "numpy==2\n") == "torch"
    assert matrix.requirement("cpu", constraints).endswith("+cpu")


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("x\nERROR: No matching distribution found for torch===2.13.0+cpu\nmake: *** Error 1\n", "No matching"),
        (
            "ERROR: Could not install packages to [Errno 28] No space left on device\n",
            "Could not install",
        ),
        ("WARNING: Retrying after NewConnectionError('<...>: Connection refused')\nmake: *** Error 1\n", "WARNING"),
        ("pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.\n", "pip._vendor"),
        (
            "ERROR: Cannot install torch===2.13.0+cpu because these package versions have conflicting dependencies.\n"
            "ERROR: ResolutionImpossible: for help visit a page\nmake: *** Error 1\n",
            "no wheel of torch 2.13.0+cpu for this Python on the index",
        ),
        ("ERROR: Cannot install a==1 and b==2 because these package versions have conflicting dependencies.\n", None),
        ("ERROR: ResolutionImpossible\nerror: command 'g++' failed\nmake: *** Error 1\n", None),
        ("", None),
    ],
)
def test_what_cannot_be_had_is_told_from_what_fails(output: str, line: str | None) -> None:
    found = matrix.not_here(output)
    assert found is None if line is None else found is not None and found.startswith(line)


@pytest.mark.parametrize(
    ("output", "counts"),
    [
        ("== 5 failed, 2658 passed, 262 skipped, 3 warnings in 480.12s (0:08:00) ==\n", (2658, 5, 262)),
        ("1 passed in 0.01s\nlater\n===== 12 passed, 1 error in 3.00s =====\n", (12, 1, 0)),
        ("3 skipped in 0.10s\n", (0, 0, 3)),
    ],
)
def test_the_closing_line_is_read(output: str, counts: tuple[int, int, int]) -> None:
    assert tuple(matrix.read_tests(output).values()) == counts
    assert matrix.read_tests("killed\n2 passed\n") == {}


def test_size_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100_000))
    size = matrix.folder_bytes(tmp_path)
    assert size >= 100_000
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    assert matrix.folder_bytes(tmp_path) == size


def test_the_table() -> None:
    rows = [
        {
            "python": "3.13", "full_version": "3.13.0", "build": "cuda", "torch": "2.13.0+cu130", "status": "ok",
            "setup_seconds": 150, "demo_seconds": 61.4, "test_seconds": 500, "bytes": 4.6e9, "test_bytes": 6.2e9,
            "tests": {"passed": 10, "failed": 0, "skipped": 2},
        },
        {"python": "3.12", "build": "cpu", "status": "skipped", "reason": "No matching distribution found for a|b"},
    ]  # fmt: skip
    _, _, first, second = matrix.table(rows).splitlines()
    assert first == (
        "| 3.13.0 | 2.13.0+cu130 | 2 min 30 s | 4.6 GB | 1 min 1 s | 8 min 20 s | 6.2 GB | 10 | 0 | 2 | ok |"
    )
    assert second == "| 3.12 | cpu |  |  |  |  |  |  |  |  | skipped: No matching distribution found for a/b |"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose Makefile installs nothing."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "constraints.txt").write_text("torch==9.0\n")
    (root / "Makefile").write_text(
        ".venv/.demo:\n"
        "\t@echo asked for $(TORCH) from $(TORCH_INDEX)\n"
        "\t@case '$(TORCH)' in *+cpu) echo 'ERROR: No matching distribution found for torch'; exit 1;; esac\n"
        "\tmkdir -p .venv/bin && ln -s /bin/echo .venv/bin/pie-engine\n"
        "\tprintf '#!/bin/sh\\necho facts 3.11.7 9.0+any\\n' > .venv/bin/python && chmod +x .venv/bin/python\n"
        ".venv/.dev .venv/.smoke:\n\t@true\n"
        "demo:\n\t@test -n \"$$PIE_ENGINE_CACHE\" -a -z \"$$PYTHONPATH\"\n"
        "test:\n\t@echo '1 failed, 7 passed in 2.00s'; exit 1\n"
        "smoke:\n\t@echo '=== 3 passed, 1 skipped in 1.00s ==='\n"
    )  # fmt: skip
    monkeypatch.setattr(matrix, "ROOT", root)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    author = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (["init", "--quiet"], ["add", "."], [*author, "commit", "--quiet", "-m", "first"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    return root


def test_rows_from_the_set_up_to_the_table(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "find_pythons", lambda environment: {"3.11": Path(sys.executable)})
    monkeypatch.setattr(matrix, "NEEDED_BYTES", 0)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    words = ["--pythons", "3.11", "--folder", str(tmp_path / "out"), "--torch-index", "https://example.org"]
    assert matrix.main([*words, "--builds", "any,cpu", "--quick"]) == 0
    printed = capsys.readouterr().out
    assert "| 3.11.7 | 9.0+any |" in printed and "| 3 | 0 | 1 | ok |" in printed
    assert "| skipped: No matching distribution found for torch |" in printed
    assert "asked for torch===9.0+cpu from https://example.org" in (tmp_path / "out" / "3.11-cpu.log").read_text()
    assert "asked for torch from\n" in (tmp_path / "out" / "3.11-any.log").read_text()
    # All tests, of which one fails; the rows of the smoke set are kept and are not in this table.
    assert matrix.main([*words, "--builds", "any"]) == 1
    printed = capsys.readouterr().out
    assert "| 7 | 1 | 0 | failed: make test ended with 2; see" in printed and "| 3 | 0 | 1 |" not in printed
    kept = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(kept["rows"]) == 3 and len(kept["revision"]) == 8
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert matrix.load(tmp_path / "out" / "results.json", "another") == {}


def test_no_second_python_is_no_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(matrix, "find_pythons", lambda environment: {})
    assert matrix.main(["--pythons", "second"]) == 0
    assert capsys.readouterr().out.startswith("skipped: no second Python of 3.11 or later is found")


def test_what_takes_too_long_ends(project: Path, tmp_path: Path) -> None:
    (tmp_path / "row" / "source").mkdir(parents=True)
    run = matrix.Runner(tmp_path / "row", tmp_path / "log", os.environ)
    with pytest.raises(matrix.Stop, match=r"waiting took longer than 0 s") as stop:
        run("sleep", "60", limit=0.2, what="waiting", missing="skipped")
    assert stop.value.status == "skipped"
    with pytest.raises(matrix.Stop, match=r"it ended with 1; see"):
        run("false", limit=10, what="it")


def test_too_little_room_is_told_first(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "NEEDED_BYTES", 1e18)
    row = matrix.run_row("3.11", Path(sys.executable), "any", tmp_path / "out", Namespace(quick=True, keep=False))
    assert (row["status"], row["reason"]) == ("skipped", "less than 1000000000 GB are free")
