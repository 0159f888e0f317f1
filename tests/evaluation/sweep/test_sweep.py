"""Sweeps on the golden checkpoint: what is run, what is reused, what is measured against what."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN
from PIL import Image

from pie_engine import Item, PieEngine, Result, RunConfig
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import MethodConfig
from pie_engine.errors import ConfigError, InputError, OutputError
from pie_engine.evaluation import compare, evaluate
from pie_engine.evaluation.converge import check_run
from pie_engine.evaluation.sweep.design import Design
from pie_engine.evaluation.sweep.runs import Progress, first_rounds
from pie_engine.evaluation.sweep.sweep import Evaluators, sweep
from pie_engine.rounds.plan import Plan

BASE = RunConfig(steps=2, num_inference_steps=4, strength=0.5, resolution=64)
Sweep = Callable[..., dict[str, Any]]


@pytest.fixture
def run_sweep(engine: PieEngine, patients: list[Item], classifier: Path, tmp_path: Path) -> Sweep:
    """A sweep into `out`."""

    def run(
        grid: dict[str, Any],
        *,
        base: RunConfig = BASE,
        items: list[Item] | None = None,
        options: dict[str, Any] | None = None,
        **rest: Any,
    ) -> Any:
        design = Design(items or patients, base, grid, options or {})
        return sweep(engine, design, Evaluators.load([classifier], trust=True), tmp_path / "out", **rest)

    return run


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than these runs; one test draws them."""
    if "draws" not in request.node.name:
        monkeypatch.setattr(sys.modules[sweep.__module__], "draw_plots", lambda *rest: {})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RunConfig, list[Item]]]:
    """What the engine is asked to simulate."""
    asked: list[tuple[RunConfig, list[Item]]] = []
    original = PieEngine.run

    def run(self: PieEngine, items: list[Item], config: RunConfig, **rest: Any) -> list[Result]:
        asked.append((config, [items] if isinstance(items, Item) else list(items)))
        return original(self, items, config, **rest)

    monkeypatch.setattr(PieEngine, "run", run)
    return asked


def frames_of(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "frames").iterdir())])


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SETTINGS: dict[str, dict[str, Any]] = {
    "shared noise": {},
    "fresh noise": {"noise": "fresh"},
    "inversion": {"inversion": "ddim"},
    "official": {"semantics": "official", "noise": None, "composite": None, "feather": None},
    "unipc": {"scheduler": "unipc"},
}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("setting", SETTINGS)
def test_fewer_rounds_are_the_beginning_of_more(
    engine: PieEngine, patients: list[Item], setting: str, masked: bool
) -> None:
    """Bit for bit, in pictures, latents, measures and what provenance says but for times."""
    config = replace(BASE, **SETTINGS[setting])
    item = patients[0] if masked else replace(patients[0], mask=None)
    long, short = engine.run(item, replace(config, steps=4)), engine.run(item, config)
    part = first_rounds(long, 2)
    assert (part.frames == short.frames).all() and (part.latents == short.latents).all()
    assert (long.frames[3] != long.frames[2]).any()
    assert (part.change, part.config) == (short.change, short.config)
    assert len(part.provenance["seconds"]["rounds"]) == 2
    untimed = ({**own.provenance, "seconds": None} for own in (part, short))
    assert json.dumps(next(untimed)) == json.dumps(next(untimed))
    assert first_rounds(long, 4) is long


