"""The fused step: each implementation that works here against the eager reference, interleaved.

    python benchmarks/denoise_step.py [--shape 2 4 64 64] [--threads 1] [--dtype fp32] [--kept 0 1] [--repeats 50]

A guided, masked step in the middle of a round. Medians of the time of one call; on a GPU of the calls queued one after
another, so that it is the device's time and not the launch's. GB/s counts every tensor once: what has to be moved at
least. On a noisy machine read the ratios, which are medians of the ratios repeat by repeat.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from pie_engine.kernels.dispatch import available, select
from pie_engine.kernels.table import columns
from torch.utils.benchmark import Timer

RESULTS = Path(__file__).parent / "results" / "denoise_step.csv"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=4, default=[2, 4, 64, 64], metavar=("B", "C", "H", "W"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the latent and of the U-Net's output")
    parser.add_argument("--kept", type=int, nargs="+", default=[0, 1], help="latents that the sampler keeps")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for kept in arguments.kept:
        report(measure(arguments, kept), arguments, kept)


def tensors(arguments: argparse.Namespace, kept: int) -> dict[str, object]:
    """A step that leaves the latent's size as it is, however often it is repeated in place."""
    batch, channels, *size = arguments.shape
    device, dtype = arguments.device, DTYPES[arguments.dtype]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    row = [0.9, 0.1, 0.8, 0.6, 1.0, 481.0, *[0.1] * (3 * kept + kept * kept)]
    return {
        "x": draw(batch, channels, *size),
        "history": draw(kept, batch, channels, *size),
        "sample": draw(2 * batch, channels, *size),
        "timestep": torch.zeros(1, device=device),
        "flags": torch.zeros(batch, dtype=torch.int32, device=device),
        "output": draw(2 * batch, channels, *size),
        "table": torch.tensor([row], device=device).view(1, columns(kept)),
        "row": 0,
        "guidance": torch.full((batch,), 7.5, device=device),
        "mask": torch.rand(batch, 1, *size, generator=generator).to(device, dtype),
        "z0": draw(batch, channels, *size),
        "eps": draw(batch, channels, *size),
    }


def measure(arguments: argparse.Namespace, kept: int) -> dict[str, list[float]]:
    """Seconds of a call of each, A B C A B C ..., so that a drifting machine favours none; one warm-up each."""
    timers: dict[str, Timer] = {}
    for name in available(arguments.device):
        step: Callable[..., None] = select(arguments.device, name).denoise_step
        given = {"step": step, "given": tensors(arguments, kept)}
        timers[name] = Timer("step(**given)", globals=given, num_threads=arguments.threads)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for repeat in range(arguments.repeats + 1):
        for name, timer in timers.items():
            elapsed = timer.timeit(100).median
            if repeat:
                seconds[name].append(elapsed)
    return seconds


def moved(arguments: argparse.Namespace, kept: int) -> int:
    """Bytes: x and history read and written, the output read and the input written twice, z0, eps, and the mask."""
    batch, channels, height, width = arguments.shape
    latents = 2 + 2 * kept + 2 + 2 + 2
    elements = (latents * channels + 1) * batch * height * width
    return elements * DTYPES[arguments.dtype].itemsize


def report(seconds: dict[str, list[float]], arguments: argparse.Namespace, kept: int) -> None:
    shape = "x".join(map(str, arguments.shape))
    on_gpu = arguments.device.startswith("cuda")
    machine = torch.cuda.get_device_name(arguments.device) if on_gpu else processor()
    print(f"{shape}, K = {kept}, {arguments.dtype}, {arguments.threads} thread(s), {machine}")
    rows = []
    for name, times in seconds.items():
        low, median, high = (statistics.quantiles(times, n=10)[i] for i in (1, 4, 7))
        ratio = statistics.median(eager / own for eager, own in zip(seconds["eager"], times, strict=True))
        rate = moved(arguments, kept) / median / 1e9
        print(f"  {name:8}{median * 1e6:9.1f} us  [{low * 1e6:.1f}, {high * 1e6:.1f}]  x{ratio:.1f}  {rate:.1f} GB/s")
        row = {"implementation": name, "p20_us": low * 1e6, "median_us": median * 1e6, "p80_us": high * 1e6}
        row |= {"speedup": ratio, "gb_per_s": rate}
        rows.append({key: value if isinstance(value, str) else f"{value:.2f}" for key, value in row.items()})
    common = {"shape": shape, "kept": kept, "dtype": arguments.dtype, "threads": arguments.threads}
    common |= {"repeats": arguments.repeats, "machine": machine, "torch": torch.__version__}
    write([row | common for row in rows])


def processor() -> str:
    """The processor's name as Linux gives it, which `platform` leaves empty."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(rows: list[dict[str, object]]) -> None:
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    print(f"rows added to {RESULTS}")


if __name__ == "__main__":
    main()
