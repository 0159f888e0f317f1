"""Interleaved repeats and what is read from them.

Variants run A B C, A B C, ...: a machine that drifts drifts for all of them, and ratios are taken repeat by repeat. The
first calls are the warm-up and are kept apart: they compile, capture and allocate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class Samples:
    """What was measured of one variant.

    Attributes:
        warm_up: seconds of the calls that do not count.
        seconds: seconds of the calls that do, in order: the i-th of all variants belong together.
        host_bytes, device_bytes: the largest peak of memory among the calls that count; 0 where it is not known.
        facts: what the last call told about itself.
    """

    warm_up: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    host_bytes: int = 0
    device_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """One timed call: seconds, peaks of memory in bytes, and what it told about itself."""

    seconds: float
    host_bytes: int = 0
    device_bytes: int = 0
    facts: dict[str, Any] = field(default_factory=dict)


def captured(call: Callable[[], Any], calls: int = 1) -> Callable[[], None]:
    """What replays `calls` calls from one CUDA graph on the current device, so that gaps between launches do not count.

    They are warmed up before: they compile, and choose their algorithms.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # which made what they read
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    return graph.replay


def clock(
    run: Callable[[], Any],
    device: str = "cpu",
    stream: torch.cuda.Stream | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> tuple[float, Any]:
    """Seconds of one call, and what it returned: the monotonic clock, or CUDA events around its work on a GPU.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        stream: where `run` queues its work on a GPU; None for the current stream. Work on other streams counts if
            `run` waits for it.
        now: seconds on a processor; a subject whose times are planted brings its own.
    """
    if device == "cpu":
        start = now()
        result = run()
        return now() - start, result
    import torch

    torch.cuda.synchronize(device)
    with torch.cuda.device(device), torch.cuda.stream(stream):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        result = run()
        end.record()
        end.synchronize()
    return begin.elapsed_time(end) / 1e3, result


def interleave(
    variants: Mapping[str, Callable[[], Call]],
    repeats: int,
    warm_ups: int = 1,
    on_call: Callable[[str, int, Call], None] = lambda name, repeat, call: None,
) -> dict[str, Samples]:
    """Call every variant once per repeat, in order, and keep what each call gives.

    Args:
        on_call: told of each call: variant, number of the repeat (negative during the warm-up), and the call.
    """
    samples = {name: Samples() for name in variants}
    for repeat in range(-warm_ups, repeats):
        for name, run in variants.items():
            call, calls = run(), samples[name]
            if repeat < 0:
                calls.warm_up.append(call.seconds)
            else:
                calls.seconds.append(call.seconds)
                calls.host_bytes = max(calls.host_bytes, call.host_bytes)
                calls.device_bytes = max(calls.device_bytes, call.device_bytes)
                calls.facts = call.facts
            on_call(name, repeat, call)
    return samples


def summarise(samples: Samples, baseline: Samples | None = None) -> dict[str, float | int]:
    """Columns of a result: times, memory, and how many times faster than `baseline`, repeat by repeat."""
    columns: dict[str, float | int] = {
        "repeats": len(samples.seconds),
        "warm_up_s": max(samples.warm_up, default=0.0),
        "p20_s": quantile(samples.seconds, 0.2),
        "median_s": statistics.median(samples.seconds),
        "p80_s": quantile(samples.seconds, 0.8),
    }
    if baseline is not None:
        ratios = [base / taken for base, taken in zip(baseline.seconds, samples.seconds, strict=True)]
        columns |= {"speedup": statistics.median(ratios), "speedup_p20": quantile(ratios, 0.2)}
        columns["speedup_p80"] = quantile(ratios, 0.8)
    columns |= {"host_peak_mb": samples.host_bytes / 1e6, "device_peak_mb": samples.device_bytes / 1e6}
    return columns


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie, interpolated."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
