"""Even pace: rounds against the reference, displacements where they were asked to be, batches, capture, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN
from graph_emulator import EmulatedTimeline

import pie_engine.rounds.loop as loop_module
from pie_engine import (
    Box,
    Interrupted,
    Item,
    MethodConfig,
    PieEngine,
    Region,
    RoundRange,
    RoundSchedule,
    RunConfig,
    RuntimeConfig,
)
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.errors import ConfigError, InputError
from pie_engine.imaging import fit, open_image
from pie_engine.kernels.dispatch import select
from pie_engine.metrics.change import late_change, unevenness
from pie_engine.model.bundle import Bundle
from pie_engine.reference import progress_engine
from pie_engine.rounds.pace import AGREEMENT, EXTRAPOLATED, extrapolate, find_ends, targets

IMAGE = GOLDEN / "image.png"
TOLERANCE = 1e-4  # of latents in fp32, as tests/rounds/test_progression.py has it
SIDE = 64
PICTURE = fit(open_image(IMAGE), SIDE)
HEART, LUNG = Box(8, 8, 32, 32), Box(32, 8, 60, 40)  # whole latents of 8 pixels, but for LUNG's right edge
# The random model's edits are wild: with a small beta2 its rounds converge all the same.
SHORT = RunConfig(
    steps=5, num_inference_steps=6, strength=0.5, guidance_scale=1.5, beta2=0.4, resolution=SIDE, pace="even"
)


@pytest.fixture(scope="module")
def engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))


def means(values: np.ndarray) -> np.ndarray:
    """[64, 64] -> [1, 8, 8] float32."""
    return values.reshape(8, 8, 8, 8).mean(axis=(1, 3))[None].astype(np.float32)


def drawn(box: Box, value: float = 1.0) -> np.ndarray:
    found = np.zeros((SIDE, SIDE))
    left, top, right, bottom = (int(number) for number in box.numbers)
    found[top:bottom, left:right] = value
    return found


def distance(latents: np.ndarray, rounds: Any) -> float:
    expected = np.concatenate([z.numpy() for z, _ in rounds])
    return float(np.abs(latents - expected).max() / max(1.0, float(np.abs(expected).max()) / 10))


SETTINGS: dict[str, dict[str, Any]] = {
    "noising": {},
    "inversion": {"inversion": "ddim"},
    "pndm, unguided": {"scheduler": "pndm", "guidance_scale": 1.0},
    "displacement": {"displacement": 3.0},
    "out of reach": {"displacement": 1e4},
    "two rounds": {"steps": 2},
    "one round": {"steps": 1},
    "schedule": {"schedule": RoundSchedule((RoundRange(2, 3, strength=0.9, prompt="lung"),))},
}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("setting", SETTINGS)
def test_against_the_reference(engine: PieEngine, ddim_checkpoint: Checkpoint, setting: str, masked: bool) -> None:
    config = replace(SHORT, **SETTINGS[setting])
    result = engine.run(Item(PICTURE, "heart", HEART if masked else None), config)
    mask = means(drawn(HEART)) if masked else None
    assert distance(result.latents, progress_engine(ddim_checkpoint, PICTURE, mask, "heart", config)) < TOLERANCE


def test_findings_each_go_their_own_way(engine: PieEngine, ddim_checkpoint: Checkpoint) -> None:
    regions = [Region(HEART, prompt="heart"), Region(LUNG, beta=0.2, prompt="lung")]
    result = engine.run(Item(PICTURE, "", regions), SHORT)
    heart, lung = means(drawn(HEART)), means(drawn(LUNG))
    total = heart + lung
    with np.errstate(invalid="ignore"):
        weights = [np.where(total > 0, part / total, 0.5).astype(np.float32) for part in (heart, lung)]
    rounds = progress_engine(
        ddim_checkpoint, PICTURE, total, "unread", SHORT, beta_map=means(drawn(HEART, SHORT.beta2) + drawn(LUNG, 0.2)),
        findings=list(zip(("heart", "lung"), weights, strict=True)),
    )  # fmt: skip
    assert distance(result.latents, rounds) < TOLERANCE
    pace = result.provenance["pace"]
    assert len(pace["displacement"]) == 2 and all(len(blends) == 2 for blends in pace["blends"])


def displaced(result: Any, mask: np.ndarray) -> np.ndarray:
    """|m (z_n - z0)| of every frame."""
    return np.sqrt(np.square(mask * (result.latents - result.original_latent)).sum((1, 2, 3)))


@pytest.mark.parametrize("inversion", ["noise", "ddim"])
def test_frames_lie_evenly_on_the_way(engine: PieEngine, inversion: str) -> None:
    """Within a thousandth: the targets are met but for rounding and what beta1 moves."""
    config, mask = replace(SHORT, inversion=inversion), means(drawn(HEART))
    result = engine.run(Item(PICTURE, "heart", HEART), config)
    pace = result.provenance["pace"]
    assert pace["pilot_rounds"] in (4, 5) and pace["falling_short"] == []
    share = displaced(result, mask) / pace["displacement"]
    assert share == pytest.approx(np.arange(1, 6) / 5, rel=1e-3)
    constant = displaced(engine.run(Item(PICTURE, "heart", HEART), replace(config, pace="constant")), mask)
    assert not np.allclose(constant / constant[-1], share, atol=0.1)


def test_what_is_out_of_reach_is_said(engine: PieEngine, caplog: pytest.LogCaptureFixture) -> None:
    result = engine.run(Item(PICTURE, "heart", HEART, item_id="p7"), replace(SHORT, displacement=1e4))
    assert result.provenance["pace"]["falling_short"] == [1, 2, 3, 4, 5]
    assert result.provenance["pace"]["blends"] == [1.0] * 5
    assert "item p7: the edit of round 1, 2, 3, 4, 5 does not reach as far" in caplog.text


def test_a_batch_gives_each_what_it_gets_alone(engine: PieEngine) -> None:
    items = [Item(PICTURE, "heart", HEART, item_id="a"), Item(PICTURE, "lung", LUNG, item_id="b")]
    together = engine.run(items, SHORT)
    for item, result in zip(items, together, strict=True):
        alone = engine.run(item, SHORT)
        assert np.abs(alone.latents - result.latents).max() < TOLERANCE
        assert alone.provenance["pace"]["displacement"] == pytest.approx(
            result.provenance["pace"]["displacement"], rel=1e-4
        )


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("inversion", ["noise", "ddim"])
def test_backends_agree(engine: PieEngine, bundle: Bundle, name: str, inversion: str) -> None:
    pytest.importorskip(name)
    config, item = replace(SHORT, inversion=inversion), Item(PICTURE, "heart", HEART)
    expected = engine.run(item, config)
    result = PieEngine.load(bundle.path, backend=name, dtype="fp32", threads=1).run(item, config)
    scale = max(1.0, float(np.abs(expected.latents).max()) / 10)
    assert np.abs(result.latents - expected.latents).max() / scale < TOLERANCE
    assert result.provenance["pace"]["blends"] == pytest.approx(expected.provenance["pace"]["blends"], abs=2e-4)


@pytest.mark.parametrize("step", ["eager", "cpp"])
def test_implementations_of_the_fused_step_agree(engine: PieEngine, step: str) -> None:
    if step != "eager" and select("cpu").name != step:
        pytest.skip(f"{step} does not run here")
    item = Item(PICTURE, "heart", HEART)
    other = PieEngine(engine.backend, runtime=RuntimeConfig(fused_step=step))
    assert np.abs(other.run(item, SHORT).latents - engine.run(item, SHORT).latents).max() < TOLERANCE


def test_captured_rounds_are_the_same_bits(ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item(PICTURE, "heart", HEART)
    plain = PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint))).run(item, SHORT)
    monkeypatch.setattr(loop_module, "make_timeline", lambda backend, runtime: EmulatedTimeline())
    engine = PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))
    for _ in range(2):  # the second one through what the first one captured
        captured = engine.run(item, SHORT)
        assert np.array_equal(captured.latents, plain.latents)
        assert captured.provenance["pace"] == plain.provenance["pace"]
    assert captured.provenance["runtime"]["cuda_graph"]
    (loop,) = engine.simulator.loops.values()
    assert loop.stages["pace"].captured


def test_an_interrupted_run_goes_on_at_its_pace(engine: PieEngine, tmp_path: Path) -> None:
    item = Item(PICTURE, "heart", HEART)
    whole = engine.run(item, SHORT)

    def stop(done: int, total: int) -> None:
        if done == total - 4:  # in the fourth of five rounds of three evaluations, after a pilot of four
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        engine.run(item, SHORT, on_progress=stop)
    partial = stopped.value.results[0]
    assert partial.provenance["partial"] == {"rounds": 3, "of": 5}
    assert partial.provenance["pace"]["blends"] == whole.provenance["pace"]["blends"][:3]
    partial.save(tmp_path / "out")
    resumed = engine.run(item, SHORT, resume=tmp_path / "out")
    assert np.array_equal(resumed.latents, whole.latents)
    assert resumed.provenance["pace"] == whole.provenance["pace"]


def test_constant_pace_says_nothing_of_it(engine: PieEngine) -> None:
    result = engine.run(Item(PICTURE, "heart", HEART), replace(SHORT, pace="constant", steps=1))
    assert "pace" not in result.provenance


def geometric(limit: Any, q: Any, rounds: int) -> np.ndarray:
    return np.stack([np.array(limit) * (1 - np.array(q) ** n) for n in range(1, rounds + 1)])


def test_a_geometric_pilot_is_extrapolated() -> None:
    measured = geometric([[3.0, 0.5]], [[0.45, 0.25]], 10)
    assert extrapolate(measured[:4], 10) == pytest.approx(measured[-1])
    ends, known = find_ends(measured[:4], replace(SHORT, steps=10))
    assert ends == pytest.approx(measured[-1:]) and known.tolist() == [4, 4]
    found = targets(ends, replace(SHORT, steps=10), np.ones((1, 2)), ["a", "b"])
    assert found == pytest.approx(np.arange(1, 11)[:, None, None] / 10 * measured[-1])


def test_a_rate_that_rises_goes_on_rising_by_half() -> None:
    """Increments 8, 4, 3: rates 0.5 and 0.75, so 0.875 from here on; of rates beyond 1, and of a turn, 1 and 0."""
    assert extrapolate(np.array([8.0, 12.0, 15.0]), 5) == pytest.approx(15 + 3 * (0.875 + 0.875**2))
    assert extrapolate(np.array([1.0, 2.0, 4.0]), 6) == pytest.approx(4 + 3 * 2)
    assert extrapolate(np.array([4.0, 6.0, 5.0]), 9) == pytest.approx(5)
    assert extrapolate(np.array([4.0, 4.0, 4.0]), 9) == pytest.approx(4)


def test_a_pilot_goes_on_until_it_agrees_with_itself_each_item_for_itself() -> None:
    """b drifts from its fourth round on, which none of its first rounds could tell."""
    config = replace(SHORT, steps=10)
    quick = geometric(3.0, 0.45, 10)
    drifting = np.array([4.0, 6.5, 7.5, 8.1, 8.6, 9.1, 9.6, 10.1, 10.6, 11.1])
    both = np.stack([quick, drifting], axis=1)[:, None]
    assert find_ends(both[:4], config)[1].tolist() == [4, 0]
    count = next(n for n in range(5, 11) if find_ends(both[:n], config)[1].all())
    ends, known = find_ends(both[:count], config)
    assert count < 10 and known.tolist() == [4, count]
    assert ends[0, 0] == pytest.approx([quick[-1], 11.1], rel=2 * AGREEMENT)
    alone = find_ends(both[:4, :, :1], config)[0]
    assert ends[0, 0, 0] == alone[0, 0, 0]  # the same bits beside an item that takes longer
    wild = np.array([1.0, 2.0, 4.0, 5.0, 9.0, 9.5, 14.0, 15.0, 21.0, 20.0])[:, None, None]
    ends, known = find_ends(wild, config)
    assert ends.tolist() == [[[20.0]]] and known.tolist() == [10]  # all of its rounds say where it ends


def test_a_pilot_that_agrees_far_from_its_end_goes_on() -> None:
    """A lesion's displacements: after four and five rounds both extrapolate to 0.92, where ten go to 1."""
    config = replace(SHORT, steps=10)
    late = np.array([0.422, 0.582, 0.697, 0.776, 0.829, 0.869, 0.902, 0.935, 0.967, 1.0])[:, None, None]
    early, now = extrapolate(late[:4], 10), extrapolate(late[:5], 10)
    assert abs(now - early) <= AGREEMENT * now and now < 0.93
    ends, known = find_ends(late, config)
    assert known.tolist() == [9] and ends[0, 0] == pytest.approx([1.0], rel=2 * AGREEMENT)
    assert late[known[0] - 1] >= (1 - EXTRAPOLATED) * ends[0, 0]


