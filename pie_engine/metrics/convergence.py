"""Do the rounds of a progression converge, and as the blend predicts? Pure functions on the numbers of one run.

With the same edit d in every round, D_n = beta (D_(n-1) + d): increments are beta^n d, the displacement
D_n = (beta + ... + beta^n) d ends at beta / (1 - beta) d; beta is beta2 inside the region of interest, beta1 outside.
A model is not that simple. If it carries a change over from one round to the next scaled by a, the rate is a beta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pie_engine.errors import InputError, argument
from pie_engine.metrics.decay import CONVERGES, LEAST_ROUNDS, Decay, Trend, judge

# How far a measured rate or displacement may be from what beta predicts, relative to it.
TOLERANCE = 0.05


@dataclass(frozen=True)
class Rounds:
    """Root mean squares in latent units, N of each.

    Attributes:
        increments: of latent_n - latent_(n-1), inside the region of interest.
        displacement: of latent_n - original latent, inside.
        outside: of the same, outside and before compositing; None without an outside.
        channels: `increments` of each latent channel, or None.
    """

    increments: list[float]
    displacement: list[float]
    outside: list[float] | None = None
    channels: list[list[float]] | None = None


@dataclass(frozen=True)
class Comparison:
    """What a constant edit would give, beside what was measured.

    Attributes:
        beta: the blend. edit: estimated from the first round, displacement_1 / beta.
        expected: displacement after N rounds over the edit, beta + ... + beta^N; measured: the same, as it was.
        limit: of `expected` for many rounds, beta / (1 - beta); None for beta = 1.
        agrees: `measured`, and inside the rate too, within 5 % of it.
    """

    beta: float
    edit: float
    expected: float
    measured: float
    limit: float | None
    agrees: bool


@dataclass(frozen=True)
class Convergence:
    """All that is said of one run. `inside` or `outside` is None where nothing can be compared.

    Attributes:
        carried: late rate / beta2: what the model carries of a change from one round into the next; None where
            rounds do not converge.
        remaining: how much further the latents may move, at most, if the late rate, or the last rounds' where that is
            higher, holds; None where they do not converge.
        channels: the trend of each latent channel, or None.
    """

    rounds: Rounds
    floor: float
    trend: Trend
    inside: Comparison | None
    outside: Comparison | None
    carried: float | None
    remaining: float | None
    channels: list[Trend] | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None in its place."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(held) for key, held in value.items()}
            if isinstance(value, list | tuple):
                return [plain(held) for held in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        found: dict[str, Any] = plain(asdict(self))
        return found


def check_convergence(rounds: Rounds, *, beta1: float | None, beta2: float | None, floor: float = 0.0) -> Convergence:
    """Judge one run.

    Args:
        beta1: the blend outside, or None to compare nothing there.
        beta2: the blend inside: 1 for a run without a mask, which blends nothing; None where the regions have
            several, so that no single rate is predicted.
        floor: increments up to this are rounding noise (`rounding_floor`).

    Raises:
        InputError: fewer than three rounds, or numbers that no run gives.
    """
    _check(rounds)
    trend = judge(rounds.increments, floor)
    return Convergence(
        rounds=rounds,
        floor=floor,
        trend=trend,
        inside=None if beta2 is None else compare(rounds.displacement, beta2, trend.decay, inside=True),
        outside=None if rounds.outside is None or beta1 is None else compare(rounds.outside, beta1),
        carried=trend.late.rate / beta2 if trend.late and trend.verdict == CONVERGES and beta2 else None,
        remaining=_remaining(trend, rounds.increments),
        channels=None if rounds.channels is None else [judge(channel, floor) for channel in rounds.channels],
    )


def measure_rounds(latents: np.ndarray, original: np.ndarray, mask: np.ndarray | None = None) -> Rounds:
    """Measure latents where beta is one number: inside where the mask is 1, outside where it is 0.

    A run's own `increment_inside` also counts latents at the region's edge, which blend with less than beta2.

    Args:
        latents: [N, C, h, w]; original: [C, h, w].
        mask: [h, w] in [0, 1], the region at latent resolution, or None for none. If it is nowhere 1, latents at least
            half inside are taken, else those most inside.
    """
    shape = original.shape[1:]
    soft = np.ones(shape) if mask is None else mask
    inside = next(region for region in (soft == 1, soft >= 0.5, soft == soft.max()) if region.any())
    outside = soft == 0
    z0, z = original.astype(np.float64), latents.astype(np.float64)
    steps = np.diff(np.concatenate([z0[None], z]), axis=0)
    return Rounds(
        increments=_rms(steps[..., inside]),
        displacement=_rms((z - z0)[..., inside]),
        outside=_rms((z - z0)[..., outside]) if outside.any() else None,
        channels=[_rms(steps[:, channel, inside]) for channel in range(len(original))],
    )


def compare(
    displacement: Sequence[float], beta: float, decay: Decay | None = None, *, inside: bool = False
) -> Comparison | None:
    """Displacements of rounds 1 to N beside those of a constant edit, which the first round gives.

    Args:
        decay: the increments' fit; `inside`: whether its rate has to agree too.

    Returns:
        None where the first round shows no edit: a beta of 0, or nothing that changed.
    """
    if beta <= 0 or displacement[0] <= 0:
        return None
    edit = displacement[0] / beta
    expected = math.fsum(beta**n for n in range(1, len(displacement) + 1))
    measured = displacement[-1] / edit
    agrees = abs(measured / expected - 1) <= TOLERANCE
    if inside:
        low, high = beta * (1 - TOLERANCE), beta * (1 + TOLERANCE)
        agrees = agrees and decay is not None and decay.low <= high and decay.high >= low
    return Comparison(beta, edit, expected, measured, beta / (1 - beta) if beta < 1 else None, agrees)


def _remaining(trend: Trend, increments: list[float]) -> float | None:
    """The last increment times r + r^2 + ...: the triangle inequality's bound. Rounding noise moves no further."""
    if trend.verdict != CONVERGES:
        return None
    if trend.late is None or trend.recent is None or trend.usable < len(increments):
        return 0.0
    rate = max(trend.late.rate, trend.recent)
    return increments[-1] * rate / (1 - rate) if rate < 1 else None


def _check(rounds: Rounds) -> None:
    sequences = [rounds.increments, rounds.displacement, *([rounds.outside] if rounds.outside is not None else [])]
    count = len(rounds.increments)
    if count < LEAST_ROUNDS:
        raise InputError(
            f"{count} round{'s' * (count != 1)} cannot show convergence (at least {LEAST_ROUNDS} needed); "
            f"run more {argument('steps')}"
        )
    for values in sequences:
        if len(values) != count:
            raise InputError(f"{len(values)} displacements do not fit {count} increments; pass one of each per round")
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise InputError("a change is negative or not finite; run pie-engine run again")


def _rms(values: np.ndarray) -> list[float]:
    """[N, ...] -> one root mean square per round."""
    return [float(value) for value in np.sqrt(np.square(values).reshape(len(values), -1).mean(1))]
