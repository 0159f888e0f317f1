"""Rounds that compute a box: against whole rounds, why they do not, recorded anew, in batches, resumed, captured."""

from __future__ import annotations

from dataclasses import replace
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
from pie_engine.config import RuntimeConfig
from pie_engine.errors import ConfigError
from pie_engine.imaging import fit, open_image
from pie_engine.rounds import boxed, regional, truth
from pie_engine.rounds.schedule import build_schedule
from pie_engine.rounds.truth import carried

SIDE = 128
PICTURE = fit(open_image(GOLDEN / "image.png"), SIDE)
HEART, LUNG = Box(48, 48, 80, 80), Box(16, 80, 48, 112)
A, B = Item(PICTURE, "heart", HEART, item_id="a"), Item(PICTURE, "lung", LUNG, item_id="b")
CONFIG = RunConfig(
    steps=4, num_inference_steps=6, strength=0.5, guidance_scale=1.5, beta2=0.4, resolution=SIDE, feather=1
)
STEPS = 3  # denoising steps of a round
# What a random model's outside answers to a change of the region, of what rounds change there.
APART = 0.2


@pytest.fixture(autouse=True)
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's outside answers more than a trained one's: its rounds would soon be whole ones."""
    monkeypatch.setattr(truth, "LIMIT", 50.0)


def engine_of(checkpoint: Checkpoint, mode: str = "on", **settings: Any) -> PieEngine:
    runtime = RuntimeConfig(regional=mode, **settings)
    return PieEngine(TorchBackend(checkpoint, model_info(checkpoint)), runtime=runtime)


@pytest.fixture(scope="module")
def dense(ddim_checkpoint: Checkpoint) -> PieEngine:
    return engine_of(ddim_checkpoint, "off")


@pytest.fixture(scope="module")
def engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return engine_of(ddim_checkpoint)


def apart(one: Result, two: Result) -> float:
    """Inside the region, root mean squares: how far the frames are apart, of what the second ones change."""
    frames = two.frames.astype(float)[:, two.mask]
    change = np.sqrt(((frames[1:] - frames[0]) ** 2).mean())
    return float(np.sqrt(((one.frames[1:, two.mask] - frames[1:]) ** 2).mean()) / change)


def check_alike(one: Result, two: Result) -> None:
    """Near whole rounds inside the region, and the same pixels outside."""
    assert apart(one, two) <= APART
    outside = ~one.mask
    assert (one.frames[:, outside] == two.frames[:, outside]).all()


def test_rounds_in_a_box_are_near_whole_ones(engine: PieEngine, dense: PieEngine) -> None:
    result, whole = engine.run(A, CONFIG), dense.run(A, CONFIG)
    check_alike(result, whole)
    facts = result.provenance["regional"]
    assert facts["used"] and facts["whole"] == [1] and facts["checked"][-1] == CONFIG.steps
    assert facts["box"]["height"] < SIDE // 8 and facts["grey_levels"] <= facts["limit"]
    # The first round is computed and recorded whole.
    assert np.abs(result.latents[0] - whole.latents[0]).max() <= 1e-4
    assert dense.run(A, CONFIG).provenance["regional"] == {"used": False, "reason": "switched off"}


def test_a_box_of_everything_is_whole(engine: PieEngine, dense: PieEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regional, "MARGIN", SIDE)
    result, whole = engine.run(A, CONFIG), dense.run(A, CONFIG)
    assert result.provenance["regional"]["box"] == {"top": 0, "left": 0, "height": 16, "width": 16}
    # float32 over four rounds of three steps; nothing of what was recorded in half precision is read.
    assert np.abs(result.latents - whole.latents).max() <= 1e-4


@pytest.mark.parametrize(
    "settings",
    [
        {"guidance_scale": 1.0}, {"pace": "even"}, {"scheduler": "dpm++"}, {"scheduler": "euler"},
        {"composite": False}, {"beta1": 0.0},
    ],
    ids=["unguided", "even pace", "multistep", "scaled input", "not composited", "no leak"],
)  # fmt: skip
def test_with_other_settings(engine: PieEngine, dense: PieEngine, settings: dict[str, Any]) -> None:
    config = replace(CONFIG, **settings)
    result, whole = engine.run(A, config), dense.run(A, config)
    assert result.provenance["regional"]["used"]
    assert apart(result, whole) <= APART


def test_two_findings(engine: PieEngine, dense: PieEngine) -> None:
    item = Item(PICTURE, "heart", [replace_prompt(HEART, None), replace_prompt(LUNG, "lung")], item_id="a")
    result = engine.run(item, CONFIG)
    assert result.provenance["regional"]["used"]
    check_alike(result, dense.run(item, CONFIG))


def replace_prompt(shape: Box, prompt: str | None) -> Any:
    from pie_engine import Region

    return Region(shape, prompt=prompt)


def test_a_batch_equals_alone(engine: PieEngine) -> None:
    """Boxes of one size at different places run together; of other sizes apart."""
    small = Item(PICTURE, "heart", Box(48, 48, 60, 60), item_id="c")
    together = engine.run([A, B, small], CONFIG)
    places = [result.provenance["regional"]["box"] for result in together]
    assert places[0]["height"] == places[1]["height"] and places[0] != places[1]
    assert [result.provenance["backend"]["batch"] for result in together] == [2, 2, 1]
    for item, result in zip([A, B, small], together, strict=True):
        alone = engine.run(item, CONFIG)
        assert np.abs(result.latents - alone.latents).max() <= 1e-4


def test_what_ran_before_does_not_matter(engine: PieEngine, ddim_checkpoint: Checkpoint) -> None:
    """Kept buffers hold another patient's recording."""
    engine.run(B, CONFIG)
    again, fresh = engine.run(A, CONFIG), engine_of(ddim_checkpoint).run(A, CONFIG)
    assert (again.frames == fresh.frames).all() and (again.latents == fresh.latents).all()


