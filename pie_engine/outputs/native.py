"""Frames at the source's own geometry and bit depth, changed inside the region of interest alone.

A frame has the model's resolution and 8 bits; the source has more of both. So the change is written back, not the
pixels: what a frame differs from frame 0, in grey levels, is brought to the source's pixels by the inverse of the fit,
added to the source's own grey (not rounded to 8 bits), and mapped back to stored values. The source's own detail stays
where it was, below the change; where the change is less than half a grey level, and everywhere outside the region, the
stored value stays bit for bit. What the window clips comes to the window's edge where it changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pie_engine.equality import ByContent
from pie_engine.errors import ConfigError, InputError, argument, mention, use
from pie_engine.imaging import Stored, kept, unfit
from pie_engine.imaging.stored import within
from pie_engine.imaging.window import to_bytes
from pie_engine.outputs.frames import png_metadata
from pie_engine.outputs.mark import draw_mark, mark_box

if TYPE_CHECKING:
    from pie_engine.config import RunConfig

# ITU-R BT.601, as Pillow's mode L: how much of a coloured change a greyscale source takes.
LUMA = (0.299, 0.587, 0.114)
# The least change that is written, in grey levels: what would round to nothing stays as it was stored.
_LEAST = 0.5
_HOW = "change of the frame added to the source's own grey and mapped back to stored values"


def check_native(stored: Stored, config: RunConfig) -> None:
    """Refuse what cannot be written back, before anything is simulated.

    Raises:
        ConfigError: frames that are not held to the input outside the region.
        InputError: an image whose stored values the engine does not keep, or cannot map back to.
    """
    if not config.composite:
        named = use("semantics", "official") if config.semantics == "official" else use("composite", False)
        raise ConfigError(
            f"{mention('native_size')} writes back what changes in the region alone, and {named} lets all of a frame "
            "change; leave out one of the two",
            field="native_size",
            value=True,
        )
    bits, remedy = stored.facts["bits"], f"leave out {argument('native_size')}"
    if stored.colour and bits > 8:
        raise InputError(f"the image is in colour with {bits} bits a channel, of which 8 are used; {remedy}")
    if stored.limits is not None and stored.values.dtype.itemsize > 2 and not _is_nifti(stored):
        raise InputError(f"the image has stored values of {bits} bits, and at most 16 are written; {remedy}")
    if stored.limits is None and not _is_nifti(stored):
        raise InputError(f"the image has stored values in floating point, which PNG does not hold; {remedy}")
    if not stored.mapping.invertible:
        raise InputError(
            "the image's mapping to grey has no inverse (a lookup table that turns back, one value alone, or a rescale "
            f"slope of 0); pass {argument('window_center')} and {argument('window_width')}, or {remedy}"
        )


def _is_nifti(stored: Stored) -> bool:
    return str(stored.facts["format"]).startswith("NIfTI")


@dataclass(frozen=True, eq=False)
class NativeFrame(ByContent):
    """One frame at the source's geometry.

    Attributes:
        values: [H, W] or [H, W, 3] of the source's type.
        changed: pixels whose stored value is not the source's.
        clipped: pixels that should have gone beyond black, white or what can be stored, and stopped there.
    """

    values: np.ndarray
    changed: int = 0
    clipped: int = 0


class NativeFrames:
    """A progression at its source's geometry, frame by frame on demand; frame 0 is the source.

    Args:
        stored: the source; see `check_native`.
        frames: [N + 1, R, R, 3] uint8, at the model's resolution.
        roi: [H, W] bool in the source's pixels; None: all that the fit kept of it may change.
        fit: how the source became a square.
        mark: draw the visible mark into every frame but the first, at the source's size.

    Raises:
        InputError: `roi` has another size than the source.
    """

    def __init__(
        self, stored: Stored, frames: np.ndarray, roi: np.ndarray | None, fit: str, *, mark: bool = False
    ) -> None:
        allowed = kept(stored.size, frames.shape[1], fit)
        if roi is not None:
            if roi.shape != allowed.shape:
                raise InputError(f"region of {roi.shape} does not fit the image, {allowed.shape}; simulate it again")
            allowed = allowed & roi
        allowed = allowed & ~stored.padded
        self.stored = stored
        self._frames, self._fit, self._mark = frames, fit, mark
        self._allowed = allowed[..., None] if stored.colour else allowed
        self._grey = stored.grey()

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, index: int) -> NativeFrame:
        """Compute one frame."""
        if index == 0:
            return NativeFrame(self.stored.values)
        change = self._frames[index].astype(np.float32) - self._frames[0]
        if not self.stored.colour:
            change = change @ np.array(LUMA, np.float32)
        change = unfit(change, self.stored.size, self._fit)
        where = self._allowed & (np.abs(change) >= _LEAST)
        wanted = self._grey[where] + change[where] / 255.0
        reached = np.clip(wanted, 0, 1)
        stored, beyond = self._to_stored(reached)
        unchanged = self.stored.values[where]
        values = self.stored.values.copy()
        # What is black already and should become darker stays what it is, not the darkest value of the window.
        values[where] = np.where(reached == self._grey[where], unchanged, stored)
        clipped = np.zeros(where.shape, bool)
        clipped[where] = beyond | (np.abs(wanted - reached) * 255 >= _LEAST)
        changed = values != self.stored.values
        if self.stored.colour:
            clipped, changed = np.asarray(clipped.any(axis=-1)), np.asarray(changed.any(axis=-1))
        if self._mark:
            self._draw_mark(values)
        return NativeFrame(values, int(changed.sum()), int(clipped.sum()))

    def _to_stored(self, grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Stored values of the source's type, and where they stopped at the limits of what can be stored."""
        exact, dtype = self.stored.mapping.inverse(grey), self.stored.values.dtype
        if self.stored.limits is None:
            return exact.astype(dtype), np.zeros(exact.shape, bool)
        rounded = np.round(exact)
        limited = np.clip(rounded, *self.stored.limits)
        return self._beside_padding(limited).astype(dtype), limited != rounded

    def _beside_padding(self, values: np.ndarray) -> np.ndarray:
        """Anatomy must not take a value that means padding: the nearest other one instead."""
        if self.stored.padding is None or self.stored.limits is None:
            return values
        (low, high), (least, greatest) = self.stored.padding, self.stored.limits
        down = (low > least) & ((values - low < high - values) | (high >= greatest))
        return np.where(within(values, self.stored.padding), np.where(down, low - 1, high + 1), values)

    def _draw_mark(self, values: np.ndarray) -> None:
        """Draw into what is shown, and store what that comes to."""
        left, top, right, bottom = mark_box(*values.shape[:2])
        shown = to_bytes(self.stored.mapping.forward(values))
        draw_mark(shown)
        values[top:bottom, left:right] = self._to_stored(shown[top:bottom, left:right] / 255.0)[0]


