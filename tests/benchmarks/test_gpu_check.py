"""The GPU check's own logic: what it counts, and that a failure, a timeout and a missing GPU are told apart."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_outcomes_are_counted_line_by_line(check: ModuleType) -> None:
    log = [
        "tests/kernels/test_triton.py::test_step[1x4 - a b] PASSED [ 10%]",
        "tests/test_loop.py::test_b FAILED [ 20%]",
        "tests/test_loop.py::test_c ERROR [ 30%]",
        "tests/test_loop.py::test_b FAILED",  # pytest repeats failures at its end
        "tests/test_loop.py::test_d SKIPPED (no CUDA provider) [ 40%]",
        "FAILED tests/test_loop.py::test_b - AssertionError",
    ]
    counted = check.count_tests(log)
    assert (counted["passed"], counted["failed"], counted["skipped"], counted["ok"]) == (1, 2, 1, False)
    assert counted["failures"] == ["tests/test_loop.py::test_b", "tests/test_loop.py::test_c"]
    assert counted["skips"] == ["tests/test_loop.py::test_d (no CUDA provider)"]


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("print('RESULT {\"ok\": true}')", "ok"),
        ("print('RESULT {\"ok\": false}')", "failed: see results that are not ok"),
        ("import sys; sys.exit('broken')", "failed with exit code 1"),
        ("import time; print('RESULT {}', flush=True); time.sleep(60)", "timed out after 5 s"),
    ],
)
def test_sections_that_fail_hang_and_hold(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, outcome: str
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_sections.py").write_text(program)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    result = check.run_section("kernels", "cpu", dict(os.environ), 5)
    assert result["outcome"] == outcome
    assert len(result["results"]) == ("RESULT" in program)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "result.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "gpu-check: this machine shows no NVIDIA GPU\n"
    assert not list(tmp_path.iterdir())


def test_it_writes_one_file_as_it_goes(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--sections", "kernels", "full_size"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "result.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["environment"]["results"][0]["versions"]["torch"] == torch.__version__
    assert {result["implementation"] for result in written["kernels"]["results"]} >= {"eager"}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
