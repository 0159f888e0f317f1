"""The way back, from an enlarged heart to a usual one: what the demo simulates, and how it is judged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from pie_engine.cli.main import main
from pie_engine.demo.assets import SEVERITY_JSON, load_defaults
from pie_engine.demo.data import held_out
from pie_engine.demo.phantom import render, roi_mask
from pie_engine.demo.regression import evaluate_regression, measure_regression, settings_of
from pie_engine.metrics.classifier import Classifier


def test_regress_shrinks_the_heart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["demo", "--regress", "--steps", "2", "--backend", "torch", "--output", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    ratios, confidence = report["cardiothoracic_ratio"], report["confidence"]
    assert ratios[0] == pytest.approx(held_out(0, enlarged=True).ctr, abs=0.02)
    assert ratios[2] < ratios[1] - 0.02 < ratios[0] - 0.05  # half of the way, and all of it
    assert confidence[0] > 0.9 > confidence[2] + 0.2
    provenance = json.loads(Path(report["provenance"]).read_text())
    assert provenance["simulated"]["prompt"] == load_defaults().healthy_prompt
    assert (provenance["settings"]["guidance_scale"], provenance["item_id"]) == (7.5, "enlarged-0")


def test_the_judgement_of_perfect_and_absent_regressions() -> None:
    """Renderings stand in for simulations: the twin itself is no grey level from the twin, the input stays as it is."""
    sick, twins = [held_out(index, enlarged=True) for index in range(3)], [held_out(index) for index in range(3)]
    config = load_defaults().regression_config()

    def measure(last: list[np.ndarray]) -> object:
        results = [
            SimpleNamespace(frames=np.stack([render(patient), frame]), mask=roi_mask(patient) > 0, config=config)
            for patient, frame in zip(sick, last, strict=True)
        ]
        return measure_regression("x", results, twins, Classifier(SEVERITY_JSON))

    perfect, absent = measure([render(twin) for twin in twins]), measure([render(patient) for patient in sick])
    truth = np.mean([twin.ctr - patient.ctr for twin, patient in zip(twins, sick, strict=True)])
    assert perfect.change.mean == pytest.approx(truth, abs=0.01)  # the measure's own error on true phantoms is 0.004
    assert perfect.change.low < truth < perfect.change.high
    assert (perfect.twin_distance.mean, perfect.normal, perfect.unmeasured) == (0, 3, 0)
    assert perfect.error.mean < 0.01
    assert perfect.confidence[0] > 0.9 and perfect.confidence[1] < 0.1
    assert (absent.change.mean, absent.normal) == (0, 0)
    assert absent.error.mean == pytest.approx(-truth, abs=0.01)
    differences = [
        np.abs(render(patient).astype(float) - render(twin))[roi_mask(patient) > 0].mean()
        for patient, twin in zip(sick, twins, strict=True)
    ]
    assert absent.input_twin_distance == absent.twin_distance
    assert absent.twin_distance.mean == pytest.approx(np.mean(differences))
    blank = measure([np.zeros((128, 128, 3), np.uint8), *(render(twin) for twin in twins[1:])])
    assert (blank.unmeasured, blank.change.n, blank.twin_distance.n) == (1, 2, 3)


def test_the_figures_are_written(tmp_path: Path) -> None:
    config = settings_of(load_defaults())
    assert [one.negative_prompt != "" for one in config.values()] == [False, False, False, False, True, True]
    short = {name: replace(one, steps=1, num_inference_steps=10) for name, one in list(config.items())[:2]}
    regressions = evaluate_regression(tmp_path / "out", patients=2, backend="torch", settings=short)
    assert all(one.change.n == 2 and one.change.mean < -0.02 for one in regressions)
    report = json.loads((tmp_path / "out" / "regression.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == report["files"]
    assert report["settings"][1]["change"] == regressions[1].change.to_dict()
    table = (tmp_path / "out" / "regression.md").read_text()
    assert f"| {regressions[0].ratio[0]:.3f} to {regressions[0].ratio[1]:.3f} |" in table