def test_a_pilot_whose_second_round_goes_further_than_its_first_runs_all() -> None:
    """Another lesion's: its rounds die away after six, and set off again."""
    stalling = np.array([0.294, 0.603, 0.767, 0.862, 0.899, 0.910, 0.912, 0.944, 0.971, 1.0])[:, None, None]
    ends, known = find_ends(stalling, replace(SHORT, steps=10))
    assert known.tolist() == [10] and ends[0, 0].tolist() == [1.0]


def test_a_schedule_goes_evenly_within_each_of_its_ranges() -> None:
    config = replace(SHORT, schedule=RoundSchedule((RoundRange(3, 4, strength=0.9),)))
    measured = np.array([1.0, 1.5, 4.0, 6.5, 4.0]).reshape(5, 1, 1)
    assert find_ends(measured[:4], config)[1].tolist() == [0]
    ends, known = find_ends(measured, config)
    assert ends[:, 0, 0].tolist() == [1.5, 6.5, 4.0] and known.tolist() == [5]
    assert targets(ends, config, np.ones((1, 1)), ["a"])[:, 0, 0].tolist() == [0.75, 1.5, 4.0, 6.5, 4.0]


def test_a_pilot_that_does_not_move_is_refused() -> None:
    ends = np.array([[[3.0, 2e-4]]])
    with pytest.raises(InputError, match=r"the pilot of item b moves its region by less than a grey level"):
        targets(ends, replace(SHORT, steps=10), np.ones((1, 2)), ["a", "b"])


