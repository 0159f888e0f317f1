"""What a GPU is refused for, before a checkpoint of gigabytes is read, and what runs on one that is not refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden import GOLDEN
from machines import A5000, pretend, pretend_openvino

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends import torch_backend
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.config import Placement
from pie_engine.errors import BackendError, ConfigError
from pie_engine.machine.selection import choose_by_name, choose_for_bundle, choose_for_checkpoint
from pie_engine.model.bundle import Bundle


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with one GPU of compute capability 7.0, as far as questions about it go."""

    def pretend(capability: tuple[int, int], built: list[str]) -> None:
        answers: dict[str, Any] = {
            "is_available": True,
            "device_count": 1,
            "current_device": 0,
            "get_device_capability": capability,
            "get_device_name": "NVIDIA Pretended",
            "get_arch_list": built,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)

    return pretend


def load(**settings: Any) -> PieEngine:
    return PieEngine.load(checkpoint=Path("never read"), backend="torch", **settings)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu() -> None:
    with pytest.raises(ConfigError, match="'cuda' needs an NVIDIA GPU and this machine shows none; pass device='cpu'"):
        load(device="cuda")


def test_a_gpu_that_is_not_there(gpu: Any) -> None:
    gpu((8, 0), ["sm_80"])
    with pytest.raises(ConfigError, match="device 'cuda:3' is not one of 1 GPUs; pass device='cuda:0'"):
        load(device="cuda:3")


def test_a_gpu_that_torch_was_not_built_for(gpu: Any) -> None:
    gpu((7, 0), ["sm_80", "sm_90"])
    with pytest.raises(ConfigError) as caught:
        load(device="cuda")
    assert str(caught.value) == (
        f"NVIDIA Pretended (compute capability 7.0) is not one that torch {torch.__version__} was built for "
        "(sm_80, sm_90); install another build of torch, or pass device='cpu'"
    )


def test_a_gpu_without_bf16(gpu: Any) -> None:
    gpu((7, 5), ["sm_75"])
    with pytest.raises(ConfigError, match=r"capability 7\.5\) has no bf16 \(8\.0 needed\); pass dtype='fp16'"):
        load(device="cuda", dtype="bf16")


def test_an_onnxruntime_without_cuda(gpu: Any) -> None:
    gpu((8, 0), ["sm_80"])
    with pytest.raises(BackendError, match=r"has no CUDA provider; .* or pass device='cpu'"):
        PieEngine.load(checkpoint=Path("never read"), backend="onnxruntime", device="cuda")


def test_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 3.20 GiB. GPU 0 has a total capacity of 2 GiB")

    monkeypatch.setattr(TorchBackend, "_place", fails)
    with pytest.raises(BackendError, match=r"^out of memory: the weights in fp32 needed 3\.20 GiB more; use fp16"):
        PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu")


HALF = "in fp16, the default on a GPU, and again in fp32 where that is not finite (dtype fp32: all of it)"
CHECKPOINT = {"checkpoint": GOLDEN / "checkpoint_ddim"}