def test_a_sweep_draws_its_cells_patients_and_seeds(
    run_sweep: Sweep, engine: PieEngine, patients: list[Item], calls: list[Any], tmp_path: Path
) -> None:
    """Two rounds, four, with two seeds: one simulation each of the four; the rest is arithmetic on the table."""
    summary = run_sweep({"steps": (2, 4), "seed": (0, 1)})
    assert [(config.steps, config.seed, [item.item_id for item in items]) for config, items in calls] == [
        (4, seed, [name]) for seed in (0, 1) for name in "ab"
    ]
    out = tmp_path / "out"
    assert sorted(str(path.parent.relative_to(out / "runs")) for path in out.rglob("provenance.json")) == [
        f"steps={steps}/{name}_seed={seed}" for steps in (2, 4) for name in "ab" for seed in (0, 1)
    ]
    assert not list(out.rglob("report.html")) and not list(out.rglob(".*"))
    alone = engine.run(patients[1], replace(BASE, seed=1, leakage=True))
    folder = out / "runs" / "steps=2" / "b_seed=1"
    assert (frames_of(folder) == alone.frames).all()
    provenance = json.loads((folder / "provenance.json").read_text())
    about = {"cell": {"steps": 2}, "method": {"name": "pie"}, "rounds_simulated": 4, "decoded_outside": None}
    assert provenance["sweep"] == about
    assert provenance["settings"] == alone.config.to_dict()
    rows = rows_of(out)
    assert len(rows) == 4 * 3 + 4 * 5
    assert [row["round"] for row in rows[:3]] == ["0", "1", "2"]
    # Brightness is the classifier, so that the picture says what the table has to say.
    own = next(r for r in rows if (r["steps"], r["item_id"], r["seed"], r["round"]) == ("2", "b", "1", "2"))
    assert float(own["confidence_bright"]) == pytest.approx(alone.frames[2].mean() / 255, abs=1e-4)
    assert float(own["decoded_leakage"]) == pytest.approx(alone.change.decoded_outside[1])
    # Seeds of one patient are averaged first; two patients' resampled means are one of three values.
    last = {
        name: np.mean(
            [float(r["ssim_inside"]) for r in rows if (r["steps"], r["item_id"], r["round"]) == ("4", name, "4")]
        )
        for name in "ab"
    }
    cell = summary["cells"][1]
    assert cell["cell"] == "steps=4" and cell["runs"] == 4
    found = cell["final"]["ssim_inside"]
    assert (found["mean"], found["low"], found["high"], found["n"]) == (
        pytest.approx(np.mean(list(last.values()))), pytest.approx(min(last.values())),
        pytest.approx(max(last.values())), 2,
    )  # fmt: skip
    increments = {
        (r["item_id"], r["seed"], r["round"]): float(r["increment_inside"]) for r in rows
        if r["steps"] == "4" and r["round"] != "0"
    }  # fmt: skip
    ratios = [np.mean([(increments[n, s, "4"] / increments[n, s, "1"]) ** (1 / 3) for s in "01"]) for n in "ab"]
    assert cell["increment_ratio"]["mean"] == pytest.approx(np.mean(ratios))
    assert (summary["similarity"], summary["patients"], summary["runs"]) == ("ssim_inside", 2, 8)
    assert summary["stable"]["limits"] == {"confidence": 0.5, "similarity": 0.7}
    assert set(summary["stable"]) == {"limits", "stable_ranges"}
    assert json.loads((out / "summary.json").read_text()) == summary
    assert summary["files"] == ["sweep.csv", "means.csv", "pareto.png", "over-steps.png", "rounds.png", "summary.json"]
    assert {path.name for path in out.iterdir()} == {*summary["files"], "sweep.json", "runs"}
    for name in summary["files"][2:-1]:
        with Image.open(out / name) as picture:
            assert picture.size[0] > 600 and "not for diagnosis" in picture.text["Comment"]
    # A cell's folder is what the other commands take.
    other = evaluate([out / "runs" / "steps=4"], tmp_path / "evaluation")
    assert other["final"]["ssim_inside"]["mean"] == pytest.approx(found["mean"])
    assert len(check_run(out / "runs" / "steps=4" / "b_seed=1").found.rounds.increments) == 4


