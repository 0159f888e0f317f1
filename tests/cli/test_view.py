"""`pie-engine view`, and the options that say what is written."""

from __future__ import annotations

import importlib.util
import json
import shutil
import webbrowser
from pathlib import Path
from typing import Any

import pytest

from pie_engine.engine import PieEngine


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was asked to open."""
    seen: list[str] = []

    def open_(address: str) -> bool:
        seen.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", open_)
    return seen


def test_view_opens_the_report(simulate: Any, pie: Any, tmp_path: Path, opened: list[str]) -> None:
    ran = simulate()
    report = tmp_path / "result" / "report.html"
    assert ran.out == f"{tmp_path / 'result'}: 1 simulated frame; look at {report}\n"
    outcome = pie("view", tmp_path / "result")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{report.resolve()}\n", "")
    assert opened == [report.resolve().as_uri()]
    outcome = pie("view", tmp_path / "result", "--no-browser")
    assert (outcome.code, outcome.out, len(opened)) == (0, f"{report.resolve()}\n", 1)


def test_view_writes_a_report_that_is_missing(
    simulate: Any, pie: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    ran = simulate("--no-report")
    assert ran.out.endswith("sheet.png\n")
    assert not (tmp_path / "result" / "report.html").exists()
    outcome = pie("view", tmp_path / "result")
    assert (outcome.code, outcome.out) == (0, f"{(tmp_path / 'result' / 'report.html').resolve()}\n")
    assert outcome.err.splitlines() == [
        f"the report of {tmp_path / 'result'} was missing and has been written",
        "no browser could be started here; open this file in one",
    ]
    assert (tmp_path / "result" / "report.html").is_file()
    assert "report.html" in json.loads((tmp_path / "result" / "provenance.json").read_text())["files"]
    assert simulate("--no-report").code == 0  # replaced: the report belongs to the result
    assert not (tmp_path / "result" / "report.html").exists()


def test_view_takes_folders_of_runs(simulate: Any, pie: Any, tmp_path: Path, opened: list[str]) -> None:
    assert simulate().code == 0
    reports = []
    for number in range(10):
        folder = Path(shutil.copytree(tmp_path / "result", tmp_path / "runs" / "cell" / str(number)))
        reports.append((folder / "report.html").resolve())
    outcome = pie("view", tmp_path / "runs")
    assert (outcome.code, outcome.out.splitlines()) == (0, [str(report) for report in reports])
    assert outcome.err == "the first 8 of 10 reports are opened\n"
    assert opened == [report.as_uri() for report in reports[:8]]
    (tmp_path / "alone").mkdir()
    shutil.copy(reports[0], tmp_path / "alone" / "report.html")  # sent to somebody, without the run
    outcome = pie("view", tmp_path / "alone", reports[1].parent, "--no-browser")
    assert outcome.out.splitlines() == [str((tmp_path / "alone" / "report.html").resolve()), str(reports[1])]
    assert len(opened) == 8


def test_view_refuses(pie: Any, tmp_path: Path, opened: list[str]) -> None:
    (tmp_path / "file").write_text("x")
    for name, line in (
        ("missing", "is not a folder; pass a folder that pie-engine run wrote, or one that holds such folders"),
        ("file", "is a file; pass a folder"),
        (".", "holds no provenance.json, nor does a folder in it"),
    ):
        outcome = pie("view", tmp_path / name)
        assert (outcome.code, outcome.out) == (2, "")
        assert outcome.err.startswith("pie-engine: error: ")
        assert line in outcome.err
        assert outcome.err.count("\n") == 1
    assert not opened


def test_mp4_without_its_package_is_refused_before_a_model_is_loaded(
    refuse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec

    def find_spec(name: str, *rest: Any) -> Any:
        return None if name == "av" else real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(PieEngine, "load", lambda *_, **__: pytest.fail("nothing is loaded"))
    assert "--mp4 needs PyAV, which is missing; pip install 'pie-engine[video]'" in refuse("--mp4")


def test_mark_and_json(simulate: Any, tmp_path: Path) -> None:
    written = json.loads(simulate("--mark", "--json", "--resolution", "64").out)
    assert written["report"] == str(tmp_path / "result" / "report.html")
    assert Path(written["differences"]).is_file()
    provenance = json.loads(Path(written["provenance"]).read_text())
    assert provenance["visible_mark"]["text"] == "SIMULATED"
    assert provenance["outputs"]["mark"] is True
