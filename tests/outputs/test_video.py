"""The MP4 file, decoded again: every frame, its colours, its size, and what its metadata says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pie_engine import OutputConfig, Result
from pie_engine.errors import OutputError
from pie_engine.outputs import check_outputs
from pie_engine.outputs.video import save_mp4

needs_av = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="PyAV is missing; pip install 'pie-engine[video]'"
)


def decode(path: Path) -> tuple[np.ndarray, dict[str, str], str, float]:
    """Frames [n, H, W, 3], the container's metadata, codec, and frames a second."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames, dict(container.metadata), stream.codec_context.name, float(stream.average_rate)


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Smooth ones, each different."""
    y, x = np.mgrid[:height, :width]
    waves = [np.stack([np.sin(x / 9 + n) + np.cos(y / (7 + c)) for c in range(3)], axis=-1) for n in range(count)]
    return np.round(127.5 + 60 * np.stack(waves)).astype(np.uint8)


@needs_av
@pytest.mark.parametrize("size", [(64, 96), (63, 49)])
def test_decoded_again(tmp_path: Path, size: tuple[int, int]) -> None:
    frames = pictures(4, *size)
    save_mp4(frames, tmp_path / "a.mp4")
    decoded, metadata, codec, rate = decode(tmp_path / "a.mp4")
    assert codec == "h264"
    # 0.3 s for each frame, 1.5 s for the last.
    assert rate == 10
    assert decoded.shape == (3 * 3 + 15, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    for index, frame in enumerate(frames):
        for shown in decoded[3 * index : 3 * index + 3]:
            error = np.abs(shown[: size[0], : size[1]].astype(int) - frame).mean()
            assert error < 3  # 4:2:0 halves the colours' resolution
            others = [np.abs(shown[: size[0], : size[1]].astype(int) - other).mean() for other in frames]
            assert np.argmin(others) == index
    assert "Simulated" in metadata["title"]
    assert "not for diagnosis" in metadata["comment"]


@needs_av
def test_colours_keep_their_hue(tmp_path: Path) -> None:
    """Matrix and range are written as they were used: plain colours come back as they were."""
    colours = np.array([[255, 255, 255], [0, 0, 0], [200, 40, 30], [20, 160, 60], [30, 60, 200]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (5, 64, 64, 3))
    save_mp4(frames, tmp_path / "a.mp4")
    decoded = decode(tmp_path / "a.mp4")[0][[1, 4, 7, 10, 13], 32, 32]
    assert np.abs(decoded.astype(int) - colours).max() <= 6


@needs_av
def test_beside_the_other_files_and_marked(result: Result, tmp_path: Path) -> None:
    plain = result.save(tmp_path / "plain", OutputConfig(mp4=True))
    marked = result.save(tmp_path / "marked", OutputConfig(mp4=True, mark=True))
    assert plain["mp4"] == str(tmp_path / "plain" / "progression.mp4")
    first, second = (decode(Path(paths["mp4"]))[0].astype(int) for paths in (plain, marked))
    assert np.abs(first[0] - result.frames[0]).mean() < 3
    assert np.abs(first[0] - second[0]).max() < 40  # the input
    assert np.abs(first[-1] - second[-1]).max() > 100


def test_without_av(result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"mp4 needs PyAV, which is missing; pip install 'pie-engine\[video\]'"):
        result.save(tmp_path / "run", OutputConfig(mp4=True))
    check_outputs(OutputConfig())
    assert not list(tmp_path.iterdir())


@needs_av
def test_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    monkeypatch.setattr(av, "codecs_available", {"png"})
    with pytest.raises(OutputError, match=r"no H\.264 or MPEG-4 encoder"):
        save_mp4(pictures(2, 64, 64), tmp_path / "a.mp4")
