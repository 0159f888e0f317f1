"""In which order stages run: one after the other on a processor, on one or two streams of a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from pie_engine.rounds.capture import Capture, cuda_graph


class Timeline:
    """The processor's: everything has happened when a call returns.

    Attributes:
        lag: rounds that are begun before an earlier one's frames are read.
        asynchronous: whether a round has only been launched when its call returns.
    """

    lag = 0
    asynchronous = False

    def main(self) -> AbstractContextManager[Any]:
        """Where rounds run."""
        return contextlib.nullcontext()

    def hand_over(self, copy: Callable[[], None]) -> None:
        """Run `copy` where rounds run, but not before decoding has read what it overwrites."""
        copy()

    def decoding(self) -> AbstractContextManager[Any]:
        """Where frames are decoded, after the last `hand_over`."""
        return contextlib.nullcontext()

    def mark(self) -> Callable[[], None]:
        """Called within `decoding`: a function that waits until all of it so far has happened."""
        return lambda: None

    def capture(self, *, decoding: bool = False) -> Capture | str:
        """How a stage is captured, or why it cannot be."""
        return "no GPU"

    def synchronize(self) -> None:
        """Wait for everything."""


class CudaTimeline(Timeline):
    """A GPU's: rounds on one stream; with `overlap`, frames on a second one while the next round runs.

    Args:
        stream: the one that a foreign engine runs on; None makes a new one.
        obstacle: why the engine's work cannot be captured, or an empty string.
    """

    asynchronous = True

    def __init__(
        self, device: torch.device, *, overlap: bool, stream: torch.cuda.Stream | None = None, obstacle: str = ""
    ):
        self.lag = 1 if overlap else 0
        self._device, self._obstacle = device, obstacle
        # A foreign engine runs on the stream that it was made with: rounds have to run on that one.
        self._main = stream or torch.cuda.Stream(device)
        self._side = torch.cuda.Stream(device) if overlap else self._main
        self._ready, self._read = torch.cuda.Event(), torch.cuda.Event()

    def main(self) -> AbstractContextManager[Any]:
        self._main.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._main)

    def hand_over(self, copy: Callable[[], None]) -> None:
        self._main.wait_event(self._read)  # an event that was never recorded is passed at once
        copy()
        self._ready.record(self._main)

    @contextlib.contextmanager
    def decoding(self) -> Any:
        with torch.cuda.stream(self._side):
            self._side.wait_event(self._ready)
            try:
                yield
            finally:
                self._read.record(self._side)

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event()
        event.record(self._side)
        return event.synchronize

    def capture(self, *, decoding: bool = False) -> Capture | str:
        return self._obstacle or cuda_graph(self._side if decoding else self._main)

    def synchronize(self) -> None:
        self._main.synchronize()
        self._side.synchronize()
