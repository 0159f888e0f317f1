"""How alike two pictures are, inside and outside the region of interest (ROI), and how steadily a series rises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from scipy.stats import spearmanr

from pie_engine.errors import BackendError, InputError
from pie_engine.metrics.change import grey_differences

# Side of SSIM's Gaussian window in pixels (sigma 1.5, cut off at 3.5 sigma).
WINDOW = 11
_WHITE = 255.0


@dataclass(frozen=True)
class Similarity:
    """One picture against its reference; None where a region has no pixel. Without a ROI everything is inside.

    Attributes:
        ssim_inside, ssim_outside: mean of the SSIM map over the region; 1 is equal, at least -1.
        psnr_inside, psnr_outside: decibels; infinite where the regions are equal.
        change_inside: mean absolute difference in grey levels, 0 to 255.
        leakage_mean, leakage_p95: the same outside the ROI, and the 95th percentile there, interpolated linearly.
    """

    ssim_inside: float | None
    ssim_outside: float | None
    psnr_inside: float | None
    psnr_outside: float | None
    change_inside: float | None
    leakage_mean: float | None
    leakage_p95: float | None

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, which has no infinity: None in its place."""
        return {name: value if value is None or math.isfinite(value) else None for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Monotonicity:
    """How steadily a series of N + 1 values rises.

    Attributes:
        rising: share of the N rounds whose value is greater than the one before.
        rho: Spearman's rank correlation of value and round, -1 to 1; None where all values are equal.
        linearity: R squared of the straight line through the values over the rounds, 0 to 1; None likewise.
    """

    rising: float
    rho: float | None
    linearity: float | None


def measure_similarity(image: np.ndarray, reference: np.ndarray, roi: np.ndarray | None = None) -> Similarity:
    """Every measure of one picture.

    Args:
        image, reference: [H, W, 3] uint8.
        roi: [H, W] bool, True = inside; None for all of the picture.

    Raises:
        InputError: another shape or dtype, or pictures smaller than SSIM's window.
        BackendError: torchmetrics is not installed.
    """
    inside = np.ones(image.shape[:2], bool) if roi is None else roi
    if inside.shape != image.shape[:2] or inside.dtype != np.bool_:
        raise InputError(
            f"the region of interest is {inside.dtype} {list(inside.shape)} and the picture {list(image.shape[:2])}; "
            "pass bool of the picture's height and width"
        )
    similar, differences = ssim_map(image, reference), grey_differences(image, reference)

    def over(region: np.ndarray, values: np.ndarray) -> float | None:
        return float(values[region].mean()) if region.any() else None

    return Similarity(
        ssim_inside=over(inside, similar),
        ssim_outside=over(~inside, similar),
        psnr_inside=psnr(image, reference, inside) if inside.any() else None,
        psnr_outside=psnr(image, reference, ~inside) if not inside.all() else None,
        change_inside=over(inside, differences),
        leakage_mean=over(~inside, differences),
        leakage_p95=float(np.percentile(differences[~inside], 95)) if not inside.all() else None,
    )


def ssim_map(image: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity at every pixel (Wang et al. 2004): the mean over the three channels, in float32.

    float64 would take 25 times as long. A variance is E[x^2] - E[x]^2 here, which float32 rounds by up to about
    4 * 2^-24 * 255^2 = 0.016; against the constant 58.5 beside it that moves a single pixel by less than 3e-4.

    Gaussian window of 11 x 11 pixels, sigma 1.5, K1 0.01, K2 0.03, data range 255, variances over the window without
    Bessel's correction; beyond the border the picture is mirrored at its outermost pixels. The window of a pixel within
    five of a region's edge sees both sides of it.

    Args:
        image, reference: [H, W, 3] uint8, at least 11 x 11.

    Returns:
        [H, W] float32.

    Raises:
        InputError, BackendError: see `measure_similarity`.
    """
    _check_pair(image, reference)
    if min(image.shape[:2]) < WINDOW:
        raise InputError(
            f"a picture of {image.shape[1]} x {image.shape[0]} pixels is smaller than SSIM's window; "
            f"pass at least {WINDOW} x {WINDOW}"
        )
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise BackendError("SSIM needs torchmetrics, which is missing; pip install 'pie-engine[eval]'") from error
    pair = (torch.from_numpy(picture.astype(np.float32)).permute(2, 0, 1)[None] for picture in (image, reference))
    _, full = structural_similarity_index_measure(*pair, data_range=_WHITE, return_full_image=True)
    return np.asarray(full[0].mean(0).numpy())


def sharpness(image: np.ndarray, region: np.ndarray | None = None) -> float:
    """Mean length of the luma's gradient (central differences), in grey levels per pixel; blur lowers it.

    Args:
        image: [H, W, 3] uint8.
        region: [H, W] bool with at least one True, or None for all of the picture.
    """
    down, right = np.gradient(image @ np.array([0.299, 0.587, 0.114]))
    lengths = np.hypot(down, right)
    return float((lengths if region is None else lengths[region]).mean())


def psnr(image: np.ndarray, reference: np.ndarray, region: np.ndarray | None = None) -> float:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared error), in decibels; infinite for equal pictures.

    Args:
        image, reference: [H, W, 3] uint8.
        region: [H, W] bool with at least one True, or None for all of the picture.

    Raises:
        InputError: another shape or dtype, or an empty region.
    """
    _check_pair(image, reference)
    differences = grey_differences(image, reference).astype(np.float64)
    if region is not None:
        if not region.any():
            raise InputError("PSNR over a region of 0 pixels is not defined; pass a region that holds at least 1")
        differences = differences[region]
    error = float(np.mean(np.square(differences)))
    return 10 * math.log10(_WHITE**2 / error) if error else math.inf


def monotonicity(series: Sequence[float]) -> Monotonicity:
    """How steadily a series over rounds 0 to N rises.

    Args:
        series: N + 1 finite values, the input's first.

    Raises:
        InputError: fewer than two values, or one that is not finite.
    """
    values = np.asarray(series, np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise InputError(
            f"a series of {values.size} values is too short or holds one that is not finite; "
            "pass at least 2 finite values, the input's first"
        )
    rising = float(np.mean(np.diff(values) > 0))
    if (values == values[0]).all():
        return Monotonicity(rising, None, None)
    rounds = np.arange(len(values))
    return Monotonicity(
        rising, float(spearmanr(rounds, values).statistic), float(np.corrcoef(rounds, values)[0, 1] ** 2)
    )


def _check_pair(image: np.ndarray, reference: np.ndarray) -> None:
    for picture in (image, reference):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"expected uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}; convert it first")
    if image.shape != reference.shape:
        raise InputError(
            f"pictures of {list(image.shape)} and {list(reference.shape)} cannot be compared; resize one of them first"
        )