def test_an_interrupted_run_goes_on(engine: PieEngine, tmp_path: Any) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2 * STEPS + 1:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        engine.run(A, CONFIG, on_progress=stop)
    caught.value.results[0].save(tmp_path / "run")
    resumed = engine.run(A, CONFIG, resume=tmp_path / "run")
    assert resumed.provenance["regional"]["used"]
    # The restored latents are the run's own; how far the region had moved when it was stopped is not known any more.
    assert apart(resumed, engine.run(A, CONFIG)) <= APART


def test_rounds_are_recorded_anew_where_they_differ(
    engine: PieEngine, dense: PieEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truth, "LIMIT", 1e-6)
    result = engine.run(A, CONFIG)
    facts = result.provenance["regional"]
    assert facts["whole"] == [1, 2, 3, 4] and facts["failed"] == 3
    assert np.abs(result.latents - dense.run(A, CONFIG).latents).max() <= 1e-4


def test_values_that_half_precision_cannot_hold(
    engine: PieEngine, dense: PieEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = boxed.BoxedUNet._write

    def write_too_much(unet: boxed.BoxedUNet) -> None:
        unet._network.surroundings[-1] = 70_000.0
        write(unet)

    monkeypatch.setattr(boxed.BoxedUNet, "_write", write_too_much)
    result = engine.run(A, CONFIG)
    assert result.provenance["regional"] == {
        "used": False, "reason": "what surrounds the box is beyond half precision's 65504",
    }  # fmt: skip
    assert (result.frames == dense.run(A, CONFIG).frames).all()
    assert "computed again, of the whole picture" in caplog.text


OFFICIAL = {"semantics": "official", "noise": None, "composite": None, "feather": None}
SCHEDULE = RoundSchedule((RoundRange(2, 2, strength=1.0),))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (OFFICIAL, "the published code draws the outside anew in every round"),
        ({"inversion": "ddim"}, "an inversion does not hold the outside"),
        ({"noise": "fresh"}, "fresh noise changes the outside in every round"),
        ({"beta1": 0.5}, "beta1 0.5 moves the outside with the region (at most 0.05)"),
        ({"steps": 1}, "there is one round"),
        ({"schedule": SCHEDULE}, "the schedule's rounds run other steps"),
    ],
)
def test_where_no_box_can_be_computed(ddim_checkpoint: Checkpoint, settings: dict[str, Any], reason: str) -> None:
    config = replace(CONFIG, **settings)
    found = engine_of(ddim_checkpoint, "auto").run(A, config).provenance["regional"]
    assert not found["used"] and found["reason"].startswith(reason)
    with pytest.raises(ConfigError, match="regional is on, and ") as refused:
        engine_of(ddim_checkpoint).run(A, config)
    assert reason in str(refused.value) and "\n" not in str(refused.value)


