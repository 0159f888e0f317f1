"""`pie-engine sweep` on the golden checkpoint."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from bright import save_bright
from tiny_clip import save_clip


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    (tmp_path / "judge").mkdir()
    return save_bright(tmp_path / "judge")


@pytest.fixture
def words(checkpoint: Path, classifier: Path, tmp_path: Path) -> list[object]:
    """The smallest sweep but for its patients and its grid."""
    return [
        "sweep", "--checkpoint", checkpoint, "--backend", "torch", "--steps", "2", "--num-inference-steps", "4",
        "--resolution", "64", "--classifier", classifier, "--trust", "--output", tmp_path / "out",
    ]  # fmt: skip


@pytest.fixture
def alone(image: Path, mask: Path) -> list[object]:
    return ["--image", image, "--mask", mask, "--prompt", "heart"]


def test_one_patient(pie: Any, words: list[object], alone: list[object], tmp_path: Path) -> None:
    outcome = pie(*words, *alone, "--grid", "mask=on,off", "--seeds", "0,1", "--recipe", "mask")
    assert outcome.code == 0, outcome.err
    said = outcome.err.splitlines()
    assert said[0] == "2 cells x 1 patient x 2 seeds: 4 runs, 16 U-Net evaluations"
    assert any(line.startswith("run 1/4, evaluation 1/16") for line in said)
    assert said[-1] == "measuring runs/mask=off/0_seed=1"
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["cell", "confidence:", "bright", "ssim_inside", "leakage", "ratio", "unevenness"]
    assert [line.split()[0] for line in lines[1:3]] == ["mask=on", "mask=off"]
    assert lines[4].startswith("Asked: does the region of interest keep the rest of the anatomy?")
    assert lines[5] == f"{tmp_path / 'out'}: sweep.csv, means.csv, pareto.png, rounds.png, summary.json"
    again = pie(*words, *alone, "--grid", "mask=on,off", "--seeds", "0,1", "--recipe", "mask")
    assert again.out == outcome.out
    assert "4 of 4 runs are there already; 0 U-Net evaluations are left" in again.err
    assert "evaluation 1/" not in again.err
    run = tmp_path / "out" / "runs" / "mask=on" / "0_seed=1"
    assert pie("view", "--no-browser", run).code == 0
    assert pie("ensemble", tmp_path / "out" / "runs" / "mask=on", "--output", tmp_path / "all").code == 0


def test_an_interrupt_leaves_complete_runs(
    pie: Any, words: list[object], alone: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C and SIGTERM arrive: see `pie_engine.cli.main`."""
    from pie_engine import Result

    saved: list[Path] = []
    original = Result.save

    def save(self: Result, output: Path, *rest: Any) -> Any:
        if saved:
            raise KeyboardInterrupt(signal.SIGTERM)
        saved.append(output)
        return original(self, output, *rest)

    monkeypatch.setattr(Result, "save", save)
    outcome = pie(*words, *alone, "--grid", "strength=0.25,0.5")
    assert outcome.code == 128 + signal.SIGTERM
    out = tmp_path / "out"
    line = f"interrupted; runs that are complete stay in {out}, and the same command goes on from there"
    assert outcome.err.splitlines()[-1] == f"pie-engine: error: {line}"
    assert sorted(path.parent for path in out.rglob("provenance.json")) == saved
    assert not (out / "summary.json").exists()
    monkeypatch.undo()
    assert (
        "1 of 2 runs are there already; 4 U-Net evaluations are left"
        in pie(*words, *alone, "--grid", "strength=0.25,0.5").err
    )