def test_without_the_mask_runs_are_measured_against_it(
    run_sweep: Sweep, ddim_checkpoint: Checkpoint, patients: list[Item], engine: PieEngine, tmp_path: Path
) -> None:
    summary = run_sweep({"mask": ("on", "off")}, recipe="mask")
    out, mask = tmp_path / "out", engine.run(patients[0], BASE).mask
    assert mask is not None
    frames = frames_of(out / "runs" / "mask=off" / "a_seed=0")
    assert not (out / "runs" / "mask=off" / "a_seed=0" / "mask.png").exists()
    rows = {(row["mask"], row["item_id"], row["round"]): row for row in rows_of(out)}
    apart = np.abs(frames.astype(int) - frames[0])
    off = rows["off", "a", "2"]
    assert float(off["change_inside"]) == pytest.approx(apart[2][mask].mean())
    assert float(off["leakage_mean"]) == pytest.approx(apart[2][~mask].mean())
    assert float(rows["on", "a", "2"]["leakage_mean"]) == 0
    # Before compositing, against what the VAE makes of the input; there is nothing to composite without a mask.
    pixels = torch.from_numpy(frames[:1].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        decoded = ddim_checkpoint.vae.decode(ddim_checkpoint.vae.encode(pixels).latent_dist.mode()).sample
    first = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)[0].numpy()
    expected = np.abs(frames[2] - first)[~mask].mean()
    assert float(off["decoded_leakage"]) == pytest.approx(expected, abs=0.01)
    assert off["displacement_outside"] == ""  # what is recorded is the run's own, and it has no outside
    less = [float(rows["off", n, "2"]["decoded_leakage"]) - float(rows["on", n, "2"]["decoded_leakage"]) for n in "ab"]
    assert summary["verdict"].startswith("Asked: does the region of interest keep the rest of the anatomy? The region ")
    assert f"{np.mean(less):.3g} [{min(less):.3g}, {max(less):.3g}] more" in summary["verdict"]
    assert ("keeps the rest" in summary["verdict"]) == (min(less) > 0)


def test_perturbed_regions_are_measured_against_the_patients(
    run_sweep: Sweep, patients: list[Item], engine: PieEngine, tmp_path: Path
) -> None:
    run_sweep({"shift": ((0, 0), (40, 0)), "dilate": (0, 20)}, items=patients[:1])
    out = tmp_path / "out" / "runs"
    own = np.asarray(Image.open(out / "dilate=0_shift=0:0" / "a_seed=0" / "mask.png")) > 0
    moved = np.asarray(Image.open(out / "dilate=0_shift=40:0" / "a_seed=0" / "mask.png")) > 0
    assert (moved & ~own).any()
    frames = frames_of(out / "dilate=0_shift=40:0" / "a_seed=0").astype(int)
    rows = {(row["dilate"], row["shift"], row["round"]): row for row in rows_of(tmp_path / "out")}
    assert float(rows["0", "40:0", "2"]["leakage_mean"]) == pytest.approx(np.abs(frames[2] - frames[0])[~own].mean())
    assert float(rows["0", "0:0", "2"]["leakage_mean"]) == 0 < float(rows["20", "0:0", "2"]["leakage_mean"])
    wide = engine.run(replace(patients[0], dilate=20), BASE)
    assert (frames_of(out / "dilate=20_shift=0:0" / "a_seed=0") == wide.frames).all()


def test_plans_are_made_once(
    run_sweep: Sweep, calls: list[Any], monkeypatch: pytest.MonkeyPatch, engine: PieEngine, patients: list[Item]
) -> None:
    """Guidance needs no plan of its own; in the grid's order the four would be made again for its second value."""
    made: list[Plan] = []
    original = Plan.__init__

    def make(self: Plan, *rest: Any, **named: Any) -> None:
        made.append(self)
        original(self, *rest, **named)

    engine.simulator.loops.clear()
    monkeypatch.setattr(Plan, "__init__", make)
    grid = {"guidance-scale": (3.0, 7.5), "scheduler": ("ddim", "euler"), "mask": ("on", "off")}
    summary = run_sweep(grid, items=patients[:1], batch=2)
    assert len(made) == 4
    assert [len(items) for _, items in calls] == [1] * 8
    assert len({json.dumps(cell["final"]) for cell in summary["cells"]}) == 8


