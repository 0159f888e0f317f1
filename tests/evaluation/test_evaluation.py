"""Runs to figures: a cohort made by hand, whose means and intervals are known, and every refusal."""

from __future__ import annotations

import csv
import functools
import hashlib
import html
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_runs import write_run
from PIL import Image
from progressions import SIDE
from tiny_clip import by_hand, save_clip

from pie_engine import OutputConfig, Result, RunConfig, evaluation
from pie_engine.errors import ConfigError, InputError, OutputError
from pie_engine.evaluation import Run, find_runs
from pie_engine.evaluation.summary import differing, to_table
from pie_engine.metrics import measure_change

# The classifiers made here are TorchScript.
evaluate = functools.partial(evaluation.evaluate, trust=True)

ROI = np.zeros((SIDE, SIDE), bool)
ROI[:, :32] = True
Save = Callable[..., Path]


class _Brightness(torch.nn.Module):
    """The mean of the left half of a grey picture, [N, 1, H, W] to [N, 1]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, :, :32].mean((2, 3))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.jit.script(_Brightness()).save(str(folder / "m.pt"))
    spec = {"file": "m.pt", "name": "bright", "size": SIDE, "channels": 1, "range": [0, 1], "mean": 0, "std": 1}
    (folder / "bright.json").write_text(json.dumps({**spec, "activation": "none"}))
    return folder / "bright.json"


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a run whose input is grey 51 and whose round n is 51 + levels[n - 1] inside the region."""

    def write(
        name: str, patient: str, *levels: int, masked: bool = True, outputs: OutputConfig | None = None, **settings: Any
    ) -> Path:
        frames = np.full((len(levels) + 1, SIDE, SIDE, 3), 51, np.uint8)
        for index, level in enumerate(levels, 1):
            frames[index][ROI] += level
        latents = np.zeros((len(levels), 4, 8, 8), np.float32)
        latents[:, :, :, :4] = np.cumsum([1.0 / n for n in range(1, len(levels) + 1)])[:, None, None, None]
        mask = ROI if masked else None
        latent_mask = np.repeat([[1.0] * 4 + [0.0] * 4], 8, axis=0)[None] if masked else None
        decoded = frames[1:].copy()
        decoded[:, ~ROI] += 2  # what the VAE did outside, before compositing
        change = measure_change(latents, 0 * latents[0], decoded, frames[0], frames, latent_mask, mask)
        config = RunConfig(steps=len(levels), resolution=SIDE, **settings)
        provenance = {
            "statement": "",
            "synthetic": True,
            "item_id": name,
            "input": {"image_sha256": patient * 64},
            "settings": config.to_dict(),
            "simulated": {"prompt": "x", "roi_share": 0.5 if masked else None},
            "change": change.to_dict(),
        }
        result = Result(frames, latents, 0 * latents[0], mask, change, config, provenance)
        result.save(tmp_path / name, outputs)
        return tmp_path / name

    return write


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "metrics.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_one_run_by_hand(save: Save, classifier: Path, tmp_path: Path) -> None:
    run = save("a", "0", 51, 102)
    summary = evaluate([run], tmp_path / "out", classifiers=[classifier])
    first, second, third = rows_of(tmp_path / "out")
    assert [float(row["confidence_bright"]) for row in (first, second, third)] == pytest.approx([0.2, 0.4, 0.6])
    assert [row["round"] for row in (first, second, third)] == ["0", "1", "2"]
    assert (first["run"], first["item_id"], first["patient"]) == (str(run), "a", "0" * 12)
    assert (float(first["ssim_inside"]), first["change_inside"], first["psnr_inside"]) == (pytest.approx(1), "0.0", "")
    assert (first["increment_inside"], first["decoded_leakage"]) == ("", "")
    assert (float(third["change_inside"]), float(third["leakage_mean"]), float(third["leakage_p95"])) == (102, 0, 0)
    assert float(third["psnr_inside"]) == pytest.approx(20 * np.log10(255 / 102))
    assert third["psnr_outside"] == ""  # equal: infinite
    assert float(third["increment_inside"]) == pytest.approx(0.5)
    assert float(third["displacement_inside"]) == pytest.approx(1.5)
    assert (float(third["displacement_outside"]), float(third["decoded_leakage"])) == (0, 2)
    assert 0 < float(third["ssim_inside"]) < float(second["ssim_inside"]) < 1
    assert 0.8 < float(third["ssim_outside"]) < 1  # windows within five pixels of the edge see what changed inside
    assert summary["final"]["confidence: bright"] == {"mean": pytest.approx(0.6), "low": None, "high": None, "n": 1}
    assert summary["final"]["psnr_outside"] is None
    assert summary["monotonicity"]["confidence: bright"]["rising"]["mean"] == 1
    assert summary["monotonicity"]["confidence: bright"]["rho"]["mean"] == pytest.approx(1)
    assert summary["unevenness"]["mean"] == pytest.approx(1 / 1.5 - 0.5)  # displacements of 1 and 1.5
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (summary["patients"], summary["runs"], summary["differ"]) == (1, 1, [])
    assert list(summary["models"]["classifiers"]) == ["bright"]
    assert len(summary["models"]["classifiers"]["bright"]["sha256"]) == 64
    table = str(to_table(summary)).splitlines()
    assert table[0] == "1 run of 1 patient; mean, no interval with one patient"
    assert table[1].split() == [
        "round", "confidence:", "bright", "ssim_inside", "change_inside", "increment_inside", "decoded_leakage",
    ]  # fmt: skip
    assert table[2].split()[:2] == ["input", "0.2"]
    assert table[5] == "confidence: bright: rises in 100% of rounds, Spearman's rho 1.00, R2 of a straight line 1.00"


