"""A schedule packed for the kernels: every coefficient where the kernels read it."""

from __future__ import annotations

import numpy as np
import pytest

from pie_engine.checkpoint import Checkpoint
from pie_engine.kernels.table import NOISE, SCALE, SIGNAL, TIMESTEP, VECTORS, A, B, columns
from pie_engine.rounds.sampler import pack
from pie_engine.rounds.schedule import SCHEDULERS, build_schedule


@pytest.mark.parametrize("name", SCHEDULERS)
def test_pack(ddim_checkpoint: Checkpoint, name: str) -> None:
    schedule = build_schedule(ddim_checkpoint.scheduler_config, name=name, num_inference_steps=20, denoising_steps=10)
    entry, table = pack(schedule)
    kept, k = schedule.history, schedule.steps
    assert table.dtype == entry.dtype == np.float32
    assert table.shape == (k, columns(kept))
    first = [schedule.signal[0], schedule.noise[0], schedule.input_scale[0], schedule.timesteps[0]]
    assert entry == pytest.approx(first, rel=1e-6)
    for i, row in enumerate(table.astype(np.float64)):
        vectors = row[VECTORS : VECTORS + 3 * kept].reshape(3, kept)
        expected = np.stack([schedule.c[i], schedule.p[i], schedule.q[i]])
        assert row[[A, B]] == pytest.approx([schedule.a[i], schedule.b[i]], rel=1e-6)
        assert vectors == pytest.approx(expected, rel=1e-6)
        assert row[VECTORS + 3 * kept :].reshape(kept, kept) == pytest.approx(schedule.P[i], rel=1e-6)
        following = [1, 0, 1, 0]  # the last step blends with z0 itself
        if i + 1 < k:
            following = [schedule.signal[i + 1], schedule.noise[i + 1]]
            following += [schedule.input_scale[i + 1], schedule.timesteps[i + 1]]
        assert row[[SIGNAL, NOISE, SCALE, TIMESTEP]] == pytest.approx(following, rel=1e-6)
