"""One patient's image and what to simulate in it: checked, fitted and hashed before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import RunConfig
from pie_engine.errors import ConfigError, InputError
from pie_engine.imaging import (
    Grid,
    ImageSource,
    Mask,
    Reading,
    Region,
    Roi,
    as_regions,
    content_hash,
    fit,
    fit_roi,
    inside_box,
    prepare_mask,
    read_image,
    read_mask,
    read_roi,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from pie_engine.imaging.regions.region import Regions


@dataclass(frozen=True)
class Item:
    """One patient's image and what to simulate in it.

    Attributes:
        image: path (PNG, JPEG, TIFF, DICOM, NIfTI), PIL image, or array [H, W] or [H, W, 3] of uint8 or uint16.
        prompt: the clinical report or finding that the progression moves towards.
        mask: region of interest, white = may change, in the image's geometry: path (PNG, JPEG, TIFF, NIfTI, DICOM,
            DICOM SEG), PIL image, array, `Box`, `Ellipse`, `Polygon`; a `Region`, which may have its own beta and
            label; or a list of them.
        item_id: names the item in its noise's seed, so that a result does not depend on its place in a batch.
        reading: which frame, slice and window of the image's file.
        keep: what must never change, as for `mask`; it is cut out of the mask.
        dilate: pixels of the source image by which the mask grows, before `keep` is cut out; negative ones shrink it.
        components: how many connected parts the mask has at most; None leaves it open.
    """

    image: str | Path | Image | np.ndarray
    prompt: str
    mask: Regions = None
    item_id: str = "0"
    reading: Reading = field(default_factory=Reading)
    keep: Regions = None
    dilate: int = 0
    components: int | None = None


@dataclass(frozen=True)
class PreparedItem:
    """An item at the run's resolution.

    Attributes:
        image: RGB.
        mask: in all its forms.
        facts: what provenance says of the inputs: SHA-256 of both, format, size, how stored values became grey, what
            the region of interest was made of.
        inside: (left, top, right, bottom) of the image within black padding, which never changes.
    """

    item: Item
    image: Image
    mask: Mask | None
    facts: dict[str, Any]
    inside: tuple[int, int, int, int] | None = None

    @property
    def source(self) -> ImageSource:
        """The image as it was given, to be read again at its own geometry."""
        return ImageSource(self.item.image, self.item.reading, self.facts["image_sha256"])

    @property
    def roi(self) -> np.ndarray | None:
        """[height, width] bool: the region of interest in the image's own pixels, or None."""
        return None if self.mask is None else self.mask.source


def prepare_item(item: Item, config: RunConfig, scale: int) -> PreparedItem:
    """Read, check and fit one item.

    Args:
        config: with its resolution filled in.
        scale: pixels per latent along one side.

    Raises:
        ConfigError: official semantics with what the published code does not have.
        InputError: the image, the mask or a text cannot be used.
    """
    resolution = config.resolution
    assert resolution is not None
    image, drawn, facts = _read(item, config)
    mask = None
    if isinstance(drawn, Roi):
        assert config.feather is not None
        mask = fit_roi(drawn, resolution, scale=scale, how=config.fit, feather_width=config.feather, beta2=config.beta2)
        facts["roi"] |= mask.facts
    elif drawn is not None:
        mask = prepare_mask(drawn, image.size, resolution, official=True, scale=scale)
    inside = inside_box(image.size, resolution) if config.fit == "pad" else None
    return PreparedItem(item, fit(image, resolution, config.fit), mask, facts, inside)


def check_item(item: Item, config: RunConfig) -> None:
    """Refuse what `prepare_item` would refuse, as far as it can be known before a model is loaded."""
    _read(item, config)


def _read(item: Item, config: RunConfig) -> tuple[Image, Roi | Image | None, dict[str, Any]]:
    """The image, its region of interest (in official semantics the picture of its mask), what provenance says of both.

    Raises:
        ConfigError: official semantics with what the published code does not have.
        InputError: see `prepare_item`.
    """
    check_text("prompt", item.prompt)
    check_text("item-id", item.item_id)
    image, facts = read_image(item.image, reading=item.reading)
    regions, keep = as_regions(item.mask), as_regions(item.keep)
    facts = {"image_sha256": content_hash(item.image), "mask_sha256": None} | facts
    if not regions:
        for name, given in (("keep", keep), ("dilate", item.dilate), ("mask-components", item.components)):
            if given:
                width, height = image.size
                raise ConfigError(
                    f"{name} belongs to a mask, and none is given; pass one (all of the image: "
                    f"--mask-box 0,0,{width},{height}), or leave it out"
                )
        return image, None, facts
    grid = Grid.of(item.image, image, facts, item.reading)
    drawn: Roi | Image
    if config.semantics == "official":
        _check_official(item, regions, keep)
        drawn, said = read_mask(regions[0], grid)
        facts["roi"] = {"regions": [said]}
    else:
        drawn = read_roi(grid, regions, keep=keep, dilate=item.dilate, components=item.components)
        facts["roi"] = drawn.facts
    if len(regions) == 1:
        facts["mask_sha256"] = facts["roi"]["regions"][0].get("sha256")
    return image, drawn, facts


def _check_official(item: Item, regions: tuple[Region, ...], keep: tuple[Region, ...]) -> None:
    """The published code takes one mask as it is."""
    for name, given in (
        (f"a mask of {len(regions)} regions", len(regions) > 1),
        ("a region with its own beta", any(region.beta is not None for region in regions)),
        ("keep", keep),
        ("dilate", item.dilate),
        ("mask-components", item.components),
    ):
        if given:
            raise ConfigError(f"{name} is not what the published code computes; pass --semantics engine")


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
