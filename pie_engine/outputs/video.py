"""A progression as an MP4 file that players, browsers and slides show."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.errors import OutputError, argument
from pie_engine.outputs.frames import STATEMENT

# 0.3 s a frame and 1.5 s for the last, as in the animation. Frames are repeated at a rate that every player knows.
_RATE, _REPEATS, _LAST_REPEATS = 10, 3, 15
_FINE = 6  # times that rate where pictures lie between the frames
# The first that PyAV's FFmpeg holds. H.264 plays everywhere; MPEG-4 part 2 in fewer places. Visually lossless settings.
_ENCODERS: tuple[tuple[str, dict[str, str]], ...] = (
    ("libx264", {"crf": "12", "preset": "slow"}),
    ("libopenh264", {"b": "20M", "rc_mode": "quality"}),
    ("mpeg4", {"qmin": "1", "qmax": "2", "b": "50M"}),
)
_BT709 = 1  # FFmpeg's number for its primaries, transfer and matrix


def check_installed() -> None:
    """Refuse before any work is done.

    Raises:
        OutputError: PyAV is missing.
    """
    if importlib.util.find_spec("av") is None:
        raise OutputError(
            f"{argument('mp4')} needs PyAV, which is missing; pip install 'pie-engine[video]', or leave out "
            f"{argument('mp4')}",
            field="mp4", value=True,
        )  # fmt: skip


def save_mp4(frames: np.ndarray, path: Path, between: int = 0) -> None:
    """Write [N (K + 1) + 1, H, W, 3] uint8 as H.264 in 4:2:0; odd sides gain a copy of their last row or column.

    Args:
        between: K, how many pictures lie between two rounds; a round takes as long with them as without.

    Raises:
        OutputError: PyAV is missing, or its FFmpeg has no encoder that fits.
    """
    check_installed()
    import av

    height, width = frames.shape[1:3]
    padded = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    encoder, options = _choose_encoder(av)
    finer = _FINE if between else 1
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        container.metadata.update({"title": "Simulated progression, research use only", "comment": STATEMENT})
        stream = container.add_stream(encoder, rate=_RATE * finer, options=options)
        stream.width, stream.height, stream.pix_fmt = padded.shape[2], padded.shape[1], "yuv420p"
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = 1  # limited, the only one that some players know
        for index, pixels in enumerate(padded):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            start, end = (round(_REPEATS * finer * place / (between + 1)) for place in (index, index + 1))
            for tick in range(start, start + _LAST_REPEATS * finer if index == len(padded) - 1 else end):
                picture.pts = tick
                container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _choose_encoder(av: Any) -> tuple[str, dict[str, str]]:
    for name, options in _ENCODERS:
        if name in av.codecs_available:
            return name, options
    raise OutputError(
        f"{argument('mp4')} found no H.264 or MPEG-4 encoder in PyAV's FFmpeg; pip install --force-reinstall av, or "
        f"leave out {argument('mp4')}",
        field="mp4",
        value=True,
    )
