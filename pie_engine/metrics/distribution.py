"""How far two sets of pictures are apart as distributions of features: FID and KID, over any feature extractor.

Computed from the definitions in float64; the tests hold them to torchmetrics and to closed forms.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pie_engine.errors import InputError

# [N, H, W, 3] uint8 -> [N, D] floating point: `ClipEncoder.features`, a network of one's own, anything.
Extractor = Callable[[np.ndarray], np.ndarray]


def fid(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two sets' features as if both were normal (Heusel et al. 2017); 0 or more, 0 is equal.

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with unbiased covariances. The estimate is biased upwards, the more the
    fewer samples there are: compare only FIDs of the same sample sizes. With no more samples than features a covariance
    has no full rank and the figure means nothing: refused.

    Args:
        first, second: [N, D] and [M, D] features, N and M greater than D.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or too few samples.
    """
    one, two = _check(first, second)
    features, fewest = one.shape[1], min(len(one), len(two))
    if fewest <= features:
        raise InputError(
            f"FID of {fewest} samples with {features} features means nothing, as their covariance has no full rank; "
            f"pass at least {features + 1} samples (ten times as many are better), or use KID"
        )
    apart = np.square(one.mean(axis=0) - two.mean(axis=0)).sum()
    s1, s2 = (
        np.cov(one, rowvar=False).reshape(features, features),
        np.cov(two, rowvar=False).reshape(features, features),
    )
    # S1 S2 has the eigenvalues of the symmetric R S2 R with R = S1^(1/2); rounding makes zeros slightly negative.
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    return float(max(0.0, apart + np.trace(s1) + np.trace(s2) - 2 * cross))


def kid(first: np.ndarray, second: np.ndarray) -> float:
    """Kernel distance of two sets' features (Binkowski et al. 2018): unbiased, so 0 on average for equal distributions.

    The squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, over all samples at once (no subsets); a
    single value can be below 0. Usable from a handful of samples on, with a spread that shrinks as they grow.

    Args:
        first, second: [N, D] and [M, D] features, at least two samples each.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or a single sample.
    """
    one, two = _check(first, second)
    if min(len(one), len(two)) < 2:
        raise InputError(f"KID of {len(one)} and {len(two)} samples is not defined; pass at least 2 each")

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / one.shape[1] + 1) ** 3

    def within(a: np.ndarray) -> float:
        values = kernel(a, a)
        return float((values.sum() - np.trace(values)) / (len(a) * (len(a) - 1)))

    return within(one) + within(two) - 2 * float(kernel(one, two).mean())


def features_of(images: np.ndarray, extractor: Extractor, batch: int = 16) -> np.ndarray:
    """Features of [N, H, W, 3] uint8 by an extractor that is called with `batch` pictures at a time; [N, D] float64.

    Raises:
        InputError: the extractor gives something else than one row of features per picture.
    """
    found = []
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        rows = np.asarray(extractor(some), np.float64)
        if rows.ndim != 2 or len(rows) != len(some):
            raise InputError(f"the feature extractor gave {list(rows.shape)} for {len(some)} pictures; return [N, D]")
        found.append(rows)
    return np.concatenate(found)


def _check(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    one, two = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1] or not one.shape[1]:
        raise InputError(
            f"features {list(one.shape)} and {list(two.shape)} cannot be compared; pass [N, D] and [M, D] with one D"
        )
    if not (np.isfinite(one).all() and np.isfinite(two).all()):
        raise InputError("features hold values that are not finite; run the extractor in fp32")
    return one, two
