"""Rounds of the demo checkpoint on every backend, implementation and dtype, against the eager reference.

Ten of them; two in half precision on a processor: without instructions for it, one takes seconds.

fp32: final latents within 1e-4. Half precision: no worse than twice what eager PyTorch loses in the same dtype, in the
latent and in the frame inside the region of interest, both against fp32.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from machines import needs_openvino
from PIL.Image import Image

from pie_engine import Item, PieEngine, Result, RunConfig, RuntimeConfig
from pie_engine.backends.torch_backend import torch_dtype
from pie_engine.bundling import cached_bundle
from pie_engine.checkpoint import load_checkpoint
from pie_engine.config import BuildConfig
from pie_engine.demo.assets import CHECKPOINT, load_defaults
from pie_engine.demo.data import healthy_cohort
from pie_engine.demo.phantom import render, roi_mask
from pie_engine.imaging import fit, prepare_mask, to_image
from pie_engine.kernels import dispatch, triton_launch
from pie_engine.kernels.denoise_step import denoise_step_triton
from pie_engine.kernels.dispatch import available
from pie_engine.kernels.noising import noising_triton
from pie_engine.reference import progress_engine

SWITCHES: dict[str, dict[str, Any]] = {
    "all on": {},
    "no fused step": {"fused_step": "eager"},
    "no CUDA graph": {"cuda_graph": False},
    "no overlap": {"overlap": False},
    "no fused blocks": {"fused_blocks": False},
    "no autotune": {"autotune": False},
    "nothing": {
        "fused_step": "eager",
        "fused_blocks": False,
        "autotune": False,
        "cuda_graph": False,
        "overlap": False,
    },
}
CPU = [
    *(("torch", precision) for precision in ("fp32", "fp16", "bf16")),
    *(("onnxruntime", precision) for precision in ("fp32", "fp16")),
    *(needs_openvino("openvino", precision, dtype=precision) for precision in ("fp32", "bf16")),
]


def rounds(device: str, precision: str) -> int:
    return 10 if device == "cuda" or precision == "fp32" else 2


def settings(device: str, steps: int, inversion: str) -> RunConfig:
    """The demo's own; on a processor fewer denoising steps per round."""
    config = replace(load_defaults().run_config(), steps=steps, composite=False, inversion=inversion)
    # Half precision is slow on a processor.
    return config if device == "cuda" else replace(config, num_inference_steps=8 if steps > 2 else 4)


@functools.cache
def patient() -> tuple[Image, Image]:
    healthy = healthy_cohort("validation", 1)[0]
    return to_image(render(healthy)), to_image(roi_mask(healthy))


@functools.cache
def reference(precision: str, device: str, inversion: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Final latent [4, h, w] and frame [H, W, 3] of the eager reference in one dtype; fp32 runs on the processor."""
    checkpoint = load_checkpoint(CHECKPOINT)
    for module in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder):
        torch.nn.Module.to(module, "cpu" if precision == "fp32" else device, torch_dtype(precision))
    image, mask = patient()
    latent_mask = prepare_mask(mask, image.size, 128, official=False).latent
    config = settings(device, steps, inversion)
    *_, (latent, frame) = progress_engine(checkpoint, fit(image, 128), latent_mask, load_defaults().prompt, config)
    return latent[0].numpy(), frame


def run(engine: PieEngine, device: str, inversion: str = "noise") -> Result:
    image, mask = patient()
    steps = rounds(device, engine.backend.precisions["unet"])
    return engine.run(Item(image, load_defaults().prompt, mask), settings(device, steps, inversion))


def check(result: Result, precision: str, device: str, inversion: str = "noise") -> None:
    steps = rounds(device, precision)
    latent, frame = reference("fp32", device, inversion, steps)
    if precision == "fp32":
        assert np.abs(result.latents[-1] - latent).max() < 1e-4
        return
    own_latent, own_frame = reference(precision, device, inversion, steps)
    assert result.mask is not None

    def inside(one: np.ndarray) -> float:
        return float(np.sqrt(((one.astype(float) - frame)[result.mask] ** 2).mean()))

    def latent_error(one: np.ndarray) -> float:
        return float(np.sqrt(((one - latent) ** 2).mean()))

    assert 0 < latent_error(result.latents[-1]) <= 2 * latent_error(own_latent)
    assert inside(result.frames[-1]) <= 2 * inside(own_frame)
    assert result.provenance["reruns"] == []


@pytest.mark.parametrize("fused_step", available("cpu"))
@pytest.mark.parametrize(("backend", "precision"), CPU)
def test_on_a_processor(backend: str, precision: str, fused_step: str) -> None:
    runtime = RuntimeConfig(fused_step=fused_step)
    source: dict[str, Any] = {"checkpoint": CHECKPOINT}
    if (backend, precision) == ("onnxruntime", "fp16"):
        # The graphs that TensorRT's tests compile, exported once for both. Those of opset 20: bundling/test_build.py.
        build = BuildConfig(precision="fp16", opset=23)
        source = {"engine": cached_bundle(load_checkpoint(CHECKPOINT), build).path}
    engine = PieEngine.load(**source, backend=backend, dtype=precision, device="cpu", threads=1, runtime=runtime)
    result = run(engine, "cpu")
    assert result.provenance["runtime"]["fused_step"] == fused_step
    check(result, precision, "cpu")


def test_triton_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton kernels in a whole progression, element by element on the processor."""
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="triton is not installed")
    compiled = triton_launch.jitted

    def interpreted(kernel: Any) -> Any:
        compiled(kernel)  # binds triton.language in the kernel's module
        return interpreter.InterpretedFunction(kernel)

    monkeypatch.setattr(triton_launch, "jitted", interpreted)
    monkeypatch.setitem(
        dispatch._LOADERS, "cpp", lambda device: dispatch.Kernels("triton", denoise_step_triton, noising_triton)
    )
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend="torch", device="cpu", threads=1)
    result = run(engine, "cpu")
    assert result.provenance["runtime"]["fused_step"] == "triton"
    check(result, "fp32", "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("inversion", ["noise", "ddim"])
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu(precision: str, switch: str, inversion: str) -> None:
    runtime = RuntimeConfig(**SWITCHES[switch])
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend="torch", dtype=precision, device="cuda", runtime=runtime)
    for _ in range(2):  # the second run replays what the first one captured
        result = run(engine, "cuda", inversion)
        check(result, precision, "cuda", inversion)
    described = result.provenance["runtime"]
    assert described["cuda_graph"] == runtime.cuda_graph, described["cuda_graph_note"]
    assert described["overlap"] == runtime.overlap


@pytest.mark.gpu
@pytest.mark.parametrize("fused_step", available("cuda") if torch.cuda.is_available() else ["triton"])
def test_each_fused_step_on_a_gpu(fused_step: str) -> None:
    runtime = RuntimeConfig(fused_step=fused_step)
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend="torch", dtype="fp32", device="cuda", runtime=runtime)
    check(run(engine, "cuda"), "fp32", "cuda")


@pytest.mark.gpu
def test_compiled_on_a_gpu() -> None:
    runtime = RuntimeConfig(compile=True)
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend="torch", dtype="fp16", device="cuda", runtime=runtime)
    result = run(engine, "cuda")
    check(result, "fp16", "cuda")
    assert result.provenance["runtime"]["cuda_graph"], result.provenance["runtime"]["cuda_graph_note"]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnxruntime_on_a_gpu(precision: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend="onnxruntime", dtype=precision, device="cuda")
    for _ in range(2):
        check(run(engine, "cuda"), precision, "cuda")
