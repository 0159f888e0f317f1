"""When `auto` takes OpenVINO, on machines that are pretended, and when it leaves the work to others."""

from __future__ import annotations

import pytest
import torch
from machines import A5000, needs_openvino, pretend, pretend_openvino

from pie_engine import PieEngine
from pie_engine.config import Placement, RuntimeConfig
from pie_engine.errors import ConfigError
from pie_engine.machine import selection
from pie_engine.machine.selection import choose_for_bundle, choose_for_checkpoint
from pie_engine.model.bundle import Bundle

BF16 = needs_openvino("bf16", dtype="bf16")
FOUND = ("FP32", "INT8")  # what OpenVINO lists on a processor without bf16


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without a GPU, where OpenVINO finds bf16."""
    pretend(monkeypatch)
    pretend_openvino(monkeypatch, (*FOUND, "BF16"))
    return monkeypatch


def test_auto_takes_it_where_it_is_installed(no_gpu: pytest.MonkeyPatch, bundle: Bundle) -> None:
    for choice in (choose_for_checkpoint(Placement()), choose_for_checkpoint(Placement(device="cpu", dtype="fp32"))):
        assert choice.name == "openvino"
        assert choice.why.startswith("openvino, the faster one on a processor with AVX-512, and the one with bf16; no ")
    assert choose_for_checkpoint(Placement(runtime=RuntimeConfig(compile=True))).name == "torch"  # --compile
    for device, reason in ((None, "the bundle holds no compiled engines"), ("cpu", "device cpu was asked for")):
        choice = choose_for_bundle(bundle, Placement(device=device))
        assert (choice.name, choice.why.partition("; ")[2]) == ("openvino", reason)
    pretend_openvino(no_gpu, None)
    assert choose_for_checkpoint(Placement()).name == choose_for_bundle(bundle, Placement()).name == "onnxruntime"


def test_auto_leaves_a_processor_without_avx512_to_onnxruntime(no_gpu: pytest.MonkeyPatch, bundle: Bundle) -> None:
    pretend_openvino(no_gpu, FOUND, avx512=False)
    for choice in (choose_for_checkpoint(Placement()), choose_for_bundle(bundle, Placement())):
        assert choice.name == "onnxruntime"
        assert choice.why.startswith("onnxruntime, level with openvino on a processor without AVX-512, in two ")
    assert choose_for_checkpoint(Placement(dtype="fp16")).name == "openvino"
    no_gpu.setattr(selection.importlib.util, "find_spec", lambda name: None)
    assert choose_for_bundle(bundle, Placement()).name == "openvino"


def test_auto_leaves_a_gpu_to_others(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    pretend(monkeypatch, A5000)
    pretend_openvino(monkeypatch, (*FOUND, "BF16"))
    assert (
        choose_for_bundle(bundle, Placement()).name
        == choose_for_bundle(bundle, Placement(device="cuda:0")).name
        == "torch"
    )
    assert choose_for_bundle(bundle, Placement(device="cpu")).name == "openvino"
    assert choose_for_checkpoint(Placement(dtype="bf16")).name == "torch"
    assert choose_for_checkpoint(Placement(device="cpu", dtype="bf16")).name == "openvino"


def test_auto_in_bf16(no_gpu: pytest.MonkeyPatch) -> None:
    assert choose_for_checkpoint(Placement(dtype="bf16")).name == "openvino"
    pretend_openvino(no_gpu, FOUND)
    choice = choose_for_checkpoint(Placement(dtype="bf16"))
    assert choice.name == "torch" and "this processor has no bf16 (OpenVINO finds FP32, INT8)" in choice.why
    assert choose_for_checkpoint(Placement(dtype="fp32")).name == "openvino"
    pretend_openvino(no_gpu, None)
    choice = choose_for_checkpoint(Placement(dtype="bf16"))
    assert choice.name == "torch" and "pip install 'pie-engine[openvino]'" in choice.why


@pytest.mark.parametrize("dtype", [BF16])
def test_auto_runs_a_bundle_in_bf16(bundle: Bundle, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engine = PieEngine.load(bundle.path, dtype=dtype, threads=1)
    assert (engine.backend.name, engine.backend.precisions["unet"]) == ("openvino", "bf16")
    pretend_openvino(monkeypatch, None)
    with pytest.raises(ConfigError, match=r"dtype bf16 is not this bundle's \(fp32\); pass backend='torch', or b"):
        PieEngine.load(bundle.path, dtype=dtype, threads=1)
