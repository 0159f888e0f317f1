"""The study of pacing: what it measures of one phantom, that it goes on where it was, and its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pie_engine.benchmarks.simulation import collect
from pie_engine.benchmarks.simulation_tables import pacing_frames_table, pacing_table
from pie_engine.demo import pacing


def test_one_phantom_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds of few steps, of the way that the figures are about; what is there is not run again."""
    pytest.importorskip("onnxruntime")
    some = {
        name: (replace(config, num_inference_steps=10), method)
        for name, (config, method) in pacing.ways(pacing.load_domain("chest")).items()
        if name != "walk"
    }
    monkeypatch.setattr(pacing, "ways", lambda domain: some)
    report = pacing.evaluate_pacing(tmp_path / "out", "chest", 1, "torch", steps=3)
    even = report["ways"]["even"]
    assert even["displacement"] == pytest.approx([0, 1 / 3, 2 / 3, 1], abs=2e-3)
    assert even["off_the_way"]["mean"] < 1e-3 < 0.2 < report["ways"]["constant"]["off_the_way"]["mean"]
    assert report["ways"]["constant"]["end"]["mean"] == report["ways"]["interpolation"]["end"]["mean"] == 1
    assert even["end"]["mean"] == pytest.approx(1, abs=0.02)  # the pilot runs all three rounds
    assert (tmp_path / "out" / "phantoms" / "pacing.png").is_file()
    monkeypatch.setattr(pacing, "run_case", lambda *_: pytest.fail("ran again"))
    assert pacing.evaluate_pacing(tmp_path / "out", "chest", 1, "torch", steps=3) == report
    assert collect("pacing", [tmp_path / "out"]) == json.loads((tmp_path / "out" / "pacing.json").read_text())
    table = pacing_table(report)
    assert table.count("\n") == 8 and "| even, by the classifier |" in table and "n = 1; " in table
    assert pacing_frames_table(report).splitlines()[2].startswith("| input | 0.000 | 0.000 | 0.000 |")


def test_displacements_are_those_of_the_region() -> None:
    """A latent of 2 x 2 for 4 x 4 pixels: one lies inside, one by half; four channels that moved by 1."""
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, :3] = 255
    result: Any = SimpleNamespace(original_latent=np.zeros((4, 2, 2)), latents=np.ones((3, 4, 2, 2)))
    assert pacing.displacements(result, mask) == pytest.approx([np.sqrt(4 * (1 + 0.25))] * 3)
