"""`pie-engine run --tolerance`: what it says, what it writes, and what refuses it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROUNDS = ("--steps", "6", "--num-inference-steps", "2", "--resolution", "32", "--beta2", "0.1", "--feather", "0")
SAID = (
    r"stopped after round (\d) of 6: the next is bound to change no pixel by more than [\d.]+ grey levels, and all "
    r"that are left by [\d.]+ if their rate rises no further; (frames \d to 6 repeat|frame 6 repeats) frame \1"
)


def test_where_it_stopped_is_told_and_written(pie: Any, simulate: Any, mask: Path, tmp_path: Path) -> None:
    assert simulate("--mask", mask, *ROUNDS, "--tolerance", "4").err == ""  # --quiet
    out = tmp_path / "result"
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["settings"]["tolerance"] == 4
    stopped = provenance["stopped"]
    after = stopped["after"]
    assert set(stopped) == {"after", "tolerance", "bound", "rate", "drift"} and 3 <= after < 6
    pictures = [Image.open(out / "frames" / f"{number:03}.png").tobytes() for number in range(7)]
    assert pictures[after:] == [pictures[after]] * (7 - after) and pictures[1] != pictures[0]
    assert re.search("Stopped" + SAID.removeprefix("stopped"), (out / "report.html").read_text())
    again = pie("run", "--from", out / "provenance.json", "--output", tmp_path / "again")
    assert again.code == 0 and re.search(f"^{SAID}$", again.err, re.MULTILINE)
    assert json.loads((tmp_path / "again" / "provenance.json").read_text())["stopped"] == stopped
    assert re.search(r"^round 6/6, evaluation (\d+)/\1(, 0 s left)?$", again.err, re.MULTILINE)
    refused = pie("converge", out)
    assert refused.code == 2 and "has a tolerance, after which frames repeat; pass a run of all rounds" in refused.err


def test_the_control_may_stop_too(simulate: Any, mask: Path, tmp_path: Path) -> None:
    """Its rounds are PIE's."""
    words = ("--method", "control", "--healthy-prompt", "lung", "--tolerance", "4")
    assert simulate("--mask", mask, *ROUNDS, *words).code == 0
    assert "stopped" in json.loads((tmp_path / "result" / "provenance.json").read_text())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--tolerance", "0"), "tolerance 0.0 is outside (0, 255]; pass --tolerance 1"),
        (("--tolerance", "1", "--noise", "fresh"), "which noise 'fresh' keeps them from; pass --noise shared"),
        (("--tolerance", "1", "--semantics", "official"), "pass --semantics engine"),
        (("--tolerance", "1", "--pace", "even"), "which pace 'even' keeps them from; pass --pace constant"),
        (("--tolerance", "1", "--method", "walk"), "tolerance 1 is not used by method 'walk', whose frames do not"),
    ],
)
def test_refusals(refuse: Any, words: tuple[str, ...], line: str) -> None:
    assert line in refuse(*ROUNDS, *words)