def test_a_cohort_is_averaged_over_patients(
    save: Save, classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two seeds of one patient count once: 0.4 and 0.8 of patient 0, and 0.2 of patient 1, in the last round."""
    (tmp_path / "cohort").mkdir()
    save("cohort/a", "0", 51, seed=1)
    save("cohort/b", "0", 153, seed=2)
    save("cohort/c", "1", 0)
    (tmp_path / "cohort" / "notes").mkdir()
    said: list[str] = []
    with caplog.at_level(logging.WARNING):
        summary = evaluate([tmp_path / "cohort"], tmp_path / "out", classifiers=[classifier], on_run=said.append)
    assert said == [str(tmp_path / "cohort" / name) for name in "abc"]
    assert not caplog.messages
    final = summary["final"]["confidence: bright"]
    # Of two patients a resample's mean is 0.2, 0.4 or 0.6, with 1/4, 1/2 and 1/4.
    assert final == {"mean": pytest.approx(0.4), "low": pytest.approx(0.2), "high": pytest.approx(0.6), "n": 2}
    assert summary["monotonicity"]["confidence: bright"]["rising"]["mean"] == pytest.approx(0.5)
    rho = summary["monotonicity"]["confidence: bright"]["rho"]
    assert (rho["n"], rho["low"]) == (1, None)  # patient 1's confidence is constant
    assert "0.4 [0.2, 0.6]" in str(to_table(summary))
    assert len(rows_of(tmp_path / "out")) == 6


def test_runs_that_differ(save: Save, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runs = [save("a", "0", 10), save("b", "1", 10, 20, 30, guidance_scale=3.0), save("c", "2", 10, masked=False)]
    with caplog.at_level(logging.WARNING):
        summary = evaluate(runs, tmp_path / "out")
    assert caplog.messages == ["the runs differ in guidance_scale, steps: their means mix them"]
    assert [entry["n"] for entry in summary["rounds"]["change_inside"]] == [3, 3, 1, 1]
    assert summary["runs_by_round"] == [3, 3, 1, 1]
    lines = str(to_table(summary)).splitlines()[1:6]
    assert [line.split()[-1] for line in lines] == ["runs", "3", "3", "1", "1"]
    # Without a region everything is inside: half of it changed.
    assert summary["rounds"]["change_inside"][1]["mean"] == pytest.approx((10 + 10 + 5) / 3)
    assert summary["final"]["change_inside"]["mean"] == pytest.approx((10 + 30 + 5) / 3)
    assert [entry["n"] for entry in summary["rounds"]["leakage_mean"]] == [2, 2, 1, 1]
    assert summary["models"] == {"classifiers": {}, "distances": {}, "clip": None}


def test_regions_of_one_patient_that_differ(tmp_path: Path) -> None:
    """Where it lies is each patient's own; only within one patient is a difference one of the runs."""

    def runs(*rois: tuple[int, Any]) -> list[Run]:
        return [
            Run(tmp_path, "", {"settings": {}, "input": {"image_sha256": patient, "roi": roi}}) for patient, roi in rois
        ]

    def roi(sha: str, pixels: int = 9, **facts: Any) -> dict[str, Any]:
        drawn = [{"kind": "picture", "sha256": sha, "pixels": pixels}]
        return {"regions": drawn, "keep": [], "dilate": 0, "pixels": pixels, **facts}

    assert differing(runs((0, roi("a")), (1, roi("b")), (2, None))) == []
    assert differing(runs((0, roi("a")), (0, roi("a", 7)))) == []  # another slice of one file
    for other in (None, roi("b"), roi("a", dilate=3), roi("a", shift=[1, 0])):
        assert differing(runs((0, roi("a")), (0, other))) == ["region of interest"]


def test_settings_are_compared_as_they_were_resolved(tmp_path: Path) -> None:
    """3 is 3.0, and a scheduler that was left open is the class that it became."""

    def run(settings: dict[str, Any], scheduler: str | None = "DDIMScheduler") -> Run:
        schedule = {} if scheduler is None else {"schedule": {"class": scheduler, "timesteps": [1.0]}}
        return Run(tmp_path, "", {"settings": settings, "input": {"image_sha256": "0"}, **schedule})

    first = run({"guidance_scale": 3, "scheduler": None, "schedule": [{"strength": 1}, None]})
    same = run({"guidance_scale": 3.0, "scheduler": "ddim", "schedule": [{"strength": 1.0}, None]})
    assert differing([first, same]) == []
    other = run({"guidance_scale": 3.5, "scheduler": "pndm", "schedule": [{"strength": 0.5}, None]}, "PNDMScheduler")
    assert differing([first, same, other]) == ["guidance_scale", "schedule", "scheduler"]
    assert differing([run({"a": True}), run({"a": 1})]) == ["a"]
    old = [run({"scheduler": name}, None) for name in (None, "ddim")]  # of which nobody recorded the class
    assert differing(old) == ["scheduler"]


def test_means_and_figures_for_a_paper(save: Save, classifier: Path, tmp_path: Path) -> None:
    runs = [save("a", "0", 51), save("b", "1", 153)]
    summary = evaluate(runs, tmp_path / "out", classifiers=[classifier], figures="svg")
    names = ["metrics.csv", "means.csv", "rounds.png", "rounds.svg", "summary.json"]
    assert summary["files"] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    with (tmp_path / "out" / "means.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["round", "measure", "mean", "low", "high", "n"]
    (last,) = (row for row in rows if (row["round"], row["measure"]) == ("1", "confidence_bright"))
    assert [float(last[name]) for name in ("mean", "low", "high", "n")] == pytest.approx([0.6, 0.4, 0.8, 2])
    with (tmp_path / "out" / "metrics.csv").open(encoding="utf-8") as file:
        columns = next(csv.reader(file))
    assert all(re.fullmatch(r"[a-z0-9_]+", column) for column in columns)
    assert {row["measure"] for row in rows} <= set(columns)
    evaluate(runs, tmp_path / "out")  # replaces what the formats of before have left
    assert not (tmp_path / "out" / "rounds.svg").exists()
    with pytest.raises(ConfigError, match="figures 'gif' is unknown; pass one of png, svg, pdf"):
        evaluate(runs, tmp_path / "other", figures="gif")
    assert not (tmp_path / "other").exists()


def test_runs_at_several_depths_are_all_found(tmp_path: Path) -> None:
    """A sweep beside single runs; what a run's folder holds is its own, and a killed run's folder is none."""
    for name in ("a", "runs/cell/b", "a/inner", ".c.partial-x", "runs/cell/.b.partial-y"):
        write_run(tmp_path / name, 1, "x")
    found = [str(run.folder.relative_to(tmp_path)) for run in find_runs([tmp_path])]
    assert found == ["a", "runs/cell/b"]


def test_clip_i(save: Save, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    model, processor = save_clip(tmp_path / "clip")
    run = save("a", "0", 51, 102)
    summary = evaluate([run], tmp_path / "out", clip=tmp_path / "clip")
    frames = np.stack([np.asarray(Image.open(run / f"frames/{index:03d}.png")) for index in range(3)])
    rows = by_hand(model, processor, frames).astype(float)
    expected = rows @ rows[0] / np.sqrt((rows**2).sum(1) * (rows[0] ** 2).sum())
    assert [float(row["clip_i"]) for row in rows_of(tmp_path / "out")] == pytest.approx(expected, abs=1e-6)
    assert expected[2] < 0.999
    assert set(summary["monotonicity"]) == {"clip_i", "change_inside"}
    digest = hashlib.sha256((tmp_path / "clip" / "model.safetensors").read_bytes()).hexdigest()
    assert summary["models"]["clip"] == {"model.safetensors": digest}
    assert str(to_table(summary)).splitlines()[1].split()[:2] == ["round", "clip_i"]


def test_reports_are_updated_and_runs_stay_replaceable(save: Save, classifier: Path, tmp_path: Path) -> None:
    run = save("a", "0", 51, outputs=OutputConfig(report=False))
    evaluate([run], tmp_path / "out", classifiers=[classifier])
    assert not (run / "report.html").exists()
    for _ in range(2):
        evaluate([run], tmp_path / "out", classifiers=[classifier], update_reports=True)
    provenance = json.loads((run / "provenance.json").read_text())
    assert provenance["confidence"] == {"bright": pytest.approx([0.2, 0.4])}
    assert "report.html" in provenance["files"]
    page = html.unescape((run / "report.html").read_text())
    assert "Classifier's confidence" in page
    assert "bright: 0.2 at round 0, 0.4 at round 1" in page
    similarity = [float(row["ssim_inside"]) for row in rows_of(tmp_path / "out")]
    assert provenance["similarity"]["SSIM inside"] == similarity
    assert list(provenance["similarity"]) == ["SSIM inside", "SSIM outside"]
    assert f"SSIM inside: 1 at round 0, {similarity[1]:.3g} at round 1" in page
    whole = save("b", "0", 51, masked=False)
    evaluate([whole], tmp_path / "out", update_reports=True)
    assert list(json.loads((whole / "provenance.json").read_text())["similarity"]) == ["SSIM"]
    save("a", "0", 51)  # replaced, as before


def test_refusals(save: Save, classifier: Path, tmp_path: Path) -> None:
    good = save("a", "0", 51)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")

    def damaged(name: str, change: Callable[[Path], object]) -> Path:
        copy = Path(shutil.copytree(good, tmp_path / name))
        change(copy)
        return copy

    provenance = json.loads((good / "provenance.json").read_text())
    provenance["settings"]["steps"] = 2
    more = json.dumps(provenance)
    small = Image.new("L", (8, 8))
    cases: list[tuple[list[Path], str]] = [
        ([tmp_path / "nowhere"], "is not a folder; pass a folder that pie-engine run wrote"),
        ([tmp_path / "file"], "is a file; pass"),
        ([tmp_path / "empty"], r"holds no provenance\.json, nor does a folder in it"),
        ([good, tmp_path / "empty" / ".." / "a"], "is named twice"),
        ([], "no folder is given"),
        ([damaged("b", lambda p: (p / "provenance.json").write_text("[]"))], r"is not a run's \(TypeError\)"),
        (
            [damaged("c", lambda p: (p / "provenance.json").write_text(more))],
            "does not describe every",
        ),
        ([damaged("d", lambda p: (p / "frames" / "001.png").unlink())], r"001\.png is missing or damaged"),
        ([damaged("e", lambda p: (p / "frames" / "001.png").write_text("x"))], r"001\.png is missing or damaged"),
        ([damaged("f", lambda p: small.save(p / "frames" / "001.png"))], "differ in size"),
        ([damaged("g", lambda p: small.save(p / "mask.png"))], r"mask\.png of .* is not of its frames' size"),
        ([damaged("h", lambda p: (p / "mask.png").unlink())], r"mask\.png is missing or damaged \(FileNotFoundError\)"),
        ([save("m", "0", 5, outputs=OutputConfig(mark=True))], "without mark"),
    ]
    for folders, line in cases:
        with pytest.raises(InputError, match=line) as caught:
            evaluate(folders, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match=r"holds no summary\.json of an earlier result"):
        evaluate([good], good)
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        evaluate([good], tmp_path / "out", classifiers=[tmp_path / "none.json"])
    evaluate([good], tmp_path / "out")
    evaluate([good], tmp_path / "out")  # replaces itself
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "means.csv",
        "metrics.csv",
        "rounds.png",
        "summary.json",
    ]
