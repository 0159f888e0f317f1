"""Progress: a bar with the time left on a terminal, a line per tenth elsewhere, nothing with --quiet."""

from __future__ import annotations

import io
import re
import sys

import pytest

from pie_engine.cli.progress import show_progress, show_rounds
from pie_engine.cli.terminal import say

_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.monotonic` says, to rich too."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("rich.console.monotonic", lambda: now[0])
    return now


def on_terminal(monkeypatch: pytest.MonkeyPatch, kind: str = "xterm") -> Terminal:
    """Puts a terminal in place of stderr; from within a test, as pytest puts its own there before each."""
    for name, value in (("TERM", kind), ("COLUMNS", "100")):
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    return stream


def drawn(stream: io.StringIO) -> list[str]:
    """What was drawn, one after another, without the codes that move and colour."""
    return [line.strip() for line in re.split(r"[\r\n]", _CODES.sub("", stream.getvalue())) if line.strip()]


def test_a_bar_with_the_time_left(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    terminal = on_terminal(monkeypatch)
    with show_rounds(4, quiet=False) as on_progress:
        for done in range(1, 9):
            clock[0] += 30 if done == 1 else 90  # the first takes another time, and is left out of the rate
            on_progress(done, 8)
            if done == 4:
                say("something beside it")
    lines = drawn(terminal)
    assert re.fullmatch(r"round 1/4 \S+ evaluation 1/8 -:--:--", lines[0])
    assert any(re.fullmatch(r"round 2/4 .+ evaluation 4/8 0:06:00", line) for line in lines)
    assert lines[-1].startswith("round 4/4") and "evaluation 8/8" in lines[-1]
    assert "something beside it" in lines
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_the_cursor_is_back_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with pytest.raises(KeyboardInterrupt), show_rounds(2, quiet=False) as on_progress:
        on_progress(1, 4)
        raise KeyboardInterrupt
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
    assert sys.stderr is terminal


def test_a_line_per_tenth_elsewhere(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with show_rounds(2, quiet=False) as on_progress:
        for done in range(1, 101):
            clock[0] += 60 if done == 1 else 2
            on_progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[0] == "round 1/2, evaluation 1/100"
    assert lines[1] == "round 1/2, evaluation 10/100, 3 min left"
    assert lines[5:7] == ["round 1/2, evaluation 50/100, 100 s left", "round 2/2, evaluation 60/100, 80 s left"]


def test_a_terminal_that_cannot_be_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch, "dumb")
    with show_progress(quiet=False) as show:
        show("run 1/1", 0, 0)
    assert terminal.getvalue() == "run 1/1, evaluation 0/0\n"


def test_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with show_rounds(2, quiet=True) as on_progress:
        on_progress(1, 4)
    assert terminal.getvalue() == ""


def test_nothing_is_drawn_before_the_first_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = on_terminal(monkeypatch)
    with show_rounds(2, quiet=False):
        pass
    assert drawn(terminal) == []
