"""Even pace: every round's blend solved for, so that frame n lies n/N of the way to where the constant run ends.

With a constant beta2 the rounds converge geometrically and the later frames are one picture. Here round n blends with

    b_n = min(1, t_n / |p m (x_n - z0)|)      z_n = z0 + (b_n p + beta1 (1 - m)) (x_n - z0)      t_n = n/N D

x_n is the round's edit of z_(n-1), p the region (one for each finding; m is their sum), and D = |p (z - z0)| where a
pilot of rounds with beta2 ends. Blend and norm are computed on the device, as a part of the round like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from pie_engine.errors import InputError, argument, mention, use
from pie_engine.rounds.equations import Noises, displacements, run_round

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.rounds.equations import OnStep
    from pie_engine.rounds.loop import Loop
    from pie_engine.rounds.plan import Batch, Plan

# Rounds of a pilot. The last three displacements say where increments that shrink geometrically end; on the demo's
# chests rounds 1 to 3 put that end 1.3 to 2.5 % too near, for the first increments shrink faster than later ones.
PILOT_ROUNDS = 4
# Where increments shrink by less than this from one round to the next, so few rounds do not say where they end.
_SLOWEST = 0.9
# Least root mean square of a displacement: about a grey level, for latents have the spread of pixels in [-1, 1], twice.
LEAST = 4 / 255


def blend_constantly(plan: Plan) -> None:
    """x -> z0 + (beta1 (1 - m) + beta2 m) (x - z0): the blend of a pilot's rounds."""
    b = plan.buffers
    assert b.pace is not None
    torch.addcmul(b.z0, b.pace.constant, b.x - b.z0, out=b.x)


def run_pilot(loop: Loop, batch: Batch, config: RunConfig, on_step: OnStep) -> np.ndarray:
    """Make the loaded batch's rounds pace evenly: run rounds with beta2, undecoded, until their end is known.

    Args:
        on_step: called after each U-Net evaluation.

    Returns:
        The displacements that the rounds are to reach, [N, R, B] float64.

    Raises:
        InputError: a pilot does not move, or does not converge. BackendError: values are not finite.
    """
    plan, b = loop.plan, loop.plan.buffers
    assert b.pace is not None
    pace, noises, z = b.pace, Noises(plan, batch, config), plan.original_latent.clone()

    def pilot(index: int) -> None:
        plan.enter(index)
        noises.fill(index)
        b.x.copy_(z)
        run_round(plan, loop.run, on_step)
        blend_constantly(plan)

    measured = []
    for index in range(pilot_rounds(config)):
        loop.compute(0, partial(pilot, index), decoded=False)
        z.copy_(b.x)
        measured.append(displacements(pace.parts, b.x - b.z0).double().cpu().numpy())
    size = (pace.blended.double().square().sum((2, 3, 4)) * b.x.shape[1]).sqrt().cpu().numpy()
    found = targets(np.array(measured).reshape(-1, *size.shape), config, size, batch.item_ids)
    plan.pace(found)
    b.x.copy_(plan.original_latent)
    return found


def pilot_rounds(config: RunConfig) -> int:
    """Rounds with beta2 that say where the constant run ends: all of them where they differ, none where D is given."""
    if not config.even or config.displacement is not None:
        return 0
    return config.steps if config.schedule is not None else min(PILOT_ROUNDS, config.steps)


def targets(measured: np.ndarray, config: RunConfig, size: np.ndarray, item_ids: Sequence[str]) -> np.ndarray:
    """The displacement of each round, [N, R, B] float64.

    Within a run it rises evenly to D; within each range of a schedule, from where the range before ended.

    Args:
        measured: [K, R, B], displacements after the rounds of a pilot; K = 0 where D is given.
        size: [R, B], |p m| over all channels: the displacement of a change by 1 everywhere.
        item_ids: for messages.

    Raises:
        InputError: an item's pilot does not move, or does not converge.
    """
    if config.displacement is not None:
        end = np.full(size.shape, config.displacement)
        return np.arange(1, config.steps + 1)[:, None, None] / config.steps * end
    if config.schedule is not None:
        rounds = config.rounds
        after = [n for n in range(1, config.steps + 1) if n == config.steps or rounds[n] != rounds[n - 1]]
        ends = measured[[n - 1 for n in after]]
    else:
        after, ends = [config.steps], extrapolate(measured, config.steps, item_ids)[None]
    for still, item in zip((ends[-1] < LEAST * size).any(0), item_ids, strict=True):
        if still:
            raise InputError(
                f"the pilot of item {item} moves its region by less than a grey level, which cannot be paced; raise "
                f"{mention('guidance_scale')} or {mention('strength')}, or pass {use('pace', 'constant')}"
            )
    starts = np.zeros((1, *size.shape))
    knots, numbers = np.concatenate([starts, ends]).reshape(len(after) + 1, -1), np.arange(1, config.steps + 1)
    columns = [np.interp(numbers, [0, *after], knots[:, column]) for column in range(knots.shape[1])]
    return np.stack(columns, axis=1).reshape(config.steps, *size.shape)


def extrapolate(measured: np.ndarray, rounds: int, item_ids: Sequence[str]) -> np.ndarray:
    """Where the constant run stands after N rounds, [R, B], from its displacements d_1 to d_K after the first ones.

    Aitken: increments that shrink by q = (d_K - d_(K-1)) / (d_(K-1) - d_(K-2)) go on shrinking by it, so that what
    follows adds (d_K - d_(K-1)) (q + ... + q^(N-K)). A pilot of all rounds is what it says.

    Raises:
        InputError: q is too near to 1, so that they do not say where an item ends.
    """
    if len(measured) == rounds:
        return measured[-1]
    first, second, third = measured[-3:]
    before, step = second - first, third - second
    q = np.divide(step, before, out=np.zeros_like(step), where=np.abs(before) > 1e-6 * np.abs(third))
    for item, ratio in zip(item_ids, q.max(0), strict=True):
        if ratio > _SLOWEST:
            raise InputError(
                f"the pilot of item {item} does not converge (increments shrink by {ratio:.2f} from round to round); "
                f"pass {argument('displacement')} or {use('pace', 'constant')}"
            )
    q = q.clip(0.0, _SLOWEST)  # an increment of the other sign ends the movement
    return third + step * q * (1 - q ** (rounds - len(measured))) / (1 - q)
