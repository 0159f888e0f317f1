"""One patient's image and what to simulate in it: checked, fitted and hashed before anything runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import RunConfig
from pie_engine.errors import InputError
from pie_engine.imaging import Mask, Reading, fit, inside_box, prepare_mask, read_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Item:
    """One patient's image and what to simulate in it.

    Attributes:
        image: path (PNG, JPEG, TIFF, DICOM, NIfTI), PIL image, or array [H, W] or [H, W, 3] of uint8 or uint16.
        prompt: the clinical report or finding that the progression moves towards.
        mask: region of interest, white = may change, of the image's aspect ratio: path (PNG, JPEG, TIFF), PIL image or
            array.
        item_id: names the item in its noise's seed, so that a result does not depend on its place in a batch.
        reading: which frame, slice and window of the image's file.
    """

    image: str | Path | Image | np.ndarray
    prompt: str
    mask: str | Path | Image | np.ndarray | None = None
    item_id: str = "0"
    reading: Reading = field(default_factory=Reading)


@dataclass(frozen=True)
class PreparedItem:
    """An item at the run's resolution.

    Attributes:
        image: RGB.
        mask: in all its forms.
        facts: what provenance says of the inputs: SHA-256 of both, format, size, how stored values became grey.
        inside: (left, top, right, bottom) of the image within black padding, which never changes.
    """

    item: Item
    image: Image
    mask: Mask | None
    facts: dict[str, Any]
    inside: tuple[int, int, int, int] | None = None


def prepare_item(item: Item, config: RunConfig, scale: int) -> PreparedItem:
    """Read, check and fit one item.

    Args:
        config: with its resolution filled in.
        scale: pixels per latent along one side.

    Raises:
        InputError: the image, the mask or a text cannot be used.
    """
    resolution = config.resolution
    assert resolution is not None
    check_text("prompt", item.prompt)
    check_text("item-id", item.item_id)
    image, facts = read_image(item.image, reading=item.reading)
    mask = None
    if item.mask is not None:
        official = config.semantics == "official"
        drawn = read_image(item.mask, "mask")[0]
        mask = prepare_mask(drawn, image.size, resolution, official=official, scale=scale, how=config.fit)
    hashes = {"image_sha256": _hash(item.image), "mask_sha256": None if item.mask is None else _hash(item.mask)}
    inside = inside_box(image.size, resolution) if config.fit == "pad" else None
    return PreparedItem(item, fit(image, resolution, config.fit), mask, hashes | facts, inside)


def composite(
    decoded: np.ndarray,
    original: np.ndarray,
    mask: Mask | None,
    inside: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """w decoded + (1 - w) input: [N, H, W, 3] uint8, bit for bit the input where w is 0.

    Without a mask decoded frames stay as they are, but for the padding outside of `inside`.
    """
    if mask is None and inside is None:
        return decoded
    if mask is None:
        left, top, right, bottom = inside or (0, 0, 0, 0)
        kept = np.broadcast_to(original, decoded.shape).copy()
        kept[:, top:bottom, left:right] = decoded[:, top:bottom, left:right]
        return kept
    weight = mask.weight[..., None]
    return np.round(weight * decoded + (1 - weight) * original).astype(np.uint8)


def check_text(name: str, text: object) -> None:
    """Refuse what is not text, or not UTF-8, naming the option. Raises InputError."""
    if not isinstance(text, str):
        raise InputError(f"{name} of type {type(text).__name__} is not text; pass a string")
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding on the command line
        raise InputError(f"{name} {text!a} is not UTF-8; pass it in that encoding") from None


def _hash(source: str | Path | Image | np.ndarray) -> str:
    if isinstance(source, str | Path):
        return hashlib.sha256(Path(source).read_bytes()).hexdigest()
    array = np.asarray(source)
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def split_group(group: list[int], sizes: tuple[int, ...] | None) -> list[list[int]]:
    """Cut a group into parts of the sizes that a backend runs, largest first; None leaves it whole.

    A rest smaller than every size is filled up by repeating its last member, whose result is then the same twice.
    """
    if sizes is None or not group:
        return [group] if group else []
    parts, rest = [], group
    while rest:
        fitting = [size for size in sizes if size <= len(rest)]
        size = max(fitting) if fitting else min(sizes)
        parts.append((rest + [rest[-1]] * size)[:size])
        rest = rest[size:]
    return parts