def test_a_batch_gives_what_each_patient_gets_alone(
    run_sweep: Sweep, engine: PieEngine, patients: list[Item], calls: list[Any], tmp_path: Path
) -> None:
    run_sweep({"mask": ("on", "off")}, batch=2)
    assert [[item.item_id for item in items] for _, items in calls] == [["a", "b"], ["a", "b"]]
    for number, item in enumerate(patients):
        alone = engine.run(replace(item, mask=None), BASE).frames
        found = frames_of(tmp_path / "out" / "runs" / "mask=off" / f"{'ab'[number]}_seed=0")
        assert np.abs(found.astype(int) - alone).max() <= 1  # up to rounding


def test_an_interrupted_sweep_goes_on(run_sweep: Sweep, calls: list[Any], tmp_path: Path) -> None:
    grid = {"strength": (0.25, 0.5)}
    run_sweep(grid)
    out, whole = tmp_path / "out", contents(tmp_path / "out")
    shutil.move(out, tmp_path / "whole")
    calls.clear()

    def stop(progress: Progress) -> None:
        assert progress.all_runs == 4
        if progress.runs == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(grid, on_progress=stop)
    there = sorted(str(path.parent.relative_to(out)) for path in out.rglob("provenance.json"))
    assert len(there) == 2 and not (out / "sweep.csv").exists()
    assert {path.name for path in (out / "runs").glob("*/*")} <= {"a_seed=0", "b_seed=0"}  # nothing half written
    kept = contents(out)
    calls.clear()
    missing: list[list[str]] = []
    run_sweep(grid, on_start=lambda runs: missing.append([run.folder for run in runs]))
    assert len(calls) == 2 and not set(missing[0]) & set(there)
    now = contents(out)
    assert {name: now[name] for name in kept} == kept
    assert set(now) == set(whole)
    for name in whole:
        if name.endswith((".png", ".gif", ".csv")):
            assert now[name] == whole[name], name
    assert json.loads(now["summary.json"]) == json.loads(whole["summary.json"])
    calls.clear()
    for name in ("over-steps.png", "rounds.svg", "own.png"):
        (out / name).write_bytes(b"of an earlier grid, or of the user")
    run_sweep({"strength": (0.25, 0.5, 0.75)})  # more of it
    assert [path.name for path in out.glob("*.png")] == ["own.png"] and not (out / "rounds.svg").exists()
    assert {config.strength for config, _ in calls} == {0.75}


