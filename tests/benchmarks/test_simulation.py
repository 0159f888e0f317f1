"""The studies of the documents: what is kept of them, and their tables."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pie_engine.benchmarks import simulation
from pie_engine.benchmarks.report_rows import ReportError
from pie_engine.benchmarks.simulation_tables import (
    TABLES,
    matched_table,
    rounds_table,
    settings_table,
    study,
    sweep_table,
)

ROOT = Path(__file__).parents[2]


def estimate(mean: float, n: int = 3) -> dict[str, float | int | None]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "n": n}


def test_every_study_is_shown_and_was_measured_with_committed_code() -> None:
    text = "".join((ROOT / f"docs/{name}.md").read_text() for name in ("evaluation", "demo-domains", "performance"))
    shown = re.findall(r'study\("([^"]+)", "([^"]+)"\)', text)
    studies = json.loads(simulation.RESULTS.read_text())["studies"]
    assert {name for name, _ in shown} == set(studies)
    assert {table for _, table in shown} == set(TABLES)
    assert len(shown) == len(set(shown))
    assert not [name for name, values in studies.items() if "dirty" in values["revision"]]


def test_a_table_says_what_is_missing_or_unknown(tmp_path: Path) -> None:
    file = tmp_path / "simulation.json"
    file.write_text('{"studies": {}}')
    assert study("mask", "sweep", file) == "*Not measured yet; run `python benchmarks/simulation.py mask`.*"
    with pytest.raises(ReportError, match="table 'speed' is unknown; pass one of methods"):
        study("mask", "speed", file)


def test_studies_are_the_commands_of_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study's own commands run again, and what they write is reduced to what was kept before."""
    studies = json.loads(simulation.RESULTS.read_text())["studies"]
    file = tmp_path / "simulation.json"
    file.write_text(json.dumps({"studies": {name: studies[name] for name in ("mask", "align")}}))
    calls: list[list[str]] = []

    def call(words: list[str], *, cwd: Path, check: bool) -> Any:
        calls.append(words[1:])
        if "--recipe" in words:
            summary = dict(
                studies["mask"], extra=1, cells=[dict(cell, by_round=[]) for cell in studies["mask"]["cells"]]
            )
            folder = tmp_path / words[words.index("--output") + 1]
            folder.mkdir(parents=True)
            (folder / "summary.json").write_text(json.dumps(summary))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(simulation, "RESULTS", file)
    monkeypatch.setattr(simulation, "ROOT", tmp_path)
    monkeypatch.setattr(simulation, "revision", lambda: "1234abcd")
    monkeypatch.setattr(subprocess, "run", call)
    assert simulation.main(["mask"]) == 0
    assert [words[:3] for words in calls] == [["-m", "pie_engine", "demo"], ["-m", "pie_engine", "sweep"]]
    measured = json.loads(file.read_text())["studies"]
    assert measured["align"] == studies["align"]
    assert measured["mask"] == {**studies["mask"], "revision": "1234abcd"}
    with pytest.raises(SystemExit):
        simulation.main(["speed"])
    assert "no study is called speed; pass some of mask, align" in capsys.readouterr().err


def test_tables_show_means_intervals_and_counts() -> None:
    rounds = [{"round": n, **estimate(0.25 * n)} for n in range(11)]
    pie = {"rounds": {"confidence: enlarged heart": rounds, "ssim_inside": rounds, "change_inside": rounds}}
    lines = rounds_table({"methods": {"pie": pie}}).splitlines()
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
    final = dict.fromkeys(("confidence: enlarged heart", "structure_kept"), estimate(0.5))
    text = settings_table(
        {"matched": [{"pie": "pie", **row}], "methods": {name: {"final": final} for name in ("pie", "walk")}}
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
