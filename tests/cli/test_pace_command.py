"""`pie-engine run --pace`: by displacement, by a classifier, until a confidence; where constant rounds stand still."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pie_engine.demo.assets import SEVERITY_JSON

ROUNDS = ("--steps", "4", "--num-inference-steps", "2", "--resolution", "32", "--beta2", "0.4")


def test_a_run_by_a_classifier_repeats_from_its_provenance(pie: Any, simulate: Any, mask: Path, tmp_path: Path) -> None:
    outcome = simulate("--mask", mask, *ROUNDS, "--pace", f"even:{SEVERITY_JSON}", "--displacement", "2")
    assert outcome.code == 0, outcome.err
    provenance = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert provenance["settings"]["pace"] == f"even:{SEVERITY_JSON}"
    pace = provenance["pace"]
    assert pace["pilot_rounds"] == 0 and len(pace["severity"]["of_even_displacement"]) == 5
    words = ("run", "--from", tmp_path / "result" / "provenance.json", "--output", tmp_path / "again", "--quiet")
    assert pie(*words).code == 0
    assert json.loads((tmp_path / "again" / "provenance.json").read_text())["pace"] == pace


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--pace", "slow"), "pace 'slow' is unknown; pass one of constant, even, even:CLASSIFIER"),
        (("--pace", "even:none.json"), "classifier none.json cannot be read"),
        (("--pace", "even", "--until", "0.5"), "pass --pace even:CLASSIFIER"),
        (("--until", "0.5"), "until belongs to an even pace by a classifier; pass --pace even:CLASSIFIER"),
        (("--pace", "even", "--method", "walk"), "pace 'even' is not used by method 'walk'; pass --pace constant"),
        (("--pace", f"even:{SEVERITY_JSON}", "--until", "2"), "until 2.0 is outside (0, 1]"),
    ],
)
def test_refusals(refuse: Any, words: tuple[str, ...], line: str) -> None:
    assert line in refuse(*ROUNDS, *words)


def test_rounds_that_stand_still_are_told(pie: Any, simulate: Any, mask: Path, image: Path, tmp_path: Path) -> None:
    """With beta2 0 nothing moves; with fresh noise nobody expects the rounds to settle."""
    line = (
        "rounds 3 to 4 change less than a grey level inside the region; --pace even spreads the change over all of them"
    )
    first = simulate("--mask", mask, *ROUNDS, "--beta2", "0")
    assert first.code == 0 and line not in first.err  # --quiet
    again = ("run", "--from", tmp_path / "result" / "provenance.json", "--output", tmp_path / "again")
    assert line in pie(*again).err
    assert line not in pie(*again, "--beta2", "0.9", "--noise", "fresh").err


def test_a_sweep_and_a_comparison_tell_how_even_runs_are(
    pie: Any, bundle: Any, image: Path, mask: Path, tmp_path: Path
) -> None:
    classifier = ("--classifier", SEVERITY_JSON)
    common = ("--engine", bundle.path, "--image", image, "--mask", mask, "--prompt", "heart", *ROUNDS)
    grid = ("--grid", "pace=constant,even", "--displacement", "2")
    assert "displacement belongs to even pace" in pie("sweep", *common, *classifier, *grid).err
    swept = pie("sweep", *common, *classifier, *grid[:2], "--output", tmp_path / "sweep", "--json", "--quiet")
    assert swept.code == 0, swept.err
    cells = json.loads(swept.out)["cells"]
    off = [cell["unevenness"]["mean"] for cell in cells]
    assert off[1] < 0.05 < off[0]
    assert not any("increments" in reason for reason in cells[1]["not_stable"])
    line = ("--method", "interpolation", "--output", tmp_path / "sweep" / "line", "--quiet")
    assert pie("run", *common, *line).code == 0
    compared = pie("compare", tmp_path / "sweep", *classifier, "--by", "pace", "--output", tmp_path / "out", "--json")
    assert compared.code == 0, compared.err
    methods = json.loads(compared.out)["methods"]
    assert set(methods) == {"pie, pace constant", "pie, pace even", "interpolation"}
    assert methods["interpolation"]["unevenness"]["mean"] < 0.05
    assert methods["pie, pace even"]["unevenness"]["mean"] == pytest.approx(off[1])
    table = pie("compare", tmp_path / "sweep", *classifier, "--by", "pace", "--output", tmp_path / "out").out
    assert "evenness" in table and "sharpness half-way" in table
    refused = pie("converge", tmp_path / "sweep" / "runs" / "pace=even" / "0_seed=0")
    assert refused.code == 2 and "has an even pace, whose increments are equal on purpose" in refused.err
