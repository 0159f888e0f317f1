"""TensorRT on a GPU, with the demo checkpoint: build, inspect, load, run, refit, and parity of each. See gpu_check.py.

On a processor (--device cpu) tensorrt-rtx builds, and its bundles run in ONNX Runtime: this tries the script itself.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_parity import CHECKPOINT, Case, clock, holds

from pie_engine import PieEngine
from pie_engine.backends.tensorrt.fingerprint import obstacle
from pie_engine.backends.tensorrt.library import installed_version
from pie_engine.bundle import Bundle
from pie_engine.bundling import build_bundle
from pie_engine.bundling.refit import refit_bundle
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.config import FLAVOURS, BuildConfig, EngineConfig
from pie_engine.errors import ConfigError, PieError

Emit = Callable[..., None]


def other_checkpoint() -> Checkpoint:
    """The demo checkpoint, fine-tuned to something else: every weight moved a little, biases included."""
    from pie_engine.checkpoint.hashing import hash_unet

    checkpoint = load_checkpoint(CHECKPOINT)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in checkpoint.unet.parameters():
            spread = max(float(parameter.std()) if parameter.numel() > 1 else 0.0, 0.1)
            parameter.add_(0.1 * spread * torch.randn(parameter.shape, generator=generator))
    checkpoint.hashes["unet"] = hash_unet(checkpoint.unet)
    checkpoint.sources["unet"] += " (changed)"
    return checkpoint


def check(device: str, emit: Emit) -> int:
    """Returns 1 if something failed. A flavour that is not installed is skipped, and said to be."""
    failed, cases = False, None
    for flavour in FLAVOURS:
        if installed_version(flavour) is None:
            emit(flavour=flavour, skipped="not installed")
            continue
        if device == "cpu" and flavour == "tensorrt":
            emit(flavour=flavour, skipped="compiles on a GPU")
            continue
        cases = cases or (Case(device == "cpu"), Case(device == "cpu", other_checkpoint))
        for precision in ("fp16",) if device == "cpu" else ("fp16", "fp32"):
            with tempfile.TemporaryDirectory(prefix="pie-tensorrt-") as folder:
                failed |= _check_flavour(flavour, precision, device, Path(folder), cases, emit)
    return int(failed)


def _check_flavour(
    flavour: str, precision: str, device: str, folder: Path, cases: tuple[Case, Case], emit: Emit
) -> bool:
    failed = False
    for weights in ("fixed",) if device == "cpu" else ("fixed", "refittable", "stripped"):
        described = {"flavour": flavour, "dtype": precision, "weights": weights}
        try:
            capabilities = ("8.6",) if device == "cpu" else ()
            config = BuildConfig(precision, engines=EngineConfig(flavour, weights=weights, capabilities=capabilities))
            start = time.monotonic()
            bundle = build_bundle(load_checkpoint(CHECKPOINT), folder / f"{weights}.pie", config)
            emit(**described, step="build", seconds=time.monotonic() - start, engines=_engines(bundle))
            failed |= not _run(bundle, flavour, device, precision, cases[0], described | {"step": "run"}, emit)
            start = time.monotonic()
            refitted = refit_bundle(bundle, other_checkpoint(), folder / f"{weights}-refitted.pie")
            emit(**described, step="refit", seconds=time.monotonic() - start)
            described["step"] = "run refitted"
            failed |= not _run(refitted, flavour, device, precision, cases[1], described, emit)
        except ConfigError as error:  # tensorrt-rtx has no kernels for some GPUs: missing, not broken
            emit(**described, skipped=str(error))
        except PieError as error:
            emit(**described, ok=False, error=str(error))
            failed = True
    return failed


def _run(
    bundle: Bundle, flavour: str, device: str, precision: str, case: Case, described: dict[str, Any], emit: Emit
) -> bool:
    """Load, run and compare; on a GPU also that rounds were captured and that every attention of the U-Net is fused."""
    start = time.monotonic()
    on_gpu = device == "cuda"
    engine = PieEngine.load(bundle.path, backend=flavour if on_gpu else "onnxruntime", device=device)
    loading = time.monotonic() - start
    run = functools.partial(engine.run, case.item, case.config)
    run()  # warm-up, and what is captured
    times = [clock(run) for _ in range(3 if on_gpu else 1)]
    result = run()
    latent, frame, eager_seconds = case.eager(precision, device)
    baseline, found = case.errors(latent, frame), case.errors(result.latents[-1], result.frames[-1])
    ok = holds(found, baseline, precision)
    if on_gpu:
        ok = ok and result.provenance["runtime"]["cuda_graph"]
        entry = next(entry for entry in bundle.engines(flavour) if entry["component"] == "unet")
        assert obstacle(entry) is None
        fused = entry["attention"]["fused"]
        # fp32 has no fused kernels; a stripped plan is not inspected.
        ok = ok and (precision == "fp32" or fused is None or fused >= entry["attention"]["graph"])
    emit(
        **described, ok=ok, seconds=statistics.median(times), load_seconds=loading, eager_seconds=eager_seconds,
        baseline=baseline, **found, runtime=result.provenance["runtime"],
    )  # fmt: skip
    return ok


def _engines(bundle: Bundle) -> list[dict[str, Any]]:
    keys = ("component", "seconds", "bytes", "layers", "attention", "relative_error")
    return [{key: entry.get(key) for key in keys} for entry in bundle.engines()]
