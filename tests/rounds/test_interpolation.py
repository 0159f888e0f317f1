"""Pictures between the rounds: what is decoded, where it goes, and that nothing else changes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import GOLDEN
from PIL import Image, ImageSequence

from pie_engine import Item, OutputConfig, PieEngine, RunConfig
from pie_engine.checkpoint import load_checkpoint
from pie_engine.config import MOST_BETWEEN
from pie_engine.errors import ConfigError
from pie_engine.outputs.animation import LINE, interleave, save_gif
from pie_engine.outputs.video import save_mp4

CHECKPOINT = GOLDEN / "checkpoint_ddim"
CONFIG = RunConfig(steps=3, num_inference_steps=4, guidance_scale=2.0, resolution=64)
MASK = np.zeros((64, 64), np.uint8)
MASK[16:48, 16:48] = 255


@pytest.fixture(scope="module")
def engine() -> PieEngine:
    return PieEngine.load(checkpoint=CHECKPOINT, backend="torch", device="cpu")


@pytest.fixture(scope="module")
def items() -> list[Item]:
    y, x = np.mgrid[:64, :64]
    pictures = [np.uint8(127 + 60 * np.sin(x / (5 + n)) + 50 * np.cos(y / 9)) for n in range(3)]
    return [Item(pictures[0], "a", MASK, "0"), Item(pictures[1], "b", None, "1"), Item(pictures[2], "c", MASK, "2")]


def test_the_run_is_the_same_and_the_middle_is_the_mean_latent_decoded(engine: PieEngine, items: list[Item]) -> None:
    plain = engine.run(items, CONFIG)
    smooth = engine.run(items, CONFIG, interpolate=3)
    again = engine.run(items, CONFIG)  # the loop is kept, and no picture in it
    vae = load_checkpoint(CHECKPOINT).vae.eval()
    for before, result, after, item in zip(plain, smooth, again, items, strict=True):
        assert before.between is None and after.between is None
        for other in (before, after):
            assert np.array_equal(result.frames, other.frames)
            assert np.array_equal(result.latents, other.latents)
            assert result.change == other.change
        assert result.between is not None and result.between.shape == (3, 3, 64, 64, 3)
        start = np.concatenate([result.original_latent[None], result.latents[:-1]])
        for share, place in ((0.25, 0), (0.5, 1), (0.75, 2)):
            latents = torch.from_numpy((1 - share) * start + share * result.latents)
            with torch.inference_mode():
                pixels = vae.decode(latents / vae.config.scaling_factor).sample
            decoded = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()
            where = np.ones((64, 64), bool)
            if item.mask is not None:
                where = np.zeros((64, 64), bool)
                where[24:40, 24:40] = True  # eight pixels and more from the edge a frame is all simulation
                assert (result.between[:, place][:, MASK == 0] == result.frames[0][MASK == 0]).all()
            difference = np.abs(result.between[:, place].astype(int) - decoded)[:, where]
            assert difference.max() <= 1  # rounding at half a grey level
            assert difference.mean() < 0.02


def test_the_animation_holds_them_and_takes_as_long(engine: PieEngine, items: list[Item], tmp_path: Path) -> None:
    result = engine.run(items[0], CONFIG, interpolate=4)
    written = result.save(tmp_path / "out")
    assert len(written["frames"]) == 4
    with Image.open(written["gif"]) as gif:
        pictures = [
            (np.asarray(one.convert("L"))[LINE:-LINE:4, ::4].astype(int), one.info["duration"])
            for one in ImageSequence.Iterator(gif)
        ]
    assert sum(duration for _, duration in pictures) == 3 * 300 + 1500
    assert [duration for _, duration in pictures] == [60] * 15 + [1500]
    moving = interleave(result.frames, result.between)
    assert np.array_equal(moving[::5], result.frames)  # each round's own picture is its frame
    for (shown, _), expected in zip(pictures, moving, strict=True):
        assert np.abs(shown - np.asarray(Image.fromarray(expected).convert("L"))).mean() < 3  # 256 colours
    provenance = json.loads(Path(written["provenance"]).read_text())
    assert provenance["interpolation"] == {"pictures_per_round": 4, "of": "latents, linear"}
    assert "interpolate" not in provenance["settings"]
    plain = engine.run(items[0], CONFIG).save(tmp_path / "plain")
    assert "interpolation" not in json.loads(Path(plain["provenance"]).read_text())
    for name in ("sheet", "differences"):
        assert Path(plain[name]).read_bytes() == Path(written[name]).read_bytes()


def test_marks_are_drawn_between_too(engine: PieEngine, items: list[Item], tmp_path: Path) -> None:
    result = engine.run(items[0], CONFIG, interpolate=1)
    written = result.save(tmp_path / "out", OutputConfig(mark=True))
    with Image.open(written["gif"]) as gif:
        pictures = [np.asarray(one.convert("L"))[LINE:-LINE:4, ::4].astype(int) for one in ImageSequence.Iterator(gif)]
    corners = [picture[56:, :24] for picture in pictures]
    assert all(np.abs(corner - corners[0]).mean() > 5 for corner in corners[1:])


def test_odd_numbers_take_as_long_too(tmp_path: Path) -> None:
    frames = np.stack([np.full((16, 16, 3), 3 * n, np.uint8) for n in range(2 * (MOST_BETWEEN + 1) + 1)])
    save_gif(frames, tmp_path / "a.gif", MOST_BETWEEN)
    with Image.open(tmp_path / "a.gif") as gif:
        durations = [one.info["duration"] for one in ImageSequence.Iterator(gif)]
    assert durations == [20] * 30 + [1500]  # browsers show faster pictures slowly
    save_gif(frames[:15], tmp_path / "b.gif", 6)
    with Image.open(tmp_path / "b.gif") as gif:
        durations = [one.info["duration"] for one in ImageSequence.Iterator(gif)]
    assert (sum(durations[:7]), sum(durations[7:14]), durations[14]) == (300, 300, 1500)
    assert set(durations[:14]) <= {40, 50}


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is missing; pip install 'pie-engine[video]'")
def test_the_video_takes_as_long(tmp_path: Path) -> None:
    import av

    frames = np.stack([np.full((64, 64, 3), 20 * n, np.uint8) for n in range(11)])
    save_mp4(frames, tmp_path / "a.mp4", 4)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate)
        greys = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
    assert (rate, len(greys) / rate) == (60, 2 * 0.3 + 1.5)
    shown = np.round(np.array(greys) / 20)
    assert [int((shown == n).sum()) for n in range(10)] == [4, 3, 4, 3, 4, 4, 3, 4, 3, 4]
    assert (shown == 10).sum() == 90


def test_refusals(engine: PieEngine, items: list[Item]) -> None:

    for count in (-1, MOST_BETWEEN + 1):
        with pytest.raises(ConfigError, match=rf"interpolate {count} is outside \[0, 14\]"):
            engine.run(items[0], CONFIG, interpolate=count)
    with pytest.raises(ConfigError, match="between rounds, which this method does not have"):
        engine.run(items[:1], CONFIG, method="previous", interpolate=2)
