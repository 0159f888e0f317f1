"""The machine at hand: what it is, and how fast it multiplies and copies at best, measured and not looked up."""

from __future__ import annotations

import functools
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Which packages decide what a time means; the others of `machine.environment.versions` are left out of the key.
_KEYED = (
    "torch", "diffusers", "transformers", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", "triton",
)  # fmt: skip
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Limits:
    """What the machine reached in one dtype with the given threads.

    Attributes:
        matmul_flops: operations per second of the best of three square matrix products (torch.mm).
        convolution_flops: the same of one 3x3 convolution of the U-Net's widest kind, which libraries may do faster.
        copy_bytes: bytes read and written per second of one copy that fits no cache.
    """

    matmul_flops: float
    convolution_flops: float
    copy_bytes: float

    @property
    def flops(self) -> float:
        """The arithmetic peak: the better of the two."""
        return max(self.matmul_flops, self.convolution_flops)


def identify(device: str, threads: int | None) -> dict[str, Any]:
    """The columns that key a result: when, on what, with which versions, of which revision."""
    from pie_engine.machine.environment import versions

    installed = {"python": platform.python_version()} | {name: versions().get(name) for name in _KEYED}
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "device": device_name(device),
        "threads": threads or "",
        "versions": "; ".join(f"{name} {number}" for name, number in installed.items() if number),
        "revision": revision(),
    }


def device_name(device: str) -> str:
    """The GPU's or the processor's name."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    widest = next((name for name in ("amx_tile", "avx512_bf16", "avx512f", "avx2") if name in flags), "")
    return " ".join(filter(None, [names[0] if names else platform.machine(), f"({widest})" if widest else ""]))


@functools.cache
def revision() -> str:
    """The commit of the sources, with "-dirty" if files that decide a result differ from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Results and what is made from them change while benchmarks run, and decide nothing.
        excluded = (":!benchmarks/results", ":!docs", ":!*.md", ":!tests")
        changed = git("status", "--porcelain", "--", ".", *excluded)
        return git("rev-parse", "--short=8", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def measure_limits(device: str = "cpu", dtype: str = "fp32", scale: int = 1) -> Limits:
    """Time matrix products, a convolution and a copy on the current threads; about three seconds on two cores.

    Args:
        dtype: "fp32", "fp16" or "bf16".
        scale: divides the sizes, to try the function itself.
    """
    import torch

    kind = getattr(torch, _DTYPES[dtype])

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(kind)

    with torch.inference_mode():
        products = []
        sides = (1024, 2048, 4096) if device == "cpu" else (4096, 8192, 16384)
        for side in (side // scale for side in sides):
            a, b, out = draw(side, side), draw(side, side), draw(side, side)
            products.append(2 * side**3 / best(functools.partial(torch.mm, a, b, out=out), device))
        channels, size = 320 // scale, 64 // scale
        batch = 2 if device == "cpu" else 16
        x, kernel = draw(batch, channels, size, size), draw(channels, channels, 3, 3)
        if device != "cpu":
            x, kernel = (t.to(memory_format=torch.channels_last) for t in (x, kernel))
        work = 2 * batch * size**2 * channels**2 * 9
        convolution = work / best(lambda: torch.nn.functional.conv2d(x, kernel, padding=1), device)
        source = torch.empty(2**28 // scale**2 // kind.itemsize, dtype=kind, device=device).normal_()
        target = torch.empty_like(source)
        copied = 2 * source.nbytes / best(lambda: target.copy_(source), device)
    return Limits(max(products), convolution, copied)


def best(run: Callable[[], Any], device: str, calls: int = 6) -> float:
    """Seconds of the fastest of some calls, after two that do not count: a limit is what can be reached."""
    from pie_engine.benchmarks.harness.measure import clock

    for _ in range(2):
        run()
    end = time.monotonic() + 1.5  # of a slow machine fewer calls
    seconds = [clock(run, device)[0]]
    while len(seconds) < calls and time.monotonic() < end:
        seconds.append(clock(run, device)[0])
    return min(seconds)


class LimitsSubject:
    """`measure_limits` as something that a process of its own measures, with threads of its own."""

    def __init__(self, device: str, dtypes: list[str], scale: int = 1):
        self._device, self._dtypes, self._scale = device, dtypes, scale

    def run(self) -> dict[str, Any]:
        return {dtype: asdict(measure_limits(self._device, dtype, self._scale)) for dtype in self._dtypes}


def limits_of(device: str, dtypes: list[str], threads: int | None, scale: int = 1) -> dict[str, Limits]:
    """The machine's limits by dtype, measured in a process of its own."""
    from pie_engine.benchmarks.harness.remote import Remote, Spec

    arguments = {"device": device, "dtypes": dtypes, "scale": scale}
    with Remote(Spec("pie_engine.benchmarks.harness.machine:LimitsSubject", arguments, threads)) as remote:
        return {dtype: Limits(**limits) for dtype, limits in remote().facts.items()}
