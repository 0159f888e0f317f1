"""`--config` and `--print-config`: what was printed repeats the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

WORDS = (
    "run", "--checkpoint", "C", "--image", "a.png", "--prompt", "", "--finding", "heart", "--mask", "h.png:0.5",
    "--mask-label", "2", "--mask-box=1,2,3,4", "--finding", "lung", "--mask", "l.png", "--keep", "k.png",
    "--guidance_scale", "3", "--no-composite", "--shift", "-3,2", "--mp4",
)  # fmt: skip


def test_what_is_printed_gives_the_same(pie: Any, tmp_path: Path) -> None:
    printed = pie(*WORDS, "--print-config")
    assert (printed.code, printed.err) == (0, "")
    found = yaml.safe_load(printed.out)
    assert found["regions"] == [
        {"finding": "heart"}, {"mask": "h.png:0.5"}, {"mask_label": "2"}, {"mask_box": "1,2,3,4"},
        {"finding": "lung"}, {"mask": "l.png"}, {"keep": "k.png"},
    ]  # fmt: skip
    assert (found["guidance_scale"], found["composite"], found["noise"]) == (3.0, False, "shared")
    assert found["shift"] == "-3,2"
    file = tmp_path / "run.yaml"
    file.write_text(printed.out)
    assert pie("run", "--config", file, "--print-config").out == printed.out
    assert pie("run", f"--config={file}", "--print-config").out == printed.out


def test_the_command_line_holds(pie: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"steps": 3, "composite": false, "image": "a.png", "prompt": "x", "scheduler": null}')
    found = yaml.safe_load(pie("run", "--config", file, "--steps", "4", "--print-config").out)
    assert (found["steps"], found["composite"], found["image"]) == (4, False, "a.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("- 1\n", "holds no mapping of options; write one with --print-config"),
        ("steps: [1\n", "cannot be read"),
        ("stepps: 3\n", "there is no option --stepps 3; did you mean --steps?"),
        ("steps: 0\nimage: a.png\nprompt: x\n", "steps 0 is outside [1, 10000]; pass --steps 10"),
    ],
)
def test_refused(pie: Any, tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "run.yaml"
    if text is not None:
        file.write_text(text)
    outcome = pie("run", "--config", file, "--image", "a.png", "--prompt", "x")
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
