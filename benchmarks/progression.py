"""One patient, N rounds: each backend against the eager reference, interleaved, on the machine at hand.

    python benchmarks/progression.py [--checkpoint DIR] [--rounds 10] [--repeats 5]

Two baselines: the published computation (`official` semantics, eager fp32) and the same rounds as the engine's in eager
PyTorch. The engine's variants run the same number of U-Net evaluations. Times are whole progressions on loaded models,
host clock, after one warm-up each; on a noisy machine read the ratios.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.checkpoint import load_checkpoint
from pie_engine.imaging import fit, prepare_mask, to_image
from pie_engine.reference import progress_engine, progress_official

RESULTS = Path(__file__).parent / "results" / "progression.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="default: the embedded demo checkpoint")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--resolution", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.name = Path(arguments.checkpoint or "demo").name
    if arguments.checkpoint is None:
        from pie_engine.demo.assets import CHECKPOINT

        arguments.checkpoint = CHECKPOINT

    checkpoint = load_checkpoint(arguments.checkpoint)
    config = RunConfig(steps=arguments.rounds, resolution=arguments.resolution or checkpoint.default_resolution)
    variants = make_variants(arguments.checkpoint, checkpoint, config, arguments.threads)
    seconds = measure(variants, arguments.repeats)
    report(seconds, arguments, config)


def make_variants(path: str, checkpoint: object, config: RunConfig, threads: int) -> dict[str, Callable[[], object]]:
    """Each variant is one call that runs a whole progression on a loaded model."""
    side = config.resolution or 0
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)  # content does not change the time
    square = np.zeros((side, side), np.uint8)
    square[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 255
    image = fit(to_image(noise), side)
    soft, hard = (
        prepare_mask(to_image(square), image.size, side, official=official).latent for official in (True, False)
    )
    official = replace(config, semantics="official", noise="fresh", composite=False)
    item = Item(noise, "cardiomegaly", square)
    engines = {
        f"engine, {name}": PieEngine.load(checkpoint=path, backend=name, device="cpu", threads=threads)
        for name in ("torch", "onnxruntime")
    }
    return {
        "eager, as published": lambda: list(progress_official(checkpoint, image, soft, "cardiomegaly", official)),
        "eager, engine semantics": lambda: list(progress_engine(checkpoint, image, hard, "cardiomegaly", config)),
        **{name: (lambda engine=engine: engine.run(item, config)) for name, engine in engines.items()},
    }


def measure(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each variant, A B C A B C ..., so that a drifting machine favours none; one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace, config: RunConfig) -> None:
    """Print a table and append it to the results file."""
    first = seconds["eager, as published"]
    rows = []
    for name, values in seconds.items():
        ratio = statistics.median(base / value for base, value in zip(first, values, strict=True))
        quantiles = np.quantile(values, [0.2, 0.5, 0.8])
        rows.append([name, *(f"{q:.3f}" for q in quantiles), f"{ratio:.2f}"])
        print(f"{name:<26} {quantiles[1]:8.3f} s  (p20 {quantiles[0]:.3f}, p80 {quantiles[2]:.3f})  {ratio:.2f} x")
    header = ["variant", "p20_s", "median_s", "p80_s", "speedup", "rounds", "resolution", "repeats", "threads"]
    header += ["checkpoint", "machine", "torch"]
    own = [config.steps, config.resolution, arguments.repeats, arguments.threads, arguments.name]
    own += [processor(), torch.__version__]
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(header)
        writer.writerows([*row, *own] for row in rows)


def processor() -> str:
    """The processor's model name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
