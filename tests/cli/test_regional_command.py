"""`pie-engine run --regional`: what it says, what it writes, and what refuses it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

ROUNDS = ("--steps", "4", "--num-inference-steps", "4", "--resolution", "128", "--feather", "0", "--backend", "torch")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A region of a hundredth of the picture, which is 300 x 260."""
    mask = Image.new("L", (300, 260))
    ImageDraw.Draw(mask).rectangle((136, 116, 160, 140), fill=255)
    mask.save(tmp_path / "small.png")
    return tmp_path / "small.png"


def test_what_was_computed_is_told_and_written(pie: Any, simulate: Any, small: Path, tmp_path: Path) -> None:
    assert simulate("--mask", small, *ROUNDS, "--regional", "on").err == ""  # --quiet
    out = tmp_path / "result"
    found = json.loads((out / "provenance.json").read_text())["regional"]
    assert found["used"] and found["whole"][0] == 1 and found["latents"] == [16, 16]
    said = r"ounds 1[\d, ]* of 4 computed the whole picture, the others a box of \d x \d of its 16 x 16 latents; "
    assert re.search(f"R{said}", (out / "report.html").read_text())
    again = pie("run", "--from", out / "provenance.json", "--output", tmp_path / "again")
    assert again.code == 0 and re.search(f"^r{said}", again.err, re.MULTILINE)


def test_off_unless_asked_for(simulate: Any, small: Path, tmp_path: Path) -> None:
    simulate("--mask", small, *ROUNDS)
    found = json.loads((tmp_path / "result" / "provenance.json").read_text())["regional"]
    assert found == {"used": False, "reason": "switched off"}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ("--noise", "fresh"),
            "and fresh noise changes the outside in every round; pass --regional auto",
        ),
        (("--inversion", "ddim"), "regional is on, and an inversion does not hold the outside"),
        (("--method", "walk"), "regional is on, and only PIE's rounds repeat; pass --regional auto"),
        (("--regional-memory", "-1"), "regional-memory -1.0 is outside [0, 1e+06]; pass --regional-memory 4"),
        (("--regional-memory", "0"), "regional is on, and a recording takes "),
    ],
)
def test_refusals(refuse: Any, small: Path, words: tuple[str, ...], line: str) -> None:
    assert line in refuse("--mask", small, *ROUNDS, "--regional", "on", *words)
