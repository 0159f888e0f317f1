"""A tolerance: when rounds end, what bounds those that are left, batches, resuming, capture, refusals."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN
from graph_emulator import EmulatedTimeline

import pie_engine.rounds.loop as loop_module
from pie_engine import Box, Interrupted, Item, MethodConfig, PieEngine, Result, RoundRange, RoundSchedule, RunConfig
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.demo.domain import load_domain
from pie_engine.errors import ConfigError
from pie_engine.evaluation.sweep import Design
from pie_engine.imaging import fit, open_image
from pie_engine.rounds.loop import Round
from pie_engine.rounds.stopping import Stopping

SIDE = 64
PICTURE = fit(open_image(GOLDEN / "image.png"), SIDE)
HEART, LUNG = Box(8, 8, 32, 32), Box(32, 8, 60, 40)
A, B = Item(PICTURE, "heart", HEART, item_id="a"), Item(PICTURE, "lung", LUNG, item_id="b")
# The random model's rounds converge with a small beta2: those of A end after ten, of B after seven.
CONFIG = RunConfig(
    steps=12, num_inference_steps=6, strength=0.5, guidance_scale=1.5, beta2=0.4, resolution=SIDE, feather=1,
    tolerance=1,
)  # fmt: skip
STEPS = 3  # denoising steps of a round


@pytest.fixture(scope="module")
def engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))


@pytest.fixture(scope="module")
def whole(engine: PieEngine) -> Result:
    """All rounds of A."""
    return engine.run(A, replace(CONFIG, tolerance=None))


def drift(result: Result, whole: Result) -> np.ndarray:
    """The largest difference of a pixel inside the region from the frames of all rounds, [N + 1]."""
    apart = np.abs(result.frames.astype(int) - whole.frames)
    return (apart if result.mask is None else apart[:, result.mask]).reshape(len(apart), -1).max(1)


def check_bounds(result: Result, whole: Result) -> int:
    """That rounds ended, where the bounds hold: a rounded pixel may lie a grey level further. Returns after which."""
    stopped = result.provenance["stopped"]
    after, steps = stopped["after"], result.config.steps
    assert 3 <= after < steps
    assert stopped["bound"] < result.config.tolerance == stopped["tolerance"]
    assert stopped["drift"] == pytest.approx(stopped["bound"] / (1 - stopped["rate"]), rel=1e-2)
    assert np.array_equal(result.frames[: after + 1], whole.frames[: after + 1])
    assert np.array_equal(result.latents[:after], whole.latents[:after])
    assert (result.frames[after:] == result.frames[after]).all() and len(result.frames) == steps + 1
    assert (result.latents[after - 1 :] == result.latents[after - 1]).all() and len(result.latents) == steps
    apart = drift(result, whole)
    assert apart[after + 1] <= stopped["bound"] + 1
    assert apart.max() <= stopped["drift"] + 1
    return int(after)


def test_rounds_end_and_the_last_one_is_repeated(engine: PieEngine, whole: Result) -> None:
    told: list[tuple[int, int]] = []
    result = engine.run(A, CONFIG, on_progress=lambda done, total: told.append((done, total)))
    assert check_bounds(result, whole) == 10
    computed, total = 10 * STEPS, 12 * STEPS
    assert result.provenance["schedule"]["unet_evaluations"] == computed
    assert len(result.provenance["seconds"]["rounds"]) == 10
    assert told == [*((done, total) for done in range(1, computed + 1)), (total, total)]
    assert result.change.increment_inside[:10] == whole.change.increment_inside[:10]
    assert result.change.increment_inside[10:] == [0, 0]
    assert result.change.displacement_inside[10:] == [result.change.displacement_inside[9]] * 2
    assert "stopped" not in whole.provenance


KINDS: dict[str, dict[str, Any]] = {
    "coarse": {"tolerance": 8.0},
    "inversion": {"inversion": "ddim"},
    "as decoded": {"composite": False, "tolerance": 4.0},
    "without guidance": {"guidance_scale": 1.0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_hold(engine: PieEngine, kind: str) -> None:
    config = replace(CONFIG, **KINDS[kind])
    check_bounds(engine.run(A, config), engine.run(A, replace(config, tolerance=None)))


def test_the_bounds_hold_on_a_chest() -> None:
    """What the repeated frames leave out, as a whole run has it."""
    chest = load_domain("chest")
    config = replace(chest.defaults.run_config(), steps=11, num_inference_steps=16, pace="constant")
    engine = PieEngine.load(checkpoint=chest.checkpoint, backend="torch", device="cpu", dtype="fp32")
    phantom = chest.phantom(0)
    item = Item(chest.render(phantom), chest.defaults.prompt, chest.roi_mask(phantom), item_id=chest.item_id(0))
    assert check_bounds(engine.run(item, replace(config, tolerance=1)), engine.run(item, config)) < 10


def test_without_a_region_the_whole_picture_counts(engine: PieEngine) -> None:
    """Nothing blends there: the rounds settle slowly, and a tolerance that they do not reach changes nothing."""
    item, config = replace(A, mask=None), replace(CONFIG, inversion="ddim")
    whole = engine.run(item, replace(config, tolerance=None))
    assert "stopped" not in engine.run(item, config).provenance
    check_bounds(engine.run(item, replace(config, tolerance=60)), whole)


def test_a_tolerance_that_is_not_reached_changes_nothing(engine: PieEngine, whole: Result) -> None:
    result = engine.run(A, replace(CONFIG, tolerance=1e-3))
    assert "stopped" not in result.provenance
    assert np.array_equal(result.frames, whole.frames) and result.change == whole.change
    assert result.provenance["schedule"] == whole.provenance["schedule"]


def test_the_last_round_ends_nothing(engine: PieEngine) -> None:
    """Nothing is left after it that could repeat it."""
    result = engine.run(A, replace(CONFIG, steps=10))
    assert "stopped" not in result.provenance and len(result.provenance["seconds"]["rounds"]) == 10


def test_a_batch_gives_each_what_it_gets_alone(engine: PieEngine) -> None:
    """It goes on for the slower item; the other repeats its own last round."""
    together = engine.run([A, B], CONFIG)
    after = [result.provenance["stopped"]["after"] for result in together]
    assert after[0] > after[1]
    for item, result in zip((A, B), together, strict=True):
        alone = engine.run(item, CONFIG)
        assert np.abs(alone.latents - result.latents).max() < 1e-4
        assert np.abs(alone.frames.astype(int) - result.frames).max() <= 1
        assert alone.provenance["stopped"] == pytest.approx(result.provenance["stopped"], rel=1e-2)
        assert result.provenance["schedule"]["unet_evaluations"] == after[0] * STEPS
        assert (result.frames[alone.provenance["stopped"]["after"] :] == result.frames[-1]).all()


@pytest.mark.parametrize("evaluation", [6 * STEPS + 1, 12 * STEPS])
def test_a_resumed_run_ends_in_the_same_round(engine: PieEngine, tmp_path: Path, evaluation: int) -> None:
    """Interrupted before its rounds end, and when they have ended."""

    def stop(done: int, total: int) -> None:
        if done == evaluation:
            raise KeyboardInterrupt

    undisturbed = engine.run(A, CONFIG, interpolate=1)
    with pytest.raises(Interrupted) as stopped:
        engine.run(A, CONFIG, on_progress=stop)
    partial = stopped.value.results[0]
    partial.save(tmp_path / "out")
    resumed = engine.run(A, CONFIG, interpolate=1, resume=tmp_path / "out")
    assert np.array_equal(resumed.frames, undisturbed.frames)
    assert np.array_equal(resumed.latents, undisturbed.latents)
    assert resumed.between is not None and undisturbed.between is not None
    assert np.array_equal(resumed.between, undisturbed.between)
    for part in ("stopped", "schedule", "change"):
        assert resumed.provenance[part] == undisturbed.provenance[part]
    assert len(resumed.provenance["seconds"]["rounds"]) == 10


def test_pictures_between_repeated_frames_are_the_frame(engine: PieEngine) -> None:
    result = engine.run(A, CONFIG, interpolate=2)
    assert result.between is not None and result.between.shape[:2] == (12, 2)
    assert (result.between[10:] == result.frames[10]).all()


def test_rounds_that_were_begun_ahead_are_let_go(
    ddim_checkpoint: Checkpoint, engine: PieEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an emulated GPU, with a round ahead: the same bits, and so is the next run over the same buffers."""
    monkeypatch.setattr(loop_module, "make_timeline", lambda backend, runtime: EmulatedTimeline(lag=1))
    ahead = PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))
    for item in (A, A):
        result, expected = ahead.run(item, CONFIG, interpolate=1), engine.run(item, CONFIG, interpolate=1)
        assert np.array_equal(result.frames, expected.frames) and np.array_equal(result.latents, expected.latents)
        assert result.between is not None and np.array_equal(result.between, expected.between)
        assert result.provenance["stopped"] == expected.provenance["stopped"]
        assert len(result.provenance["seconds"]["rounds"]) == 10
        assert result.provenance["schedule"]["unet_evaluations"] == 11 * STEPS  # with the one that was let go


