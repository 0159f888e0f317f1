"""Phantom cohorts: who is in which split, and how their pictures are rendered. Splits never share a patient."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pie_engine.demo.phantom import CTR_ENLARGED, CTR_HEALTHY, Patient, render, sample_patient
from pie_engine.errors import ConfigError

# The first patient seed of each split: a split may hold up to a million patients.
SPLITS = {"train": 1_000_000, "classifier": 2_000_000, "validation": 3_000_000, "test": 4_000_000, "clip": 5_000_000}

P_HEALTHY, P_ENLARGED = 0.40, 0.40  # the rest lies between the two ranges
P_EFFUSION = 0.12
EFFUSION_RANGE = (0.12, 0.45)


def split_seed(split: str, index: int) -> int:
    """The patient seed of one member of a split."""
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}; pass one of {', '.join(SPLITS)}")
    return SPLITS[split] + index


def cohort(split: str, count: int, effusion_rate: float = P_EFFUSION) -> list[Patient]:
    """`count` patients of a split, healthy, enlarged and between, some with an effusion."""
    return [_draw(split_seed(split, index), effusion_rate) for index in range(count)]


def healthy_cohort(split: str, count: int) -> list[Patient]:
    """`count` healthy patients of a split: no effusion, a heart of usual size."""
    return [sample_patient(split_seed(split, index)) for index in range(count)]


def held_out(index: int, *, enlarged: bool = False, split: str = "test") -> Patient:
    """A patient of the test split (or another), healthy or with an enlarged heart.

    The two of one number share anatomy, exposure and detector noise, and differ in the cardiothoracic ratio alone:
    uniform in 0.40 to 0.48, or in 0.56 to 0.68.
    """
    seed = split_seed(split, index)
    # A stream of its own, so that the anatomy is the healthy one's.
    return sample_patient(seed, float(np.random.default_rng([seed, 3]).uniform(*CTR_ENLARGED)) if enlarged else None)


def _draw(seed: int, effusion_rate: float) -> Patient:
    rng = np.random.default_rng([seed, 2])
    group = rng.random()
    if group < P_HEALTHY:
        ctr = rng.uniform(*CTR_HEALTHY)
    elif group < P_HEALTHY + P_ENLARGED:
        ctr = rng.uniform(*CTR_ENLARGED)
    else:
        ctr = rng.uniform(CTR_HEALTHY[1], CTR_ENLARGED[0])
    effusion = rng.uniform(*EFFUSION_RANGE) if rng.random() < effusion_rate else 0.0
    return sample_patient(seed, ctr=float(ctr), effusion=float(effusion))


def render_grey(patient: Patient) -> NDArray[np.uint8]:
    """One channel of the radiograph; [128, 128]."""
    return render(patient)[..., 0]


def render_all(
    patients: Sequence[Any], workers: int | None = None, draw: Callable[[Any], NDArray[np.uint8]] = render_grey
) -> NDArray[np.uint8]:
    """The pictures of a cohort, drawn on all cores by `draw`, a module's function: [N, ...] uint8 of what it gives.

    By default grey radiographs, [N, 128, 128].
    """
    workers = workers or os.cpu_count() or 1
    if workers == 1 or len(patients) < 64:
        return np.stack([draw(patient) for patient in patients])
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return np.stack(list(pool.map(draw, patients, chunksize=64)))
