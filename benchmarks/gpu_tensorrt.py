"""TensorRT on a GPU, with the demo checkpoint: build, load, run, refit, and parity of each. See gpu_check.py.

On a processor (--device cpu) tensorrt-rtx builds, and its bundles run in ONNX Runtime: this tries the script itself.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pie_engine import PieEngine
from pie_engine.backends.tensorrt.fingerprint import obstacle
from pie_engine.backends.tensorrt.library import installed_version
from pie_engine.benchmarks.gpu_parity import CHECKPOINT, Case, clock, holds
from pie_engine.bundling import build_bundle
from pie_engine.bundling.refit import refit_bundle
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.config import FLAVOURS, BuildConfig, EngineConfig
from pie_engine.errors import ConfigError
from pie_engine.model.bundle import Bundle

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
        # What is used most comes first, in case that time runs out.
        kinds = [("fp16", "refittable"), ("fp16", "fixed"), ("fp32", "fixed")]
        for precision, weights in kinds if device == "cuda" else [("fp16", "fixed")]:
            described = {"flavour": flavour, "dtype": precision, "weights": weights}
            with tempfile.TemporaryDirectory(prefix="pie-tensorrt-") as folder:
                try:
                    failed |= not _check_kind(device, Path(folder), cases, described, emit)
                except Exception as error:  # one kind that fails leaves the others be
                    emit(**described, ok=False, error=f"{type(error).__name__}: {str(error).splitlines()[:1]}")
                    failed = True
    return int(failed)


def _check_kind(device: str, folder: Path, cases: tuple[Case, Case], described: dict[str, Any], emit: Emit) -> bool:
    """Build, run, run in batches, refit, run again. Returns whether all of it held."""
    flavour, precision, weights = described["flavour"], described["dtype"], described["weights"]
    capabilities = ("8.6",) if device == "cpu" else ()
    engines = EngineConfig(flavour, batches=(1, 2), weights=weights, capabilities=capabilities)
    start = time.monotonic()
    try:
        bundle = build_bundle(load_checkpoint(CHECKPOINT), folder / "a.pie", BuildConfig(precision, engines=engines))
    except ConfigError as error:  # tensorrt-rtx has no kernels for some GPUs: missing, not broken
        emit(**described, skipped=str(error))
        return True
    emit(**described, step="build", seconds=time.monotonic() - start, engines=_engines(bundle))
    ok = _run(bundle, flavour, device, precision, cases[0], described | {"step": "run"}, emit)
    ok &= _run_batches(bundle, flavour, device, cases[0], described, emit)
    start = time.monotonic()
    refitted = refit_bundle(bundle, other_checkpoint(), folder / "b.pie")
    emit(**described, step="refit", seconds=time.monotonic() - start)
    return _run(refitted, flavour, device, precision, cases[1], described | {"step": "run refitted"}, emit) and ok


def _run_batches(bundle: Bundle, flavour: str, device: str, case: Case, described: dict[str, Any], emit: Emit) -> bool:
    """Three items are cut into two and one: each captured round must keep its own buffers, also the second time."""
    engine = PieEngine.load(bundle.path, backend=flavour if device == "cuda" else "onnxruntime", device=device)
    items = [replace(case.item, item_id=str(number)) for number in range(3)]
    config = replace(case.config, steps=3)
    runs = [[result.latents for result in engine.run(items, config)] for _ in range(3)]
    ok = all(np.array_equal(a, b) for again in runs[1:] for a, b in zip(runs[0], again, strict=True))
    emit(**described, step="three items three times", ok=ok)
    return ok


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
    baseline, errors = case.errors(latent, frame), case.errors(result.latents[-1], result.frames[-1])
    ok = holds(errors, baseline, precision)
    if on_gpu:
        ok = ok and result.provenance["runtime"]["cuda_graph"]
        entry = next(entry for entry in bundle.engines(flavour) if entry["component"] == "unet")
        assert obstacle(entry) is None
        fused = entry["attention"]["fused"]
        # fp32 has no fused kernels; plans of tensorrt do not tell.
        ok = ok and (precision == "fp32" or fused is None or fused >= entry["attention"]["graph"])
    emit(
        **described, ok=ok, seconds=statistics.median(times), load_seconds=loading, eager_seconds=eager_seconds,
        baseline=baseline, **errors, runtime=result.provenance["runtime"],
    )  # fmt: skip
    return ok


def _engines(bundle: Bundle) -> list[dict[str, Any]]:
    keys = ("component", "seconds", "bytes", "attention", "relative_error")
    return [{key: entry.get(key) for key in keys} for entry in bundle.engines()]
