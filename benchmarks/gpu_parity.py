"""What a GPU's results are held to: the demo checkpoint's progression in eager PyTorch, fp32, on the processor.

    python -m pie_engine.benchmarks.gpu_parity    # computes the reference again and writes benchmarks/results

The reference is carried as a file, as computing it costs a GPU machine's processor time that its GPU waits for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pie_engine import Item, PieEngine, RuntimeConfig
from pie_engine.backends.torch_backend import torch_dtype
from pie_engine.benchmarks.gpu_rungs import Rung, emit, flags, set_tf32
from pie_engine.benchmarks.gpu_rungs import wall as clock
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.demo.assets import CHECKPOINT, load_defaults
from pie_engine.demo.data import healthy_cohort
from pie_engine.demo.phantom import render, roi_mask
from pie_engine.imaging import fit, prepare_mask, to_image
from pie_engine.reference import progress_engine

REFERENCE = Path(__file__).parent / "results" / "gpu_parity.npz"
# Rounding: at most this many times eager PyTorch's own error in the same dtype on the same GPU.
FACTOR = 2
# An fp32 error below this holds in any case: two orders of summation differ by as much.
SINGLE_LIMIT = 1e-4
VARIANTS: dict[str, dict[str, Any]] = {
    "all on": {},
    "no graph": {"cuda_graph": False},
    "no fused blocks": {"fused_blocks": False},
    "no overlap": {"overlap": False},
    "eager step": {"fused_step": "eager"},
    "none of them": {
        "fused_step": "eager", "cuda_graph": False, "overlap": False, "fused_blocks": False, "autotune": False,
    },
}  # fmt: skip


def fresh() -> Checkpoint:
    return load_checkpoint(CHECKPOINT)


class Case:
    """One held-out phantom without compositing, and the errors of a progression on it.

    Args:
        small: few steps, to try the scripts themselves on a processor.
        load: gives a fresh checkpoint each time; the demo's by default.
        reference: the final latent and frame to compare with; None computes them on the processor.
    """

    def __init__(
        self,
        small: bool,
        load: Callable[[], Checkpoint] = fresh,
        reference: tuple[np.ndarray, np.ndarray] | None = None,
    ):
        self._load = load
        self._defaults = load_defaults()
        self.config = replace(self._defaults.run_config(), steps=2 if small else 10, composite=False)
        if small:
            self.config = replace(self.config, num_inference_steps=4)
        healthy = healthy_cohort("validation", 1)[0]
        image, mask = to_image(render(healthy)), to_image(roi_mask(healthy))
        self.item = Item(image, self._defaults.prompt, mask)
        self._fitted = fit(image, 128)
        self._prepared = prepare_mask(mask, image.size, 128, official=False)
        self._latent, self._frame = reference or self.eager("fp32", "cpu")[:2]

    def eager(self, precision: str, device: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Final latent, final frame and seconds of eager PyTorch."""
        checkpoint = self._load()
        for module in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder):
            torch.nn.Module.to(module, device, torch_dtype(precision))
        results: list[Any] = []

        def run() -> None:
            latent = self._prepared.latent
            results[:] = list(progress_engine(checkpoint, self._fitted, latent, self._defaults.prompt, self.config))

        seconds = clock(run)
        latent, frame = results[-1]
        return latent[0].numpy(), frame, seconds

    def errors(self, latent: np.ndarray, frame: np.ndarray) -> dict[str, float]:
        """Distances of a final latent and of a final frame (inside the region) from the fp32 reference."""
        inside = (frame.astype(float) - self._frame)[self._prepared.pixels]
        return {
            "latent_max": float(np.abs(latent - self._latent).max()),
            "latent_rmse": float(np.sqrt(((latent - self._latent) ** 2).mean())),
            "roi_rmse": float(np.sqrt((inside**2).mean())),
        }


def holds(errors: dict[str, float], baseline: dict[str, float], precision: str) -> bool:
    """Whether errors are those of rounding: not much beyond eager PyTorch's own, which has the same libraries."""
    if not all(np.isfinite(errors[key]) for key in errors):
        return False
    if precision == "fp32":
        return errors["latent_max"] <= max(FACTOR * baseline["latent_max"], SINGLE_LIMIT)
    return all(errors[key] <= FACTOR * baseline[key] for key in ("latent_rmse", "roi_rmse"))