def rounds_of(latents: np.ndarray, level: float, closed: list[bool]) -> Generator[Round, None, None]:
    """One item's rounds with frames of one grey, `level` to a latent's unit."""
    try:
        for latent in latents:
            grey = torch.from_numpy(np.round(level * latent[:1].transpose(1, 2, 0)).astype(np.uint8))
            yield Round(torch.from_numpy(latent[None]), grey.expand(*grey.shape[:2], 3)[None])
    finally:
        closed.append(True)


def stopping(tolerance: float, increments: np.ndarray, level: float = 100) -> tuple[Stopping, int]:
    """After rounds of these increments, everywhere alike and without a region; and how many were taken."""
    latents = np.cumsum(increments)[:, None, None, None].astype(np.float32).repeat(4, 1).repeat(8, 2).repeat(8, 3)
    config = RunConfig(steps=len(increments), tolerance=tolerance)
    found = Stopping(config, [SimpleNamespace(mask=None)], np.zeros((1, *latents.shape[1:]), np.float32))  # type: ignore[list-item]
    closed: list[bool] = []
    taken = sum(1 for _ in found.watch(rounds_of(latents, level, closed)))
    assert closed == [True]
    assert taken + sum(1 for _ in found.repeated()) == len(increments)
    return found, taken


def test_the_rate_is_that_of_latents_with_a_margin() -> None:
    """Increments that halve from 50 grey levels, 50, 25, 12.5, ...: the rate is 0.5 and an eighth of what it lacks."""
    found, taken = stopping(8, 0.5 ** np.arange(1, 21))
    (stopped,) = found.stopped
    assert stopped is not None and taken == stopped["after"] == 3
    assert stopped["rate"] == pytest.approx(0.5625)
    assert 12.5 < stopped["bound"] / 0.5625 <= 14  # round 3 changes 12 or 13, which is at most 14 before rounding


