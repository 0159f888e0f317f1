"""What a GPU is refused for, before a checkpoint of gigabytes is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pie_engine import PieEngine
from pie_engine.errors import BackendError, ConfigError


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
    from golden import GOLDEN

    from pie_engine.backends.torch_backend import TorchBackend

    def fails(*arguments: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 3.20 GiB. GPU 0 has a total capacity of 2 GiB")

    monkeypatch.setattr(TorchBackend, "_place", fails)
    with pytest.raises(BackendError, match=r"^out of memory: the weights in fp32 needed 3\.20 GiB more; use fp16"):
        PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu")
