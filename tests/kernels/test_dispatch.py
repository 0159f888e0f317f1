"""Which implementation runs: tried out, and passed over with a reason where it fails."""

from __future__ import annotations

import logging

import pytest
import torch

from pie_engine.errors import BackendError
from pie_engine.kernels import dispatch
from pie_engine.kernels.denoise_step import denoise_step
from pie_engine.kernels.dispatch import EAGER, Kernels, available, select
from pie_engine.kernels.noising import noising


def with_cpp(monkeypatch: pytest.MonkeyPatch, kernels: Kernels | Exception) -> None:
    def load(device: torch.device) -> Kernels:
        if isinstance(kernels, Exception):
            raise kernels
        return kernels

    monkeypatch.setitem(dispatch._LOADERS, "cpp", load)


def test_the_faster_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpp(monkeypatch, Kernels("cpp", denoise_step, noising))
    assert (select("cpu").name, select("cpu").note) == ("cpp", "")
    assert select("cpu", "eager") is EAGER
    assert available("cpu") == ["eager", "cpp"]


def test_one_that_is_not_built_is_passed_over_quietly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_cpp(monkeypatch, BackendError("the C++ operations are not built"))
    with caplog.at_level(logging.WARNING):
        chosen = select("cpu")
    assert (chosen.name, chosen.note) == ("eager", "cpp: the C++ operations are not built")
    assert caplog.text == ""
    assert available("cpu") == ["eager"]


def test_one_that_fails_to_compile_is_one_line_and_a_fallback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with_cpp(monkeypatch, RuntimeError("\nptxas died\nwith many lines"))
    with caplog.at_level(logging.WARNING):
        chosen = select("cpu")
    assert (chosen.name, chosen.note) == ("eager", "cpp: ptxas died")
    assert caplog.messages == ["the cpp step does not run on cpu (ptxas died); another one does"]


def test_one_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: torch.Tensor) -> None:
        denoise_step(*arguments)
        arguments[0].add_(0.01)

    with_cpp(monkeypatch, Kernels("cpp", wrong, noising))
    chosen = select("cpu")
    assert chosen.name == "eager"
    assert "computes something else than the eager step, by 0.0" in chosen.note


def test_one_that_blends_every_step_alike_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step's blend is tried out as well as the others'."""

    def wrong(*arguments: torch.Tensor) -> None:
        *others, weight, original = arguments
        del weight, original
        mask, z0 = others[9:11]
        denoise_step(*others, mask, z0)

    with_cpp(monkeypatch, Kernels("cpp", wrong, noising))
    assert "computes something else" in select("cpu").note


def test_one_that_was_asked_for_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cpp(monkeypatch, RuntimeError("ptxas died"))
    with pytest.raises(BackendError) as caught:
        select("cpu", "cpp")
    assert str(caught.value) == "fused step 'cpp' does not run on cpu (ptxas died); pass fused_step='auto'"
    with pytest.raises(BackendError, match=r"fused step 'triton' does not run on cpu \(Triton needs an NVIDIA GPU\)"):
        select("cpu", "triton")


def test_on_a_gpu_there_is_no_cpp_step() -> None:
    """Refused before anything touches the device, so also where there is none."""
    with pytest.raises(BackendError) as caught:
        select("cuda", "cpp")
    reason = "the C++ step is for processors; a GPU runs Triton's"
    assert str(caught.value) == f"fused step 'cpp' does not run on cuda ({reason}); pass fused_step='auto'"


def test_on_a_gpu_triton_comes_first_and_then_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(device: torch.device) -> Kernels:
        raise BackendError("triton is not installed")

    monkeypatch.setitem(dispatch._LOADERS, "triton", unavailable)
    chosen = select("cuda")
    assert (chosen.name, chosen.note) == ("eager", "triton: triton is not installed")


@pytest.mark.gpu
def test_on_a_gpu_triton_runs() -> None:
    assert select("cuda").name == "triton", select("cuda").note
