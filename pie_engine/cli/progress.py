"""Progress in U-Net evaluations on stderr: rich's bar on a terminal, a line per tenth elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Takes where a command is, such as "round 1/10", and how many evaluations are done, of how many.
Show = Callable[[str, int, int], None]
# Evaluations can take a minute each: rich forgets slower ones than this when it says how long the rest takes.
_SLOWEST_SECONDS = 3600


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Show]:
    """What a command reports its progress to, until the context ends; nothing is shown where it is to be quiet."""
    if quiet:
        yield lambda where, done, total: None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        yield from _bar()
    else:
        yield _Lines()


@contextmanager
def show_rounds(rounds: int, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """The same as `on_progress` of `PieEngine.run` for one progression of so many rounds."""
    with show_progress(quiet=quiet) as show:
        yield lambda done, total: show(f"round {min(rounds, 1 + (done - 1) * rounds // total)}/{rounds}", done, total)


def _bar() -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("evaluation"),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    # Drawn at each evaluation, so that no second thread runs beside them.
    bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, speed_estimate_period=_SLOWEST_SECONDS)
    with bar:
        task = bar.add_task("", start=False, visible=False)

        def show(where: str, done: int, total: int) -> None:
            bar.start_task(task)
            bar.update(task, description=where, completed=done, total=total, visible=True, refresh=True)

        yield show


class _Lines:
    """For logs: the first report, then one for each tenth of the way."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None
        self._tenth = -1

    def __call__(self, where: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = now, done  # the first evaluation also warms up; it is left out of the rate
        tenth = 10 * done // max(total, 1)  # none where nothing is edited (methods previous and vae alone)
        if tenth == self._tenth:
            return
        self._tenth = tenth
        begun, before = self._start
        left = f", {_duration((total - done) * (now - begun) / (done - before))} left" if done > before else ""
        sys.stderr.write(f"{where}, evaluation {done}/{total}{left}\n")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
