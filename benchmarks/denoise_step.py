"""The fused step: each implementation that works here against the eager reference, interleaved.

    python benchmarks/denoise_step.py [--batch 2] [--side 64] [--dtype fp32] [--kept 0 1] [--threads 1] [--repeats 50]

A guided, masked step in the middle of a round, on the tensors that a round has: latents in fp32, the U-Net's input and
output in its dtype. Times are of one call among many; on a GPU among those that a replayed graph holds, so that they
are the device's and not the launch's. GB/s counts each tensor as often as it has to be read or written; what fits the
cache may move faster than the copy that it is compared with.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from pie_engine.backends.torch_backend import torch_dtype
from pie_engine.benchmarks.common import check, measured_limits, place, run, say
from pie_engine.benchmarks.harness import Samples, captured, clock, interleave, results, summarise
from pie_engine.benchmarks.harness.machine import Limits, identify
from pie_engine.benchmarks.harness.measure import Call
from pie_engine.config import DTYPES
from pie_engine.kernels.dispatch import available, select

CHANNELS = 4
CALLS = 100  # whose mean is one sample


@dataclass(frozen=True)
class Step:
    """What a step depends on.

    Attributes:
        batch, side: the latents are [batch, 4, side, side].
        kept: K, latents that the sampler keeps.
        dtype: of the U-Net's input and output; latents are fp32.
    """

    batch: int = 2
    side: int = 64
    kept: int = 0
    dtype: str = "fp32"
    device: str = "cpu"

    def tensors(self) -> dict[str, Any]:
        """Arguments that leave the latent's size as it is, however often the step is repeated in place."""
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, CHANNELS, self.side, self.side, generator=generator).to(self.device)

        coefficients = [0.9, 0.1, 0.8, 0.6, 1.0, 481.0, 0.0, *[0.1] * (3 * self.kept + self.kept * self.kept)]
        mask, weight = torch.rand(2, self.batch, 1, self.side, self.side, generator=generator).to(self.device)
        return {
            "x": draw(self.batch),
            "history": draw(self.kept, self.batch),
            "sample": draw(2 * self.batch).to(torch_dtype(self.dtype)),
            "timestep": torch.zeros(1, device=self.device),
            "flags": torch.zeros(self.batch, dtype=torch.int32, device=self.device),
            "output": draw(2 * self.batch).to(torch_dtype(self.dtype)),
            # One row for each call of a sample, as each call goes on to the next one.
            "table": torch.tensor([coefficients], device=self.device).repeat(CALLS, 1),
            "row": torch.zeros(1, dtype=torch.int32, device=self.device),
            "guidance": torch.full((self.batch,), 7.5, device=self.device),
            "mask": mask,
            "z0": draw(self.batch),
            "eps": draw(self.batch),
            "weight": weight,
            "original": draw(self.batch),
        }

    @property
    def moved(self) -> int:
        """Bytes that one call needs: x and history are read and written, the rest is one or the other."""
        given = self.tensors()
        large = ("x", "x", "history", "history", "sample", "output", "mask", "z0", "eps")
        return sum(given[name].nbytes for name in large)


def measure(step: Step, repeats: int, threads: int | None = None) -> dict[str, Samples]:
    """Seconds of a call of each implementation that works on the device, eager first."""
    timed = {}
    for name in available(step.device):
        tensors = step.tensors()
        call, reset = functools.partial(select(step.device, name).denoise_step, **tensors), tensors["row"].zero_
        timed[name] = replayed(call, reset, step.device) if step.device != "cpu" else repeated(call, reset, threads)
    return interleave(timed, repeats)


def repeated(call: Callable[[], None], reset: Callable[[], Any], threads: int | None) -> Callable[[], Call]:
    """On a processor: the mean of some calls, from the first row on."""
    names, threads = {"call": call, "reset": reset}, threads or torch.get_num_threads()
    timer = Timer("call()", "reset()", globals=names, num_threads=threads)
    return lambda: Call(timer.timeit(CALLS).median)


def replayed(call: Callable[[], None], reset: Callable[[], Any], device: str) -> Callable[[], Call]:
    """On a GPU: the mean of some calls in a graph that is replayed, so that gaps between launches do not count."""
    with torch.cuda.device(device):
        replay = captured(call, CALLS)

    def sample() -> Call:
        reset()
        return Call(clock(replay, device)[0] / CALLS)

    return sample


def describe(step: Step, samples: dict[str, Samples], limits: dict[str, Limits]) -> list[dict[str, Any]]:
    """Rows: times, speed-up over eager, and the share of what a copy reaches here."""
    rows = []
    copied = limits["fp32"].copy_bytes
    for name, calls in samples.items():
        columns = summarise(calls, samples["eager"])
        rate = step.moved / columns["median_s"]
        rates = {"moved_mb": step.moved / 1e6, "gb_per_s": rate / 1e9, "copy_gb_per_s": copied / 1e9}
        row = {"variant": name, **columns, **rates, "share_of_copy": rate / copied}
        del row["host_peak_mb"], row["device_peak_mb"]  # of one process for all: nobody's
        rows.append(row)
        say(
            f"  {name:8}{columns['median_s'] * 1e6:9.1f} us  x {columns['speedup']:.1f}  {rate / 1e9:.1f} GB/s, "
            f"{100 * rate / copied:.0f} % of a copy"
        )
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[2])
    parser.add_argument("--side", type=int, default=64, help="of the latents")
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=["fp32"], help="of the U-Net's input and output")
    parser.add_argument("--kept", type=int, nargs="+", default=[0, 1], help="K: latents that the sampler keeps")
    parser.add_argument("--threads", type=int, help="on a processor (all cores)")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU if there is one)")
    parser.add_argument("--output", type=Path, default=results.FOLDER, help="folder of the CSV files")
    parser.add_argument("--quick-limits", action="store_true", help="to try a script: limits from tiny sizes")
    arguments = parser.parse_args(words)
    check(arguments)
    device, threads = place(arguments)
    if threads is not None:
        torch.set_num_threads(threads)
    limits = measured_limits(device, ["fp32"], threads, arguments)
    key = {**identify(device, threads), "model": "none"}
    rows = []
    for batch, dtype, kept in itertools.product(arguments.batch, arguments.dtype, arguments.kept):
        step = Step(batch, arguments.side, kept, dtype, device)
        shape = f"{batch}x{CHANNELS}x{step.side}x{step.side}"
        say(f"{shape}, K = {kept}, {dtype}")
        columns = {"shape": shape, "kept": kept, "dtype": dtype}
        samples = measure(step, arguments.repeats, threads)
        rows += [{**key, **columns, **row} for row in describe(step, samples, limits)]
    path = arguments.output / "denoise_step.csv"
    results.append(path, rows)
    say(f"{len(rows)} rows added to {path}")


if __name__ == "__main__":
    run(main)
