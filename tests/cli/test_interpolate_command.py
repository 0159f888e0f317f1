"""`pie-engine run --interpolate`: one run, its animation, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def test_the_animation_has_more_pictures(simulate: Any, tmp_path: Path) -> None:
    outcome = simulate("--steps", "2", "--interpolate", "2")
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "result" / "progression.gif") as gif:
        assert gif.n_frames == 2 * 3 + 1
    assert len(list((tmp_path / "result" / "frames").iterdir())) == 3
    provenance = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert provenance["interpolation"]["pictures_per_round"] == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--interpolate", "15"), "interpolate 15 is outside [0, 14]; pass --interpolate 4"),
        (("--interpolate", "-1"), "interpolate -1 is outside [0, 14]"),
        (("--interpolate", "2", "--method", "previous"), "interpolate 2 is between rounds, which this method does"),
    ],
)
def test_refusals(simulate: Any, tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    outcome = simulate(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"pie-engine: error: {line}") and outcome.err.count("\n") == 1
    assert not (tmp_path / "result").exists()
