"""ONNX Runtime: higher precision from a half-precision bundle, and how a GPU is asked for."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends import onnx_session
from pie_engine.backends.graph_backend import NAMES
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import build_bundle, model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import COMPONENTS, BuildConfig
from pie_engine.errors import BackendError
from pie_engine.export.graph import TOLERANCE, relative_error
from pie_engine.export.promote import to_single_precision
from pie_engine.model.bundle import Bundle

ITEM = Item(GOLDEN / "image.png", "the heart lung", GOLDEN / "mask.png")
SHORT = RunConfig(steps=2, num_inference_steps=6, resolution=64, feather=4)


@pytest.fixture(scope="module")
def half(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("half") / "half.pie"
    return build_bundle(ddim_checkpoint, folder, BuildConfig(precision="fp16"))


def test_every_component_runs_in_single_precision_after_all(half: Bundle, ddim_checkpoint: Checkpoint) -> None:
    """Equal to PyTorch in fp32 on weights that were rounded to half: nothing else of half precision is left."""
    backend = OnnxBackend(half, threads=1)
    assert {backend.raise_precision(name) for name in COMPONENTS} == {"fp32"}
    assert set(backend.precisions.values()) == {"fp32"}
    assert [backend.raise_precision(name) for name in COMPONENTS] == [None] * 4
    rounded = copy.deepcopy(ddim_checkpoint)
    for module in (rounded.unet, rounded.vae, rounded.text_encoder):
        torch.nn.Module.to(torch.nn.Module.to(module, torch.float16), torch.float32)
    result = PieEngine(backend).run(ITEM, SHORT)
    expected = PieEngine(TorchBackend(rounded, model_info(rounded))).run(ITEM, SHORT)
    assert relative_error(result.latents, expected.latents) < TOLERANCE["fp32"]


def test_an_overflow_is_run_again(half: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = OnnxBackend.decode_latent

    def overflows(self: OnnxBackend, latent: torch.Tensor) -> torch.Tensor:
        return decode(self, latent) * (float("inf") if self.precisions["vae_decoder"] == "fp16" else 1.0)

    monkeypatch.setattr(OnnxBackend, "decode_latent", overflows)
    result = PieEngine(OnnxBackend(half, threads=1)).run(ITEM, SHORT)
    assert [rerun["component"] for rerun in result.provenance["reruns"]] == ["vae_decoder"]
    assert result.frames.std() > 1


def test_a_promoted_graph_with_weights_beside_it(half: Bundle, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pie_engine.export import promote

    monkeypatch.setattr(promote, "EXTERNAL_BYTES", 1000)
    path = to_single_precision(half.graph("unet"), tmp_path)
    assert (tmp_path / "model.onnx.data").stat().st_size > 50_000
    device = torch.device("cpu")
    session = onnx_session.open_session(path, NAMES["unet"], device=device, stream=None, threads=1)
    assert {node.type for node in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}


class FakeSession:
    """An ONNX Runtime that was built for NVIDIA GPUs, as far as opening a session goes."""

    asked: tuple[Any, ...] = ()
    started: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider")

    def __init__(self, path: object, options: object, **settings: Any):
        type(self).asked = (settings,)

    def get_providers(self) -> list[str]:
        return list(self.started)

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in NAMES["unet"][:-1]]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="prediction")]


@pytest.fixture
def gpu_runtime(monkeypatch: pytest.MonkeyPatch) -> type[FakeSession]:
    import onnxruntime

    fake = SimpleNamespace(
        __version__="1.0",
        SessionOptions=onnxruntime.SessionOptions,
        ExecutionOrder=onnxruntime.ExecutionOrder,
        InferenceSession=FakeSession,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    monkeypatch.setattr(onnx_session, "import_onnxruntime", lambda: fake)
    monkeypatch.setattr(FakeSession, "started", FakeSession.started)
    return FakeSession


def test_a_gpu_session_runs_on_the_loop_s_stream(gpu_runtime: type[FakeSession]) -> None:
    stream: Any = SimpleNamespace(cuda_stream=4711)
    device = torch.device("cuda", 1)
    onnx_session.open_session(GOLDEN, NAMES["unet"], device=device, stream=stream, threads=None)
    (settings,) = gpu_runtime.asked
    (name, options), fallback = settings["providers"]
    assert (name, fallback) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options == {"device_id": "1", "user_compute_stream": "4711", "use_tf32": "0"}


def test_a_gpu_that_does_not_start_is_said(gpu_runtime: type[FakeSession]) -> None:
    gpu_runtime.started = ("CPUExecutionProvider",)
    stream: Any = SimpleNamespace(cuda_stream=4711)
    with pytest.raises(BackendError, match=r"could not start its CUDA provider .* pass device='cpu'"):
        onnx_session.open_session(GOLDEN, NAMES["unet"], device=torch.device("cuda", 0), stream=stream, threads=None)


def test_an_onnxruntime_without_cuda_is_refused() -> None:
    with pytest.raises(BackendError, match=r"has no CUDA provider; .* pip install 'pie-engine\[gpu\]'"):
        onnx_session.check_cuda_provider()


def test_results_are_overwritten_and_not_allocated_anew(half: Bundle) -> None:
    backend = OnnxBackend(half, threads=1)
    latent = torch.randn(1, 4, 16, 16)
    first = backend.decode_latent(latent)
    kept = first.clone()
    second = backend.decode_latent(2 * latent)
    assert first.data_ptr() == second.data_ptr()
    assert not np.allclose(kept, second)
