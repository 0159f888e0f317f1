"""Subjects whose times, noise and deaths are planted; the harness's processes import them from here."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


class Planted:
    """Takes the given seconds per run, in order, on a clock of its own."""

    def __init__(self, seconds: list[float], facts: dict[str, Any] | None = None):
        self._seconds, self._time = iter(seconds), 0.0
        self.facts = facts or {}

    def now(self) -> float:
        return self._time

    def run(self, *what: Any) -> dict[str, Any]:
        self._time += next(self._seconds)
        return {"what": what}


class Noisy(Planted):
    """Writes more than a pipe holds, and bytes that are no text, to both streams, at every level."""

    def run(self, *what: Any) -> dict[str, Any]:
        for descriptor in (1, 2):
            os.write(descriptor, b'\xff{"seconds": 0}\n' * 2)
        os.system("echo from a child; echo from a child >&2")
        sys.stdout.write("x" * 2**18 + "\n")
        sys.stderr.write("y" * 2**18 + "\n")
        return super().run(*what)


class Failing:
    """Does what it is told, which goes wrong; a `run` of nothing tells its process id."""

    def run(self, how: str = "") -> dict[str, Any]:
        if how == "raise":
            raise ValueError("no such thing\nand a second line")
        if how == "refuse":
            from pie_engine.errors import ConfigError

            raise ConfigError("value 7 is outside [0, 1]; pass 1")
        if how == "memory":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")
        if how == "exit":
            sys.stderr.write("the library gave up\n\n")
            sys.stderr.flush()
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(600)
        return {"pid": os.getpid()}


def refuse() -> None:
    raise ValueError("cannot be made")


class Allocating:
    """Holds so many bytes from the start, and takes and gives back so many in each run."""

    def __init__(self, held: int = 0, freed: int = 0):
        self._held, self._freed = b"\1" * held, freed

    def run(self) -> None:
        taken = b"\1" * self._freed  # written, so that the pages are resident
        del taken
