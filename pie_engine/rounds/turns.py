"""Who may run: one call at a time, in the order in which they came, in the process that made the engine."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from pie_engine.errors import BackendError

_HANDED_ON = object()  # between one's turn and the next one's


class Turns:
    """A lock that is fair, and that knows its holder.

    A backend computes on buffers that every call shares, so two calls at once would mix their patients.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._holder: object = None
        self._process = os.getpid()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until those who came before are done.

        Raises:
            BackendError: the caller has the turn already, which a progress callback does; or it is another process.
        """
        if os.getpid() != self._process:
            raise BackendError("this engine was made before the process forked; load one in each process")
        caller = threading.get_ident()
        if self._holder == caller:
            raise BackendError(
                "this engine is running: a progress callback cannot call it; call it when the run is done"
            )
        gate = threading.Lock()
        gate.acquire()
        with self._lock:
            if self._holder is None:
                self._holder = caller
            else:
                self._waiting.append(gate)
        if self._holder != caller:
            self._wait(gate)
            self._holder = caller
        try:
            yield
        finally:
            self._hand_on()

    def _wait(self, gate: threading.Lock) -> None:
        try:
            gate.acquire()
        except BaseException:  # an interrupt: whoever comes next must not wait for this one
            with self._lock:
                gone = gate in self._waiting
                if gone:
                    self._waiting.remove(gate)
            if not gone:
                self._hand_on()
            raise

    def _hand_on(self) -> None:
        with self._lock:
            if self._waiting:
                self._holder = _HANDED_ON
                self._waiting.popleft().release()
            else:
                self._holder = None
