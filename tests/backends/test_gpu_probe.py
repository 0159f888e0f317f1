"""Which GPUs are shown: the answers of the CUDA runtime and of PyTorch, pretended."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pie_engine.backends import gpu
from pie_engine.backends.gpu import Gpu, Machine, version_of

MEMORY = 24 * 2**30


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `cuda.bindings.runtime` of one A5000 with a driver for 13.2; tests change its answers."""
    runtime = ModuleType("cuda.bindings.runtime")
    capability = {"major": 8, "minor": 6}
    vars(runtime).update(
        cudaDriverGetVersion=lambda: (0, 13020),
        cudaGetDeviceCount=lambda: (0, 1),
        cudaDeviceAttr=SimpleNamespace(
            cudaDevAttrComputeCapabilityMajor="major", cudaDevAttrComputeCapabilityMinor="minor"
        ),
        cudaDeviceGetAttribute=lambda attribute, index: (0, capability[attribute]),
        cudaGetDeviceProperties=lambda index: (0, SimpleNamespace(name=b"NVIDIA RTX A5000\0\0", totalGlobalMem=MEMORY)),
    )
    bindings, cuda = ModuleType("cuda.bindings"), ModuleType("cuda")
    vars(bindings)["runtime"] = runtime
    vars(cuda)["bindings"] = bindings
    for name, module in (("cuda", cuda), ("cuda.bindings", bindings), ("cuda.bindings.runtime", runtime)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: SimpleNamespace())
    return runtime


@pytest.fixture
def torch_sees_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(name="NVIDIA T4", major=7, minor=5, total_memory=MEMORY)
    monkeypatch.setattr(torch.version, "cuda", "12.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)


def ask() -> Machine:
    return gpu.probe.__wrapped__()


def test_versions() -> None:
    assert [version_of(number) for number in (12080, 13000, 13020)] == ["12.8", "13.0", "13.2"]


def test_the_runtime_is_asked(runtime: Any) -> None:
    assert ask() == Machine((Gpu(0, "NVIDIA RTX A5000", "8.6", MEMORY),), "13.2", "")


def test_no_driver(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cudaDriverGetVersion", lambda: (0, 0))
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (35, None))
    monkeypatch.setattr(gpu, "_ask_torch", lambda: pytest.fail("torch was imported for nothing"))
    assert ask() == Machine((), "", "no NVIDIA driver")


def test_a_driver_without_a_gpu(runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (100, None))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert ask() == Machine((), "13.2", "no GPU")


def test_a_runtime_newer_than_the_driver_leaves_it_to_torch(
    runtime: Any, torch_sees_one: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "cudaDriverGetVersion", lambda: (0, 12060))
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (35, None))
    assert ask() == Machine((Gpu(0, "NVIDIA T4", "7.5", MEMORY),), "12.6", "")


def test_without_cuda_python(torch_sees_one: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert ask() == Machine((Gpu(0, "NVIDIA T4", "7.5", MEMORY),), "", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ask() == Machine((), "", "no GPU that torch can use")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert ask().reason == "cuda-python is not installed and this torch was built without CUDA"
