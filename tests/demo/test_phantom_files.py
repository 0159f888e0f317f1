"""Phantom cohorts as files, and their twins with an enlarged heart."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pie_engine.cli.main import main
from pie_engine.demo.assets import load_defaults
from pie_engine.demo.cardiothoracic import measure_ctr
from pie_engine.demo.data import healthy_cohort, held_out
from pie_engine.demo.phantom import render, roi_mask
from pie_engine.demo.phantom_files import write_phantoms


def _table(folder: Path) -> list[dict[str, str]]:
    with (folder / "patients.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_files_hold_the_held_out_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cohort"
    assert main(["demo", "--phantoms", "3", "--output", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["patients"] == str(folder / "patients.csv")
    rows, truth = _table(folder), json.loads((folder / "phantoms.json").read_text())["phantoms"]
    assert [row["item_id"] for row in rows] == ["phantom-0", "phantom-1", "phantom-2"]
    for row, one, patient in zip(rows, truth, healthy_cohort("test", 3), strict=True):
        assert row["prompt"] == load_defaults().prompt
        with Image.open(folder / row["image"]) as image, Image.open(folder / row["mask"]) as mask:
            assert image.text["Synthetic"] == mask.text["Synthetic"] == "true"
            assert np.array_equal(np.asarray(image.convert("RGB")), render(patient))
            assert np.array_equal(np.asarray(mask), roi_mask(patient))
        assert one == {"item_id": row["item_id"], "seed": patient.seed, "cardiothoracic_ratio": round(patient.ctr, 6)}


def test_enlarged_twins_differ_in_the_heart_alone(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "cohort", 3, diseased=True)
    rows = _table(tmp_path / "cohort")
    truth = json.loads((tmp_path / "cohort" / "phantoms.json").read_text())["phantoms"]
    for index, (row, one) in enumerate(zip(rows, truth, strict=True)):
        assert (row["item_id"], row["prompt"]) == (f"enlarged-{index}", load_defaults().healthy_prompt)
        twin = held_out(index, enlarged=True)
        assert replace(twin, ctr=0.44) == replace(held_out(index), ctr=0.44)
        assert 0.56 <= one["cardiothoracic_ratio"] <= 0.68
        with Image.open(tmp_path / "cohort" / row["image"]) as image:  # read back from the pixels; measure's own error
            assert measure_ctr(np.asarray(image)).ratio == pytest.approx(one["cardiothoracic_ratio"], abs=0.02)


def test_lines_of_findings_differ_in_the_prompt_alone(tmp_path: Path) -> None:
    assert main(["demo", "--phantoms", "2", "--findings", "--output", str(tmp_path / "cohort"), "--quiet"]) == 0
    rows = _table(tmp_path / "cohort")
    assert len({row["item_id"] for row in rows}) == 8 and len({row["prompt"] for row in rows}) == 4
    assert {row["image"] for row in rows[:4]} == {"images/phantom-0.png"}
    with (
        Image.open(tmp_path / "cohort" / rows[0]["mask"]) as first,
        Image.open(tmp_path / "cohort" / rows[7]["mask"]) as last,
    ):
        assert np.array_equal(np.asarray(first), np.asarray(last))
        grown = np.abs(render(held_out(1, enlarged=True)).astype(int) - render(held_out(1)))[..., 0] > 10
        assert grown.sum() > 200 and not grown[np.asarray(last) == 0].any()  # the heart has room
    files = json.loads((tmp_path / "cohort" / "phantoms.json").read_text())["files"]
    assert sorted(files) == files and len(set(files)) == len(files) == 6


def test_only_earlier_phantoms_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cohort"
    write_phantoms(folder, 3)
    write_phantoms(folder, 1)
    assert sorted(path.name for path in folder.rglob("*.png")) == ["phantom-0.png", "phantom-0.png"]
    (folder / "notes.txt").write_text("mine")
    assert main(["demo", "--phantoms", "1", "--output", str(folder)]) == 2
    assert "notes.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phantoms", "0"], "phantoms 0 is outside [1, 1000]"),
        (["--phantoms", "1001"], "phantoms 1001 is outside [1, 1000]"),
        (["--phantoms", "2", "--patient", "0"], "--patient belongs to a run"),
        (["--phantoms", "2", "--steps", "3"], "--steps belongs to a run"),
        (["--diseased"], "--diseased belongs to phantoms"),
        (["--findings"], "--findings belongs to phantoms"),
    ],
)
def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert main(["demo", "--output", str(tmp_path / "cohort"), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"pie-engine: error: {message}")
    assert list(tmp_path.iterdir()) == []
