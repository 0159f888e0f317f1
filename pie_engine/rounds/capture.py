"""A part of a round, captured as a CUDA graph once and replayed from then on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch

log = logging.getLogger(__name__)

# Takes a function that works on static buffers, records it without running it, and returns what replays it.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Stage:
    """A function over static buffers: run as it is the first time, captured the second time, replayed ever after.

    The first run is the warm-up that capture needs (libraries load, allocators and autotuners settle), and it counts:
    it is the progression's first round. Where capture fails the function keeps running as it is; `reason` says why.

    Attributes:
        name: for messages.
        reason: why the stage is not captured, or an empty string.
    """

    def __init__(self, name: str, function: Callable[[], None], capture: Capture | str):
        self.name, self._function = name, function
        self._capture = None if isinstance(capture, str) else capture
        self._replay: Callable[[], None] | None = None
        self._warm = False
        self.reason = capture if isinstance(capture, str) else ""

    @property
    def captured(self) -> bool:
        return self._replay is not None

    def __call__(self) -> None:
        if self._replay is None and self._warm and self._capture is not None:
            try:
                self._replay = self._capture(self._function)
            except Exception as error:  # drivers and foreign engines share no other base
                self.reason = _first_cause(error)
                self._capture = None
                log.warning("no CUDA graph for %s (%s); it runs uncaptured, which is slower", self.name, self.reason)
        self._warm = True
        (self._replay or self._function)()


def cuda_graph(stream: torch.cuda.Stream) -> Capture:
    """Capture on `stream`. What one of these captures shares a memory pool, so that none of it may run at once.

    Graphs leave nothing in that pool which another one or a later replay reads: rounds work on static buffers. Stages
    that overlap need another one of these, and streams of their own, too: PyTorch keeps one cuBLAS workspace for each
    stream.
    """
    shared: list[Any] = []  # the pool, once a graph lives in it

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        graph, pool = torch.cuda.CUDAGraph(), shared[0] if shared else torch.cuda.graph_pool_handle()
        try:
            # Another thread of the user's process may allocate meanwhile: that is no reason to fail.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                function()
        except BaseException:
            # An operation that cannot be captured makes the end of the capture fail too, and then PyTorch's allocator
            # still takes this capture for one under way and refuses to free memory for the rest of the process. From
            # 2.12 on it ends both of its pools itself (its pull request 180395); before, that of pinned memory stays.
            _FAILED.append(graph)
            with contextlib.suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            shared.clear()
            raise
        shared[:] = [pool]
        return graph.replay

    return capture


# Graphs whose capture failed: the allocator may keep their addresses.
_FAILED: list[object] = []


def _first_cause(error: BaseException) -> str:
    """The first line of what went wrong first: what follows it only says that the capture is broken."""
    while error.__context__ is not None:
        error = error.__context__
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
