"""No name that a command prints commands the terminal, or begins a line of its own; JSON holds names as they are."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pie_engine.cli.spelling import plain
from pie_engine.cli.tables import show, show_latex
from pie_engine.cli.terminal import print_lines
from pie_engine.evaluation.tables import Table

# Clears the screen, begins a line that looks like an error of ours, and sets the terminal's title.
NASTY = "a\x1b[2J\npie-engine: error: b\x1b]0;c\x07"
SHOWN = r"a\x1b[2J\npie-engine: error: b\x1b]0;c\x07"


@pytest.fixture
def image(image: Path, tmp_path: Path) -> Path:
    """An image that a stranger named, in place of the golden one."""
    return Path(shutil.copy(image, tmp_path / f"{NASTY}.png"))


def is_harmless(said: str, lines: int) -> None:
    assert SHOWN in said and plain(said) == said and said.count("\n") == lines, repr(said)


def test_commands_on_files_with_such_names(pie: Any, simulate: Any, mask: Path, tmp_path: Path) -> None:
    folder = tmp_path / NASTY / "run"
    done = simulate("--mask", mask, "--steps", "3", "--item-id", NASTY, "--prompt", NASTY, "--output", folder)
    assert done.code == 0, done.err
    is_harmless(done.out, 1)
    is_harmless(pie("view", folder, "--no-browser").out, 1)
    evaluated = pie("eval", folder, "--output", tmp_path / NASTY / "eval")
    is_harmless(evaluated.err, 1)  # which run is measured
    is_harmless(evaluated.out, 9)
    other = shutil.copytree(folder, tmp_path / NASTY / "other")
    converged = pie("converge", folder, other, "--output", tmp_path / f"{NASTY}.svg")
    assert converged.code == 0, converged.err
    is_harmless(converged.out, converged.out.count("\n"))
    drawn = pie("mask", "--image", tmp_path / f"{NASTY}.png", "--mask", mask, "--output", tmp_path / f"{NASTY}-m.png")
    assert drawn.out.splitlines()[-1] == f"look at {plain(str(tmp_path))}/{SHOWN}-m.png"
    assert json.loads((folder / "provenance.json").read_text())["item_id"] == NASTY


def test_json_holds_names_as_they_are(simulate: Any, tmp_path: Path) -> None:
    done = simulate("--json", "--output", tmp_path / NASTY)
    assert done.out.count("\n") == 1 and done.out.isprintable() is False and "\x1b" not in done.out
    assert json.loads(done.out)["output"] == str(tmp_path / NASTY)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdout", [io.StringIO, Terminal])
def test_tables(monkeypatch: pytest.MonkeyPatch, stdout: Callable[[], io.StringIO]) -> None:
    """Also drawn by rich, whose own codes are left out where there is no colour."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "200")
    said = stdout()
    monkeypatch.setattr("sys.stdout", said)
    show([Table([NASTY, "b"], [[NASTY, "1"]], NASTY, [NASTY])], NASTY)
    assert said.getvalue().count(SHOWN) == 5
    assert "\x1b" not in said.getvalue() and "\x07" not in said.getvalue()
    assert not [line for line in said.getvalue().splitlines() if line.startswith("pie-engine")]


def test_latex(capsys: pytest.CaptureFixture[str]) -> None:
    show_latex([Table([NASTY], [[NASTY]])])
    said = capsys.readouterr().out
    assert plain(said) == said and said.count("pie-engine: error") == 2
    assert not [line for line in said.splitlines() if line.startswith("pie-engine")]


@pytest.mark.parametrize("name", ["p\u00e1tient 7", "\u60a3\u8005\u3000\u4e03", "a\u00a0b"])
def test_names_in_any_language_stay(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_lines(name)
    assert capsys.readouterr().out == f"{name}\n"


def test_a_name_that_is_no_unicode(capsys: pytest.CaptureFixture[str]) -> None:
    """As Python spells a file name whose bytes are no UTF-8: it cannot be written to stdout as it is."""
    print_lines("a\udcff", "right\u202eleft")
    assert capsys.readouterr().out == "a\\udcff\nright\\u202eleft\n"
