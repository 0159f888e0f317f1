"""The figures of the documents: from the results alone, and told when they are not in line with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pie_engine.benchmarks import simulation
from pie_engine.benchmarks.report_rows import ReportError
from pie_engine.benchmarks.simulation_studies import STUDIES
from pie_engine.benchmarks.simulation_tables import TABLES, matched_table, rounds_table, settings_table, sweep_table

ROOT = Path(__file__).parents[2]


def estimate(mean: float, n: int = 3) -> dict[str, float | int | None]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": n}


def test_the_document_is_in_line_with_the_results(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulation.main(["--check"]) == 0, capsys.readouterr().err
    results = json.loads((ROOT / "benchmarks/results/simulation.json").read_text())
    assert set(results["studies"]) == set(STUDIES) == {study for study, _ in TABLES.values()}
    assert not [name for name, own in results["studies"].items() if "dirty" in own["revision"]]


def test_every_table_stands_in_the_document() -> None:
    text = "".join((ROOT / document).read_text() for document in simulation.DOCUMENTS)
    assert [name for name in TABLES if text.count(f"<!-- table: {name} -->") != 1] == []


def test_a_changed_figure_is_found_and_put_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (*simulation.DOCUMENTS, simulation.RESULTS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    document = tmp_path / simulation.DOCUMENTS[0]
    results = json.loads((tmp_path / simulation.RESULTS).read_text())
    results["studies"]["align"]["test"]["p"] = 0.76
    (tmp_path / simulation.RESULTS).write_text(json.dumps(results))
    before = document.read_text()
    assert simulation.main(["--check", "--root", str(tmp_path)]) == 1
    assert "table: align is stale; run python benchmarks/simulation.py --fill" in capsys.readouterr().err
    assert document.read_text() == before
    assert simulation.main(["--fill", "--root", str(tmp_path)]) == 0
    assert "p = 0.76" in document.read_text() != before
    assert simulation.main(["--check", "--root", str(tmp_path)]) == 0


def test_a_block_without_results_says_so_and_an_unknown_one_is_refused() -> None:
    text = "<!-- table: mask -->\nold\n<!-- end -->\n"
    assert "*Not measured yet; run `python benchmarks/simulation.py --only mask`.*" in simulation.filled(
        text, {"studies": {}}
    )
    with pytest.raises(ReportError, match="table: speed is unknown"):
        simulation.filled("<!-- table: speed -->\n<!-- end -->", {"studies": {}})


def test_tables_show_means_intervals_and_counts() -> None:
    rounds = [{"round": n, **estimate(0.25 * n)} for n in range(11)]
    own = {"rounds": {"confidence: enlarged heart": rounds, "ssim_inside": rounds, "change_inside": rounds}}
    lines = rounds_table({"methods": {"pie": own}}).splitlines()
    assert lines[2] == "| input | 0 [-0.1, 0.1] | 0 [-0.1, 0.1] | 0 [-0.1, 0.1] |"
    assert lines[-1].startswith("| 10 | 2.5 [2.4, 2.6] |")
    row = {
        "method": "walk", "patients": 3, "similarity_measure": "structure_kept",
        "confidence": {"defined": 2, "mean": estimate(0.5, 2), "end": None},
        "similarity": {"defined": 0, "mean": None, "end": None},
    }  # fmt: skip
    assert (
        matched_table({"matched": [row]}).splitlines()[2]
        == "| walk | own structure | 0.5 [0.4, 0.6] |  | 2 of 3 |  | 0 of 3 |"
    )
    own = dict.fromkeys(("confidence: enlarged heart", "structure_kept"), estimate(0.5))
    text = settings_table(
        {"matched": [{"pie": "pie", **row}], "methods": {name: {"final": own} for name in ("pie", "walk")}}
    )
    assert text.splitlines()[0] == "| settings | confidence | own structure | PIE's less walk's |"
    assert text.splitlines()[2:] == [
        "| pie | 0.5 [0.4, 0.6] | 0.5 [0.4, 0.6] | n = 0 |",
        "| walk | 0.5 [0.4, 0.6] | 0.5 [0.4, 0.6] |  |",
    ]
    measures = dict.fromkeys(("confidence: enlarged heart", "ssim_inside", "decoded_leakage"), estimate(0.5))
    cell = {
        "values": {"mask": "off"},
        "final": measures,
        "increment_ratio": None,
        "stable": False,
        "not_stable": ["so"],
    }
    limits = {"limits": {"confidence": 0.5, "similarity": 0.7}}
    text = sweep_table({"grid": {"mask": []}, "cells": [cell], "patients": 3, "stable": limits, "verdict": "It is."})
    assert "| off | 0.5 [0.4, 0.6] | 0.5 [0.4, 0.6] | 0.5 [0.4, 0.6] |  | so |" in text
    assert text.endswith("each at the unfavourable end of its interval. It is.")
