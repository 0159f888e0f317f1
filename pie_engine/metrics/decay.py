"""How fast a sequence of increments dies out: a geometric decay, its confidence interval, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.stats import t

from pie_engine.errors import InputError, argument

CONFIDENCE = 0.95
# Three points leave one degree of freedom for the scatter about a line.
LEAST_ROUNDS = 3
# What the verdict looks at: the later half of the rounds, but no fewer than these (or all, where there are fewer).
LATE_ROUNDS = 5
# Increments that stay above this share of the one before take 6.6 rounds to halve: not converging, for a progression.
SLOWEST = 0.9
# Rates that fp32 does not tell apart: an increment that should stay the same drifts by as much.
_EXACT = 1e-6
# A scaled latent has a standard deviation of about 1; rounding noise of a round is some roundoffs of the precision.
_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
_ROUNDOFFS = 8
# Rounding noise varies from round to round; beyond this many floors it is something else.
_AGAIN = 4

CONVERGES, DIVERGES, UNDECIDED = "converges", "does not converge", "undecided"


@dataclass(frozen=True)
class Decay:
    """increment_n = start rate^n, fitted to the rounds `first` to `last`.

    Attributes:
        rate: r; low, high: its 95 % confidence interval, from the residuals.
        start: the fitted line at n = 0.
        scatter: standard deviation of the residuals of the logarithm.
        half_life: rounds in which increments halve; None where they do not shrink.
    """

    rate: float
    low: float
    high: float
    start: float
    scatter: float
    half_life: float | None
    first: int
    last: int


@dataclass(frozen=True)
class Trend:
    """Whether increments die out.

    Attributes:
        verdict: "converges", "does not converge" or "undecided"; reason: why, in words.
        decay: fitted to all rounds before rounding noise; None for fewer than three of them.
        late: fitted to the later half of them; what the verdict rests on.
        ratios: lowest and highest ratio of an increment to the one before; None for fewer than two increments.
        recent: geometric mean of the last two ratios; None for fewer than three increments.
        usable: rounds before the first increment that is no more than rounding noise.
        rounds_needed: about how many rounds would decide, if the scatter stays; None where it is decided.
    """

    verdict: str
    reason: str
    decay: Decay | None
    late: Decay | None
    ratios: tuple[float, float] | None
    recent: float | None
    usable: int
    rounds_needed: int | None = None

    @property
    def rising(self) -> bool:
        """Whether the last two ratios lie above the late rate's interval: the rounds to come may shrink more slowly."""
        return self.late is not None and self.recent is not None and self.recent > self.late.high + _EXACT


def rounding_floor(precision: str) -> float:
    """The increment below which nothing is measured, in latent units: eight roundoffs of "fp32", "fp16" or "bf16"."""
    return _ROUNDOFFS * _ROUNDOFF[precision]


def fit_decay(increments: Sequence[float], first: int = 1) -> Decay:
    """Least squares on the logarithm, every round with the same weight.

    An increment is a root mean square over many latents, so its error is a share of it, and the same in every
    logarithm. The interval takes residuals as independent; where the rate itself changes over the rounds, they are
    not, and it is too narrow for a later round's rate.

    Args:
        increments: at least three, positive. first: the number of their first round.

    Raises:
        InputError: fewer, or one that is not positive.
    """
    values = np.asarray(increments, np.float64)
    count = len(values)
    if count < LEAST_ROUNDS:
        raise InputError(
            f"{count} increments cannot be fitted (at least {LEAST_ROUNDS} needed); run more {argument('steps')}"
        )
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise InputError(f"an increment of {values.min():g} has no logarithm; leave out what is rounding noise")
    n, logs = np.arange(first, first + count), np.log(values)
    spread = float(((n - n.mean()) ** 2).sum())
    slope = float(((n - n.mean()) * (logs - logs.mean())).sum()) / spread
    offset = float(logs.mean() - slope * n.mean())
    scatter = math.sqrt(float(((logs - offset - slope * n) ** 2).sum()) / (count - 2))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, count - 2)) * scatter / math.sqrt(spread)
    return Decay(
        rate=math.exp(slope),
        low=_exp(slope - half),
        high=_exp(slope + half),
        start=_exp(offset),
        scatter=scatter,
        half_life=-math.log(2) / slope if slope < 0 else None,
        first=first,
        last=first + count - 1,
    )


def judge(increments: Sequence[float], floor: float = 0.0) -> Trend:
    """The verdict on one sequence of increments, from round 1 on.

    - converges: increments fall to rounding noise, or the interval of the late rate lies below 1;
    - does not converge: the interval reaches 1, and all of it lies above 0.9;
    - undecided: anything else.
    """
    count = len(increments)
    usable = next((index for index, value in enumerate(increments) if value <= floor), count)
    values = increments[:usable]
    ratios = [after / before for before, after in pairwise(values)]
    extremes = (min(ratios), max(ratios)) if ratios else None
    recent = math.sqrt(ratios[-1] * ratios[-2]) if len(ratios) > 1 else None
    decay = fit_decay(values) if usable >= LEAST_ROUNDS else None
    if decay is None and usable == count:
        needed = LEAST_ROUNDS
        return Trend(
            UNDECIDED, f"{count} rounds, and a rate needs {needed}", None, None, extremes, recent, usable, needed
        )
    taken = min(usable, max(LATE_ROUNDS, math.ceil(usable / 2)))
    late = fit_decay(values[-taken:], usable - taken + 1) if decay is not None else None
    if not any(increments):
        return Trend(CONVERGES, "nothing changes in any round", None, None, None, None, 0)
    if usable < count and max(increments[usable:]) > _AGAIN * floor:
        reason = f"increments rise again after rounding noise in round {usable + 1}"
        return Trend(UNDECIDED, reason, decay, late, extremes, recent, usable, 2 * count)
    if usable < count:
        reason = f"increments are down to rounding noise ({floor:.1e}) in round {usable + 1}"
        return Trend(CONVERGES, reason, decay, late, extremes, recent, usable)
    assert late is not None
    interval = f"the late rate's interval, {late.low:.3f} to {late.high:.3f},"
    if late.high < 1 - _EXACT:
        return Trend(CONVERGES, f"{interval} lies below 1", decay, late, extremes, recent, usable)
    if late.low > SLOWEST:
        reason = f"{interval} is not below 1, and all above {SLOWEST:g}"
        return Trend(DIVERGES, reason, decay, late, extremes, recent, usable)
    reason = f"{interval} holds both 1 and rates below {SLOWEST:g}"
    return Trend(UNDECIDED, reason, decay, late, extremes, recent, usable, _needed(late, usable))


def _needed(late: Decay, usable: int) -> int:
    """Rounds after which the interval is narrow enough for either verdict, if slope and scatter stay as they are."""
    slope = math.log(late.rate)
    # Below 1, or above the slowest rate that counts: whichever is further off, and so reached first.
    goal = max(-slope, slope - math.log(SLOWEST))
    count = late.last - late.first + 1
    while float(t.ppf(0.5 + CONFIDENCE / 2, count - 2)) * late.scatter * math.sqrt(12 / (count**3 - count)) >= goal:
        count += 1
    return max(usable + 1, 2 * count if count > LATE_ROUNDS else count)


def _exp(exponent: float) -> float:
    """e to a power, infinite where it overflows: an interval from three scattered points is that wide."""
    return math.exp(exponent) if exponent < 700 else math.inf
