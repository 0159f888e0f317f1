"""Progress on stderr: one line that is rewritten on a terminal, a line per tenth elsewhere."""

from __future__ import annotations

import sys
import time

from pie_engine.cli.spelling import one_line


class Progress:
    """Counts U-Net evaluations. Use as `on_progress` of `PieEngine.run`."""

    def __init__(self, rounds: int, *, quiet: bool = False):
        self._rounds, self._quiet = rounds, quiet
        self._start: float | None = None
        self._tenth = -1

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = now  # the first evaluation also warms up; it is left out of the rate
        if self._quiet:
            return
        elapsed = now - self._start
        rate = (done - 1) / elapsed if done > 1 and elapsed > 0 else 0.0
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        line = f"round {min(self._rounds, 1 + (done - 1) * self._rounds // total)}/{self._rounds}, "
        line += f"evaluation {done}/{total}{left}"
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if done == total else ""))
        elif 10 * done // total != self._tenth:
            self._tenth = 10 * done // total
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def say(line: str) -> None:
    """One line of progress on stderr; stdout belongs to results."""
    sys.stderr.write(one_line(line) + "\n")
    sys.stderr.flush()