def test_other_runs_in_the_place_are_refused(
    run_sweep: Sweep,
    engine: PieEngine,
    patients: list[Item],
    calls: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, out = {"strength": (0.25, 0.5)}, tmp_path / "out"
    run_sweep(grid, items=patients[1:])
    before = contents(out)
    calls.clear()
    here = f"{out}/runs/strength=0.25/b_seed=0 was simulated with"
    other = replace(patients[1], mask=GOLDEN / "mask.png")

    def refused(line: str, **changed: Any) -> None:
        with pytest.raises(OutputError) as caught:
            run_sweep(grid, **{"items": patients[1:], **changed})
        assert line in str(caught.value)
        assert str(caught.value).endswith("; pass another output, or remove it")
        assert "\n" not in str(caught.value)

    refused(f"{here} guidance_scale 7.5, not 3.0", base=replace(BASE, guidance_scale=3.0))
    refused(f"{here} steps 2, not 3", base=replace(BASE, steps=3))
    refused(f"{here} prompt 'the heart lung', not 'lung'", items=[replace(patients[1], prompt="lung")])
    refused(f"{here} another mask", items=[other])
    refused(f"{here} another region of interest", items=[replace(patients[1], dilate=3)])
    refused(f"{here} another image", items=[replace(patients[1], image=GOLDEN / "image.png")])
    hashes = {**engine.backend.model.hashes, "unet": "0" * 64}
    monkeypatch.setattr(engine.backend, "model", replace(engine.backend.model, hashes=hashes))
    refused(f"the runs in {out} are of another model")
    monkeypatch.undo()
    monkeypatch.setattr("pie_engine.evaluation.sweep.store.__version__", "9.9")
    refused("are of another version '0.1.0', not '9.9'")
    monkeypatch.undo()
    assert contents(out) == before and not calls


def test_folders_that_are_no_sweep(run_sweep: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(OutputError, match=r"out is not empty and holds no sweep\.json"):
        run_sweep({"steps": (1,)})
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    (out / "sweep.json").write_text("[]")
    with pytest.raises(OutputError, match=r"sweep\.json is damaged"):
        run_sweep({"steps": (1,)})


def test_mistakes_are_told_before_anything_runs(
    run_sweep: Sweep, engine: PieEngine, calls: list[Any], patients: list[Item], classifier: Path, tmp_path: Path
) -> None:
    for kind, line, grid, rest in (
        (ConfigError, "scheduler 'fast' is unknown", {"scheduler": ("ddim", "fast")}, {}),
        (ConfigError, "resolution 65 does not fit", {"steps": (1,)}, {"base": replace(BASE, resolution=65)}),
        (InputError, "does not exist", {"steps": (1,)}, {"items": [replace(patients[0], image=tmp_path / "no.png")]}),
        (ConfigError, "batch 0 is outside", {"steps": (1,)}, {"batch": 0}),
    ):
        with pytest.raises(kind, match=line):
            run_sweep(grid, **rest)
        assert not (tmp_path / "out").exists() and not calls
    spec = json.loads(classifier.read_text()) | {"output": 1, "file": str(classifier.parent / "m.pt")}
    (tmp_path / "second.json").write_text(json.dumps(spec))
    with pytest.raises(ConfigError, match="output 1 is beyond the model's 1"):
        sweep(
            engine,
            Design(patients, BASE, {"steps": (1,)}),
            Evaluators.load([tmp_path / "second.json"], trust=True),
            tmp_path / "out",
        )
    assert not (tmp_path / "out").exists() and not calls
    with pytest.raises(ConfigError, match="needs the confidence of a classifier, and none is given"):
        Evaluators.load([])


def test_methods_are_swept_resumed_and_compared(
    run_sweep: Sweep, engine: PieEngine, patients: list[Item], classifier: Path, calls: list[Any], tmp_path: Path
) -> None:
    grid, options = {"method": ("pie", "control", "previous")}, {"healthy_prompt": "the lung"}
    summary = run_sweep(grid, options=options)
    assert [cell["cell"] for cell in summary["cells"]] == ["method=pie", "method=control", "method=previous"]
    folders = {cell["cell"]: tmp_path / "out" / "runs" / cell["cell"] / "a_seed=0" for cell in summary["cells"]}
    own = engine.run(patients[:1], BASE, method="pie")[0]
    other = engine.run(patients[:1], BASE, method=MethodConfig("control", healthy_prompt="the lung"))[0]
    assert (frames_of(folders["method=pie"]) == own.frames).all()
    assert (frames_of(folders["method=control"]) == other.frames).all() and (own.frames[-1] != other.frames[-1]).any()
    assert (frames_of(folders["method=previous"]) == own.frames[0]).all()
    calls.clear()
    run_sweep(grid, options=options)
    assert calls == []
    with pytest.raises(OutputError, match=r"was simulated with healthy_prompt 'the lung', not 'lungs'"):
        run_sweep(grid, options={"healthy_prompt": "lungs"})
    compared = compare([tmp_path / "out"], tmp_path / "compare", classifiers=[classifier], trust=True)
    assert {name: own["patients"] for name, own in compared["methods"].items()} == {
        "pie": 2, "control": 2, "previous": 2,
    }  # fmt: skip


def test_an_option_that_is_left_out_is_another_run(
    run_sweep: Sweep, patients: list[Item], calls: list[Any], tmp_path: Path
) -> None:
    """What provenance says was filled in must not stand for what was asked for."""
    grid = {"method": ("walk",)}
    run_sweep(grid, items=patients[:1], options={"total_strength": 0.5})
    calls.clear()
    with pytest.raises(OutputError, match=r"was simulated with total_strength 0\.5, not the default"):
        run_sweep(grid, items=patients[:1])
    run_sweep(grid, items=patients[:1], options={"total_strength": 0.5})
    assert not calls
