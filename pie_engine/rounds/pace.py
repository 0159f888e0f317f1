"""Even pace: every round's blend solved for, so that frame n lies n/N of the way to where the constant run ends.

With a constant beta2 the rounds converge geometrically and the later frames are one picture. Here round n blends with

    b_n = min(1, t_n / |p m (x_n - z0)|)      z_n = z0 + (b_n p + beta1 (1 - m)) (x_n - z0)      t_n = n/N D

x_n is the round's edit of z_(n-1), p the region (one for each finding; m is their sum), and D = |p (z - z0)| where the
constant run ends, as a pilot of some of its rounds says. Blend and norm are computed on the device, as a part of the
round like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pie_engine.errors import InputError, mention, use
from pie_engine.rounds.equations import Noises, displacements, run_round

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.rounds.equations import OnStep
    from pie_engine.rounds.loop import Loop
    from pie_engine.rounds.plan import Batch, Plan

# A pilot has at least so many rounds, and ends where two extrapolations in a row agree to this share of the way and
# leave no more than that of it to be extrapolated: rounds that change direction late agree before they do. On chests
# that is after 4.5 rounds, on retinas, whose rounds still drift after ten, after 7.2, on skin after 9.3
# (docs/evaluation.md).
PILOT_ROUNDS = 4
AGREEMENT, EXTRAPOLATED = 0.01, 0.06
# Least root mean square of a displacement: about a grey level, for latents have the spread of pixels in [-1, 1], twice.
LEAST = 4 / 255


def blend_constantly(plan: Plan) -> None:
    """x -> z0 + (beta1 (1 - m) + beta2 m) (x - z0): the blend of a pilot's rounds."""
    b = plan.buffers
    assert b.pace is not None
    torch.addcmul(b.z0, b.pace.constant, b.x - b.z0, out=b.x)


def run_pilot(loop: Loop, batch: Batch, config: RunConfig, on_step: OnStep) -> tuple[np.ndarray, list[int]]:
    """Make the loaded batch's rounds pace evenly: run rounds with beta2, undecoded, until their end is known.

    The edit of the first one is kept: it is that of the first round too, which starts from the same latent.

    Args:
        on_step: called after each U-Net evaluation.

    Returns:
        The displacements that the rounds are to reach, [N, R, B] float64; and after how many rounds each item's end was
        known, [B].

    Raises:
        InputError: a pilot does not move. BackendError: values are not finite.
    """
    plan, b = loop.plan, loop.plan.buffers
    assert b.pace is not None
    pace, noises, z = b.pace, Noises(plan, batch, config), plan.original_latent.clone()

    def pilot(index: int) -> None:
        plan.enter(index)
        noises.fill(index)
        b.x.copy_(z)
        run_round(plan, loop.run, on_step)
        if index == 0:
            pace.first.copy_(b.x)
        blend_constantly(plan)

    size = (pace.blended.double().square().sum((2, 3, 4)) * b.x.shape[1]).sqrt().cpu().numpy()
    if config.displacement is not None:
        ends, known = np.full((1, *size.shape), config.displacement), np.zeros(size.shape[1], int)
    else:
        measured: list[np.ndarray] = []
        for index in range(config.steps):
            loop.compute(0, partial(pilot, index), decoded=False)
            z.copy_(b.x)
            measured.append(displacements(pace.parts, b.x - b.z0).double().cpu().numpy())
            ends, known = find_ends(np.array(measured), config)
            if known.all():
                break
        plan.first_edit = pace.first
    aims = targets(ends, config, size, batch.item_ids)
    plan.pace(aims)
    b.x.copy_(plan.original_latent)
    return aims, known.tolist()


def least_rounds(config: RunConfig) -> tuple[int, int]:
    """Rounds of a pilot, at least; and how many of the run's own it spares: the first."""
    if not config.even or config.displacement is not None:
        return 0, 0
    return (config.steps if config.schedule is not None else min(PILOT_ROUNDS, config.steps)), 1


