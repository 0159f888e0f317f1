"""The region of interest (ROI) in the source image's own pixels: regions joined, grown, minus what must not change.

Everything is decided here, before the image is fitted to the model, so that the ROI means the same at any resolution.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage
from scipy.ndimage import distance_transform_edt, label

from pie_engine.config.checks import integer
from pie_engine.equality import ByContent
from pie_engine.errors import ConfigError, InputError, Notice, argument, mention, use
from pie_engine.imaging.grid import Grid
from pie_engine.imaging.regions.mask_files import read_mask
from pie_engine.imaging.regions.region import Region

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

# At least half white: the mask of a region.
HALF = 128
# A mask drawn on a rescaled copy differs by rounding; another patient's or view's mask by more.
_ASPECT_TOLERANCE = 0.05
# Components of a smaller share of the ROI are taken for slips of the pen.
_SPECKLE = 0.001
_LISTED = 20


@dataclass(frozen=True, eq=False)
class Roi(ByContent):
    """The region of interest in the source image's pixels.

    Attributes:
        drawn: [H, W] uint8, 255 inside. The soft edge of a picture stays soft: it is fitted as the image is, and
            divided at half only then.
        betas: the blends of its regions, None for the run's beta2; the one of the last region is the last.
        owner: [H, W] uint8, which of `betas` holds at each pixel of the ROI, or None where there is one.
        keep: [H, W] bool, what was cut out because it must not change, or None.
        findings: how many prompts its regions have.
        finding: [H, W] uint8, which of these (in the order of their regions) holds at each pixel; None for one.
        facts: what provenance says of it; JSON.
    """

    drawn: np.ndarray
    betas: tuple[float | None, ...] = (None,)
    owner: np.ndarray | None = None
    keep: np.ndarray | None = None
    findings: int = 1
    finding: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def pixels(self) -> np.ndarray:
        """[H, W] bool, True = may change."""
        return self.drawn >= HALF


def read_roi(
    grid: Grid,
    regions: Sequence[Region],
    *,
    keep: Sequence[Region] = (),
    dilate: int = 0,
    shift: tuple[int, int] = (0, 0),
    components: int | None = None,
    kind: str = "mask",
) -> Roi:
    """Join regions, move them, grow or shrink them, cut out what must not change, and check what is left.

    Args:
        grid: the image's pixels.
        regions: at least one; where they overlap, the later one's beta and prompt hold.
        keep: what must not change.
        dilate: pixels by which the joined regions grow; negative ones shrink them. The image's border is no edge.
        shift: (dx, dy), pixels by which the regions move right and down, before they grow; what leaves is lost.
        components: how many connected parts (by edges or corners) are expected at most; None leaves it open.
        kind: what it is to the user, for messages.

    Raises:
        ConfigError: `dilate`, `shift` or `components` is out of range.
        InputError: a region cannot be read or does not fit, nothing is left, or there are more parts than expected.
    """
    integer("dilate", dilate, -10_000, 10_000, f"pass {use('dilate', 5)}")
    if components is not None:
        integer(mention("components"), components, 1, 1_000_000, f"pass {use('components', 1)}")
    if len(shift) != 2:
        raise ConfigError(
            f"shift {shift!r} is not two whole numbers; pass (dx, dy), pixels right and down",
            field="shift",
            value=shift,
        )
    for pixels in shift:
        integer("shift", pixels, -10_000, 10_000, f"pass {use('shift', (5, 0))}")
    drawn, said = zip(*(_draw(region, grid, kind) for region in regions), strict=True)
    if any(shift):
        drawn = _move(drawn, shift, kind)
    whole = reduce(np.maximum, drawn)
    betas = tuple(reversed(dict.fromkeys(region.beta for region in reversed(regions))))
    prompts = tuple(dict.fromkeys(region.prompt for region in regions))
    owner = _owners([betas.index(region.beta) for region in regions], drawn)
    finding = _owners([prompts.index(region.prompt) for region in regions], drawn)
    if dilate:
        before = whole >= HALF
        grown = grow(before, dilate)
        if not grown.any():
            raise InputError(
                f"{kind} is empty after {-dilate} pixels are taken off its edge (it had {before.sum()} pixels); "
                f"pass a {mention('dilate')} above {dilate}",
                field="dilate",
                value=dilate,
            )
        whole = grown.astype(np.uint8) * 255
    kept, kept_facts = None, []
    if keep:
        cut, kept_facts = zip(*(_draw(region, grid, "keep mask") for region in keep), strict=True)
        kept = reduce(np.maximum, cut) >= HALF
        before = whole >= HALF
        whole = np.where(kept, 0, whole)
        if not (whole >= HALF).any():
            raise InputError(
                f"the keep mask covers all {before.sum()} pixels of the {kind}, so that nothing may change; "
                f"pass a smaller {argument('keep')} or a larger {argument('mask')}",
                field="keep",
            )
    facts = {"regions": list(said), "keep": list(kept_facts), "dilate": dilate, "shift": list(shift)}
    return Roi(whole, betas, owner, kept, len(prompts), finding, facts | _check(whole >= HALF, components, kind))


def _draw(region: Region, grid: Grid, kind: str) -> tuple[np.ndarray, dict[str, Any]]:
    """[H, W] uint8 on the image's grid, 255 inside; and what provenance says of it."""
    image, facts = read_mask(region, grid, kind)
    drawn = align(image, grid.size, kind)
    inside = int((drawn >= HALF).sum())
    if not inside:
        named = f"{kind} {region.source}" if isinstance(region.source, str | Path) else kind
        raise InputError(
            f"{named} is black (brightest grey {drawn.max()}, at least {HALF} needed); "
            "paint the region that may change white (255), or leave the mask out"
        )
    return drawn, facts | {"pixels": inside}