def read_reference() -> tuple[np.ndarray, np.ndarray]:
    """The final latent [4, 16, 16] and frame [128, 128, 3] of the whole case."""
    with np.load(REFERENCE) as file:
        return file["latent"], file["frame"]


def rungs(device: str) -> list[Rung]:
    """Every switch of the engine in fp32 and fp16, each beside eager PyTorch in the same dtype."""
    state: dict[str, Any] = {}
    rungs: list[Rung] = []
    # On a processor most switches change nothing: the first and the last are tried.
    variants = VARIANTS if device == "cuda" else {name: VARIANTS[name] for name in ("all on", "none of them")}
    for precision in ("fp32", "fp16") if device == "cuda" else ("fp32",):
        rungs.append((f"eager {precision}", functools.partial(_eager, state, device, precision)))
        for name, switches in variants.items():
            rung = functools.partial(_variant, state, device, precision, name, switches)
            rungs.append((f"{name} {precision}", rung))
    return rungs


def _case(state: dict[str, Any], device: str) -> Case:
    if "case" not in state:
        small = device == "cpu"
        state["case"] = Case(small, reference=None if small else read_reference())
    case: Case = state["case"]
    return case


def _baseline(state: dict[str, Any], device: str, precision: str) -> dict[str, float]:
    """Eager PyTorch's errors; computed here where the rung that tells them did not come so far."""
    if precision not in state:
        set_tf32(matmul=False, cudnn=False)
        case = _case(state, device)
        latent, frame, seconds = case.eager(precision, device)
        state[precision] = case.errors(latent, frame)
        state[f"{precision} seconds"] = seconds
    baseline: dict[str, float] = state[precision]
    return baseline


def _eager(state: dict[str, Any], device: str, precision: str) -> None:
    baseline = _baseline(state, device, precision)
    emit(rung=f"eager {precision}", seconds=state[f"{precision} seconds"], flags=flags(), **baseline)
    if precision == "fp32" and device == "cuda":
        set_tf32(matmul=False, cudnn=True)
        case = _case(state, device)
        latent, frame, seconds = case.eager(precision, device)
        emit(rung="eager fp32, TF32 by default", seconds=seconds, flags=flags(), **case.errors(latent, frame))
        set_tf32(matmul=False, cudnn=False)


def _variant(state: dict[str, Any], device: str, precision: str, name: str, switches: dict[str, Any]) -> None:
    from pie_engine.benchmarks.gpu_subject import engine_flags, unknown

    missing = unknown(switches)
    known = {key: value for key, value in switches.items() if key not in missing}
    if switches and not known:
        emit(rung=f"{name} {precision}", skipped=f"RuntimeConfig has no {', '.join(missing)}")
        return
    baseline, case = _baseline(state, device, precision), _case(state, device)
    engine = PieEngine.load(
        checkpoint=CHECKPOINT, backend="torch", dtype=precision, device=device, runtime=RuntimeConfig(**known)
    )
    first = clock(lambda: engine.run(case.item, case.config))
    results: list[Any] = []
    second = clock(lambda: results.append(engine.run(case.item, case.config)))
    errors = case.errors(results[0].latents[-1], results[0].frames[-1])
    runtime = results[0].provenance["runtime"]
    ok = holds(errors, baseline, precision)
    if device == "cuda" and known.get("cuda_graph", True):
        ok = ok and bool(runtime["cuda_graph"])
    emit(
        rung=f"{name} {precision}", ok=ok, **errors, eager_latent_max=baseline["latent_max"],
        eager_latent_rmse=baseline["latent_rmse"], eager_roi_rmse=baseline["roi_rmse"], first_s=first,
        second_s=second, reruns=len(results[0].provenance.get("reruns") or []), runtime=runtime,
        flags=engine_flags(engine),
    )  # fmt: skip


def main() -> None:
    torch.set_grad_enabled(False)
    latent, frame, _ = Case(small=False).eager("fp32", "cpu")
    np.savez_compressed(REFERENCE, latent=latent, frame=frame)


if __name__ == "__main__":
    main()
