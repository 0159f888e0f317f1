"""Where a round's time goes on a processor: U-Net, fused step, decoding, and what is left around them.

    python benchmarks/round_share.py [--backend onnxruntime] [--threads 2] [--repeats 5]

The demo checkpoint, ten rounds of 25 guided steps, once with each implementation of the fused step. Clocks around the
calls, which are synchronous on a processor; medians over the repeats.
"""

from __future__ import annotations

import argparse
import csv
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pie_engine.kernels.dispatch import available
from progression import processor

from pie_engine import Item, PieEngine, RunConfig, RuntimeConfig
from pie_engine.demo.assets import CHECKPOINT

RESULTS = Path(__file__).parent / "results" / "round_share.csv"
PARTS = ("unet", "step", "decode")


class Clock:
    """Seconds spent in each part."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            self.seconds[part] += time.perf_counter() - start
            return result

        return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="onnxruntime", choices=("torch", "onnxruntime"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in available("cpu"):
        shares = [measure(arguments, name) for _ in range(arguments.repeats + 1)][1:]
        total = statistics.median(share["total"] for share in shares)
        medians = {part: statistics.median(share[part] / share["total"] for share in shares) for part in PARTS}
        rest = 1 - sum(medians.values())
        text = "  ".join(f"{part} {100 * share:.2f} %" for part, share in {**medians, "rest": rest}.items())
        print(f"{name:<6} {total / 10:.3f} s per round: {text}")
        shown = [f"{100 * share:.3f}" for share in (*medians.values(), rest)]
        rows.append([arguments.backend, name, f"{total / 10:.4f}", *shown, arguments.threads, arguments.repeats])
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            header = ["backend", "implementation", "round_s", "unet_percent", "step_percent", "decode_percent"]
            writer.writerow([*header, "rest_percent", "threads", "repeats", "machine", "torch"])
        writer.writerows([*row, processor(), torch.__version__] for row in rows)


def measure(arguments: argparse.Namespace, name: str) -> dict[str, float]:
    """Seconds of ten rounds, in all and by part."""
    engine = _engine(arguments.backend, arguments.threads, name)
    clock, backend, kernels = Clock(), engine.backend, engine._kernels
    bind, decode = type(backend).bind_unet, type(backend).decode_latent
    engine._loops.clear()

    class Timed:
        """The bound U-Net with a clock around its call."""

        def __init__(self, call: Any):
            self.call = call
            self.run = clock.timed("unet", call)

        def __call__(self) -> None:
            self.run()

        def __getattr__(self, attribute: str) -> Any:
            return getattr(self.call, attribute)

    backend.bind_unet = lambda *shape: Timed(bind(backend, *shape))  # type: ignore[method-assign]
    backend.decode_latent = clock.timed("decode", functools.partial(decode, backend))  # type: ignore[method-assign]
    engine._kernels = replace(
        kernels,
        denoise_step=clock.timed("step", kernels.denoise_step),
        noising=clock.timed("step", kernels.noising),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)  # content does not change the time
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 32:96] = 255
    result = engine.run(Item(pixels, "cardiomegaly", mask), RunConfig(steps=10))
    engine._kernels = kernels
    return {**clock.seconds, "total": sum(result.provenance["seconds"]["rounds"])}


@functools.cache
def _engine(backend: str, threads: int, name: str) -> PieEngine:
    runtime = RuntimeConfig(fused_step=name)
    return PieEngine.load(checkpoint=CHECKPOINT, backend=backend, device="cpu", threads=threads, runtime=runtime)


if __name__ == "__main__":
    main()