@pytest.fixture
def started(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Device and precision of each TorchBackend on a pretended A5000; the processor does the work in its place."""
    made: list[tuple[str, str]] = []

    def start(*models: Any, device: str, precision: str, **settings: Any) -> TorchBackend:
        made.append((device, precision))
        return TorchBackend(*models, device="cpu", precision=precision, **settings)

    pretend(monkeypatch, A5000)
    gpu((8, 6), ["sm_86"])
    monkeypatch.setattr(torch_backend, "TorchBackend", start)
    return made


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("given", ["checkpoint", "bundle"])
def test_half_precision_is_the_default_on_a_gpu(
    started: list[tuple[str, str]], bundle: Bundle, given: str, backend: str
) -> None:
    source: dict[str, Any] = dict(CHECKPOINT) if given == "checkpoint" else {"engine": bundle.path}
    engine = PieEngine.load(**source, backend=backend)
    assert HALF in str(engine.chosen)
    for dtype in ("fp32", "bf16", "fp16"):
        engine = PieEngine.load(**source, backend=backend, dtype=dtype)
        assert "torch, " in str(engine.chosen) and HALF not in str(engine.chosen)
    engine = PieEngine.load(**source, backend="torch", device="cpu")
    assert engine.chosen == "torch, as asked" and set(engine.backend.precisions.values()) == {"fp32"}
    on_gpu = [("cuda:0", dtype) for dtype in ("fp16", "fp32", "bf16", "fp16")]
    assert started == [*on_gpu, ("cpu", "fp32")]


@pytest.mark.parametrize("given", ["checkpoint", "bundle"])
def test_what_half_precision_cannot_hold_is_run_again(
    started: list[tuple[str, str]], bundle: Bundle, given: str
) -> None:
    source: dict[str, Any] = dict(CHECKPOINT) if given == "checkpoint" else {"engine": bundle.path}
    engine = PieEngine.load(**source)
    backend: Any = engine.backend
    with torch.no_grad():
        backend._unet.conv_in.weight.fill_(torch.inf)
    run = RunConfig(steps=1, num_inference_steps=4, resolution=64)
    found = engine.run(Item(GOLDEN / "image.png", "effusion"), run).provenance
    assert HALF in found["backend"]["chosen"] and found["reruns"]
    assert (found["backend"]["precisions"]["unet"], found["backend"]["precisions"]["text_encoder"]) == ("fp32", "fp16")


def test_the_command_says_it_in_one_line(
    started: list[tuple[str, str]], bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pie_engine.cli.main import main

    words: list[Any] = ["run", "--engine", bundle.path, "--image", GOLDEN / "image.png", "--prompt", "x", "--steps", 1]
    words += ["--num-inference-steps", 2, "--resolution", 32, "--output", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    line = f"backend: torch, for a GPU; {HALF}; the bundle holds no compiled engines"
    assert capsys.readouterr().err.count(f"{line}\n") == 1


@pytest.fixture
def a5000(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    pretend(monkeypatch, A5000)
    pretend_openvino(monkeypatch, ("FP32",))
    return monkeypatch


def providers(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*names, "CPUExecutionProvider"])


def earlier(bundle: Bundle) -> Bundle:
    """A bundle without what PyTorch needs."""
    return Bundle(bundle.path, {**bundle.manifest, "architecture": {}}, bundle.model)


def test_a_bundle_on_a_gpu_runs_there(a5000: pytest.MonkeyPatch, bundle: Bundle) -> None:
    for device in (None, "cuda", "cuda:0"):
        choice = choose_for_bundle(bundle, Placement(device=device))
        assert (choice.name, choice.dtype) == ("torch", "fp16")
        assert choice.why == f"torch, for a GPU; {HALF}; the bundle holds no compiled engines"
    for dtype in ("fp32", "bf16"):  # what the graphs have not is torch's alone
        choice = choose_for_bundle(bundle, Placement(dtype=dtype))
        assert (choice.name, choice.dtype) == ("torch", dtype)
    assert choose_for_bundle(bundle, Placement(device="cpu")).name == "openvino"


def test_never_the_processor_unasked(
    a5000: pytest.MonkeyPatch, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    older, reason = earlier(bundle), "the bundle holds no configuration of text_encoder, vae, unet for torch"
    providers(a5000, "CUDAExecutionProvider")
    choice = choose_for_bundle(older, Placement())
    assert (choice.name, choice.dtype) == ("onnxruntime", None)
    assert choice.why == f"onnxruntime, for a GPU; the bundle holds no compiled engines; {reason}"
    assert caplog.messages == [f"{reason}; going on without torch"]
    providers(a5000)
    with pytest.raises(BackendError) as caught:
        choose_for_bundle(older, Placement())
    line = str(caught.value)
    assert line.startswith(f"nothing runs bundle {bundle.path} on this machine's GPU (the bundle holds no compiled ")
    assert "has no CUDA provider); rebuild it: " in line and line.endswith(", or pass device='cpu'")
    assert choose_for_bundle(older, Placement(device="cpu")).name == "openvino"


def test_a_gpu_that_torch_does_not_see_is_named(
    a5000: pytest.MonkeyPatch, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    a5000.setattr(torch.cuda, "is_available", lambda: False)
    reason = f"torch {torch.__version__} cannot use {A5000.name} (pie-engine doctor says why)"
    for choice in (choose_for_bundle(bundle, Placement()), choose_for_checkpoint(Placement())):
        assert choice.name == "openvino" and reason in choice.why
    assert caplog.messages == [f"{reason}; going on without it"] * 2
    for choice in (choose_for_bundle(bundle, Placement(device="cpu")), choose_for_checkpoint(Placement(device="cpu"))):
        assert reason not in choice.why


def test_onnxruntime_by_name_says_that_it_leaves_the_gpu(a5000: pytest.MonkeyPatch) -> None:
    providers(a5000, "CUDAExecutionProvider")
    assert choose_by_name(Placement("onnxruntime")).why == "onnxruntime, as asked"
    providers(a5000)
    why = choose_by_name(Placement("onnxruntime")).why
    assert why.startswith("onnxruntime, as asked, and on the processor though there is a GPU: onnxruntime ")
    assert why.endswith(" has no CUDA provider (pip install 'pie-engine[gpu]')")
    assert choose_by_name(Placement("onnxruntime", "cpu")).why == "onnxruntime, as asked"
