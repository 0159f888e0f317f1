"""Time the kernels between Stable Diffusion's matrix products at its real sizes, beside PyTorch's own operations.

    python -m pie_engine.benchmarks.norm_kernels [--repeats 20] [--json PATH]

Each time is of one operation within a CUDA graph of 20, so that launching costs what it costs there. Both variants of
the group norm are timed at every size: `ONE_LAUNCH` in kernels/group_norm_plan.py is the size of a group (H W C /
groups) up to which the first is the faster one. On a CPU the eager references run once, at a small size.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pie_engine.benchmarks.harness import captured
from pie_engine.kernels.geglu import geglu, geglu_triton
from pie_engine.kernels.group_norm import group_norm, group_norm_triton
from pie_engine.kernels.group_norm_plan import ONE_LAUNCH
from pie_engine.kernels.layer_norm import add_layer_norm, add_layer_norm_triton
from pie_engine.kernels.residual import add_residual, add_residual_triton

LAUNCHES = 20  # of the operation in a graph
GROUPS = 32
BATCHES = (2, 16)
# Side and channels of the U-Net's norms at 512 pixels, with the concatenated inputs of its up path.
NORMS = (
    *((64, channels) for channels in (320, 640, 960)),
    *((32, channels) for channels in (320, 640, 960, 1280, 1920)),
    *((16, channels) for channels in (640, 1280, 1920, 2560)),
    *((8, channels) for channels in (1280, 2560)),
)
LEVELS = ((64, 320), (32, 640), (16, 1280), (8, 1280))
DECODER = ((64, 512), (256, 256), (512, 256), (512, 128))  # of one image
SMALL = ((4, 64),)


def image(items: int, channels: int, side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    pixels = torch.randn(items, side, side, channels, device=device, dtype=dtype)
    return pixels.permute(0, 3, 1, 2)


def group_norms(x: Tensor, shift: Tensor | None) -> dict[str, Callable[[], Any]]:
    """Shift, norm and SiLU. PyTorch's sequence starts and ends channels-last, as its convolutions do."""
    weight, bias = torch.ones_like(x[0, :, 0, 0]), torch.zeros_like(x[0, :, 0, 0])

    def pytorch() -> Tensor:
        y = x if shift is None else x + shift[:, :, None, None]
        return F.silu(F.group_norm(y, GROUPS, weight, bias, 1e-5)).contiguous(memory_format=torch.channels_last)

    def ours(operation: Callable[..., Any], **options: bool) -> Callable[[], Any]:
        return lambda: operation(x, weight, bias, GROUPS, 1e-5, silu=True, shift=shift, **options)

    return {
        "one launch": ours(group_norm_triton, one_launch=True),
        "two launches": ours(group_norm_triton, one_launch=False),
        "pytorch": pytorch,
        "eager": ours(group_norm),
    }


def residuals(x: Tensor) -> dict[str, Callable[[], Any]]:
    residual, bias = torch.randn_like(x), torch.zeros_like(x[0, :, 0, 0])
    return {
        "kernel": lambda: add_residual_triton(x, residual, bias),
        "pytorch": lambda: x + bias[None, :, None, None] + residual,
        "eager": lambda: add_residual(x, residual, bias),
    }


def layer_norms(x: Tensor) -> dict[str, Callable[[], Any]]:
    rows = x.movedim(1, -1).flatten(1, 2)
    residual, weight, bias = torch.randn_like(rows), torch.ones_like(rows[0, 0]), torch.zeros_like(rows[0, 0])

    def pytorch() -> tuple[Tensor, Tensor]:
        total = rows + residual
        return total, F.layer_norm(total, rows.shape[-1:], weight, bias, 1e-5)

    return {
        "kernel": lambda: add_layer_norm_triton(rows, residual, weight, bias, 1e-5),
        "pytorch": pytorch,
        "eager": lambda: add_layer_norm(rows, residual, weight, bias, 1e-5),
    }


