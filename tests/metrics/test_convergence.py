"""The decay fit and its verdict on planted sequences; the comparison with beta against closed forms."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import linregress, t

from pie_engine.errors import InputError
from pie_engine.metrics.convergence import Rounds, check_convergence, compare, measure_rounds
from pie_engine.metrics.decay import fit_decay, judge, rounding_floor


def planted(start: float, rate: float, rounds: int) -> list[float]:
    return [start * rate**n for n in range(1, rounds + 1)]


def constant_edit(beta: float, rounds: int, edit: float = 0.4) -> tuple[list[float], list[float]]:
    """Increments and displacements of D_n = beta (D_(n-1) + edit), step by step."""
    displacement, increments = [0.0], []
    for _ in range(rounds):
        displacement.append(beta * (displacement[-1] + edit))
        increments.append(displacement[-1] - displacement[-2])
    return increments, displacement[1:]


def test_an_exact_decay_is_found() -> None:
    decay = fit_decay(planted(0.4, 0.6, 10))
    assert [decay.rate, decay.start, decay.half_life] == pytest.approx([0.6, 0.4, 1.356915], rel=1e-6)
    assert [decay.low, decay.high] == pytest.approx([0.6, 0.6], rel=1e-9)
    assert (decay.first, decay.last) == (1, 10)
    assert decay.scatter < 1e-12
    late = fit_decay(planted(0.4, 0.6, 10)[4:], first=5)
    assert (late.first, late.last) == (5, 10)
    assert late.start == pytest.approx(0.4, rel=1e-9)


def test_three_points_by_hand() -> None:
    """Logarithms 0, -1, -1.7: slope -0.85, residuals 0.05, -0.1, 0.05, one degree of freedom with t = 12.7062."""
    decay = fit_decay([1.0, math.exp(-1), math.exp(-1.7)])
    assert math.log(decay.rate) == pytest.approx(-0.85)
    assert decay.scatter == pytest.approx(math.sqrt(0.015))
    half = 12.7062 * math.sqrt(0.015) / math.sqrt(2)
    assert [math.log(decay.low), math.log(decay.high)] == pytest.approx([-0.85 - half, -0.85 + half], rel=1e-5)


def test_the_interval_is_that_of_scipys_regression() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, 12)
    values = np.array(planted(2.0, 0.8, 12)) * np.exp(noise)
    decay, expected = fit_decay(list(values)), linregress(np.arange(1, 13), np.log(values))
    half = t.ppf(0.975, 10) * expected.stderr
    assert [math.log(decay.rate), math.log(decay.low), math.log(decay.high), math.log(decay.start)] == pytest.approx(
        [expected.slope, expected.slope - half, expected.slope + half, expected.intercept], rel=1e-9
    )


@pytest.mark.parametrize("rounds", [5, 20])
def test_the_interval_covers_the_truth_as_often_as_it_says(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    truth, count = 0.7, 600
    fits = [fit_decay(np.array(planted(1.0, truth, rounds)) * np.exp(rng.normal(0, 0.1, rounds))) for _ in range(count)]
    covered = sum(fit.low <= truth <= fit.high for fit in fits)
    # Four standard deviations of a binomial around 95 %.
    assert abs(covered / count - 0.95) < 4 * math.sqrt(0.95 * 0.05 / count)


@pytest.mark.parametrize(
    ("increments", "verdict"),
    [
        (planted(0.4, 0.75, 10), "converges"),
        (planted(0.4, 0.999, 10), "converges"),
        ([0.2] * 10, "does not converge"),
        (planted(0.01, 1.3, 10), "does not converge"),
        ([*planted(1.0, 0.5, 10), *[0.5**10] * 10], "does not converge"),  # what counts is where it goes
        ([*[0.2] * 10, *planted(0.2, 0.5, 10)], "converges"),
        ([0.0] * 5, "converges"),
        ([0.3, 0.2], "undecided"),
        ([0.3], "undecided"),
    ],
)
def test_verdicts(increments: list[float], verdict: str) -> None:
    assert judge(increments).verdict == verdict


def test_noise_about_a_level_does_not_converge() -> None:
    values = 0.16 * np.exp(np.random.default_rng(3).normal(0, 0.15, 40))
    trend = judge(list(values))
    assert trend.verdict == "does not converge"
    assert trend.late is not None
    assert trend.late.low < 1 < trend.late.high
    assert (trend.late.first, trend.late.last) == (21, 40)


def test_too_few_rounds_say_how_many_are_needed() -> None:
    """Logarithms 0.3, -0.3, 0.3, -0.3, 0.3: slope 0, residuals 0.24 and -0.36, scatter sqrt(0.432 / 3) = 0.379.

    Rates down to 0.9, 0.105 below in the logarithm, are out once t(m - 2) 0.379 sqrt(12 / (m^3 - m)) < 0.105 for m late
    rounds: 2.365 x 0.379 x 0.1291 = 0.116 for nine, 2.306 x 0.379 x 0.1101 = 0.096 for ten, half of twenty.
    """
    trend = judge([math.exp(0.3 * (-1) ** n) for n in range(5)])
    assert (trend.verdict, trend.rounds_needed) == ("undecided", 20)
    assert judge([0.3, 0.2]).rounds_needed == 3
    assert judge(planted(1.0, 0.5, 5)).rounds_needed is None


def test_rounding_noise_ends_the_fit() -> None:
    """Halves from 1/2 on reach eight roundoffs of fp32, 2^-21, in round 21."""
    floor = rounding_floor("fp32")
    assert floor == 2.0**-21
    noise = list(1e-7 * np.exp(np.random.default_rng(0).normal(0, 0.1, 19)))
    trend = judge([*planted(1.0, 0.5, 21), *noise], floor)
    assert (trend.verdict, trend.usable) == ("converges", 20)
    assert "rounding noise (4.8e-07) in round 21" in trend.reason
    assert trend.decay is not None
    assert trend.late is not None
    assert trend.decay.rate == pytest.approx(0.5, rel=1e-12)
    assert (trend.late.first, trend.late.last) == (11, 20)
    assert judge([0.3, 0.0, 0.0, 0.0]).reason.endswith("in round 2")  # too few to fit, and still it has stopped
    assert judge([0.3, 0.0, 0.0, 0.0]).decay is None
    again = judge([0.3, 0.1, 0.0, 0.2, 0.1])
    assert (again.verdict, again.rounds_needed) == ("undecided", 10)


def test_half_precision_has_a_higher_floor() -> None:
    """Eight times 2^-11 and 2^-8, the largest relative errors of rounding to 11 and 8 significant bits."""
    assert [rounding_floor("fp16"), rounding_floor("bf16")] == [2.0**-8, 2.0**-5]


def test_ratios() -> None:
    trend = judge([8.0, 4.0, 1.0, 0.9, 0.81])
    assert trend.ratios == pytest.approx((0.25, 0.9))
    assert trend.recent == pytest.approx(0.9)
    assert trend.rising  # the interval ends at 0.864
    slowing = judge([math.exp(-math.sqrt(n)) for n in range(20)])
    assert (slowing.verdict, slowing.rising) == ("converges", True)
    assert not judge(planted(1.0, 0.5, 9) + planted(0.5**9, 0.4, 9)).rising


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.75, 0.9, 1.0])
def test_a_constant_edit_is_as_beta_predicts(beta: float) -> None:
    increments, displacement = constant_edit(beta, 12)
    found = check_convergence(Rounds(increments, displacement, displacement), beta1=beta, beta2=beta)
    assert found.trend.decay is not None
    assert found.trend.decay.rate == pytest.approx(beta, rel=1e-9)
    assert found.trend.verdict == ("does not converge" if beta == 1 else "converges")
    for side in (found.inside, found.outside):
        assert side is not None
        assert side.agrees
        assert side.edit == pytest.approx(0.4)
        closed = 12 if beta == 1 else beta * (1 - beta**12) / (1 - beta)
        assert [side.expected, side.measured] == pytest.approx([closed, closed])
    if beta == 1:
        assert (found.inside.limit, found.carried, found.remaining) == (None, None, None)
    else:
        # What is left of the geometric series.
        rest = 0.4 * beta / (1 - beta) - displacement[-1]
        assert [found.inside.limit, found.carried, found.remaining] == pytest.approx([beta / (1 - beta), 1, rest])


def test_a_model_that_carries_less_is_not_as_beta_predicts() -> None:
    """D_n = 0.75 (0.6 D_(n-1) + d): rate 0.45, limit 0.75 / (1 - 0.45) d = 1.364 d instead of 3 d."""
    displacement = [0.0]
    for _ in range(30):
        displacement.append(0.75 * (0.6 * displacement[-1] + 1))
    found = check_convergence(Rounds(list(np.diff(displacement)), displacement[1:]), beta1=0.01, beta2=0.75)
    assert found.inside is not None
    assert not found.inside.agrees
    assert [found.inside.measured, found.inside.expected] == pytest.approx([1.363636, 2.9995], rel=1e-4)
    assert found.carried == pytest.approx(0.6)
    assert found.outside is None


def test_an_outside_that_does_not_add_up() -> None:
    """Where each round starts from the original again, the displacement stays at beta times the edit."""
    found = compare([0.03] * 10, 0.3)
    assert found is not None
    assert [found.measured, found.expected] == pytest.approx([0.3, 0.3 * (1 - 0.3**10) / 0.7])
    assert not found.agrees
    small = compare([0.001] * 10, 0.01)  # 0.01 against 0.0101: one per cent apart
    assert small is not None
    assert small.agrees


def test_the_right_displacement_at_the_wrong_rate_does_not_agree() -> None:
    decay = fit_decay(planted(1.0, 0.5, 10))
    displacement = constant_edit(0.75, 10)[1]
    right, wrong = fit_decay(planted(1.0, 0.75, 10)), compare(displacement, 0.75, decay, inside=True)
    assert wrong is not None
    assert not wrong.agrees
    agreeing = compare(displacement, 0.75, right, inside=True)
    assert agreeing is not None
    assert agreeing.agrees


@pytest.mark.parametrize("beta", [0.0, 0.75])
def test_nothing_is_compared_without_an_edit(beta: float) -> None:
    assert compare([0.0] * 4, beta) is None
    found = check_convergence(Rounds([0.0] * 4, [0.0] * 4), beta1=0.01, beta2=beta)
    assert (found.trend.verdict, found.trend.reason) == ("converges", "nothing changes in any round")
    assert (found.inside, found.carried, found.remaining) == (None, None, 0.0)


def test_latents_are_measured_where_the_mask_is_whole() -> None:
    """Four latents in a row: outside, at the edge, and two inside; two channels, two rounds."""
    mask = np.array([[0, 0.5, 1, 1]])
    original = np.ones((2, 1, 4), np.float32)
    first = original + np.array([[[1, 50, 3, 4]], [[1, 50, 0, 0]]], np.float32)
    second = first + np.array([[[0, 50, 0, 0]], [[2, 50, 6, 8]]], np.float32)
    rounds = measure_rounds(np.stack([first, second]), original, mask)
    assert rounds.increments == pytest.approx([math.sqrt(25 / 4), math.sqrt(100 / 4)])
    assert rounds.displacement == pytest.approx([2.5, math.sqrt(125 / 4)])
    assert rounds.outside == pytest.approx([1, math.sqrt((1 + 9) / 2)])
    assert rounds.channels is not None
    assert np.allclose(rounds.channels, [[math.sqrt(12.5), 0], [0, math.sqrt(50)]])
    whole = measure_rounds(np.stack([first, second]), original)
    assert whole.outside is None
    assert whole.increments[0] == pytest.approx(math.sqrt((1 + 2500 + 9 + 16 + 1 + 2500) / 8))


@pytest.mark.parametrize(("mask", "expected"), [([0, 0.6, 0.3], 2.0), ([0, 0.4, 0.3], 2.0), ([0, 0.7, 0.5], 2.9155)])
def test_a_region_smaller_than_a_latent(mask: list[float], expected: float) -> None:
    """At least half inside, else those most inside; 2.9155 is the root of (4 + 13) / 2."""
    latents = np.array([[[[9, 2, math.sqrt(13)]]]])
    rounds = measure_rounds(latents, np.zeros((1, 1, 3)), np.array([mask]))
    assert rounds.increments == pytest.approx([expected], rel=1e-4)


def test_findings_are_plain_json() -> None:
    """Three rounds this far apart have an interval that no float holds."""
    found = check_convergence(Rounds([1e-30, 1e30, 1e-30], [1.0, 1.0, 1.0]), beta1=0.01, beta2=None)
    assert found.trend.decay is not None
    assert found.trend.decay.high == math.inf
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert said["trend"]["decay"]["high"] is None
    assert said["trend"]["verdict"] == "undecided"
    assert (said["inside"], said["rounds"]["increments"]) == (None, [1e-30, 1e30, 1e-30])


GOOD = Rounds([0.3, 0.2, 0.1], [0.3, 0.4, 0.5], [0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"increments": [0.3], "displacement": [0.3], "outside": None}, "1 round cannot show convergence (at least 3"),
        ({"increments": [0.3, 0.2], "displacement": [0.3, 0.4], "outside": None}, "2 rounds cannot show convergence"),
        ({"displacement": [0.3, 0.4]}, "2 displacements do not fit 3 increments"),
        ({"outside": [0.1] * 4}, "4 displacements do not fit 3 increments"),
        ({"increments": [0.3, float("nan"), 0.1]}, "a change is negative or not finite"),
        ({"displacement": [0.3, -0.4, 0.5]}, "a change is negative or not finite"),
    ],
)
def test_numbers_that_no_run_gives_are_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line.replace("(", r"\(")) as error:
        check_convergence(replace(GOOD, **changes), beta1=0.01, beta2=0.75)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("increments", "line"), [([0.1, 0.2], "2 increments cannot"), ([1, 0, 1], "no logarithm")])
def test_what_has_no_fit_is_refused(increments: list[float], line: str) -> None:
    with pytest.raises(InputError, match=line):
        fit_decay(increments)
