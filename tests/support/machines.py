"""Machines that tests pretend to run on: GPUs, drivers, and libraries that are installed or not."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch

from pie_engine.backends import openvino_session
from pie_engine.backends.gpu import Gpu, Machine
from pie_engine.backends.tensorrt import fingerprint, library
from pie_engine.errors import BackendError
from pie_engine.machine import doctor, inspection, selection

BACKENDS = [
    "tensorrt", "tensorrt-rtx", "torch on GPU", "torch on CPU", "onnxruntime on GPU", "onnxruntime on CPU",
    "openvino on CPU",
]  # fmt: skip
A5000 = Gpu(0, "NVIDIA RTX A5000", "8.6", 24_000_000_000)
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", "9.0", 85_000_000_000)
ADA = Gpu(0, "NVIDIA RTX 6000 Ada Generation", "8.9", 48_000_000_000)


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    *gpus: Gpu,
    driver: str = "13.0",
    reason: str = "no NVIDIA driver",
    torch_cuda: str | None = "13.0",
) -> None:
    """Show these GPUs to all that ask, torch included; `torch_cuda` is what torch was built for. No OpenVINO."""
    pretend_openvino(monkeypatch, None)
    machine = Machine(gpus, driver if gpus else "", "" if gpus else reason)
    for module in (doctor, inspection, selection, fingerprint, library):
        monkeypatch.setattr(module, "probe", lambda: machine)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus) and torch_cuda is not None)


def pretend_installed(
    monkeypatch: pytest.MonkeyPatch, flavour: str, version: str | None, floor: str | None = None
) -> None:
    """Have a flavour of TensorRT installed in this version, or not at all; it can be imported and nothing else."""
    name = f"pretended_{flavour.replace('-', '_')}"
    monkeypatch.setitem(library._MODULES, flavour, name)
    monkeypatch.delitem(sys.modules, name, raising=False)
    if version is not None:
        module = ModuleType(name)
        module.__spec__, module.__dict__["__version__"] = ModuleSpec(name, None), version
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(library, "driver_floor", lambda asked: floor)


def pretend_openvino(monkeypatch: pytest.MonkeyPatch, finds: tuple[str, ...] | None, *, avx512: bool = True) -> None:
    """Have OpenVINO installed, on a processor that it finds able to compute in these, or not at all (None)."""

    def load() -> None:
        if finds is None:
            raise BackendError("backend 'openvino' is not installed; pip install it, or pass backend='onnxruntime'")

    monkeypatch.setattr(openvino_session, "installed", lambda: finds is not None)
    monkeypatch.setattr(openvino_session, "import_openvino", load)
    monkeypatch.setattr(openvino_session, "capabilities", lambda: finds)
    monkeypatch.setattr(selection, "_has_avx512", lambda: avx512)


def needs_openvino(*values: Any, dtype: str = "fp32") -> Any:
    """A row of a parametrised test that is skipped, with the reason, where OpenVINO cannot run it."""
    reason = "openvino is not installed"
    runs = openvino_session.installed()
    if runs and dtype == "bf16":
        runs, reason = "BF16" in openvino_session.capabilities(), "this processor has no bf16"
    return pytest.param(*values, marks=pytest.mark.skipif(not runs, reason=reason))


def running_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the one operation that is tried on a pretended GPU come out, on the processor."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, **options: zeros(*shape))


def diagnose(pie: Any, code: int = 0) -> dict[str, Any]:
    """`pie-engine doctor --json`, parsed, with its backends by name as well."""
    outcome = pie("doctor", "--json")
    assert (outcome.code, outcome.err) == (code, "")
    found = json.loads(outcome.out)
    assert [backend["name"] for backend in found["backends"]] == BACKENDS
    return {**found, "by_name": {backend["name"]: backend for backend in found["backends"]}}


def problems(backend: dict[str, Any]) -> list[tuple[str, str]]:
    """What keeps a backend from running, with the remedies."""
    return [(problem["what"], problem["remedy"]) for problem in backend["problems"]]