def test_other_reasons(ddim_checkpoint: Checkpoint, engine: PieEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regional, "_LEAST_WORK", 0)
    found = engine_of(ddim_checkpoint, "auto")
    assert found.run(Item(PICTURE, "heart"), CONFIG).provenance["regional"]["reason"] == "there is no region"
    most = Item(PICTURE, "heart", Box(8, 8, 120, 120), item_id="d")
    assert "of the picture would take" in found.run(most, CONFIG).provenance["regional"]["reason"]
    little = engine_of(ddim_checkpoint, "auto", regional_memory=1e-6)
    assert little.run(A, replace(CONFIG, steps=10)).provenance["regional"]["reason"].startswith("a recording takes ")
    with pytest.raises(ConfigError, match="only PIE's rounds repeat"):
        engine.run(A, CONFIG, method=MethodConfig("walk"))
    with pytest.raises(ConfigError, match="regional"):
        RuntimeConfig(regional="sometimes")


def test_a_small_box_is_worth_it(ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, steps=10)
    small = engine_of(ddim_checkpoint, "auto").run(A, config).provenance["regional"]
    assert small == {"used": False, "reason": "a network of so few multiplications gains nothing by a box"}
    monkeypatch.setattr(regional, "_LEAST_WORK", 0)
    assert engine_of(ddim_checkpoint, "auto").run(A, config).provenance["regional"]["used"]


def test_the_recording_is_as_large_as_foretold(engine: PieEngine) -> None:
    seen: dict[str, int] = {}

    class Watching(truth.Watch):
        def after(self, index: int, latents: torch.Tensor) -> bool:
            seen["bytes"] = self._plan.boxed.unet.recording_bytes
            return super().after(index, latents)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pie_engine.rounds.simulator.Watch", Watching)
        told = engine.run(A, CONFIG).provenance["regional"]["recording_bytes"]
    assert told == seen["bytes"]


@pytest.mark.parametrize("name", ["ddim", "euler", "dpm++", "unipc", "pndm"])
def test_what_an_error_of_every_step_comes_to(ddim_checkpoint: Checkpoint, name: str) -> None:
    """Against the schedule run twice, once with noise that is 1 larger."""
    schedule = build_schedule(ddim_checkpoint.scheduler_config, name=name, num_inference_steps=20, denoising_steps=8)
    ends = []
    for more in (0.0, 1.0):
        x, history = 0.7, np.zeros(schedule.history)
        for i in range(schedule.steps):
            noise = 0.1 * i + more
            following = schedule.P[i] @ history + schedule.p[i] * x + schedule.q[i] * noise
            x = schedule.a[i] * x + schedule.b[i] * noise + schedule.c[i] @ history
            history = following
        ends.append(x)
    assert carried(schedule) == pytest.approx(ends[1] - ends[0], abs=1e-9)


def test_captured_rounds(ddim_checkpoint: Checkpoint, engine: PieEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of each kind are captured by themselves, on fixed addresses."""
    monkeypatch.setattr(loop_module, "make_timeline", lambda *_: EmulatedTimeline())
    monkeypatch.setattr(boxed, "on_host", lambda device: False)
    captured = engine_of(ddim_checkpoint)
    config = replace(CONFIG, steps=5)
    first, second = (captured.run(item, config) for item in (A, B))
    assert first.provenance["runtime"]["cuda_graph"]
    stages = {name for loop in captured.simulator.loops.values() for name in loop.stages}
    assert {"step, recording", "step, in the box", "step, checking the box", "decoding"} <= stages
    for item, result in ((A, first), (B, second)):
        assert (result.frames == engine.run(item, config).frames).all()


def test_half_of_free_memory_is_enough(engine: PieEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regional, "free_memory", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"a recording takes .* GB, more than 5e-07 GB"):
        engine.run(A, CONFIG)
    monkeypatch.setattr(regional, "free_memory", lambda device: None)  # a system that does not say
    assert engine.run(A, CONFIG).provenance["regional"]["used"]


def test_a_backend_without_boxes(ddim_checkpoint: Checkpoint) -> None:
    item = SimpleNamespace(mask=None)
    config = CONFIG
    backend = SimpleNamespace(name="own", model=model_info(ddim_checkpoint))
    chosen = SimpleNamespace(frames=None, config=config)
    found = regional.choose_box(item, chosen, backend, RuntimeConfig(regional="auto"))  # type: ignore[arg-type]
    assert found == (None, "the backend computes whole pictures")