def _move(drawn: Sequence[np.ndarray], shift: tuple[int, int], kind: str) -> tuple[np.ndarray, ...]:
    """`move` of each [H, W] uint8; refuses or warns of what leaves the image. Raises InputError."""
    moved = tuple(move(grey, *shift) for grey in drawn)
    before, after = (int((reduce(np.maximum, greys) >= HALF).sum()) for greys in (drawn, moved))
    where = use("shift", (shift[0], shift[1]))
    if not after:
        raise InputError(
            f"{kind} leaves the image by {where} (all {before} pixels); pass a smaller {mention('shift')}",
            field="shift", value=shift,
        )  # fmt: skip
    if after < before:
        log.warning(
            Notice(f"{where} takes %d of the %d pixels of the %s out of the image"), before - after, before, kind
        )
    return moved


def move(grey: np.ndarray, dx: int, dy: int) -> np.ndarray:
    """Move [H, W] right by dx and down by dy pixels: what leaves is lost, what comes in is 0."""
    height, width = grey.shape
    dx, dy = (min(max(pixels, -side), side) for pixels, side in ((dx, width), (dy, height)))
    moved = np.zeros_like(grey)
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = grey[
        max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)
    ]
    return moved


def align(mask: Image, size: tuple[int, int], kind: str = "mask") -> np.ndarray:
    """Bring a picture of a mask onto the grid of its image.

    Args:
        size: (width, height) of the image.

    Returns:
        [H, W] uint8, grey.

    Raises:
        InputError: another aspect ratio than the image's.
    """
    (width, height), (mask_width, mask_height) = size, mask.size
    stretch = (mask_width * height) / (mask_height * width)
    if abs(stretch - 1) > _ASPECT_TOLERANCE:
        raise InputError(
            f"{kind} of {mask_width} x {mask_height} does not have the aspect ratio of the image, {width} x {height} "
            f"({abs(stretch - 1):.0%} apart, at most {_ASPECT_TOLERANCE:.0%}); pass the mask drawn on this image"
        )
    mask = mask.convert("RGB")
    if mask.size != size:
        mask = mask.resize(size, PILImage.Resampling.BILINEAR)
    return np.asarray(mask.convert("L"))


def _owners(numbers: Sequence[int], drawn: Sequence[np.ndarray]) -> np.ndarray | None:
    """Which of the regions' numbers holds at each pixel; outside of all regions, that of the nearest. None for one."""
    most = max(numbers)
    if most == 0:
        return None
    owner = np.zeros(drawn[0].shape, np.uint8 if most < 256 else np.uint16)
    inside = np.zeros(owner.shape, bool)
    for number, grey in zip(numbers, drawn, strict=True):
        owner[grey >= HALF] = number
        inside |= grey >= HALF
    if inside.all():
        return owner
    # Where the regions grow, and at their soft edges, which have a part in the pixels that they are fitted into.
    rows, columns = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    return np.asarray(owner[rows, columns])


def grow(pixels: np.ndarray, radius: int) -> np.ndarray:
    """Add all pixels within `radius` of the region, or, if it is negative, take off those within it of the outside.

    Distances are Euclidean, between centres; beyond the image's border nothing is outside. [H, W] bool.
    """
    if not radius or pixels.all() or not pixels.any():
        return pixels
    if radius > 0:
        return np.asarray(distance_transform_edt(~pixels) <= radius)
    return np.asarray(distance_transform_edt(pixels) > -radius)


def component_sizes(pixels: np.ndarray) -> list[int]:
    """Pixels of each part that is connected by edges or corners, largest first."""
    labels, count = label(pixels, np.ones((3, 3), bool))
    return sorted((int(size) for size in np.bincount(labels.ravel(), minlength=count + 1)[1:]), reverse=True)


def _check(pixels: np.ndarray, components: int | None, kind: str) -> dict[str, Any]:
    """Refuse or warn of what looks like a slip; what provenance says of the ROI's size."""
    sizes, total = component_sizes(pixels), int(pixels.sum())
    listed = ", ".join(map(str, sizes[:_LISTED])) + (", ..." if len(sizes) > _LISTED else "")
    if components is not None and len(sizes) > components:
        raise InputError(
            f"{kind} has {len(sizes)} components of {listed} pixels (at most {components} expected); "
            f"clean it up, or pass {use('components', len(sizes))}",
            field="components",
            value=components,
        )
    specks = [size for size in sizes if size < _SPECKLE * total]
    if specks:
        log.warning(
            "%s has %d component%s of %d to %d pixels, below %g %% of its %d: slips of the pen?",
            kind, len(specks), "s" * (len(specks) > 1), specks[-1], specks[0], 100 * _SPECKLE, total,
        )  # fmt: skip
    if total == pixels.size:
        log.warning("%s covers all of the image: nothing is held to the patient's anatomy", kind)
    return {
        "pixels": total,
        "share": total / pixels.size,
        "components": len(sizes),
        "component_pixels": sizes[:_LISTED],
    }
