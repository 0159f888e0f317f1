"""`pie-engine doctor` on installations that are broken, incomplete or contradict themselves."""

from __future__ import annotations

from typing import Any

import pytest
from machines import A5000, diagnose, pretend, pretend_installed, problems, running_torch

from pie_engine.machine import doctor, environment


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU and without TensorRT; tests add what they are about."""
    pretend(monkeypatch, torch_cuda=None)
    for flavour in ("tensorrt", "tensorrt-rtx"):
        pretend_installed(monkeypatch, flavour, None)


def test_both_packages_of_onnxruntime(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = environment.installed
    monkeypatch.setattr(
        environment,
        "installed",
        lambda name: "1.32.0" if name in ("onnxruntime", "onnxruntime-gpu") else installed(name),
    )
    found = diagnose(pie)
    assert found["onnxruntime"]["packages"] == ["onnxruntime", "onnxruntime-gpu"]
    assert found["problems"] == [
        {
            "what": "onnxruntime and onnxruntime-gpu overwrite each other's module; keep one",
            "remedy": "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'pie-engine[cpu]'",
        }
    ]
    text = pie("doctor").out
    assert "\nProblems\n  - onnxruntime and onnxruntime-gpu overwrite each other's module; keep one\n" in text
    pretend(monkeypatch, A5000)
    assert diagnose(pie)["problems"][0]["remedy"].endswith("pip install 'pie-engine[gpu]'")


def test_onnxruntime_for_processors_beside_a_gpu(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, A5000)
    running_torch(monkeypatch)
    monkeypatch.setattr(doctor, "onnxruntime_packages", lambda: ["onnxruntime"])
    monkeypatch.setattr(doctor, "onnxruntime_providers", lambda: ["CPUExecutionProvider"])
    assert problems(diagnose(pie)["by_name"]["onnxruntime on GPU"]) == [
        (
            "the onnxruntime at hand has no CUDA provider",
            "pip uninstall -y onnxruntime && pip install 'pie-engine[gpu]'",
        )
    ]
    # It names the provider but cannot start it: the one installed here really cannot, or is kept from it.
    monkeypatch.setattr(doctor, "onnxruntime_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(doctor, "_cuda_provider_starts", lambda: False)
    assert problems(diagnose(pie)["by_name"]["onnxruntime on GPU"])[0][1] == "pip install --upgrade 'pie-engine[gpu]'"


def test_a_provider_is_tried_with_a_session() -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider, which may start")
    assert doctor._cuda_provider_starts() is False


def test_without_onnxruntime_nothing_is_exported(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = environment.import_failure
    without = lambda module: "No module named 'onnxruntime'" if module == "onnxruntime" else failure(module)  # noqa: E731
    for module in (environment, doctor):
        monkeypatch.setattr(module, "import_failure", without)
        monkeypatch.setattr(module, "onnxruntime_packages", lambda: [])
    pretend_installed(monkeypatch, "tensorrt-rtx", "1.7.1.116")
    found = diagnose(pie)
    backend = found["by_name"]["onnxruntime on CPU"]
    assert problems(backend) == [("onnxruntime is not installed", "pip install 'pie-engine[cpu]'")]
    assert backend["builds"] is False and found["onnxruntime"] == {"packages": [], "providers": []}
    assert found["by_name"]["tensorrt-rtx"]["builds"] is False
    assert found["by_name"]["torch on CPU"]["runs"] is True
    monkeypatch.setattr(doctor, "onnxruntime_packages", lambda: ["onnxruntime"])
    assert problems(diagnose(pie)["by_name"]["onnxruntime on CPU"]) == [
        (
            "onnxruntime does not load (No module named 'onnxruntime')",
            "pip uninstall -y onnxruntime && pip install 'pie-engine[cpu]'",
        )
    ]


def test_nothing_can_run(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = environment.import_failure
    broken = lambda module: "libtorch.so: truncated" if module == "torch" else failure(module)  # noqa: E731
    for module in (environment, doctor):
        monkeypatch.setattr(module, "import_failure", broken)
    found = diagnose(pie, code=2)
    assert not any(backend["runs"] for backend in found["backends"])
    assert found["auto"] == {"backend": None, "why": "torch does not load (libtorch.so: truncated)"}
    assert found["fused_steps"] == [] and found["torch_cuda"] is None
    outcome = pie("doctor")
    assert outcome.code == 2
    assert outcome.out.count("-> pip install --force-reinstall torch\n") == 1


def test_packages_that_are_missing_or_too_old(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=99.5", "accelerate", "pytest>=999; extra == 'test'", "triton>=999; extra == 'gpu'"]
    monkeypatch.setattr(environment, "requires", lambda package: asked)
    monkeypatch.setattr(environment, "installed", {"torch": "2.9.0", "pytest": "8.0", "triton": "3.4.0"}.get)
    assert diagnose(pie)["problems"] == [
        {"what": "torch 2.9.0 is too old (99.5 or later needed)", "remedy": "pip install 'torch>=99.5'"},
        {"what": "triton 3.4.0 is too old (999 or later needed)", "remedy": "pip install 'triton>=999'"},
    ]
    asked.append("diffusers>=0.36")
    assert diagnose(pie, code=2)["auto"]["why"] == "diffusers is not installed"


def test_a_cache_that_cannot_be_written(pie: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(tmp_path / "file"))
    found = diagnose(pie)
    assert found["cache"]["writable"] is False
    assert found["problems"][0]["what"] == f"the cache folder {tmp_path / 'file'} cannot be written"


@pytest.mark.parametrize(
    ("version", "expected"), [("2.13.0+cpu", (2, 13, 0)), ("13.0", (13, 0)), ("2.11.0a0", (2, 11, 0)), ("", ())]
)
def test_numbers_of_a_version(version: str, expected: tuple[int, ...]) -> None:
    assert environment.numbers(version) == expected
