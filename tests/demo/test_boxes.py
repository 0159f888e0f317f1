"""The study of boxes: what it measures of one phantom, that it goes on where it was, and its table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pie_engine.benchmarks.simulation import collect
from pie_engine.benchmarks.simulation_tables import regional_table
from pie_engine.demo import boxes
from pie_engine.demo.domain import load_domain


def test_one_phantom_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")  # which the classifier runs on
    short = {"steps": 4, "num_inference_steps": 10}
    report = boxes.evaluate_boxes(tmp_path / "out", "chest", 1, "torch", **short)
    for region in (boxes.OWN, boxes.SMALL):
        found = report["regions"][region]
        # The first round is whole, and computed by other operations: nearly no pixel is rounded otherwise.
        assert found["psnr"][0] is None or found["psnr"][0] > 70
        assert found["worst"] is None or found["worst"] > 53
        assert found["outside"] and found["grey_levels"] <= 3 and 1 <= found["whole"] <= 4
    assert report["regions"][boxes.SMALL]["share"] < report["regions"][boxes.OWN]["share"] < 1
    monkeypatch.setattr(boxes, "run_case", lambda *_: pytest.fail("ran again"))
    assert boxes.evaluate_boxes(tmp_path / "out", "chest", 1, "torch", **short) == report
    assert collect("regional", [tmp_path / "out"]) == json.loads((tmp_path / "out" / "boxes.json").read_text())
    table = regional_table(report)
    assert table.count("\n") == 5 and "| a small region |" in table and "n = 1, torch; " in table


def test_the_small_region_lies_in_the_domains_own() -> None:
    domain = load_domain("fundus")
    found = boxes.regions(domain, domain.phantom(0))
    own, small = found[boxes.OWN] > 0, found[boxes.SMALL] > 0
    assert 0 < small.sum() < own.sum() and not (small & ~own).any()
    rows, columns = (np.ptp(axis) + 1 for axis in np.nonzero(small))
    assert rows <= 40 and columns <= 40


def test_the_worst_patient_is_told() -> None:
    one = {
        "psnr": [None, 60.0], "grey_levels": 1.0, "confidence": 0.001, "outside": True, "whole": 1, "estimate": 0.2,
        "share": 0.2,
    }  # fmt: skip
    two = {
        "psnr": [None, 57.26], "grey_levels": 2.0, "confidence": 0.0, "outside": True, "whole": 2, "estimate": None,
        "share": None,
    }  # fmt: skip
    assert boxes.summarise([one, two]) == {
        "psnr": [None, 57.3], "worst": 57.3, "grey_levels": 2.0, "confidence": 0.001, "outside": True, "whole": 1.5,
        "estimate": 0.2, "share": 0.2,
    }  # fmt: skip
