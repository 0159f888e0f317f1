"""Maps of the patient's own structure: which run each is for, how they are read, and what comes of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from progressions import SIDE

from pie_engine import Result, RunConfig
from pie_engine.cli.main import main
from pie_engine.errors import InputError
from pie_engine.evaluation import evaluate
from pie_engine.evaluation.runs import find_runs, read_structures
from pie_engine.metrics import measure_change

Save = Callable[..., Path]


def lines(across: bool) -> np.ndarray:
    """Lines of two pixels, one in every thirteen: [SIDE, SIDE] uint8, 255 where one is."""
    rows = np.broadcast_to(np.arange(SIDE)[:, None] % 13 < 2, (SIDE, SIDE))
    return np.where(rows if across else rows.T, 255, 0).astype(np.uint8)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a run on 180 grey levels with lines that are darker by `contrasts`, the input's first."""

    def write(name: str, contrasts: list[int], *, across: bool = True, item_id: str = "", patient: str = "a") -> Path:
        frames = np.stack([180 - lines(across) / 255 * one for one in contrasts]).astype(np.uint8)
        stack = np.repeat(frames[..., None], 3, axis=3)
        latents = np.zeros((len(contrasts) - 1, 4, 8, 8), np.float32)
        change = measure_change(latents, latents[0], stack[1:], None, stack, None, None)
        config = RunConfig(steps=len(latents), resolution=SIDE)
        provenance = {
            "statement": "",
            "synthetic": True,
            "item_id": item_id or name,
            "input": {"image_sha256": patient * 64},
            "settings": config.to_dict(),
            "simulated": {"prompt": "x", "roi_share": None},
            "change": change.to_dict(),
        }
        folder = tmp_path / "runs" / name
        folder.parent.mkdir(exist_ok=True)
        Result(stack, latents, latents[0], None, change, config, provenance).save(folder)
        return folder

    (tmp_path / "maps").mkdir()
    return write


def draw_map(folder: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(folder / f"{name}.png")


def test_each_run_has_its_own_map(save: Save, tmp_path: Path) -> None:
    """One run's lines lie across, the other's upright: with the maps exchanged nothing would be found."""
    save("a", [80, 60, 40])
    save("b", [80, 20], across=False, patient="b")
    draw_map(tmp_path / "maps", "a", lines(True))
    draw_map(tmp_path / "maps", "b", lines(False))
    words = ["--structures", str(tmp_path / "maps"), "--output", str(tmp_path / "out"), "--quiet"]
    assert main(["eval", str(tmp_path / "runs"), *words]) == 0
    with (tmp_path / "out" / "metrics.csv").open(newline="") as file:
        kept = [float(row["structure_kept"]) for row in csv.DictReader(file)]
    assert kept == pytest.approx([1, 0.75, 0.5, 1, 0.25], abs=1e-9)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    # The first round's mean is over both, the last one's over each run's own last.
    assert summary["rounds"]["structure_kept"][1]["mean"] == pytest.approx(0.5)
    assert summary["final"]["structure_kept"]["mean"] == pytest.approx(0.375)
    without = evaluate([tmp_path / "runs"], tmp_path / "without")
    assert "structure_kept" not in without["final"]
    picture, other = (Image.open(tmp_path / name / "rounds.png").size for name in ("out", "without"))
    assert picture[0] * picture[1] > other[0] * other[1]  # it has a panel


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (lines(True), [0, 1]),
        (lines(True) > 0, [0, 1]),
        (lines(True).astype(np.uint16) * 257, [0, 1]),
        (np.full((SIDE, SIDE), 32768, np.uint16), [32768 / 65535]),
        (np.full((SIDE, SIDE), 51, np.uint8), [0.2]),
    ],
)
def test_maps_are_read_by_their_depth(save: Save, tmp_path: Path, values: np.ndarray, expected: list[float]) -> None:
    runs = find_runs([save("a", [80, 60])])
    draw_map(tmp_path / "maps", "a", values)
    (found,) = read_structures(tmp_path / "maps", runs)
    assert found is not None
    np.testing.assert_allclose(np.unique(found), expected, rtol=1e-6)


def test_refusals(save: Save, tmp_path: Path) -> None:
    maps, output = tmp_path / "maps", tmp_path / "out"
    one, other = save("a", [80, 60], item_id="0"), save("b", [80, 60], item_id="0", patient="b")
    long, faint = save("c", [80, 60], item_id="x" * 300), save("d", [80, 60])

    def refused(folders: list[Path], line: str, structures: Path = maps) -> None:
        with pytest.raises(InputError, match=line) as caught:
            evaluate(folders, output, structures=structures)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        assert not output.exists()

    refused([one], r"nowhere is not a folder; pass one that holds ITEM_ID\.png", tmp_path / "nowhere")
    refused([one], r"holds no 0\.png, the map of .*a; add it, or leave structures out")
    refused([long], "holds no x{80}, the map of .*c; add it")
    draw_map(maps, "0", lines(True))
    refused([one, other], r"0\.png would serve both .*a and .*b, which are of different inputs; .* item_id each")
    evaluate([one], tmp_path / "alone", structures=maps)
    draw_map(maps, "d", np.dstack([lines(True)] * 4))
    refused([faint], r"d\.png is a PNG of mode RGBA; save it as grey levels")
    draw_map(maps, "d", lines(True) // 255)
    refused([faint], r"d: the map's brightest value is 1 of 255; pass one that is white")
    draw_map(maps, "d", lines(True)[:32])
    refused([faint], r"d: a map of 64 x 32 does not fit frames of 64 x 64")
    (maps / "d.png").write_bytes(b"no picture")
    refused([faint], r"d\.png is missing or damaged \(.*\); pass a PNG")
