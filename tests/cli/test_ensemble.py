"""`pie-engine ensemble`: three seeds of one patient on the golden checkpoint, against NumPy and Pillow."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine import Item, OutputConfig, PieEngine, RunConfig

CONFIG = RunConfig(steps=2, num_inference_steps=4, guidance_scale=1.0, resolution=128)
GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders 0, 1, 2 (by seed), and `other` with another prompt."""
    engine = PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu")
    folder = tmp_path_factory.mktemp("runs")
    item = Item(GOLDEN / "image.png", "heart", GOLDEN / "mask.png")
    for seed in range(3):
        engine.run(item, replace(CONFIG, seed=seed)).save(folder / "seeds" / str(seed), OutputConfig(report=False))
    engine.run(replace(item, prompt="lung"), replace(CONFIG, seed=3)).save(folder / "other", OutputConfig(report=False))
    engine.run(replace(item, mask=None), replace(CONFIG, seed=3)).save(folder / "bare", OutputConfig(report=False))
    return folder


def test_mean_and_deviation(pie: Any, runs: Path, tmp_path: Path) -> None:
    outcome = pie("ensemble", runs / "seeds", "--output", tmp_path / "all")
    assert (outcome.code, outcome.err) == (0, "")
    frames, greys = [], []
    for seed in range(3):
        pictures = [Image.open(runs / "seeds" / str(seed) / "frames" / f"{n:03d}.png") for n in range(3)]
        frames.append([np.asarray(picture, np.float64) for picture in pictures])
        greys.append([np.asarray(picture.convert("L"), np.float64) for picture in pictures])
    for number, expected in enumerate(np.mean(frames, axis=0)):
        with Image.open(tmp_path / f"all/frames/{number:03d}.png") as mean:
            assert np.abs(np.asarray(mean) - expected).max() <= 0.5 + 1e-9
            assert mean.text["Synthetic"] == ("true" if number else "false")
    spread = np.std(greys, axis=0, ddof=1)
    assert np.allclose(np.load(tmp_path / "all/deviation.npy"), spread, atol=1e-4)
    mask = np.asarray(Image.open(runs / "seeds/0/mask.png")) > 127
    said = json.loads((tmp_path / "all/ensemble.json").read_text())
    assert said["members"] == [{"seed": seed, "item_id": "0"} for seed in range(3)]
    assert said["deviation"]["mean_inside"] == pytest.approx([one[mask].mean() for one in spread[1:]], rel=1e-5)
    assert said["deviation"]["mean_outside"] == [0.0, 0.0]
    assert said["deviation"]["largest"] == pytest.approx([one.max() for one in spread[1:]], rel=1e-5)
    assert min(said["deviation"]["mean_inside"]) > 0.1
    assert outcome.out.splitlines()[-1].startswith("3 runs; look at ")
    assert sorted(said["files"]) == sorted(
        str(path.relative_to(tmp_path / "all"))
        for path in (tmp_path / "all").rglob("*")
        if path.is_file() and path.name != "ensemble.json"
    )


def test_without_a_mask_all_is_inside_and_folders_are_replaced(pie: Any, runs: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(runs / "bare", tmp_path / "again"))
    provenance = json.loads((again / "provenance.json").read_text())
    provenance["settings"]["seed"] = 4
    (again / "provenance.json").write_text(json.dumps(provenance))
    for _ in range(2):
        said = json.loads(pie("ensemble", runs / "bare", again, "--output", tmp_path / "two", "--json").out)
    assert said["deviation"] == {"mean_inside": [0.0, 0.0], "mean_outside": None, "largest": [0.0, 0.0]}
    assert Path(said["deviation.png"]).is_file()


def test_refusals(pie: Any, runs: Path, tmp_path: Path) -> None:
    seeds = runs / "seeds"
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("x")
    copied = Path(shutil.copytree(seeds / "0", tmp_path / "copied"))
    missing = Path(shutil.copytree(seeds / "1", tmp_path / "missing"))
    (missing / "frames/001.png").unlink()
    for words, line in (
        ([seeds / "0"], "1 run is not an ensemble; pass two or more"),
        ([seeds / "0", runs / "other"], "differ in their prompt; pass runs that differ in --seed"),
        ([seeds / "0", runs / "bare"], "differ in their region of interest"),
        ([seeds / "0", copied], "have the same noise (seed 0, item 0); pass another --seed"),
        ([seeds / "0", missing], "001.png is missing or damaged"),
        ([seeds / "0", tmp_path / "nothing"], "is not a folder"),
        ([seeds, "--output", tmp_path / "full"], "is not empty and holds no ensemble.json"),
    ):
        outcome = pie("ensemble", *words, *([] if "--output" in words else ["--output", tmp_path / "out"]))
        assert (outcome.code, outcome.out) == (2, ""), words
        assert line in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1
        assert not (tmp_path / "out").exists()
