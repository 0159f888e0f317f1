"""The process behind `Remote`: reads one request per line, answers with one line of JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

from pie_engine.benchmarks.harness.measure import clock
from pie_engine.benchmarks.harness.memory import Peaks
from pie_engine.errors import PieError
from pie_engine.rounds.memory import requested_bytes


def main() -> None:
    # Libraries write to stdout as they like; answers keep the descriptor to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    subject: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "make" in request:
                subject, answer = _make(request)
            else:
                answer = _run(subject, request["run"])
        except Exception as error:  # whatever a library raises has to reach whoever asked
            if os.environ.get("PIE_ENGINE_BENCH_DEBUG") is not None:
                raise
            answer = {"error": _one_line(error), "memory": _lacks_memory(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _make(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    import torch

    if request["threads"] is not None:
        torch.set_num_threads(request["threads"])
    module, _, function = request["make"].partition(":")
    make = getattr(importlib.import_module(module), function)
    peaks = Peaks("cpu")
    start = time.perf_counter()
    subject = make(**request["arguments"])
    seconds = time.perf_counter() - start
    facts = getattr(subject, "facts", {})
    return subject, {"seconds": seconds, "host_bytes": peaks.host(), "facts": facts}


def _run(subject: Any, what: list[Any]) -> dict[str, Any]:
    device = getattr(subject, "device", "cpu")
    peaks = Peaks(device)
    now = getattr(subject, "now", time.perf_counter)
    seconds, facts = clock(lambda: subject.run(*what), device, getattr(subject, "stream", None), now)
    calls = getattr(subject, "calls", 1)  # short subjects repeat themselves within one timing
    return {
        "seconds": seconds / calls,
        "host_bytes": peaks.host(),
        "device_bytes": peaks.device(),
        "facts": facts or {},
    }


def _one_line(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, PieError) else f"{type(error).__name__}: {first}"


def _lacks_memory(error: Exception) -> bool:
    # Allocators share no base: PyTorch's are told apart by name (GPU) or text, the engine's own by text.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or str(error).startswith("out of memory") or requested_bytes(error) is not None


if __name__ == "__main__":
    main()
