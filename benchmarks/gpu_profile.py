"""Where the time of a captured stage goes: its kernels, by name and by kind of work."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from pie_engine.benchmarks.gpu_rungs import emit, synchronize

# In this order, as cuDNN's layout copies and attention carry names of convolutions and matrix products too.
GROUPS = {
    "copy, layout": r"memcpy|memset|nchwtonhwc|nhwctonchw|direct_copy|copy_|catarray|aten::cat|transpose|permute|clone",
    "attention": r"flash|fmha|attention|sdpa|softmax",
    "norm": r"norm|rowwisemoments|computefusedparams|welford",
    "guided step": r"denoise|_step|enter|advance",
    "convolution": r"conv|implicit|fprop|dgrad|wgrad|winograd|im2col|cudnn",
    "matrix product": r"gemm|cutlass|nvjet|cublas|splitk|matmul|addmm|aten::mm|aten::bmm|linear",
    "elementwise": r"elementwise|triton|upsample|vectorized|reduce|fill|aten::",
}
TOP = 25


def emit_kernels(stage: str, run: Callable[[], None], device: str, calls: int) -> None:
    """Profile some calls, and tell the kernels that take longest and the sums of their kinds, per call."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = device != "cpu"
    synchronize()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(calls):
            run()
        synchronize()
    times = kernel_times(profiler, on_gpu)
    total = sum(microseconds for microseconds, _ in times.values())
    if not total:
        emit(rung=f"kernels of {stage}", ok=False, error="the profiler saw no kernel")
        return
    groups: dict[str, float] = {}
    for name, (microseconds, _) in times.items():
        groups[group_of(name)] = groups.get(group_of(name), 0.0) + microseconds / calls
    longest = sorted(times.items(), key=lambda entry: -entry[1][0])[:TOP]
    emit(
        rung=f"kernels of {stage}", us=total / calls, kernels=sum(count for _, count in times.values()) / calls,
        names=len(times), groups=dict(sorted(groups.items(), key=lambda entry: -entry[1])),
        top=[
            {
                "name": shorten(name), "group": group_of(name), "count": count / calls,
                "us": microseconds / count, "share": microseconds / total,
            }
            for name, (microseconds, count) in longest
        ],
    )  # fmt: skip


def kernel_times(profiler: Any, on_gpu: bool) -> dict[str, tuple[float, int]]:
    """Name -> microseconds in all, calls. On a GPU from the raw trace: what runs there, whatever launched it."""
    times: dict[str, tuple[float, int]] = {}
    if on_gpu:
        for event in profiler.profiler.kineto_results.events():
            if event.device_type() == torch.autograd.DeviceType.CUDA and event.duration_ns() > 0:
                spent, count = times.get(event.name(), (0.0, 0))
                times[event.name()] = (spent + event.duration_ns() / 1e3, count + 1)
    else:
        for average in profiler.key_averages():
            times[average.key] = (average.self_cpu_time_total, average.count)
    return times


def group_of(name: str) -> str:
    return next((group for group, pattern in GROUPS.items() if re.search(pattern, name.lower())), "other")


def shorten(name: str) -> str:
    """The first 90 characters of what tells a kernel from others."""
    for noise in ("void ", "at::native::", "(anonymous namespace)::", "at::cuda::"):
        name = name.replace(noise, "")
    return name[:90]
