"""`pie-engine eval` on a run of the golden checkpoint."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture
def run(simulate: Any, mask: Path, tmp_path: Path) -> Path:
    """Two rounds on 128 x 128 pixels, with a region of interest."""
    outcome = simulate("--mask", mask, "--steps", "2", "--resolution", "128", "--leakage")
    assert outcome.code == 0, outcome.err
    return tmp_path / "result"


def test_a_run_is_read_as_it_was_written(pie: Any, run: Path, tmp_path: Path) -> None:
    """What `pie-engine run` measured on its arrays, measured again on its files."""
    outcome = pie("eval", run, "--output", tmp_path / "out", "--figures", "svg")
    assert (outcome.code, outcome.err) == (0, f"{run}\n")
    change = json.loads((run / "provenance.json").read_text())["change"]
    with (tmp_path / "out" / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == ["0", "1", "2"]
    for name, key in (
        ("change_inside", "frame_inside"),
        ("leakage_mean", "frame_outside"),
        ("decoded_leakage", "decoded_outside"),
        ("increment_inside", "increment_inside"),
    ):
        assert [float(row[name]) for row in rows[1:]] == pytest.approx(change[key]), name
    assert change["frame_inside"][0] > 0
    lines = outcome.out.splitlines()
    assert lines[0] == "1 run of 1 patient; mean, no interval with one patient"
    assert [line.split()[0] for line in lines[1:5]] == ["round", "input", "1", "2"]
    assert lines[-1] == f"{tmp_path / 'out'}: metrics.csv, means.csv, rounds.png, rounds.svg, summary.json"
    latex = pie("eval", run, "--output", tmp_path / "out", "--format", "latex", "--quiet")
    assert (latex.code, latex.err) == (0, "")
    assert latex.out.splitlines()[1] == r"\begin{table}" and r"round & ssim\_inside & change\_inside" in latex.out


def test_json_and_classifiers(pie: Any, simulate: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from pie_engine.demo.assets import SEVERITY_JSON

    assert simulate().code == 0
    run = tmp_path / "result"
    words = ("eval", run, "--classifier", SEVERITY_JSON, "--output", tmp_path / "out", "--json", "--quiet")
    outcome = pie(*words, "--update-reports")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert found["output"] == str(tmp_path / "out")
    values = [entry["mean"] for entry in found["rounds"]["confidence: enlarged heart"]]
    assert len(values) == 2
    recorded = json.loads((run / "provenance.json").read_text())["confidence"]["enlarged heart"]
    assert recorded == pytest.approx(values)
    assert found["models"]["classifiers"]["enlarged heart"]["file"] == "severity.onnx"


def test_refusals(pie: Any, run: Path, tmp_path: Path) -> None:
    for words, line in (
        ((tmp_path / "nowhere",), "is not a folder; pass a folder that pie-engine run wrote"),
        (
            (run, "--real-pictures", tmp_path),
            "--real-pictures compares features, and nothing computes them; pass --clip DIR",
        ),
        ((run, "--clip", tmp_path / "nowhere"), "CLIP checkpoint"),
        ((run, "--classifier", run / "provenance.json"), "is unknown; pass one of activation, channels"),
        ((run, "--seed", "-1"), "seed -1 is below 0"),
        ((run, "--output", run), "holds no summary.json of an earlier result"),
    ):
        outcome = pie("eval", "--quiet", "--output", tmp_path / "out", *words)
        assert (outcome.code, outcome.out) == (2, ""), words
        assert outcome.err.startswith("pie-engine: error: ")
        assert outcome.err.count("\n") == 1
        assert line in outcome.err
        assert not (tmp_path / "out").exists()


def test_distances(pie: Any, run: Path, tmp_path: Path) -> None:
    class Apart(torch.nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return (first - second).abs().mean((1, 2, 3))

    torch.jit.trace(Apart(), (torch.zeros(1, 3, 128, 128), torch.ones(1, 3, 128, 128))).save(str(tmp_path / "m.pt"))
    spec = {"file": "m.pt", "size": 128, "channels": 3, "range": [0, 255], "mean": 0, "std": 1, "name": "grey levels"}
    (tmp_path / "apart.json").write_text(json.dumps(spec))
    declared = tmp_path / "apart.json"
    words = ("eval", run, "--distance", declared, "--trust", "--output", tmp_path / "out", "--json", "--quiet")
    rounds = json.loads(pie(*words).out)["rounds"]
    inside, outside, whole = (
        [entry["mean"] for entry in rounds[name]] for name in ("change_inside", "leakage_mean", "distance: grey levels")
    )
    with Image.open(run / "mask.png") as mask:
        share = (np.asarray(mask) > 127).mean()
    assert whole == pytest.approx(share * np.array(inside) + (1 - share) * np.array(outside), abs=1e-4)
    assert whole[0] == 0 and min(whole[1:]) > 0
