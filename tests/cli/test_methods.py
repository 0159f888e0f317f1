"""`pie-engine run --method` and `compare` on the golden checkpoint, and what the other commands make of baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def runs(simulate: Any, mask: Path, tmp_path: Path) -> Path:
    """Three rounds of PIE and a frame each of three strengths, and a vae's round trips."""
    pytest.importorskip("onnxruntime")
    common = ("--mask", mask, "--steps", "3", "--num-inference-steps", "4", "--resolution", "64")
    for words in ((), ("--method", "one-shot", "--total-strength", "1"), ("--method", "vae")):
        outcome = simulate(*common, "--output", tmp_path / "runs" / (words[1] if words else "pie"), *words)
        assert outcome.code == 0, outcome.err
    return tmp_path / "runs"


def test_methods_and_their_comparison(pie: Any, runs: Path, tmp_path: Path) -> None:
    from pie_engine.demo.assets import SEVERITY_JSON

    methods = {name: json.loads((runs / name / "provenance.json").read_text()) for name in ("pie", "one-shot", "vae")}
    assert methods["pie"]["method"] == {"name": "pie"}
    assert methods["one-shot"]["method"] == {"name": "one-shot", "total_strength": 1.0, "denoising_steps": [1, 2, 4]}
    assert methods["vae"]["settings"] == methods["pie"]["settings"]
    assert "one-shot" in (runs / "one-shot" / "report.html").read_text()
    words = ("compare", runs, "--classifier", SEVERITY_JSON, "--output", tmp_path / "out")
    outcome = pie(*words)
    assert outcome.code == 0, outcome.err
    assert sorted(outcome.err.splitlines()) == sorted(str(runs / name) for name in methods)
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["last", "pie", "one-shot", "vae"]
    assert lines[5].startswith("evenness  displacement off n/N")
    assert lines[10].startswith("PIE minus  confidence at equal similarity")
    assert lines[-1] == f"{tmp_path / 'out'}: compare.csv, means.csv, compare.png, summary.json"
    again = json.loads(pie(*words, "--json", "--quiet").out)
    assert list(again["methods"]) == ["pie", "one-shot", "vae"]
    assert again["output"] == str(tmp_path / "out")
    # The other commands do not mix methods, or say so.
    outcome = pie("eval", runs, "--output", tmp_path / "eval", "--quiet")
    assert outcome.code == 0
    assert "the runs differ in method: their means mix them" in outcome.err
    outcome = pie("ensemble", runs / "pie", runs / "vae", "--output", tmp_path / "ensemble")
    assert (outcome.code, outcome.out) == (2, "")
    assert "differ in their method" in outcome.err
    outcome = pie("converge", runs / "one-shot")
    assert (outcome.code, outcome.out) == (2, "")
    assert "was made by method 'one-shot', whose frames are not rounds; pass a run of PIE" in outcome.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--method", "gan"), "invalid choice: 'gan'"),
        (("--method", "control"), "pass --healthy-prompt TEXT"),
        (("--start-prompt", "x"), "start-prompt belongs to method walk, not to 'pie'"),
        (("--method", "walk", "--semantics", "official"), "pass --semantics engine"),
        (("--method", "vae", "--inversion", "ddim"), "pass --inversion noise"),
        (("--method", "walk", "--total-strength", "1.5"), "total-strength 1.5 is outside (0, 1]"),
    ],
)
def test_refusals(refuse: Any, words: tuple[str, ...], line: str) -> None:
    assert line in refuse(*words)


def test_comparisons_are_refused(pie: Any, tmp_path: Path) -> None:
    for words, line in (
        ((tmp_path,), "--classifier"),
        ((tmp_path, "--classifier", "x.json"), "holds no provenance.json"),
        ((tmp_path, "--classifier", "x.json", "--seed", "-1"), "seed -1 is below 0"),
    ):
        outcome = pie("compare", "--quiet", "--output", tmp_path / "out", *words)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
        assert line in outcome.err
        assert not (tmp_path / "out").exists()
