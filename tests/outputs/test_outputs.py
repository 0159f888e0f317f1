"""What is written: complete, marked as synthetic, and atomic."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from safetensors.numpy import load_file

from pie_engine import OutputConfig, Result, RunConfig
from pie_engine.config import COMPONENTS
from pie_engine.errors import OutputError
from pie_engine.metrics import measure_change
from pie_engine.outputs.animation import LINE, enlargement, save_gif
from pie_engine.outputs.colours import AMBER, BACKGROUND
from pie_engine.outputs.frames import contact_sheet
from pie_engine.outputs.notebook import strip_html


def test_everything_is_written_and_marked(result: Result, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "run", OutputConfig(latents=True))
    written = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert written == [
        "differences.png",
        "frames/000.png",
        "frames/001.png",
        "frames/002.png",
        "latents.safetensors",
        "mask.png",
        "progression.gif",
        "provenance.json",
        "report.html",
        "sheet.png",
    ]
    assert [Path(p).name for p in paths["frames"]] == ["000.png", "001.png", "002.png"]
    for index in range(3):
        with Image.open(tmp_path / f"run/frames/{index:03d}.png") as frame:
            assert frame.text["Synthetic"] == ("true" if index else "false")
            assert "not for diagnosis" in frame.text["Description"]
            assert np.array_equal(np.asarray(frame), result.frames[index])
    for path in (tmp_path / "run").rglob("*.png"):
        simulated = path.name not in ("000.png", "mask.png")
        with Image.open(path) as image:
            assert image.text["Synthetic"] == ("true" if simulated else "false")
            assert "esearch use only" in image.text["Description"]
            # The code that IPTC gives to pictures that a trained model had a part in.
            source = "digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
            assert (source in image.text.get("XML:com.adobe.xmp", "")) == simulated
    with Image.open(tmp_path / "run/progression.gif") as gif:
        assert gif.n_frames == 3
        assert b"Simulated" in gif.info["comment"]
    latents = load_file(tmp_path / "run/latents.safetensors")
    assert np.array_equal(latents["latents"], result.latents)
    assert latents["original_latent"].shape == (4, 16, 16)


def test_provenance_lets_the_run_be_repeated(result: Result, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "run")
    provenance = json.loads(Path(paths["provenance"]).read_text())
    assert provenance["synthetic"] is True
    assert provenance["item_id"] == "patient 7"
    assert provenance["simulated"]["prompt"] == "the heart lung"
    assert RunConfig(**provenance["settings"]) == result.config
    assert len(provenance["input"]["image_sha256"]) == 64
    assert provenance["schedule"]["unet_evaluations"] == 4
    assert set(provenance["model"]["hashes"]) == {"unet", "vae", "text_encoder", "tokenizer"}
    assert len(provenance["seconds"]["rounds"]) == 2
    assert provenance["backend"] == {
        "name": "torch",
        "chosen": "torch, as asked",
        "precision": "fp32",
        "precisions": dict.fromkeys(COMPONENTS, "fp32"),
        "device": "cpu",
        "batch": 1,
    }
    runtime = provenance["runtime"]
    assert runtime["fused_step"] in ("cpp", "eager")
    assert (runtime["cuda_graph"], runtime["cuda_graph_note"], runtime["overlap"]) == (False, "no GPU", False)
    assert provenance["reruns"] == []
    assert provenance["versions"]["torch"]


def test_saving_again_replaces_and_foreign_folders_stay(result: Result, tmp_path: Path) -> None:
    result.save(tmp_path / "run", OutputConfig(latents=True))
    result.save(tmp_path / "run")
    assert not (tmp_path / "run/latents.safetensors").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(OutputError, match=r"is not empty and holds no provenance\.json"):
        result.save(tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "run"]


def test_a_failure_half_way_leaves_nothing(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pie_engine.outputs.write.save_gif", full)
    with pytest.raises(OutputError, match="the disk is full"):
        result.save(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_contact_sheet_shows_every_frame() -> None:
    frames = np.stack([np.full((64, 64, 3), 20 * i, np.uint8) for i in range(1, 9)])
    sheet = np.asarray(contact_sheet(frames, [str(i) for i in range(8)], columns=3))
    for i in range(1, 9):
        assert (sheet == 20 * i).all(axis=2).sum() > 0.9 * (64 * 3) ** 2


def test_animation_says_what_each_picture_is(tmp_path: Path) -> None:
    """Enlarged pixel by pixel, under the warning and above a caption that differs from round to round."""
    grey = np.add.outer(np.arange(96), np.arange(64)).astype(np.uint8)
    frames = np.stack([grey[..., None].repeat(3, 2)] * 3)
    save_gif(frames, tmp_path / "a.gif", labels=["input", "round 1", "round 2"])
    with Image.open(tmp_path / "a.gif") as gif:
        pictures = [np.asarray(one.convert("RGB")).astype(int) for one in ImageSequence.Iterator(gif)]
    assert [one.shape for one in pictures] == [(96 * 4 + 2 * LINE, 64 * 4, 3)] * 3  # equal frames are not merged
    for picture in pictures:
        enlarged = picture[LINE:-LINE].reshape(96, 4, 64, 4, 3)
        assert (enlarged == enlarged[:, :1, :, :1]).all()
        assert np.abs(enlarged[:, 0, :, 0] - frames[0]).max() <= 4  # 256 colours
        assert (np.abs(picture[:LINE] - AMBER).max(-1) < 40).sum() > 100
    assert np.abs(pictures[0][:LINE] - pictures[1][:LINE]).mean() < 2
    captions = [one[-LINE:] for one in pictures]
    assert all((np.abs(one - BACKGROUND).max(-1) > 40).sum() > 50 for one in captions)
    assert (captions[0] != captions[1]).any() and (captions[1] != captions[2]).any()


@pytest.mark.parametrize(("size", "factor"), [((64, 64), 4), ((100, 100), 3), ((256, 256), 1), ((512, 300), 1)])
def test_enlargement(size: tuple[int, int], factor: int) -> None:
    assert enlargement(*size) == factor


def test_a_result_is_short_in_a_console_and_a_strip_in_a_notebook(result: Result) -> None:
    assert repr(result) == "Result(2 rounds of 128 x 128 towards 'the heart lung', item 'patient 7')"
    long = {**result.provenance, "simulated": {"prompt": "an <enlarged> heart, " * 40}, "item_id": "<b>"}
    frames = np.stack([np.full((512, 400, 3), 20 * i, np.uint8) for i in range(10)])
    other = replace(result, frames=frames, latents=np.zeros((9, 4, 2, 2), np.float32), provenance=long)
    assert len(repr(other)) < 160
    assert repr(other).startswith("Result(9 rounds of 512 x 400 towards 'an <enlarged> heart, an")
    html = strip_html(other)
    assert html == other._repr_html_()
    assert "<enlarged>" not in html and "<b>" not in html and "&lt;enlarged&gt;" in html
    assert "not for diagnosis" in html
    picture = re.fullmatch(r'<figure><img src="data:image/png;base64,([^"]+)" alt="SIMULATED.*', html)
    assert picture is not None
    with Image.open(io.BytesIO(base64.b64decode(picture[1]))) as opened:
        assert opened.text["Synthetic"] == "true"
        pixels = np.asarray(opened)
    assert (pixels == AMBER).all(-1).sum() > 100
    for number in (0, 2, 4, 5, 7, 9):  # the first and the last among six of ten frames
        assert (pixels == 20 * number).all(-1).sum() > 100 * 128 - 2500


def test_change_by_hand() -> None:
    """Two rounds on a 2 x 2 latent whose left column may change: 3 then 4 inside, 1 then 1 outside."""
    latents = np.zeros((2, 4, 2, 2), np.float32)
    latents[0, ..., 0], latents[1, ..., 0], latents[:, ..., 1] = 3, 7, 1
    latent_mask = np.array([[[1.0, 0.0], [1.0, 0.0]]], np.float32)
    pixels = np.zeros((2, 2), bool)
    pixels[:, 0] = True
    frames = np.zeros((3, 2, 2, 3), np.uint8)
    frames[1, :, 0], frames[2, :, 0] = 6, 9
    decoded = np.full((2, 2, 2, 3), 10, np.uint8)
    change = measure_change(
        latents, np.zeros((4, 2, 2), np.float32), decoded, np.full((2, 2, 3), 4, np.uint8), frames, latent_mask, pixels
    )
    assert change.increment_inside == [3.0, 4.0]
    assert change.displacement_inside == [3.0, 7.0]
    assert change.displacement_outside == [1.0, 1.0]
    assert change.decoded_outside == [6.0, 6.0]
    assert change.frame_outside == [0.0, 0.0]
    assert change.frame_inside == [6.0, 9.0]
