"""`pie-engine doctor`: what it says of pretended machines, and that it asks no library for what needs a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from machines import (
    A5000,
    BACKENDS,
    H100,
    diagnose,
    pretend,
    pretend_installed,
    pretend_openvino,
    problems,
    running_torch,
)

from pie_engine.backends import openvino_session
from pie_engine.backends.gpu import Machine
from pie_engine.backends.tensorrt import library
from pie_engine.machine import doctor, environment


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU and without TensorRT; tests add what they are about."""
    pretend(monkeypatch, torch_cuda=None)
    for flavour in ("tensorrt", "tensorrt-rtx"):
        pretend_installed(monkeypatch, flavour, None)


def test_a_machine_without_a_gpu(pie: Any) -> None:
    found = diagnose(pie)
    by_name = found["by_name"]
    assert [name for name in BACKENDS if by_name[name]["runs"]] == ["torch on CPU", "onnxruntime on CPU"]
    assert found["machine"]["gpus"] == [] and found["machine"]["no_gpu_because"] == "no NVIDIA driver"
    gpu = ("this machine shows no GPU (no NVIDIA driver)", "install NVIDIA's driver, if this machine has such a GPU")
    assert problems(by_name["torch on GPU"]) == [gpu]
    assert problems(by_name["onnxruntime on GPU"]) == [gpu]
    for flavour in ("tensorrt", "tensorrt-rtx"):
        missing = (f"{flavour} is not installed", f"pip install 'pie-engine[{flavour}]'")
        assert problems(by_name[flavour]) == [missing, gpu]
        assert by_name[flavour]["builds"] is False
    assert by_name["onnxruntime on CPU"]["builds"] is True
    assert by_name["torch on CPU"]["builds"] is None
    assert found["auto"]["backend"] == "onnxruntime"
    steps = {step["name"]: step for step in found["fused_steps"]}
    assert {step["device"] for step in steps.values()} == {"cpu"}
    assert steps["eager"]["runs"] and steps["eager"]["reason"] is None
    assert (steps["triton"]["runs"], steps["triton"]["reason"]) == (False, "Triton needs an NVIDIA GPU")


def test_facts_of_the_machine(pie: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(tmp_path / "not" / "made" / "yet"))
    pretend_installed(monkeypatch, "tensorrt-rtx", "1.7.1.116")
    found = diagnose(pie)
    assert found["versions"]["torch"] == environment.installed("torch")
    assert (found["versions"]["tensorrt"], found["versions"]["tensorrt-rtx"]) == (None, "1.7.1.116")
    assert found["torch_cuda"] is None
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert found["machine"]["cores"] >= 1
    assert found["cache"]["folder"] == str(tmp_path / "not" / "made" / "yet")
    assert found["cache"]["writable"] and found["cache"]["free_bytes"] > 0
    assert not (tmp_path / "not").exists()  # it changes nothing