def save_native(frames: NativeFrames, folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """Write every frame as folder/NNN.png, or folder/NNN.nii.gz where the source is NIfTI.

    PNG holds the stored values as they are, with 8 or 16 bits; signed ones are shifted up by half their range, which
    the file says in its text chunk "StoredOffset".

    Returns:
        The paths, and what provenance says of them.
    """
    folder.mkdir()
    stored, paths, counts = frames.stored, [], []
    for index in range(len(frames)):
        frame = frames.frame(index)
        path = folder / f"{index:03d}{'.nii.gz' if _is_nifti(stored) else '.png'}"
        if _is_nifti(stored):
            said = "SIMULATED (PIE), research use only, not for diagnosis" if index else "Input of a simulation (PIE)"
            stored.header.volume_of(frame.values, said).to_filename(path)
        else:
            _save_png(frame.values, stored, path, index)
        paths.append(path)
        counts.append((frame.changed, frame.clipped))
    offset = {} if _is_nifti(stored) else {"stored_offset": _offset(stored.values)}
    return paths, describe_native(stored, counts) | offset


def describe_native(stored: Stored, counts: list[tuple[int, int]]) -> dict[str, Any]:
    """What provenance says of frames that were written back, given (changed, clipped) pixels of each."""
    changed, clipped = zip(*counts, strict=True)
    return {
        "how": _HOW,
        "size": list(stored.size),
        "stored_type": str(stored.values.dtype.newbyteorder("=")),
        "pixels_changed": list(changed),
        "pixels_clipped": list(clipped),
    }


def _offset(values: np.ndarray) -> int:
    return int(2 ** (8 * values.dtype.itemsize - 1)) if values.dtype.kind == "i" else 0


def _save_png(values: np.ndarray, stored: Stored, path: Path, index: int) -> None:
    offset = _offset(values)
    unsigned = (values.astype(np.int64) + offset).astype(f"u{values.dtype.itemsize}")
    facts = {"Round": str(index), "StoredOffset": str(offset)}
    if stored.mapping.inverted:
        facts["Photometric"] = "MONOCHROME1 (low values are bright)"
    # Full compression of a radiograph takes four times as long, for 4 % less.
    Image.fromarray(unsigned).save(path, pnginfo=png_metadata(simulated=index > 0, **facts), compress_level=1)
