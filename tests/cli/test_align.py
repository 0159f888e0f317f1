"""`pie-engine align` on runs made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hand_runs import write_run
from tiny_clip import save_clip


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two prompts for one image."""
    for name in ("heart", "lung"):
        write_run(tmp_path / "runs" / name, 1, name)
    return tmp_path / "runs"


def test_the_table_and_the_folder(pie: Any, runs: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    (tmp_path / "more.txt").write_text("Normal lungs\n")
    words = ("align", runs, "--clip", tmp_path / "clip", "--output", tmp_path / "out", "--prompts")
    outcome = pie(*words, tmp_path / "more.txt")
    assert (outcome.code, outcome.err) == (0, f"{runs / 'heart'}\n{runs / 'lung'}\n")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("2 runs of 1 patient towards 2 prompts; rise of the similarity")
    names = [line.split("  ")[0] for line in lines[1:7]]
    assert names == ["text", "own prompt", "other runs' prompts", '"Normal lungs"', "own, negated", "empty text"]
    assert "(all 2 exchanges, within one patient); so few runs give no p below 0.5" in lines[7]
    assert lines[8] == "every prompt was read in full, by CLIP and by the model"
    assert lines[9] == f"{tmp_path / 'out'}: align.csv, means.csv, align.png, summary.json"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "align.csv",
        "means.csv",
        "align.png",
        "summary.json",
    }


def test_json(pie: Any, runs: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    words = ("align", runs / "heart", "--clip", tmp_path / "clip", "--output", tmp_path / "out", "--json", "--quiet")
    outcome = pie(*words)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert found["output"] == str(tmp_path / "out")
    assert found["test"] == {"undefined": "all runs have one prompt; add runs towards another prompt"}


def test_refusals(pie: Any, tmp_path: Path) -> None:
    for words, line in (
        (("--clip", tmp_path), "is not a folder"),
        ((), "the following arguments are required: --clip"),
        (("--clip", tmp_path, "--permutations", "0"), "permutations 0 are below 1; pass --permutations 10000"),
        (("--clip", tmp_path, "--seed", "-1"), "seed -1 is below 0; pass --seed 0"),
        (("--clip", tmp_path, "--prompts", tmp_path / "none"), "cannot be read"),
    ):
        outcome = pie("align", tmp_path / "nowhere", *words, "--output", tmp_path / "out")
        assert (outcome.code, outcome.out) == (2, ""), words
        assert line in outcome.err and outcome.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
