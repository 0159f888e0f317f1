"""In which order stages run: one after the other on a processor, on one or two streams of a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from pie_engine.runtime.capture import Capture, cuda_graph

if TYPE_CHECKING:
    import torch


class Timeline:
    """The processor's: everything has happened when a call returns.

    Attributes:
        lag: rounds that are begun before an earlier one's frames are read.
    """

    lag = 0

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

    def capture(self, *, decoding: bool = False) -> Capture | None:
        """How a stage is captured, or None where nothing can be."""
        return None

    def synchronize(self) -> None:
        """Wait for everything."""


class CudaTimeline(Timeline):
    """A GPU's: rounds on one stream; with `overlap`, frames on a second one while the next round runs."""

    def __init__(self, device: torch.device, *, overlap: bool, stream: torch.cuda.Stream | None = None):
        import torch

        self.lag = 1 if overlap else 0
        self._device = device
        # A foreign engine runs on the stream that it was made with: rounds have to run on that one.
        self._main = stream or torch.cuda.Stream(device)
        self._side = torch.cuda.Stream(device) if overlap else self._main
        self._ready, self._read = torch.cuda.Event(), torch.cuda.Event()

    def main(self) -> AbstractContextManager[Any]:
        import torch

        self._main.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._main)

    def hand_over(self, copy: Callable[[], None]) -> None:
        self._main.wait_event(self._read)  # an event that was never recorded is passed at once
        copy()
        self._ready.record(self._main)

    @contextlib.contextmanager
    def decoding(self) -> Any:
        import torch

        with torch.cuda.stream(self._side):
            self._side.wait_event(self._ready)
            yield
            self._read.record(self._side)

    def mark(self) -> Callable[[], None]:
        import torch

        event = torch.cuda.Event()
        event.record(self._side)
        return event.synchronize

    def capture(self, *, decoding: bool = False) -> Capture | None:
        return cuda_graph(self._side if decoding else self._main)

    def synchronize(self) -> None:
        self._main.synchronize()
        self._side.synchronize()
