"""Schedules that are kept in the cache: to the last bit what was computed, and computed anew where they are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pie_engine.errors import ConfigError
from pie_engine.rounds import kept_schedules
from pie_engine.rounds.schedule import SCHEDULERS, build_inversion, build_schedule

SD_V1 = {
    "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "trained_betas": None, "clip_sample": False,
}  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(tmp_path))
    return tmp_path / "schedules"


def table(name: str, **more: Any) -> Any:
    return build_schedule(SD_V1, name=name, num_inference_steps=20, denoising_steps=10, **more)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be computed any more."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr("pie_engine.rounds.schedule.make_scheduler", refuse)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_is_kept_is_what_was_computed(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    computed = table(name)
    assert len(list(cache.iterdir())) == 1
    forbid(monkeypatch)
    found = table(name)
    assert found == computed
    assert found.name == computed.name
    for field in ("timesteps", "a", "c", "P", "noise"):
        ours, theirs = getattr(found, field), getattr(computed, field)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())


def test_an_inversion_is_kept_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = build_inversion(SD_V1, np.float64(481), 50, 25)
    forbid(monkeypatch)
    assert build_inversion(SD_V1, 481.0, 50, 25) == computed


def test_other_arguments_and_versions_compute_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table("unipc")
    table("unipc", corrector=False)
    build_schedule(SD_V1 | {"beta_end": 0.013}, name="unipc", num_inference_steps=20, denoising_steps=10)
    assert len(list(cache.iterdir())) == 3
    monkeypatch.setattr(kept_schedules, "_versions", lambda source: "another")
    table("unipc")
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", [b"", b"not a table", None])
def test_a_damaged_table_is_computed_anew(cache: Path, damage: bytes | None) -> None:
    computed = table("ddim")
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert table("ddim") == computed
    assert path.read_bytes() == whole


def test_a_refusal_is_not_kept(cache: Path) -> None:
    for _ in range(2):
        with pytest.raises(ConfigError, match="is unknown"):
            table("magic")
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("PIE_ENGINE_CACHE", str(tmp_path / "file"))
    assert table("ddim").steps == 10
