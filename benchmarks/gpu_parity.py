"""What a GPU's results are held to: the demo checkpoint's progression in eager PyTorch, fp32, on the processor."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pie_engine import Item
from pie_engine.backends.torch_backend import torch_dtype
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.demo.assets import CHECKPOINT, load_defaults
from pie_engine.demo.data import healthy_cohort
from pie_engine.demo.phantom import render, roi_mask
from pie_engine.imaging import fit, prepare_mask, to_image
from pie_engine.reference import progress_engine

# Which error decides in half precision: at most this many times that of eager PyTorch in the same dtype.
HALF_FACTOR = 2
SINGLE_LIMIT = 1e-4


class Case:
    """One held-out phantom without compositing, and the errors of a progression on it.

    Args:
        small: few steps, to try the scripts themselves on a processor.
        load: gives a fresh checkpoint each time; the demo's by default.
    """

    def __init__(self, small: bool, load: Callable[[], Checkpoint] = lambda: load_checkpoint(CHECKPOINT)):
        self._load = load
        self._defaults = load_defaults()
        self.config = replace(self._defaults.run_config(), steps=3 if small else 10, composite=False)
        if small:
            self.config = replace(self.config, num_inference_steps=4)
        healthy = healthy_cohort("validation", 1)[0]
        image, mask = to_image(render(healthy)), to_image(roi_mask(healthy))
        self.item = Item(image, self._defaults.prompt, mask)
        self._fitted = fit(image, 128)
        self._prepared = prepare_mask(mask, image.size, 128, official=False)
        self._latent, self._frame, self.seconds = self.eager("fp32", "cpu")

    def eager(self, precision: str, device: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Final latent, final frame and seconds of eager PyTorch."""
        checkpoint = self._load()
        for module in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder):
            torch.nn.Module.to(module, device, torch_dtype(precision))
        results: list[Any] = []

        def run() -> None:
            latent = self._prepared.latent
            results[:] = list(progress_engine(checkpoint, self._fitted, latent, self._defaults.prompt, self.config))

        first = clock(run)
        seconds = first if device == "cpu" else statistics.median(clock(run) for _ in range(2))
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


def holds(found: dict[str, float], baseline: dict[str, float], precision: str) -> bool:
    """Whether errors are those of rounding: absolute in fp32, relative to eager PyTorch's own in half precision."""
    if precision == "fp32":
        return found["latent_max"] < SINGLE_LIMIT
    return all(found[key] <= HALF_FACTOR * baseline[key] for key in ("latent_rmse", "roi_rmse"))


def clock(run: Callable[[], object]) -> float:
    """Seconds of one call, the GPU's work included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
