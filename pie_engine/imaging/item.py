"""One patient's image and what to simulate in it: checked, fitted and hashed before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import MethodConfig, RunConfig
from pie_engine.equality import ByContent
from pie_engine.errors import MOST_QUOTED, ConfigError, InputError, Notice, argument, mention, quoted, use
from pie_engine.imaging import (
    Grid,
    ImageSource,
    Mask,
    Reading,
    Region,
    Roi,
    as_regions,
    content_hash,
    find_content_box,
    fit,
    fit_roi,
    prepare_mask,
    read_mask,
    read_roi,
    read_stored,
)
from pie_engine.imaging.regions.mask import warn_of_feather
from pie_engine.imaging.rules import check_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from pie_engine.imaging.regions.region import Regions

log = logging.getLogger(__name__)

# Of an item that is simulated alone and has no id: results stay what they are.
ALONE = "0"


@dataclass(frozen=True, eq=False)
class Item(ByContent):
    """One patient's image and what to simulate in it.

    Attributes:
        image: path (PNG, JPEG, TIFF, DICOM, NIfTI), PIL image, or array [H, W] or [H, W, 3] of uint8 or uint16.
        prompt: the clinical report or finding that the progression moves towards.
        mask: region of interest, white = may change, in the image's geometry: path (PNG, JPEG, TIFF, NIfTI, DICOM,
            DICOM SEG), PIL image, array, `Box`, `Ellipse`, `Polygon`; a `Region`, which may have its own beta, label
            and prompt; or a list of them. Regions with prompts of their own are findings beside the item's.
        item_id: names the item in its noise's seed, so that a result does not depend on its place in a batch. None:
            "0" for an item by itself, else what `item_ids.check_item_ids` derives from the image.
        reading: which frame, slice and window of the image's file.
        keep: what must never change, as for `mask`; it is cut out of the mask.
        dilate: pixels of the source image by which the mask grows, before `keep` is cut out; negative ones shrink it.
        components: how many connected parts the mask has at most; None leaves it open.
        shift: (dx, dy), pixels of the source image by which the mask moves right and down, before it grows.
    """

    image: str | Path | Image | np.ndarray
    prompt: str
    mask: Regions = None
    item_id: str | None = None
    reading: Reading = field(default_factory=Reading)
    keep: Regions = None
    dilate: int = 0
    components: int | None = None
    shift: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class PreparedItem:
    """An item at the run's resolution.

    Attributes:
        image: RGB.
        mask: in all its forms.
        facts: what provenance says of the inputs: SHA-256 of both, format, size, how stored values became grey, what
            the region of interest was made of.
        content_box: (left, top, right, bottom) of the image within black padding, which never changes.
    """

    item: Item
    image: Image
    mask: Mask | None
    facts: dict[str, Any]
    content_box: tuple[int, int, int, int] | None = None

    @property
    def item_id(self) -> str:
        """What its noise is drawn by."""
        return ALONE if self.item.item_id is None else self.item.item_id

    @property
    def prompts(self) -> tuple[str, ...]:
        """One for each finding; see `findings_of`."""
        return findings_of(self.item)

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
        if config.composite:
            warn_of_feather(mask, config.feather)
    elif drawn is not None:
        mask = prepare_mask(drawn, image.size, resolution, official=True, scale=scale)
    content_box = find_content_box(image.size, resolution) if config.fit == "pad" else None
    return PreparedItem(item, fit(image, resolution, config.fit), mask, facts, content_box)


def findings_of(item: Item) -> tuple[str, ...]:
    """The prompts that an item progresses towards, each in regions of its own, in the order of these; one at least."""
    prompts = (item.prompt if region.prompt is None else region.prompt for region in as_regions(item.mask))
    return tuple(dict.fromkeys(prompts)) or (item.prompt,)


def check_item(item: Item, config: RunConfig) -> None:
    """Refuse what `prepare_item` would refuse, as far as it can be known before a model is loaded."""
    _read(item, config)


def _read(item: Item, config: RunConfig) -> tuple[Image, Roi | Image | None, dict[str, Any]]:
    """The image, its region of interest (in official semantics the picture of its mask), what provenance says of both.

    Raises:
        ConfigError: official semantics with what the published code does not have.
        InputError: see `prepare_item`.
    """
    _check_texts(item, config)
    stored = read_stored(item.image, reading=item.reading)
    check_image(stored, _name(item), config.resolution, config.fit)
    image, facts = stored.picture(), stored.facts
    regions, keep = as_regions(item.mask), as_regions(item.keep)
    if any(region.prompt is not None for region in regions):
        _check_findings(item, regions, config)
        regions = tuple(replace(one, prompt=item.prompt if one.prompt is None else one.prompt) for one in regions)
    facts = {"image_sha256": content_hash(item.image), "mask_sha256": None} | facts
    if not regions:
        for name, given in (
            ("keep", keep), ("dilate", item.dilate), ("shift", any(item.shift)), ("components", item.components),
        ):  # fmt: skip
            if given:
                width, height = image.size
                raise ConfigError(
                    f"{mention(name)} belongs to a mask, and none is given; pass one (all of the image: "
                    f"{use('mask', f'Box(0, 0, {width}, {height})')}), or leave it out",
                    field=name,
                    value=given,
                )
        return image, None, facts
    grid = Grid.of(item.image, image, facts, item.reading)
    drawn: Roi | Image
    if config.semantics == "official":
        _check_official(item, regions, keep)
        drawn, said = read_mask(regions[0], grid)
        facts["roi"] = {"regions": [said]}
    else:
        drawn = read_roi(grid, regions, keep=keep, dilate=item.dilate, shift=item.shift, components=item.components)
        facts["roi"] = drawn.facts
    if len(regions) == 1:
        facts["mask_sha256"] = facts["roi"]["regions"][0].get("sha256")
    return image, drawn, facts


def _check_findings(item: Item, regions: tuple[Region, ...], config: RunConfig) -> None:
    """Raises ConfigError: a prompt that is given would be read nowhere."""
    findings = findings_of(item)
    if item.prompt and item.prompt not in findings:
        raise ConfigError(
            f"prompt {quoted(item.prompt)} is never used: each region has its own finding; leave it empty",
            field="prompt",
        )
    scheduled = [one.prompt is not None for one in config.rounds]
    if all(scheduled) or (len(findings) > 1 and any(scheduled)):
        count = f"{len(findings)} finding{'s' * (len(findings) > 1)}"
        raise ConfigError(f"the schedule's prompts would take the place of {count}; leave them out of the schedule")


def _check_official(item: Item, regions: tuple[Region, ...], keep: tuple[Region, ...]) -> None:
    """The published code takes one mask as it is."""
    for name, given in (
        (f"a mask of {len(regions)} regions", len(regions) > 1),
        ("a region with its own beta", any(region.beta is not None for region in regions)),
        ("a finding with its own region", any(region.prompt is not None for region in regions)),
        ("keep", keep),
        ("dilate", item.dilate),
        ("shift", any(item.shift)),
        (mention("components"), item.components),
    ):
        if given:
            raise ConfigError(
                f"{name} is not what the published code computes; pass {use('semantics', 'engine')}",
                field="semantics", value="official",
            )  # fmt: skip


def _name(item: Item) -> str:
    """The item's image to the user, for messages."""
    return f"image {item.image}" if isinstance(item.image, str | Path) else "image"


