"""The region of interest (ROI): white may change, black is held to the patient's anatomy."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as PILImage
from scipy.ndimage import distance_transform_edt

from pie_engine.config.run import FEATHER
from pie_engine.equality import ByContent
from pie_engine.errors import InputError, Notice, argument, mention, use
from pie_engine.imaging.fitting import fit, kept
from pie_engine.imaging.regions.roi import HALF, Roi, align

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

# The resolution that the default width of the feather is meant for.
_FEATHER_SIDE = 512


@dataclass(frozen=True, eq=False)
class Mask(ByContent):
    """One ROI in the forms that the engine needs.

    Attributes:
        pixels: [H, W] bool, True = may change, at output resolution.
        latent: float32 in [0, 1], [1, H/8, W/8] (engine semantics) or [4, H/8, W/8] (official).
        weight: [H, W] float32 in [0, 1], share of the decoded frame in the composited one; 0 outside the ROI.
        source: [height, width] bool, the ROI in the image's own pixels, before fitting; None in official semantics.
        beta_map: [1, H/8, W/8] float32, area average of each pixel's beta over the ROI: beta2 * latent where all of it
            takes the run's; None in official semantics, where that is all there is.
        facts: what provenance says of it at output resolution.
        finding_weights: [J, 1, H/8, W/8] float32, how much of each latent belongs to each finding, 1 in all, evenly
            where none has a part; None where there is one finding.
    """

    pixels: np.ndarray
    latent: np.ndarray
    weight: np.ndarray
    source: np.ndarray | None = None
    beta_map: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    finding_weights: np.ndarray | None = None


def prepare_mask(
    mask: Image, image_size: tuple[int, int], resolution: int, *, official: bool, scale: int = 8, how: str = "crop"
) -> Mask:
    """Check a mask against its image and bring it to output and latent resolution.

    Args:
        mask: any size with the image's aspect ratio; white = may change.
        image_size: (width, height) of the image it belongs to, before fitting.
        official: as the published code reduces it (soft, four channels) instead of by area average.
        scale: pixels per latent along one side.
        how: as the image is fitted; see `fit`.

    Raises:
        InputError: another aspect ratio than the image's, or nothing may change.
    """
    if not official:
        return fit_roi(Roi(align(mask, image_size)), resolution, scale=scale, how=how)
    fitted = fit(mask, resolution, how)
    if not np.asarray(fitted).any():  # soft, so that any grey counts
        raise InputError(
            f"mask is black at {resolution} x {resolution} (brightest grey 0, above 0 needed); "
            "paint the region that may change white (255), or leave the mask out"
        )
    pixels = binary_mask(fitted)
    return Mask(pixels, official_latent_mask(fitted, scale), feather(pixels))


def fit_roi(
    roi: Roi,
    resolution: int,
    *,
    scale: int = 8,
    how: str = "crop",
    feather_width: int = FEATHER,
    beta2: float = 0.75,
) -> Mask:
    """Bring a ROI to output and latent resolution, exactly as `fit` brings its image there.

    Args:
        feather_width: pixels at output resolution over which the decoded frame fades in, inward from the edge.
        beta2: the blend of regions that have none of their own.

    Raises:
        InputError: nothing of it is left in the square.
    """
    source = roi.pixels
    lost, total = int((source & ~kept(source.shape[::-1], resolution, how)).sum()), int(source.sum())
    if lost and lost == total:
        raise InputError(
            f"mask lies outside the square that {use('fit', how)} takes (all {total} pixels); "
            f"pass {use('fit', 'pad')} or {use('fit', 'stretch')}",
            field="fit",
            value=how,
            limit="pad, stretch",
        )
    if lost and total < source.size:  # a mask of all of the image has been warned of
        log.warning(
            Notice(
                f"{use('fit', how)} cuts off %.2g %% of the mask (%d of %d pixels); pass {use('fit', 'pad')} or "
                f"{use('fit', 'stretch')} to keep it"
            ),
            100 * lost / total, lost, total,
        )  # fmt: skip
    fitted = fit_grey(roi.drawn, resolution, how)
    pixels = fitted >= HALF
    if not pixels.any():
        raise InputError(
            f"mask is black at {resolution} x {resolution} (brightest grey {fitted.max()}, at least {HALF} needed; "
            f"{total} pixels in the image); paint the region that may change white (255) and larger, or leave it out"
        )
    facts: dict[str, Any] = {
        "output_pixels": int(pixels.sum()),
        "output_share": float(pixels.mean()),
        "cut_off_pixels": lost,
    }
    latent = latent_mask(pixels, scale)

    def divided(owner: np.ndarray | None, count: int) -> list[np.ndarray]:
        return [latent_mask(part, scale) for part in _split(roi.drawn, owner, count, pixels, resolution, how)]

    parts = divided(roi.owner, len(roi.betas))
    betas = [np.float32(beta2 if beta is None else beta) for beta in roi.betas]
    beta_map = sum((beta * part for beta, part in zip(betas, parts, strict=True)), np.zeros_like(latent))
    findings = divided(roi.finding, roi.findings)
    finding_weights = _finding_weights(findings, latent)
    if finding_weights is not None:
        facts["finding_shares"] = [float(part.mean()) for part in findings]
        if not all(facts["finding_shares"]):
            number = 1 + facts["finding_shares"].index(0)
            raise InputError(
                f"finding {number} of {len(finding_weights)} has nothing of its region left at {resolution} x "
                f"{resolution}; pass a larger mask for it or a smaller {argument('keep')}, or put it after the "
                "finding that covers it",
                field="mask",
            )
    return Mask(pixels, latent, feather(pixels, feather_width), source, beta_map, facts, finding_weights)


def _finding_weights(parts: list[np.ndarray], latent: np.ndarray) -> np.ndarray | None:
    """`Mask.finding_weights` of what each finding has of the ROI in each latent, [1, h, w]; `latent` is their sum."""
    if len(parts) == 1:
        return None
    covered = np.stack(parts)
    return np.divide(covered, latent, out=np.full_like(covered, 1 / len(parts)), where=latent > 0)


def fit_grey(grey: np.ndarray, resolution: int, how: str) -> np.ndarray:
    """`fit` of one channel: [H, W] uint8 -> [R, R] uint8."""
    return np.asarray(fit(PILImage.fromarray(grey), resolution, how).convert("L"))


def _split(
    drawn: np.ndarray, owner: np.ndarray | None, count: int, pixels: np.ndarray, resolution: int, how: str
) -> list[np.ndarray]:
    """The fitted ROI, [R, R] bool, in `count` parts by their owners: that of which most lies in a pixel.

    Args:
        drawn, owner: see `Roi`.
        pixels: [R, R] bool, the whole of it.
    """
    if owner is None:
        return [pixels]
    greys = [fit_grey(np.where(owner == index, drawn, np.uint8(0)), resolution, how) for index in range(count)]
    # Where two have as much of a pixel, the later one holds, as it does where they overlap.
    winner = len(greys) - 1 - np.argmax(np.stack(greys[::-1]), axis=0)
    return [pixels & (winner == index) for index in range(count)]


def binary_mask(fitted: Image) -> np.ndarray:
    """[H, W] bool: at least half white after fitting."""
    return np.asarray(fitted.convert("L")) >= HALF


def latent_mask(pixels: np.ndarray, scale: int = 8) -> np.ndarray:
    """Area average of the binary mask at 1/scale: [H, W] bool -> [1, H/8, W/8] float32."""
    height, width = pixels.shape
    blocks = pixels.reshape(height // scale, scale, width // scale, scale)
    return blocks.mean(axis=(1, 3), dtype=np.float32)[None]


def official_latent_mask(fitted: Image, scale: int = 8) -> np.ndarray:
    """What the published code's OpenCV INTER_LINEAR reduction to 1/8 gives on 8-bit values.

    It samples between the two middle pixels of each block: (sum of the 4 centre pixels + 2) >> 2. The four
    channels are R, G, B and R again. Returns [4, H/8, W/8] float32 in [0, 1].
    """
    values = np.asarray(fitted.convert("RGB")).astype(np.uint16)
    before, after = values[(scale - 1) // 2 :: scale], values[scale // 2 :: scale]
    middle = ((scale - 1) // 2, scale // 2)
    centre = np.stack([rows[:, start::scale] for rows in (before, after) for start in middle]).sum(axis=0)
    reduced = ((centre + 2) >> 2).astype(np.float32) / 255.0
    return np.ascontiguousarray(reduced.transpose(2, 0, 1)[[0, 1, 2, 0]])


def feather(pixels: np.ndarray, width: int = FEATHER) -> np.ndarray:
    """Ramp from the ROI's edge inward over `width` pixels: [H, W] bool -> [H, W] float32, 0 outside the ROI.

    Inward only, so that no pixel outside the ROI can change; the image's own border is not an edge.
    """
    if pixels.all():
        return np.ones(pixels.shape, np.float32)
    distance = distance_transform_edt(pixels)
    return np.clip(distance / (width + 1), 0, 1).astype(np.float32)


def warn_of_feather(mask: Mask, width: int) -> None:
    """Warn where less than half of the region keeps full weight: the frames show little of what was simulated there.

    The width is counted in pixels of the output, so that it takes more of a region the smaller the output is.

    Args:
        width: what `mask.weight` was made with.
    """
    total, full = int(mask.pixels.sum()), int((mask.weight[mask.pixels] == 1).sum())
    if 2 * full < total:
        side = mask.pixels.shape[0]
        scaled = min(width - 1, round(FEATHER * side / _FEATHER_SIDE))  # as wide, in the patient, as at 512
        log.warning(
            Notice(
                f"{mention('feather')} %d leaves %.0f %% of the mask at full weight (%d of %d pixels at %d x %d, at "
                f"least half expected); pass {use('feather', scaled)}"
            ),
            width, 100 * full / total, full, total, side, side,
        )  # fmt: skip