def test_a_file_of_patients_and_clip(pie: Any, words: list[object], image: Path, mask: Path, tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    save_clip(tmp_path / "clip")
    table = tmp_path / "patients.csv"
    table.write_text(f"item_id,image,prompt,mask\nx,{image},heart,{mask}\ny,{image},lung,{mask}\n")
    outcome = pie(
        *words, "--patients", table, "--grid", "strength=0.25,0.5", "--clip", tmp_path / "clip", "--batch", "2",
        "--min-similarity", "-1", "--min-confidence", "0", "--shift", "-3,0", "--feather", "0", "--json", "--quiet",
    )  # fmt: skip
    said = "pie-engine: the runs differ in prompt (2 prompts): a cell's means mix them\n"
    assert (outcome.code, outcome.err) == (0, said)
    found = json.loads(outcome.out)
    assert found["prompts"] == ["heart", "lung"]
    assert (found["output"], found["similarity"]) == (str(tmp_path / "out"), "clip_i")
    assert found["stable"]["limits"] == {"confidence": 0, "similarity": -1}
    assert list(found["models"]["clip"]) == ["model.safetensors"]
    with (tmp_path / "out" / "sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["cell"], row["strength"], row["item_id"]) for row in rows[::3]] == [
        (f"strength={s}", s, name) for s in ("0.25", "0.5") for name in "xy"
    ]
    with (tmp_path / "out" / "means.csv").open(encoding="utf-8") as file:
        means = {(row["strength"], row["measure"]): row for row in csv.DictReader(file)}
    last = [float(row["clip_i"]) for row in rows if (row["strength"], row["round"]) == ("0.5", "2")]
    assert float(means["0.5", "clip_i"]["mean"]) == pytest.approx(sum(last) / 2)
    assert {measure for _, measure in means} <= set(rows[0])
    assert float(rows[0]["clip_i"]) == pytest.approx(1, abs=1e-5) and float(rows[-1]["clip_i"]) < 0.99999
    provenance = json.loads((tmp_path / "out/runs/strength=0.5/y_seed=0/provenance.json").read_text())
    assert provenance["input"]["roi"]["shift"] == [-3, 0]
    assert provenance["simulated"]["prompt"] == "lung"


def test_methods_that_take_no_evaluation(pie: Any, words: list[object], alone: list[object]) -> None:
    outcome = pie(*words, *alone, "--grid", "method=previous,vae")
    assert outcome.code == 0
    assert "evaluation 0/0" in outcome.err


def test_refusals(pie: Any, words: list[object], alone: list[object], image: Path, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text(f"item_id,image,prompt\nx,{image},heart\n")
    grid, cohort = ["--grid", "strength=0.25,0.5"], ["--patients", table]
    cases: list[tuple[list[object], str]] = [
        (alone, "nothing is varied; pass --grid strength=0.1,0.3,0.5, --seeds or --recipe"),
        ([*alone, "--grid", "gamma=1"], "grid axis 'gamma' is unknown (one of strength, steps,"),
        ([*alone, "--grid", "strength=0.5,2"], "strength 2.0 is outside (0, 1]"),
        ([*alone, *grid, *grid], "grid strength is given twice; list all of its values in one"),
        ([*alone, "--seeds", "one"], "grid seed has 'one', which is not one of its values"),
        ([*alone, "--recipe", "speed"], "invalid choice: 'speed'"),
        ([*alone, *grid, "--batch", "0"], "batch 0 is outside [1, 256]"),
        ([*alone, *grid, "--min-confidence", "2"], "min-confidence 2.0 is outside [0, 1]"),
        ([*alone, *grid, "--classifier", table], "classifier"),
        ([*alone, *grid, "--clip", tmp_path / "none"], "CLIP checkpoint"),
        ([*alone, *grid, "--item-id", "../up"], "item-id '../up' cannot name a folder"),
        ([*alone, *grid, "--output", tmp_path], "holds no sweep.json of an earlier result"),
        ([*grid, "--prompt", "x"], "no --image is given; pass --image and --prompt, or --patients FILE.csv"),
        ([*grid, "--image", image], "no --prompt is given"),
        ([*alone, *cohort, *grid], "--patients names every patient's own image; leave out --image"),
        ([*cohort, *grid, "--prompt", "x"], "--patients names every patient's own prompt; leave out --prompt"),
        ([*cohort, "--recipe", "mask"], "grid mask=on needs a mask, and patient x has none"),
        (["--patients", tmp_path / "none.csv", *grid], "cannot be read (No such file or directory)"),
        ([*cohort, *grid, "--dilate", "3"], "dilate belongs to a mask, and none is given"),
    ]
    for more, line in cases:
        outcome = pie(*words, *more)
        assert (outcome.code, outcome.out) == (2, ""), more
        assert outcome.err.startswith("pie-engine: error: ") and outcome.err.count("\n") == 1, more
        assert line in outcome.err
        assert not (tmp_path / "out").exists()
    bare = [word for word in words if word != "--classifier" and "bright.json" not in str(word)]
    assert "a sweep needs the confidence of a classifier" in pie(*bare, *alone, *grid).err
