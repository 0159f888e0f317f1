"""How a section of the GPU check runs: rungs measured alone, each told as soon as it is known. See gpu_check.py."""

from __future__ import annotations

import faulthandler
import json
import math
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

MATMUL_TFLOPS = 790.0  # measured in bf16 on an H200; what no guided step can be faster than
STEP_TFLOP, DECODE_TFLOP = 1.606, 2.514  # Stable Diffusion v1, 512 x 512, of one item
Rung = tuple[str, Callable[[], object]]


def emit(**result: Any) -> None:
    """One measurement, as one line."""
    # One write, so that a line of another thread cannot fall into it.
    sys.stdout.write(f"RESULT {json.dumps(_plain(result))}\n")
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    """Values that JSON has: it knows neither NaN nor numpy's numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else str(number)


def run_rungs(rungs: Sequence[Rung], start: int, deadline: float, share: float = 0.45, least: float = 15.0) -> int:
    """Run rungs from `start` on. One that fails leaves the others; one that breaks the GPU's context or hangs too.

    After an illegal access every later call of CUDA fails in this process, and a kernel that never ends cannot be
    stopped from within: the process then starts itself anew with the next rung.

    Args:
        deadline: Unix time at which the section is killed.
        share: of what is left that one rung may take, so that one which hangs leaves time for those after it; but at
            least `least` seconds.

    Returns:
        1 if one of these rungs failed.
    """
    failed = False
    for index, (name, measure) in enumerate(rungs[start:], start):
        left = deadline - time.time()
        if left < 3:
            emit(rung=name, skipped="no time left")
            continue
        limit = left if index + 1 == len(rungs) else max(least, share * left)
        timer = threading.Timer(limit, _give_up, (name, limit, index + 1))
        timer.daemon = True
        timer.start()
        sys.stdout.write(f"begin {index}: {name}\n")  # whoever started this process goes on from here, if it crashes
        sys.stdout.flush()
        began = time.monotonic()
        # What an earlier rung switched on must not be on in this one.
        set_tf32(matmul=False, cudnn=True)
        torch.backends.cudnn.benchmark = False
        try:
            measure()
        except Exception as error:
            traceback.print_exc(file=sys.stdout)
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(frame.filename).name}:{frame.lineno}"
            emit(rung=name, ok=False, error=f"{type(error).__name__}: {_first_line(error)} ({where})")
            failed = True
            error.__traceback__ = None  # it holds the rung's tensors
            if _broken():
                timer.cancel()
                start_again(index + 1)
        finally:
            timer.cancel()
        sys.stdout.write(f"{name}: {time.monotonic() - began:.1f} s\n")
        sys.stdout.flush()
        free_memory()
    return int(failed)


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")[:300]


def _broken() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
        return not math.isfinite(float(torch.ones(1, device="cuda").sum()))
    except Exception:
        return True


def _give_up(name: str, limit: float, following: int) -> None:
    emit(rung=name, ok=False, error=f"given up after {limit:.0f} s")
    faulthandler.dump_traceback(sys.stdout)
    start_again(following)


def start_again(index: int) -> None:
    """Replace this process by one that goes on with rung `index`; its failures so far have been told."""
    words = [word for word in sys.argv if not word.startswith("--start=")]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *words, f"--start={index}", "--failed"])


def free_memory() -> None:
    import gc

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def wall(run: Callable[[], object]) -> float:
    """Seconds of one call, the GPU's work included."""
    synchronize()
    began = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - began


def milliseconds(run: Callable[[], object], device: str, repeats: int, per: int = 1) -> dict[str, float]:
    """Median, p20 and p80 of a call's time on the current stream, divided by `per`. Call it once before."""
    times = []
    for _ in range(repeats):
        if device == "cpu":
            times.append(wall(run) * 1e3 / per)
            continue
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / per)
    times.sort()
    return {
        "ms": statistics.median(times),
        "p20": times[round(0.2 * (len(times) - 1))],
        "p80": times[round(0.8 * (len(times) - 1))],
    }


def flags() -> dict[str, Any]:
    """What decides the precision and the algorithms of PyTorch's own kernels, as it stands now."""
    flags: dict[str, Any] = {}
    for name, read in {
        "matmul_tf32": lambda: torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": lambda: torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": lambda: torch.backends.cudnn.benchmark,
    }.items():
        try:
            flags[name] = read()
        except Exception as error:  # PyTorch refuses to read what was set through its newer names
            flags[name] = _first_line(error)[:60]
    return flags


def set_tf32(*, matmul: bool, cudnn: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = matmul
    torch.backends.cudnn.allow_tf32 = cudnn
