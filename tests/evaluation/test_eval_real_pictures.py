"""A cohort against real pictures, over a tiny CLIP's features."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from progressions import SIDE
from tiny_clip import by_hand, save_clip

from pie_engine.errors import ConfigError, InputError
from pie_engine.evaluation import evaluate
from pie_engine.evaluation.real_pictures import find_pictures, to_lines


def _noise(seed: int, side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def _save_run(folder: Path, patient: int | str, frames: list[np.ndarray]) -> Path:
    """The least that `pie-engine eval` reads."""
    (folder / "frames").mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "frames" / f"{index:03d}.png")
    facts = {
        "settings": {"steps": len(frames) - 1, "fit": "pad"},
        "input": {"image_sha256": patient if isinstance(patient, str) else f"{patient:064d}"},
        "change": {"increment_inside": [1.0] * (len(frames) - 1)},
        "files": [],
    }
    (folder / "provenance.json").write_text(json.dumps(facts))
    return folder


def test_kid_of_inputs_and_last_frames(tmp_path: Path) -> None:
    kids = pytest.importorskip("torchmetrics.image.kid")
    model, processor = save_clip(tmp_path / "clip")
    first, last = [_noise(index) for index in range(3)], [_noise(index) // 2 for index in range(10, 13)]
    for index in range(3):
        _save_run(tmp_path / "runs" / str(index), index, [first[index], _noise(99), last[index]])
    _save_run(tmp_path / "runs" / "again", 0, [_noise(50), _noise(51)])  # the last run of patient 0 is the first named
    real = [_noise(index) // 3 for index in (20, 21)]  # with the wide one, three: torchmetrics takes sets of one size
    (tmp_path / "real").mkdir()
    for index, picture in enumerate(real):
        Image.fromarray(picture).save(tmp_path / "real" / f"{index}.png")
    wide = np.full((SIDE // 2, SIDE, 3), 200, np.uint8)  # brought to the frames' square as "pad" says
    Image.fromarray(wide).save(tmp_path / "real" / "wide.PNG")
    (tmp_path / "real" / "patients.csv").write_text("id,image,prompt\n")
    summary = evaluate(
        [tmp_path / "runs" / name for name in ("0", "1", "2", "again")], tmp_path / "out",
        clip=tmp_path / "clip", real_pictures=tmp_path / "real",
    )  # fmt: skip
    found = summary["real_pictures"]
    padded = np.zeros((SIDE, SIDE, 3), np.uint8)
    padded[SIDE // 4 : SIDE // 4 + SIDE // 2] = wide
    features = torch.from_numpy(by_hand(model, processor, np.stack([*real, padded])).astype(np.float64))
    for name, frames in (("input", first), ("final", last)):
        own = torch.from_numpy(by_hand(model, processor, np.stack(frames)).astype(np.float64))
        theirs = float(kids.poly_mmd(own, features, gamma=1 / 12))
        assert found[name]["kid"]["value"] == pytest.approx(theirs, rel=1e-3, abs=1e-6), name
        assert found[name]["kid"]["low"] < found[name]["kid"]["high"]
        assert found[name]["fid"] is None
    assert (found["pictures"], found["patients"], found["features"]) == (3, 3, 12)
    assert found["missing"] == {"fid": "3 pictures with 12 features; FID needs more pictures than features"}
    lines = to_lines(found)
    assert lines[0] == "against 3 real pictures, n = 3 patients:"
    assert lines[1].startswith("  input: KID ") and "[" in lines[1] and lines[3].startswith("  no FID: 3 pictures")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["real_pictures"] == found


def test_fid_where_there_are_enough_pictures_and_kid_where_there_is_one(tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    (tmp_path / "real").mkdir()
    for index in range(14):
        same = _noise(index)
        _save_run(tmp_path / "runs" / f"{index:02d}", index, [same, 255 - same])
        Image.fromarray(same).save(tmp_path / "real" / f"{index}.png")
    summary = evaluate([tmp_path / "runs"], tmp_path / "out", clip=tmp_path / "clip", real_pictures=tmp_path / "real")
    assert summary["real_pictures"]["input"]["fid"] == pytest.approx(0, abs=1e-6)
    assert summary["real_pictures"]["final"]["fid"] > 0.01
    assert summary["real_pictures"]["missing"] == {}
    pair = evaluate(
        [tmp_path / "runs" / name for name in ("00", "01")], tmp_path / "out",
        clip=tmp_path / "clip", real_pictures=tmp_path / "real",
    )  # fmt: skip
    assert pair["real_pictures"]["final"]["kid"]["low"] is None and "[" not in to_lines(pair["real_pictures"])[1]
    single = tmp_path / "runs" / "00"
    one = evaluate([single], tmp_path / "out", clip=tmp_path / "clip", real_pictures=tmp_path / "real")
    assert one["real_pictures"]["final"] == {"kid": None, "fid": None}
    assert sorted(one["real_pictures"]["missing"]) == ["fid", "kid"]
    assert [line.split(":")[0] for line in to_lines(one["real_pictures"])[1:]] == ["  no KID", "  no FID"]


def test_refusals(tmp_path: Path) -> None:
    run = _save_run(tmp_path / "run", 0, [_noise(0), _noise(1)])
    (tmp_path / "real").mkdir()
    Image.fromarray(_noise(0)).save(tmp_path / "real" / "0.png")
    with pytest.raises(ConfigError, match="pass clip=DIR too"):
        evaluate([run], tmp_path / "out", real_pictures=tmp_path / "real")
    for folder, line in (
        (tmp_path / "real", "holds 1 pictures"),
        (tmp_path / "none", "is not a folder"),
        (tmp_path / "real" / "0.png", "is a file"),
    ):
        with pytest.raises(InputError, match=line):
            find_pictures(folder)
    save_clip(tmp_path / "clip")
    (tmp_path / "real" / "1.png").write_text("x")
    own = hashlib.sha256((tmp_path / "real" / "0.png").read_bytes()).hexdigest()
    same = _save_run(tmp_path / "same", own, [_noise(0), _noise(1)])
    with pytest.raises(InputError, match=r"0\.png is the input of .*same, and both sets need pictures"):
        evaluate([same], tmp_path / "out", clip=tmp_path / "clip", real_pictures=tmp_path / "real")
    with pytest.raises(InputError, match=r"1\.png"):
        evaluate([run], tmp_path / "out", clip=tmp_path / "clip", real_pictures=tmp_path / "real")
    assert not (tmp_path / "out").exists()