def test_below_four_levels_latents_tell_what_frames_do_not() -> None:
    """A twentieth of a level is reached, though no rounded frame tells less than one."""
    found, taken = stopping(0.05, 0.5 ** np.arange(1, 21))
    (stopped,) = found.stopped
    assert stopped is not None
    assert 100 * 0.5 ** (taken + 1) < stopped["bound"] < 0.05


def test_three_rounds_are_run_at_least() -> None:
    assert stopping(255, 0.5 ** np.arange(1, 21))[1] == 3
    assert stopping(0.01, np.zeros(20))[1] == 3  # nothing moves


def test_rounds_that_do_not_shrink_do_not_end() -> None:
    """However little they change: what is left of them has no bound."""
    assert stopping(5, np.full(20, 2.0**-10))[1] == 20
    assert stopping(5, 0.001 * 1.1 ** np.arange(20))[1] == 20


def test_a_dip_is_not_believed() -> None:
    """Ratios of 0.9, but for two of 0.3 in a row: the rate of what is left is not theirs."""
    ratios = np.array([0.9, 0.9, 0.9, 0.9, 0.3, 0.3, *[0.9] * 13])
    found, _ = stopping(2, 0.1 * np.cumprod([1, *ratios]))
    (stopped,) = found.stopped
    assert stopped is not None and stopped["rate"] > 0.9


SCHEDULE = RoundSchedule((RoundRange(2, 3, strength=0.9),))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"semantics": "official"}, "tolerance 1 needs rounds that settle, which semantics 'official' keeps them from; "
         "pass semantics='engine'"),
        ({"noise": "fresh"}, "which noise 'fresh' keeps them from; pass noise='shared'"),
        ({"pace": "even"}, "which pace 'even' keeps them from; pass pace='constant'"),
        ({"schedule": SCHEDULE}, "tolerance 1 needs rounds that are alike, and a schedule makes them differ; leave out "
         "schedule"),
        ({"tolerance": 0.0}, "tolerance 0.0 is outside (0, 255]; pass tolerance=1"),
        ({"tolerance": 256.0}, "tolerance 256.0 is outside (0, 255]; pass tolerance=1"),
        ({"tolerance": float("nan")}, "tolerance nan is not a finite number; pass tolerance=1"),
    ],
)  # fmt: skip
def test_refusals(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(**{"tolerance": 1.0, **settings})
    assert line in str(caught.value)


@pytest.mark.parametrize("method", ["interpolation", "walk", "one-shot", "previous", "vae"])
def test_baselines_refuse_it(method: str) -> None:
    with pytest.raises(ConfigError, match=f"tolerance 1 is not used by method '{method}', whose frames do not settle"):
        MethodConfig(method).check(RunConfig(tolerance=1))


def test_a_sweep_refuses_it() -> None:
    with pytest.raises(ConfigError, match="a tolerance repeats frames whose increments a sweep measures; leave out"):
        Design([A], CONFIG, {"strength": (0.3, 0.5)})