def test_the_first_round_is_the_pilots(engine: PieEngine) -> None:
    """Evaluations: a pilot of four rounds of three, and four more; with the displacement given, five; the same bits."""
    item = Item(PICTURE, "heart", HEART)
    said: list[tuple[int, int]] = []
    config = replace(SHORT, steps=4)
    piloted = engine.run(item, config, on_progress=lambda done, total: said.append((done, total)))
    assert piloted.provenance["schedule"]["unet_evaluations"] == 3 * (4 + 3)
    assert piloted.provenance["seconds"]["pilot"] > 0 and len(piloted.provenance["seconds"]["rounds"]) == 4
    assert said == [(done, 21) for done in range(1, 22)]
    end = piloted.provenance["pace"]["displacement"]
    given = engine.run(item, replace(config, displacement=end))
    assert given.provenance["schedule"]["unet_evaluations"] == 3 * 4
    assert np.array_equal(given.latents, piloted.latents)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"noise": "fresh"},
            "pace 'even' needs rounds that converge, and with fresh noise they do not; pass noise='shared'",
        ),
        ({"semantics": "official"}, "pace 'even' is not what the published code computes ('constant')"),
        ({"pace": "slow"}, "pace 'slow' is unknown; pass one of constant, even, even:CLASSIFIER"),
        ({"pace": "constant", "displacement": 2.0}, "displacement belongs to even pace; pass pace='even' with it"),
        ({"displacement": -1.0}, "displacement -1.0 is outside (0"),
        ({"displacement": float("inf")}, "displacement inf is not a finite number"),
    ],
)
def test_refused_settings(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(**{"pace": "even", **settings})
    assert str(caught.value).startswith(line)


def test_baselines_have_no_pace() -> None:
    with pytest.raises(ConfigError, match=r"pace 'even' is not used by method 'walk'; pass pace='constant'"):
        MethodConfig("walk").check(RunConfig(pace="even"))


def test_how_far_frames_lie_from_an_even_way() -> None:
    assert unevenness([1.0, 2.0, 3.0, 4.0]) == 0
    assert unevenness([3.0, 3.5, 4.0]) == pytest.approx(0.75 - 1 / 3)
    assert unevenness([1.0, 0.0]) is None


def test_late_change_is_that_of_the_last_half_inside() -> None:
    frames = np.zeros((6, 4, 4, 3), np.uint8)
    frames[2, :, :2], frames[5, :, :2] = 10, 16  # of rounds 1 to 5, 3 to 5 are the last half
    left = np.zeros((4, 4), bool)
    left[:, :2] = True
    assert late_change(frames, left) == 6
    assert late_change(frames, None) == 3
