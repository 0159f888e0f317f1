"""The sections of the GPU check: each writes one JSON object per line, as soon as it has it. See gpu_check.py."""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch

from pie_engine.benchmarks.harness.machine import device_name

PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
)
# Switches of RuntimeConfig, one off at a time.
LADDER: dict[str, dict[str, Any]] = {
    "all on": {},
    "no CUDA graph": {"cuda_graph": False},
    "no fused step": {"fused_step": "eager"},
    "no overlap": {"overlap": False},
    "none of them": {"fused_step": "eager", "cuda_graph": False, "overlap": False},
}


def emit(**result: Any) -> None:
    sys.stdout.write(f"RESULT {json.dumps(result)}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    return SECTIONS[arguments.section](arguments.device)


def environment(device: str) -> int:
    """What this machine is."""
    if device == "cuda" and not torch.cuda.is_available():
        sys.stdout.write("this machine shows no NVIDIA GPU\n")
        return 2
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    described: dict[str, Any] = {
        "device": device_name(device),
        "python": platform.python_version(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    emit(**described, versions=versions)
    return 0


def kernels(device: str) -> int:
    """Each implementation of the fused step against the eager one: microseconds and bytes per second."""
    from pie_engine.benchmarks.denoise_step import Step, measure
    from pie_engine.kernels.dispatch import available, select

    names, failed = available(device), False
    if device == "cuda":
        for name in ("triton", "cpp"):
            if name not in names:
                try:
                    select(device, name)
                except Exception as error:
                    emit(implementation=name, ok=False, error=str(error))
                    failed = True
    for batch, dtype in ((1, "fp16"), (8, "fp16"), (8, "fp32")):
        step = Step(batch, side=64, kept=1, dtype=dtype, device=device)
        for name, samples in measure(step, repeats=7 if device == "cuda" else 1).items():
            seconds = statistics.median(samples.seconds)
            rate = step.moved / seconds / 1e9
            emit(implementation=name, batch=batch, io=dtype, microseconds=seconds * 1e6, gb_per_s=rate)
    return int(failed)


def progression(device: str) -> int:
    """Ten rounds of the demo checkpoint: every backend, dtype and switch, in time and in distance from eager fp32."""
    from pie_engine import PieEngine, RuntimeConfig
    from pie_engine.benchmarks.gpu_parity import CHECKPOINT, Case, clock, holds

    small = device == "cpu"
    case = Case(small)
    emit(variant="eager PyTorch on the processor", dtype="fp32", seconds=case.seconds)
    failed = False
    for precision in ("fp32",) if small else ("fp32", "fp16", "bf16"):
        latent, frame, seconds = case.eager(precision, device)
        baseline = case.errors(latent, frame)
        emit(variant="eager PyTorch", dtype=precision, seconds=seconds, **baseline)
        variants = [("torch", name, switches) for name, switches in LADDER.items()]
        variants += [("torch", "C++ or CUDA C++ step", {"fused_step": "cpp"})]
        if precision == "fp16":
            variants += [("torch", "compiled", {"compile": True})]
        if precision != "bf16":
            variants += [("onnxruntime", "all on", {})]
        for backend, name, switches in variants:
            described = {"variant": f"{backend}, {name}", "dtype": precision}
            try:
                engine = PieEngine.load(
                    checkpoint=CHECKPOINT,
                    backend=backend,
                    dtype=precision,
                    device=device,
                    runtime=RuntimeConfig(**switches),
                )
                engine.run(case.item, case.config)  # warm-up, and what is captured
                run = functools.partial(engine.run, case.item, case.config)
                times = [clock(run) for _ in range(1 if small else 3)]
                result = run()
            except Exception as error:
                # An ONNX Runtime without CUDA is missing, not broken.
                missing = backend == "onnxruntime" and "CUDA provider" in str(error)
                emit(**described, ok=missing, error=f"{type(error).__name__}: {str(error).splitlines()[0]}")
                failed |= not missing
                continue
            found = case.errors(result.latents[-1], result.frames[-1])
            ok = holds(found, baseline, precision)
            runtime = result.provenance["runtime"]
            if device == "cuda" and switches.get("cuda_graph", True) and backend == "torch":
                ok = ok and runtime["cuda_graph"]
            failed |= not ok
            emit(**described, ok=ok, seconds=statistics.median(times), **found, runtime=runtime)
    return int(failed)


def full_size(device: str) -> int:
    """Random weights of Stable Diffusion v1.4's shape at 512 x 512: milliseconds per guided step, and peak memory."""
    from transformers import CLIPTokenizer

    from pie_engine import Item, PieEngine, RunConfig, RuntimeConfig
    from pie_engine.backends.torch_backend import TorchBackend
    from pie_engine.benchmarks.gpu_parity import clock
    from pie_engine.benchmarks.random_checkpoint import make_scheduler, make_text_encoder, make_unet, make_vae
    from pie_engine.bundling import model_info
    from pie_engine.checkpoint import Checkpoint
    from pie_engine.demo.assets import CHECKPOINT
    from pie_engine.imaging import fit, prepare_mask, to_image
    from pie_engine.reference import progress_engine

    if device == "cpu":
        emit(variant="full size", skipped="a processor takes minutes per step")
        return 0

    def make(dtype: torch.dtype) -> Checkpoint:
        torch.manual_seed(0)
        with torch.device(device):
            unet, vae, text_encoder = (make().to(dtype).eval() for make in (make_unet, make_vae, make_text_encoder))
        names = ("unet", "vae", "text_encoder", "tokenizer")
        return Checkpoint(
            unet,
            vae,
            text_encoder,
            tokenizer=CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"),
            scheduler_config={**make_scheduler().config, "_class_name": "PNDMScheduler"},
            hashes=dict.fromkeys(names, "0" * 64),
            sources=dict.fromkeys(names, "random"),
        )

    config = RunConfig(steps=4, resolution=512)
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    square = np.zeros((512, 512), np.uint8)
    square[128:384, 128:384] = 255
    image, items = to_image(pixels), [Item(pixels, "cardiomegaly", square, str(i)) for i in range(8)]
    latent_mask = prepare_mask(to_image(square), image.size, 512, official=False).latent
    per_round = config.denoising_steps

    half = make(torch.float16)
    one_round = replace(config, steps=1)
    run = lambda: list(progress_engine(half, fit(image, 512), latent_mask, "cardiomegaly", one_round))  # noqa: E731
    run()
    emit(variant="eager PyTorch", dtype="fp16", batch=1, ms_per_guided_step=clock(run) * 1e3 / per_round)
    variants: list[tuple[str, int, dict[str, Any]]] = [
        ("all on", 1, {}),
        ("no CUDA graph", 1, {"cuda_graph": False}),
        ("no fused step", 1, {"fused_step": "eager"}),
        ("all on", 8, {}),
        ("compiled", 1, {"compile": True}),
    ]
    for name, batch, switches in variants:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        runtime = RuntimeConfig(**switches)
        backend = TorchBackend(half, model_info(half), device=device, precision="fp16", compile=runtime.compile)
        engine = PieEngine(backend, runtime=runtime)
        engine.run_batch(items[:batch], config)
        result = engine.run_batch(items[:batch], config)[0]
        rounds = result.provenance["seconds"]["rounds"][1:]
        emit(
            variant=f"torch, {name}",
            dtype="fp16",
            batch=batch,
            ms_per_guided_step=statistics.median(rounds) * 1e3 / per_round,
            seconds_per_round=statistics.median(rounds),
            peak_gib=torch.cuda.max_memory_allocated() / 2**30,
            runtime=result.provenance["runtime"],
            reruns=result.provenance["reruns"],
        )
        del engine, backend
    return 0


def tensorrt(device: str) -> int:
    """Engines: built, loaded, run, refitted and compared; see gpu_tensorrt.py."""
    from pie_engine.benchmarks.gpu_tensorrt import check

    return check(device, emit)


SECTIONS: dict[str, Callable[[str], int]] = {
    "environment": environment,
    "kernels": kernels,
    "progression": progression,
    "tensorrt": tensorrt,
    "full_size": full_size,
}

if __name__ == "__main__":
    sys.exit(main())
