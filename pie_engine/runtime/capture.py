"""A part of a round, captured as a CUDA graph once and replayed from then on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Takes a function that works on static buffers, records it without running it, and returns what replays it.
Capture = Callable[[Callable[[], None]], Callable[[], None]]


class Stage:
    """A function over static buffers: run as it is the first time, captured the second time, replayed ever after.

    The first run is the warm-up that capture needs (libraries load, allocators and autotuners settle), and it counts:
    it is the progression's first round. Where capture fails the function keeps running as it is; `reason` says why.

    Attributes:
        reason: why the stage is not captured, or an empty string.
    """

    def __init__(self, name: str, function: Callable[[], None], capture: Capture | None, reason: str = ""):
        self._name, self._function, self._capture = name, function, capture
        self._replay: Callable[[], None] | None = None
        self._warm = False
        self.reason = reason

    @property
    def captured(self) -> bool:
        return self._replay is not None

    def __call__(self) -> None:
        if self._replay is None and self._warm and self._capture is not None:
            try:
                self._replay = self._capture(self._function)
            except Exception as error:  # drivers and foreign engines share no other base
                self.reason = (str(error).splitlines() or [type(error).__name__])[0]
                self._capture = None
                log.warning("no CUDA graph for %s (%s); it runs uncaptured, which is slower", self._name, self.reason)
        self._warm = True
        (self._replay or self._function)()


def cuda_graph(stream: torch.cuda.Stream) -> Capture:
    """Capture on `stream`. Each graph has a memory pool of its own, since two of them may run at once."""
    import torch

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # A stream per graph also keeps cuBLAS's workspaces apart: PyTorch has one for each stream.
        with torch.cuda.graph(graph, stream=stream):
            function()
        return graph.replay

    return capture
