"""The Triton kernels compiled for every supported GPU, here: no spills, vector accesses, and a check that can fail."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from pie_engine.kernels import compile_check
from pie_engine.kernels.compile_check import CAPABILITIES, Variant, compile_for, variants
from pie_engine.kernels.triton_launch import jitted

pytest.importorskip("triton", reason="triton is not installed")

# The largest variant that the engine launches, in both U-Net widths; the smallest; and the entry of a round.
SELECTED = [
    Variant(kept=3, io="fp16"),
    Variant(kept=3, io="fp32"),
    Variant(kept=0, io="bf16", masked=False),
    Variant("noising", kept=1),
]


@pytest.fixture(autouse=True)
def _compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache of its own, and also where the environment asks for the interpreter."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(compile_check, "jitted", functools.cache(jitted.__wrapped__))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles_well(capability: int) -> None:
    for report in compile_for(capability, SELECTED):
        assert not report.problems, str(report)
        assert 0 < report.registers <= 128, str(report)  # 128 threads x 128 registers: four blocks per multiprocessor


@pytest.mark.parametrize("variant", [SELECTED[0], SELECTED[-1]], ids=str)
def test_planes_read_element_by_element_are_found(variant: Variant) -> None:
    (report,) = compile_for(90, [variant], divisible=False)
    assert any("vector loads of []" in problem for problem in report.problems)
    assert any("vector stores of []" in problem for problem in report.problems)


def test_a_spill_is_found() -> None:
    (report,) = compile_for(90, [SELECTED[0]], maxnreg=24)
    assert report.spilled
    assert report.problems == [f"spills {report.spilled} bytes"]


def test_16_bit_states_are_vectorised() -> None:
    for report in compile_for(80, [Variant(state="fp16", kept=1), Variant(state="bf16", io="bf16", kept=1)]):
        assert not report.problems, str(report)
        assert set(report.loads) == {8}


def test_command() -> None:
    """Every variant that the engine launches, for one GPU."""
    command = [sys.executable, "-m", "pie_engine.kernels.compile_check", "90"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    *lines, last = finished.stdout.splitlines()
    assert len(lines) == len(set(variants())) > 25
    assert last == f"0 of {len(lines)} fail"


def test_command_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_check, "compile_for", lambda capability: compile_for(capability, SELECTED, maxnreg=24))
    assert compile_check.main(["80"]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    spilling = sum("spills" in line for line in lines)
    assert last == f"{spilling} of {len(SELECTED)} fail"
