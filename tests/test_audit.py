"""`make audit` tells what it could not look up, and `make fuzz` leaves no strategy out."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import known_holes
import pytest

ROOT = Path(__file__).parents[1]
CLEAN = {"name": "numpy", "version": "2.4", "vulns": []}
HOLED = {"name": "pillow", "version": "1.0", "vulns": [
    {"id": "PYSEC-1", "fix_versions": ["1.1"]}, {"id": "PYSEC-2", "fix_versions": []}]}  # fmt: skip
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2)"}


@pytest.mark.parametrize(
    ("packages", "code", "lines"),
    [
        ([CLEAN], 0, ["1 packages looked up, 0 known holes"]),
        ([CLEAN, HOLED], 1, ["2 packages looked up, 2 known holes", "pillow 1.0: PYSEC-1, mended in 1.1",
                             "pillow 1.0: PYSEC-2, mended in no version yet"]),
        ([CLEAN, UNKNOWN], 0, ["1 packages looked up, 0 known holes", "not looked up: torch"]),
        ([UNKNOWN], 0, ["pip-audit skipped, the index that it asked knows none of the 1 packages"]),
        ("ConnectionError: no route", 0, ["pip-audit skipped, its list cannot be fetched: ConnectionError: no route"]),
        ("invalid requirement", 1, ["pip-audit failed: invalid requirement"]),
    ],
)  # fmt: skip
def test_what_pip_audit_found(monkeypatch: pytest.MonkeyPatch, packages: Any, code: int, lines: list[str]) -> None:
    said, failed = ("", packages) if isinstance(packages, str) else (json.dumps({"dependencies": packages}), "")
    done = subprocess.CompletedProcess([], int(bool(failed)), said, failed)
    monkeypatch.setattr(subprocess, "run", lambda *words, **named: done)
    assert known_holes.audit("requirements.txt") == (code, lines)


def test_every_strategy_is_part_of_the_long_search() -> None:
    listed = (ROOT / "Makefile").read_text().partition("FUZZ := ")[2].partition("FUZZ_EXAMPLES")[0]
    generated = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if "\nfrom hypothesis import" in path.read_text()
    }
    assert set(listed.replace("\\\n", " ").split()) == generated