def find_ends(measured: np.ndarray, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Where the constant run ends, as far as a pilot's displacements say it.

    Each item for itself, so that it is paced in a batch as it is alone. Where rounds differ the pilot runs them all.

    Args:
        measured: [K, R, B], displacements after the pilot's rounds so far.

    Returns:
        The displacements after the last round of each range of a schedule, [E, R, B], else after the N-th, [1, R, B];
        and after how many rounds they were known, [B]; 0 where they are not yet, and the displacements mean nothing.
    """
    count, steps = len(measured), config.steps
    whole = np.full(measured.shape[2], count if count == steps else 0)
    if count < steps and config.schedule is not None:
        return measured[-1:], whole
    if config.schedule is not None:
        return measured[[number - 1 for number in _range_ends(config)]], whole
    ends, known = measured[-1].copy(), np.zeros(measured.shape[2], int)
    for rounds in range(PILOT_ROUNDS, min(count, steps - 1) + 1):
        now, before = extrapolate(measured[:rounds], steps), extrapolate(measured[: rounds - 1], steps)
        agree = (np.abs(now - before) <= AGREEMENT * now).all(0)
        near = (now - measured[rounds - 1] <= EXTRAPOLATED * now).all(0)
        # A second round that goes further than the first is no contraction, whose rounds could be foretold.
        contracts = (measured[1] <= 2 * measured[0]).all(0)
        settled = agree & near & contracts & (known == 0)
        ends[:, settled], known[settled] = now[:, settled], rounds
    return ends[None], np.where(known == 0, whole, known)


def targets(ends: np.ndarray, config: RunConfig, size: np.ndarray, item_ids: Sequence[str]) -> np.ndarray:
    """The displacement of each round, [N, R, B] float64.

    Within a run it rises evenly to D; within each range of a schedule, from where the range before ended.

    Args:
        ends: see `find_ends`; or D, where it is given.
        size: [R, B], |p m| over all channels: the displacement of a change by 1 everywhere.
        item_ids: for messages.

    Raises:
        InputError: an item's pilot does not move.
    """
    steps = config.steps
    after = [steps] if config.displacement is not None else _range_ends(config)
    if config.displacement is None:
        for still, item in zip((ends[-1] < LEAST * size).any(0), item_ids, strict=True):
            if still:
                raise InputError(
                    f"the pilot of item {item} moves its region by less than a grey level, which cannot be paced; "
                    f"raise {mention('guidance_scale')} or {mention('strength')}, or pass {use('pace', 'constant')}"
                )
    starts = np.zeros((1, *size.shape))
    knots, numbers = np.concatenate([starts, ends]).reshape(len(after) + 1, -1), np.arange(1, steps + 1)
    columns = [np.interp(numbers, [0, *after], knots[:, column]) for column in range(knots.shape[1])]
    return np.stack(columns, axis=1).reshape(steps, *size.shape)


def extrapolate(measured: np.ndarray, rounds: int) -> np.ndarray:
    """Where the constant run stands after N rounds, [R, B], from its displacements d_1 to d_K, K at least 3.

    Aitken, with a rate that goes on rising by half of what it rose last, as rates rise less and less: increments shrink
    by q = q_K + (q_K - q_(K-1)) / 2, where q_K = (d_K - d_(K-1)) / (d_(K-1) - d_(K-2)) and d_0 = 0, so that what
    follows adds (d_K - d_(K-1)) (q + ... + q^(N-K)).
    """
    first, second, third = np.diff(measured, axis=0, prepend=np.zeros_like(measured[:1]))[-3:]

    def ratio(of: np.ndarray, to: np.ndarray) -> np.ndarray:
        return np.divide(of, to, out=np.zeros_like(of), where=np.abs(to) > 1e-6 * np.abs(measured[-1]))

    now = ratio(third, second)
    # An increment of the other sign ends the movement, and none grows for good.
    q = (now + (now - ratio(second, first)) / 2).clip(0.0, 1.0)
    left = np.arange(1, rounds - len(measured) + 1).reshape(-1, *[1] * q.ndim)
    return measured[-1] + third * (q**left).sum(0)


def _range_ends(config: RunConfig) -> list[int]:
    """The rounds, from 1, after which the settings change; N is the last."""
    if config.schedule is None:
        return [config.steps]
    rounds = config.rounds
    return [
        number for number in range(1, config.steps + 1) if rounds[number - 1 : number] != rounds[number : number + 1]
    ]