def test_text_fits_and_names_each_remedy_once(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIE_ENGINE_CACHE", "/tmp")
    outcome = pie("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "  GPU                 none: no NVIDIA driver" in lines
    assert "  tensorrt            DOES NOT RUN" in lines
    assert "  torch on CPU        runs" in lines
    assert "  triton on cpu       no: Triton needs an NVIDIA GPU" in lines
    assert sum("-> pip install 'pie-engine[tensorrt]'" in line for line in lines) == 1
    assert sum("-> install NVIDIA's driver" in line for line in lines) == 1
    assert sum("this machine shows no GPU" in line for line in lines) == 4
    assert lines[lines.index("Chosen by --backend auto, for a checkpoint or a bundle without engines") + 1].startswith(
        "  onnxruntime  "
    )
    assert "Problems" not in lines


def test_tensorrt_rtx_builds_without_a_gpu(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "tensorrt-rtx", "1.7.1.116")
    pretend_installed(monkeypatch, "tensorrt", "11.0.0")
    by_name = diagnose(pie)["by_name"]
    rtx, server = by_name["tensorrt-rtx"], by_name["tensorrt"]
    assert (rtx["runs"], rtx["builds"]) == (False, True)
    assert rtx["build_note"] == "for compute capability 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; --compute-capability chooses"
    assert [what for what, _ in problems(rtx)] == ["this machine shows no GPU (no NVIDIA driver)"]
    assert (server["runs"], server["builds"]) == (False, False)
    assert server["build_note"] == "it compiles on the GPU that runs the engine"


@pytest.mark.trt
def test_the_library_itself_is_not_asked_without_a_gpu(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    flavour, name = next(
        (flavour, name)
        for flavour, name in (("tensorrt-rtx", "tensorrt_rtx"), ("tensorrt", "tensorrt"))
        if environment.import_failure(name) is None
    )
    monkeypatch.setitem(library._MODULES, flavour, name)
    module = library.import_library(flavour)
    for touchy in ("Runtime", "Builder"):
        monkeypatch.setattr(module, touchy, lambda *given: pytest.fail("touched without a GPU"))
    backend = diagnose(pie)["by_name"][flavour]
    assert [what for what, _ in problems(backend)] == ["this machine shows no GPU (no NVIDIA driver)"]


def test_a_gpu_on_which_everything_runs(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, A5000)
    running_torch(monkeypatch)
    pretend_installed(monkeypatch, "tensorrt-rtx", "1.7.1.116", floor="13.0")
    pretend_installed(monkeypatch, "tensorrt", "11.0.0", floor="13.0")
    monkeypatch.setattr(doctor, "onnxruntime_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(doctor, "_cuda_provider_starts", lambda: True)
    pretend_openvino(monkeypatch, ("FP32",))
    found = diagnose(pie)
    assert all(backend["runs"] for backend in found["backends"])
    assert found["machine"]["gpus"][0]["name"] == A5000.name and found["machine"]["driver_cuda"] == "13.0"
    assert found["by_name"]["tensorrt"]["build_note"] == "for NVIDIA RTX A5000"
    assert found["by_name"]["tensorrt-rtx"]["build_note"].endswith("; 8.6 unless --compute-capability says otherwise")
    assert found["auto"]["backend"] == "torch" and "; in fp16, the default on a GPU" in found["auto"]["why"]
    assert {step["device"] for step in found["fused_steps"]} == {"cuda:0", "cpu"}
    text = pie("doctor").out
    assert "  cuda:0              NVIDIA RTX A5000, compute capability 8.6, 24.0 GB\n" in text
    assert "  driver              serves CUDA 13.0\n" in text
    assert "DOES NOT RUN" not in text and max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("server", "remedy"), [(None, "pip install 'pie-engine[tensorrt]'"), ("11.0.0", "pass --backend tensorrt")]
)
def test_tensorrt_rtx_on_an_h100(pie: Any, monkeypatch: pytest.MonkeyPatch, server: str | None, remedy: str) -> None:
    pretend(monkeypatch, H100)
    running_torch(monkeypatch)
    pretend_installed(monkeypatch, "tensorrt-rtx", "1.7.1.116")
    pretend_installed(monkeypatch, "tensorrt", server)
    by_name = diagnose(pie)["by_name"]
    assert problems(by_name["tensorrt-rtx"]) == [
        (
            "it has no kernels for compute capability 9.0 (NVIDIA H100 80GB HBM3), only for 7.5, 8.0, 8.6, 8.9, 12.0, "
            "12.1",
            remedy,
        )
    ]
    assert by_name["tensorrt-rtx"]["builds"] is True  # for other GPUs
    assert by_name["tensorrt-rtx"]["build_note"].endswith("; --compute-capability chooses")
    assert by_name["tensorrt"]["runs"] is (server is not None)


def test_a_driver_that_is_too_old(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, A5000, driver="12.8")
    running_torch(monkeypatch)
    pretend_installed(monkeypatch, "tensorrt", "11.0.0", floor="13.0")
    backend = diagnose(pie)["by_name"]["tensorrt"]
    what = "it needs a driver for CUDA 13.0 or later, and this one serves 12.8"
    assert problems(backend) == [(what, "update NVIDIA's driver")]
    assert (backend["builds"], backend["build_note"]) == (False, what)


def test_a_library_that_is_too_old_or_does_not_load(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "tensorrt", "10.2.0")

    def load(flavour: str, real: Any = library.import_library) -> Any:
        if flavour == "tensorrt-rtx":
            raise OSError("libcudart.so.13: cannot open shared object file")
        return real(flavour)

    monkeypatch.setattr(library, "import_library", load)
    by_name = diagnose(pie)["by_name"]
    assert problems(by_name["tensorrt"])[0] == (
        "tensorrt 10.2.0 is too old (10.16 or later needed)",
        "pip install 'pie-engine[tensorrt]'",
    )
    assert problems(by_name["tensorrt-rtx"])[0][0] == "libcudart.so.13: cannot open shared object file"
    assert by_name["tensorrt-rtx"]["build_note"] == "its library cannot be used"


@pytest.mark.parametrize(
    ("driver", "index"), [("13.2", "cu130"), ("13.0", "cu130"), ("12.9", "cu128"), ("12.4", "cu126")]
)
def test_a_torch_without_cuda_beside_a_gpu(pie: Any, monkeypatch: pytest.MonkeyPatch, driver: str, index: str) -> None:
    pretend(monkeypatch, A5000, driver=driver, torch_cuda=None)
    pretend_installed(monkeypatch, "tensorrt", "11.0.0")
    found = diagnose(pie)
    by_name = found["by_name"]
    assert f"torch {torch.__version__} cannot use {A5000.name}" in found["auto"]["why"]
    command = f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{index}"
    lack = (f"torch {torch.__version__} was built without CUDA", command)
    assert problems(by_name["torch on GPU"]) == [lack]
    assert problems(by_name["tensorrt"]) == [lack]  # engines run on torch's buffers
    assert by_name["tensorrt"]["builds"] is True  # and are compiled without them
    lines = pie("doctor").out.splitlines()
    assert f"           -> {command}" in lines  # whole, so that it can be copied


def test_a_torch_that_cannot_use_the_gpu(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, A5000, driver="12.4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (what, remedy), *_ = problems(diagnose(pie)["by_name"]["torch on GPU"])
    assert what == (f"torch {torch.__version__} (CUDA 13.0) finds no GPU that it can use; the driver serves CUDA 12.4")
    assert remedy.endswith("/cu126")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def refuse(*shape: int, **options: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nCUDA kernel errors might be ...")

    monkeypatch.setattr(torch, "zeros", refuse)
    (what, _), *_ = problems(diagnose(pie)["by_name"]["torch on GPU"])
    assert what.endswith("does not run on NVIDIA RTX A5000 (CUDA error: no kernel image is available)")


def test_gpus_that_nothing_could_ask_for(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, reason="cuda-python is not installed and this torch was built without CUDA", torch_cuda=None)
    assert problems(diagnose(pie)["by_name"]["torch on GPU"])[0][1].startswith("pip install 'cuda-python>=12.8'")
    monkeypatch.setattr(doctor, "probe", lambda: Machine((), "13.0", "no GPU"))
    [(_, remedy), *_] = problems(diagnose(pie)["by_name"]["torch on GPU"])
    assert remedy == "see what nvidia-smi and CUDA_VISIBLE_DEVICES say"

    def refuse() -> Machine:
        raise OSError("libcuda.so: invalid ELF header")

    monkeypatch.setattr(doctor, "probe", refuse)
    assert diagnose(pie)["machine"]["no_gpu_because"] == "it cannot be asked: libcuda.so: invalid ELF header"


def test_openvino(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = diagnose(pie)
    missing = [("openvino is not installed", "pip install 'pie-engine[openvino]'")]
    assert problems(found["by_name"]["openvino on CPU"]) == missing
    assert found["openvino"] == {"bf16": None}
    installed = environment.installed
    monkeypatch.setattr(environment, "installed", lambda name: "2026.4.1" if name == "openvino" else installed(name))
    for finds, note in ((("FP32", "BF16"), "bf16 on this processor"), (("FP32",), "no bf16 on this processor")):
        pretend_openvino(monkeypatch, finds)
        found = diagnose(pie)
        backend = found["by_name"]["openvino on CPU"]
        assert (backend["runs"], backend["builds"], found["openvino"]) == (True, True, {"bf16": "BF16" in finds})
        assert found["auto"]["backend"] == "openvino"
        assert f"  openvino            2026.4.1 ({note})" in pie("doctor").out.splitlines()


@pytest.mark.skipif(not openvino_session.installed(), reason="openvino is not installed")
def test_openvino_itself_is_asked(pie: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = diagnose(pie)
    assert found["by_name"]["openvino on CPU"]["runs"]
    assert found["openvino"] == {"bf16": "BF16" in openvino_session.capabilities()}