def geglus(x: Tensor) -> dict[str, Callable[[], Any]]:
    rows = torch.randn(x.shape[0], x[0, 0].numel(), 8 * x.shape[1], device=x.device, dtype=x.dtype)

    def pytorch() -> Tensor:
        value, gate = rows.chunk(2, dim=-1)
        return value * F.gelu(gate)

    return {"kernel": lambda: geglu_triton(rows), "pytorch": pytorch, "eager": lambda: geglu(rows)}


def operations(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, int, dict[str, Any]]]:
    """Name, image, the elements that an ideal kernel moves, and the implementations."""
    on_gpu = device.type == "cuda"
    for items in BATCHES if on_gpu else (2,):
        for side, channels in NORMS if on_gpu else SMALL:
            x = image(items, channels, side, device, dtype)
            yield "group norm", x, 2 * x.numel(), group_norms(x, torch.randn_like(x[:, :, 0, 0]))
        for side, channels in LEVELS if on_gpu else SMALL:
            x = image(items, channels, side, device, dtype)
            yield "residual", x, 3 * x.numel(), residuals(x)
            yield "layer norm", x, 4 * x.numel(), layer_norms(x)
            yield "geglu", x, 12 * x.numel(), geglus(x)
    for side, channels in DECODER if on_gpu else ():
        x = image(1, channels, side, device, dtype)
        yield "group norm", x, 2 * x.numel(), group_norms(x, None)


def microseconds(call: Callable[[], Any], repeats: int) -> float:
    """The median time of one call, of replays of a graph of several."""
    replay = captured(call, LAUNCHES)
    replay()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        replay()
        end.record()
    torch.cuda.synchronize()
    return 1000 * statistics.median(start.elapsed_time(end) for start, end in events) / LAUNCHES


def measure(device: str | torch.device, repeats: int = 20) -> list[dict[str, Any]]:
    """Rows of operation, implementation, shape, group (elements of one, else None), microseconds and GB/s.

    An implementation that fails has an "error" instead of times: the others are still wanted. Without a GPU the eager
    references run, once, and nothing is timed.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    dtype = torch.float16 if on_gpu else torch.float32
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for name, x, moved, implementations in operations(device, dtype):
            group = x[0].numel() // GROUPS if name == "group norm" else None
            for implementation, call in implementations.items():
                row: dict[str, Any] = {"operation": name, "implementation": implementation, "shape": list(x.shape)}
                row |= {"group": group, "us": None, "gb_s": None}
                if on_gpu == (implementation == "eager"):
                    continue
                try:
                    if on_gpu:
                        row["us"] = microseconds(call, repeats)
                        row["gb_s"] = moved * x.element_size() / row["us"] / 1000
                    elif implementation == "eager":
                        call()
                except Exception as error:
                    row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                rows.append(row)
    return rows


def line(row: dict[str, Any]) -> str:
    times = row.get("error") or ("ran" if row["us"] is None else f"{row['us']:9.2f} us {row['gb_s']:8.0f} GB/s")
    group = "" if row["group"] is None else f"group {row['group']}"
    return f"{row['operation']:<11} {row['shape']!s:<22} {group:<14} {row['implementation']:<13} {times}"


def crossover(rows: list[dict[str, Any]]) -> list[str]:
    """For each batch, every size of a group with the ratio of the two variants' times, smallest size first."""
    times: dict[tuple[int, int, str], dict[str, float]] = {}
    for row in rows:
        if row["operation"] == "group norm" and row["us"] is not None:
            key = (row["shape"][0], row["group"], str(row["shape"][1:]))
            times.setdefault(key, {})[row["implementation"]] = row["us"]
    return [
        f"batch {items:<3} group {group:<8} {shape:<16} "
        f"one launch / two: {microseconds['one launch'] / microseconds['two launches']:.2f}"
        for (items, group, shape), microseconds in sorted(times.items())
        if {"one launch", "two launches"} <= microseconds.keys()
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m pie_engine.benchmarks.norm_kernels")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the rows there")
    given = parser.parse_args(arguments)
    rows = measure(given.device, given.repeats)
    for row in rows:
        print(line(row))
    print(f"ONE_LAUNCH is {ONE_LAUNCH}")
    for text in crossover(rows):
        print(text)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