def _check_texts(item: Item, config: RunConfig) -> None:
    """Refuse prompts and an id that are no text, or blank; an empty prompt that is read is warned of.

    An empty prompt is a control (what the model does by itself), and what steers away from nothing; blanks are a slip.

    Raises:
        InputError: no text.
    """
    prompts = [("prompt", item.prompt)]
    prompts += [("Region.prompt", r.prompt) for r in as_regions(item.mask) if r.prompt is not None]
    for name, text in prompts:
        check_text(name, text)
        if text and not text.strip():
            raise InputError(
                f"{mention(name)} {text!r} is blank; pass what the progression moves towards", field=name, value=text
            )
    if "" in findings_of(item) and any(one.prompt is None for one in config.rounds):
        log.warning(
            Notice(f"{mention('prompt')} is empty: the progression moves towards no finding, as a control does")
        )
    if item.item_id is not None:
        check_text("item_id", item.item_id)


def check_text(name: str, text: object) -> None:
    """Refuse what is not text, or not UTF-8, naming the setting. Raises InputError."""
    if not isinstance(text, str):
        raise InputError(
            f"{mention(name)} of type {type(text).__name__} is not text; pass a string", field=name, value=text
        )
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding on the command line
        raise InputError(
            f"{mention(name)} {text[:MOST_QUOTED]!a} is not UTF-8; pass it in that encoding", field=name, value=text
        ) from None


def check_findings(items: Sequence[Item], method: MethodConfig) -> None:
    """Refuse findings with regions of their own where a method does not run PIE's guidance. Raises ConfigError."""
    several = any(region.prompt is not None for item in items for region in as_regions(item.mask))
    if several and method.name != "pie":
        raise ConfigError(
            f"method {method.name!r} has one prompt for all regions; pass {argument('prompt')}, leave out "
            f"{argument('Region.prompt')}",
            field="method", value=method.name,
        )  # fmt: skip
