"""SSIM, PSNR, leakage and monotonicity: against scikit-image's figures, plain loops and values worked out by hand."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from pie_engine.errors import BackendError, InputError
from pie_engine.metrics.similarity import measure_similarity, monotonicity, psnr, sharpness, ssim_map

# Of float32 at 255 levels, a single pixel's at worst: see `ssim_map`.
SSIM_ROUNDING = 3e-4


def pictures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth picture, the same with a pattern over it, and a region; [40, 48, 3]. The figures below belong to it."""
    y, x, c = np.mgrid[:40, :48, :3]
    clean = (128 + 60 * np.sin(x / 5 + c) + 50 * np.cos(y / 4)).round().astype(np.uint8)
    noisy = np.clip(clean.astype(int) + ((x * 5 + y * 3 + c * 7) % 23 - 11), 0, 255).astype(np.uint8)
    roi = np.zeros((40, 48), bool)
    roi[10:30, 12:34] = True
    return clean, noisy, roi


def test_ssim_and_psnr_against_scikit_image() -> None:
    """scikit-image 0.26.0: structural_similarity(a, b, channel_axis=2, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, full=True), averaged over the region; peak_signal_noise_ratio.

    It mirrors the border differently, so five pixels of it are left out of the map outside the region.
    """
    clean, noisy, roi = pictures()
    found = measure_similarity(noisy, clean, roi)
    assert found.ssim_inside == pytest.approx(0.9204176018938999, abs=SSIM_ROUNDING)
    band = np.zeros_like(roi)
    band[5:-5, 5:-5] = True
    assert ssim_map(noisy, clean)[band & ~roi].mean() == pytest.approx(0.9372373257708976, abs=SSIM_ROUNDING)
    assert found.psnr_inside == pytest.approx(31.69627684381723, abs=1e-10)
    assert found.psnr_outside == pytest.approx(31.69705498000916, abs=1e-10)
    assert psnr(noisy, clean) == pytest.approx(31.69687664481717, abs=1e-10)


def test_ssim_up_to_the_border_by_plain_loops() -> None:
    """Wang's formula, window by window, on the picture mirrored at its outermost pixels."""
    clean, noisy, _ = pictures()
    weights = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    pad = ((5, 5), (5, 5), (0, 0))
    one, two = (np.pad(picture.astype(float), pad, mode="reflect") for picture in (noisy, clean))
    full = ssim_map(noisy, clean)
    for row, column in ((0, 0), (0, 47), (39, 20), (3, 2), (20, 20)):
        values = []
        for channel in range(3):
            a, b = (p[row : row + 11, column : column + 11, channel] for p in (one, two))
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb, cov = (
                (window * a * a).sum() - ma**2,
                (window * b * b).sum() - mb**2,
                (window * a * b).sum() - ma * mb,
            )
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
        assert full[row, column] == pytest.approx(np.mean(values), abs=SSIM_ROUNDING)


def test_change_and_leakage_by_hand() -> None:
    """Inside 6 grey levels; outside nothing in 90 of 100 pixels, 10 levels in nine and 100 in one."""
    reference = np.full((11, 20, 3), 100, np.uint8)
    roi = np.zeros((11, 20), bool)
    roi.flat[100:] = True
    image = reference.copy()
    image[roi] = 106
    flat = image.reshape(-1, 3)
    flat[:9], flat[9] = 110, 200
    found = measure_similarity(image, reference, roi)
    assert found.change_inside == 6
    assert found.leakage_mean == pytest.approx((9 * 10 + 100) / 100)
    assert found.leakage_p95 == 10  # of 300 sorted values, 270 zeros, 27 tens: place 284.05
    assert found.psnr_inside == pytest.approx(10 * math.log10(255**2 / 36))
    assert found.psnr_outside == pytest.approx(10 * math.log10(255**2 / ((9 * 100 + 10_000) / 100)))


def test_equal_pictures_and_regions_without_pixels() -> None:
    clean, noisy, roi = pictures()
    same = measure_similarity(clean, clean, roi)
    assert (same.ssim_inside, same.ssim_outside) == (pytest.approx(1), pytest.approx(1))
    assert (same.psnr_inside, same.change_inside, same.leakage_mean, same.leakage_p95) == (math.inf, 0, 0, 0)
    assert same.to_dict()["psnr_inside"] is None
    whole = measure_similarity(noisy, clean)
    assert (whole.ssim_outside, whole.psnr_outside, whole.leakage_mean, whole.leakage_p95) == (None,) * 4
    assert whole.psnr_inside == psnr(noisy, clean)
    nothing = measure_similarity(noisy, clean, np.zeros_like(roi))
    assert (nothing.ssim_inside, nothing.psnr_inside, nothing.change_inside) == (None,) * 3
    assert nothing.ssim_outside == whole.ssim_inside


def test_monotonicity_by_hand() -> None:
    """Ranks of 1, 3, 2, 5 are 1, 3, 2, 4: rho = 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15) = 0.8; two of three steps rise."""
    found = monotonicity([1, 3, 2, 5])
    assert (found.rising, found.rho) == (pytest.approx(2 / 3), pytest.approx(0.8))
    assert monotonicity([0.1, 0.2, 0.9]).rho == pytest.approx(1)
    down = monotonicity([3, 2, 2, 1])  # ranks 4, 2.5, 2.5, 1 from their mean: 1.5, 0, 0, -1.5
    assert (down.rising, down.rho) == (0, pytest.approx(-4.5 / math.sqrt(4.5 * 5)))
    still = monotonicity([2, 2, 2])
    assert (still.rho, still.linearity) == (None, None)
    # Of 0, 1, 4 over 0, 1, 2: covariance 4, variances 2 and 26 / 3.
    assert monotonicity([0, 1, 4]).linearity == pytest.approx(16 / (2 * 26 / 3))
    assert monotonicity([5, 3, 1]).linearity == pytest.approx(1)


def test_sharpness_is_the_slope_of_greys() -> None:
    ramp = np.repeat((5 * np.arange(12, dtype=np.uint8))[None, :, None], 12, axis=0).repeat(3, axis=2)
    assert sharpness(ramp) == pytest.approx(5)
    half = np.zeros((12, 12), bool)
    half[:, :5] = True
    step = np.where(np.arange(12)[None, :, None] < 6, 0, 60).repeat(12, axis=0).repeat(3, axis=2).astype(np.uint8)
    assert sharpness(step, half) == 0
    assert sharpness(step, ~half) == pytest.approx(2 * 30 / 7)  # of seven columns, two see half of the step


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, noisy, roi = pictures()
    for call, line in (
        (lambda: measure_similarity(clean, noisy[:, :-1]), "cannot be compared"),
        (lambda: measure_similarity(clean.astype(float), noisy), r"expected uint8 \[H, W, 3\], got float64"),
        (lambda: measure_similarity(clean, noisy, roi.astype(np.uint8)), "the region of interest is uint8"),
        (lambda: measure_similarity(clean, noisy, roi[1:]), r"the region of interest is bool \[39, 48\]"),
        (lambda: ssim_map(clean[:10], noisy[:10]), "at least 11 x 11"),
        (lambda: psnr(clean, noisy, np.zeros_like(roi)), "0 pixels"),
        (lambda: monotonicity([1.0]), "at least 2 finite values"),
        (lambda: monotonicity([1.0, math.nan]), "at least 2 finite values"),
    ):
        with pytest.raises(InputError, match=line):
            call()
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(BackendError, match=r"pip install 'pie-engine\[eval\]'"):
        ssim_map(clean, noisy)
