"""Schedules of prompt, strength and guidance: files and their refusals, and every round against the reference."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN
from graph_emulator import EmulatedTimeline

import pie_engine.rounds.loop as loop_module
from pie_engine import Item, PieEngine, RoundRange, RoundSchedule, RunConfig
from pie_engine.backends import UNetCall
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.errors import ConfigError
from pie_engine.imaging import fit, open_image, prepare_mask
from pie_engine.model.bundle import Bundle
from pie_engine.reference import blend, denoise, encode_prompts, encode_text, invert, progress_engine, to_pixels
from pie_engine.rounds.buffers import Buffers
from pie_engine.rounds.noise import item_noise
from pie_engine.rounds.schedule import make_scheduler, prepare_scheduler

IMAGE, MASK, PROMPT = GOLDEN / "image.png", GOLDEN / "mask.png", "the heart lung"
# Of latents in fp32, as tests/rounds/test_progression.py has it: scaled where a random model lets them grow.
TOLERANCE = 1e-4
SIDE = 64
SHORT = RunConfig(steps=5, num_inference_steps=8, guidance_scale=3.0, resolution=SIDE)
# Two findings one after the other, a guidance that fades in from none, and three strengths.
RAMPED = [
    {"rounds": "1-3", "guidance_scale": [0, 4]},
    {"rounds": 4, "prompt": "lung", "strength": 0.25},
    {"rounds": "5", "prompt": "lung", "strength": 1, "guidance_scale": 6.5},
]
# The same written out: prompt, denoising steps of 8, guidance.
EXPECTED = [(PROMPT, 4, 0.0), (PROMPT, 4, 2.0), (PROMPT, 4, 4.0), ("lung", 2, 3.0), ("lung", 8, 6.5)]


def scheduled(entries: Sequence[dict[str, Any]], config: RunConfig = SHORT, **settings: Any) -> RunConfig:
    return replace(config, schedule=RoundSchedule.parse(list(entries)), **settings)


def composed(
    checkpoint: Checkpoint, rounds: Sequence[tuple[str, int, float]], config: RunConfig, *, masked: bool
) -> np.ndarray:
    """Latents [N, 4, h, w], round by round with the reference's parts and settings written out; knows no schedule."""
    image = open_image(IMAGE)
    fitted = fit(image, SIDE)
    z0 = checkpoint.vae.encode(to_pixels(fitted)).latent_dist.mean * checkpoint.scaling_factor
    mask = None
    if masked:
        mask = torch.from_numpy(prepare_mask(open_image(MASK), image.size, SIDE, official=False).latent)[None]
    z, latents = z0, []
    for index, (prompt, steps, guidance) in enumerate(rounds):
        own = replace(config, schedule=None, strength=steps / config.num_inference_steps, guidance_scale=guidance)
        scheduler = make_scheduler(checkpoint.scheduler_config, "ddim")
        timesteps = prepare_scheduler(scheduler, config.num_inference_steps, steps)
        if config.inversion == "ddim":
            eps = invert(checkpoint, z, encode_text(checkpoint, [""]), timesteps, own)
        else:
            eps = item_noise(tuple(z.shape[1:]), config.seed, "0", None if config.noise == "shared" else index)[None]
        x = scheduler.add_noise(z, eps, timesteps[:1])
        x = denoise(checkpoint, scheduler, timesteps, x, encode_prompts(checkpoint, prompt, own), mask, z0, eps, own)
        z = x if mask is None else blend(x, z0, mask, own)
        latents.append(z.numpy())
    return np.concatenate(latents)


def distance(result: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(result - expected).max() / max(1.0, float(np.abs(expected).max()) / 10))


@pytest.fixture(scope="module")
def torch_engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))


@pytest.fixture(scope="module")
def onnx_engine(bundle: Bundle) -> PieEngine:
    return PieEngine(OnnxBackend(bundle, threads=1))


def test_settings_of_every_round() -> None:
    config = scheduled(RAMPED)
    found = [(own.prompt or PROMPT, own.kind.denoising_steps, own.guidance_scale) for own in config.rounds]
    assert found == EXPECTED
    assert [own.kind.guided for own in config.rounds] == [False, True, True, True, True]
    assert [own.strength for own in config.rounds] == [0.5, 0.5, 0.5, 0.25, 1]
    # A straight line must not lose a step to its last digit: 0.2 + 0.2 / 2 is 0.30000000000000004 in floating point.
    ramp = RoundSchedule((RoundRange(1, 3, strength=(0.2, 0.4)), RoundRange(5, 5, "lung")))
    own = RunConfig(steps=6, num_inference_steps=50, schedule=ramp).rounds
    assert [one.strength for one in own] == [0.2, 0.3, 0.4, 0.5, 0.5, 0.5]
    assert [one.kind.denoising_steps for one in own] == [10, 15, 20, 25, 25, 25]
    assert [one.prompt for one in own] == [None] * 4 + ["lung", None]


def test_written_as_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    path.write_text(json.dumps(RAMPED[::-1]))  # the order of a file means nothing
    schedule = RoundSchedule.read(path)
    assert schedule.to_list() == [RAMPED[0], {**RAMPED[1], "rounds": "4"}, RAMPED[2]]
    assert RoundSchedule.parse(schedule.to_list()) == schedule
    assert hash(replace(SHORT, schedule=schedule)) == hash(replace(SHORT, schedule=schedule))
    assert "schedule" not in SHORT.to_dict()


REFUSALS: dict[str, tuple[Any, str]] = {
    "no list": ({"rounds": 1}, "schedule: a list is expected, not dict; write [{"),
    "empty": ([], "schedule: there are no rounds in it"),
    "no object": ([3], "schedule: 3 is not an object; write {"),
    "unknown key": (
        [{"rounds": 1, "gamma": 0.5}],
        "key 'gamma' is unknown; pass one of rounds, prompt, strength, guidance",
    ),
    "no rounds": ([{"prompt": "a"}], "names no rounds"),
    "nothing changes": ([{"rounds": 1}], "rounds 1 change nothing"),
    "words": ([{"rounds": "first", "prompt": "a"}], "rounds 'first' do not name rounds; write 3 or \"1-3\""),
    "negative": ([{"rounds": -1, "prompt": "a"}], "round -1 is not a whole number from 1 on"),
    "zero": ([{"rounds": "0-2", "prompt": "a"}], "round 0 is not a whole number from 1 on"),
    "a flag": ([{"rounds": True, "prompt": "a"}], "rounds True do not name rounds"),
    "a fraction": ([{"rounds": 1.5, "prompt": "a"}], "rounds 1.5 do not name rounds"),
    "backwards": ([{"rounds": "3-1", "prompt": "a"}], "rounds 3-1 end before they begin; write 1-3"),
    "twice": (
        [{"rounds": "1-3", "prompt": "a"}, {"rounds": "3-4", "strength": 0.5}],
        "round 3 is in both 1-3 and 3-4; name each round once",
    ),
    "beyond": ([{"rounds": "4-6", "prompt": "a"}], "round 6 is beyond the 5 of steps; pass steps=6"),
    "no prompt": ([{"rounds": 1, "prompt": 3}], "prompt 3 of rounds 1 is not text"),
    "not UTF-8": ([{"rounds": 1, "prompt": "\ud800"}], "prompt '\\ud800' of rounds 1 is not valid UTF-8"),
    "strength 0": ([{"rounds": 1, "strength": 0}], "strength of rounds 1 0 is outside (0, 1]; write 0.5"),
    "strength 2": ([{"rounds": "1-2", "strength": [0.5, 2]}], "strength of rounds 1-2 2 is outside (0, 1]"),
    "guidance": ([{"rounds": 1, "guidance_scale": -1}], "guidance_scale of rounds 1 -1 is outside [0, 100]"),
    "NaN": ([{"rounds": 1, "guidance_scale": float("nan")}], "guidance_scale of rounds 1 nan is not a finite number"),
    "huge": ([{"rounds": 1, "guidance_scale": 10**400}], "guidance_scale of rounds 1 1000"),
    "text": ([{"rounds": 1, "strength": "0.5"}], "strength of rounds 1 '0.5' is not a finite number"),
    "three values": ([{"rounds": "1-2", "strength": [1, 1, 1]}], "strength of rounds 1-2 has 3 values"),
    "ramp of one": ([{"rounds": "2", "strength": [0.1, 1]}], "strength of round 2 has two values"),
    "no step": (
        [{"rounds": 2, "strength": 0.1}],
        "strength 0.1 in round 2 of the schedule of 8 steps runs no denoising step (at least 0.13 needed); write 0.13",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    entries, message = REFUSALS[case]
    with pytest.raises(ConfigError) as caught:
        scheduled(entries) if isinstance(entries, list) else RoundSchedule.parse(entries)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refusals_of_files_and_semantics(tmp_path: Path) -> None:
    path = tmp_path / "rounds.json"
    with pytest.raises(ConfigError, match=r"rounds.json cannot be read \(No such file or directory\)"):
        RoundSchedule.read(path)
    path.write_text('[{"rounds": 1, "strength": 0.1, "strength": 0.5}]')
    with pytest.raises(ConfigError, match=r"is not JSON .*'strength' stands in an object twice"):
        RoundSchedule.read(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8; save it"):
        RoundSchedule.read(path)
    with pytest.raises(ConfigError, match=r"schedule of type list is not a RoundSchedule; pass .*=RoundSchedule\.read"):
        RunConfig(schedule=[{"rounds": 1, "prompt": "a"}])  # type: ignore[arg-type]
    with pytest.raises(
        ConfigError, match="a schedule is not what the published code computes; pass semantics='engine'"
    ):
        RunConfig(semantics="official", schedule=RoundSchedule((RoundRange(1, 1, "a"),)))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("engine_name", ["torch_engine", "onnx_engine"])
def test_every_round_is_the_references(
    engine_name: str, masked: bool, ddim_checkpoint: Checkpoint, request: pytest.FixtureRequest
) -> None:
    engine, config = request.getfixturevalue(engine_name), scheduled(RAMPED)
    result = engine.run(Item(IMAGE, PROMPT, MASK if masked else None), config)
    with torch.inference_mode():
        expected = composed(ddim_checkpoint, EXPECTED, config, masked=masked)
    assert distance(result.latents, expected) < TOLERANCE
    image = open_image(IMAGE)
    mask = prepare_mask(open_image(MASK), image.size, SIDE, official=False).latent if masked else None
    oracle = [z.numpy() for z, _ in progress_engine(ddim_checkpoint, fit(image, SIDE), mask, PROMPT, config)]
    assert distance(np.concatenate(oracle), expected) < TOLERANCE / 100
    rounds = result.provenance["simulated"]["rounds"]
    found = [(one["prompt"], one["denoising_steps"], one["guidance_scale"]) for one in rounds]
    assert found == EXPECTED
    assert result.provenance["schedule"]["unet_evaluations"] == 4 + 4 + 4 + 2 + 8
    assert {int(k): len(own) for k, own in result.provenance["schedule"]["timesteps"].items()} == {2: 2, 4: 4, 8: 8}


def test_fresh_noise(torch_engine: PieEngine, ddim_checkpoint: Checkpoint) -> None:
    config = scheduled(RAMPED, noise="fresh")
    result = torch_engine.run(Item(IMAGE, PROMPT, MASK), config)
    with torch.inference_mode():
        expected = composed(ddim_checkpoint, EXPECTED, config, masked=True)
    assert distance(result.latents, expected) < TOLERANCE


def test_inversion(torch_engine: PieEngine, ddim_checkpoint: Checkpoint) -> None:
    """Each strength is inverted to its own first timestep. Three rounds: a random U-Net expands every difference."""
    entries = [{"rounds": 1, "guidance_scale": 1}, {"rounds": 3, "prompt": "lung", "strength": 0.25}]
    config = scheduled(entries, steps=3, inversion="ddim", guidance_scale=2.0)
    result = torch_engine.run(Item(IMAGE, PROMPT, MASK), config)
    with torch.inference_mode():
        expected = composed(ddim_checkpoint, [(PROMPT, 4, 1), (PROMPT, 4, 2), ("lung", 2, 2)], config, masked=True)
    assert distance(result.latents, expected) < TOLERANCE
    assert result.provenance["schedule"]["unet_evaluations"] == 2 * (4 + 4 + 2)


@pytest.mark.parametrize("engine_name", ["torch_engine", "onnx_engine"])
@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_a_constant_schedule_changes_no_bit(engine_name: str, guidance: float, request: pytest.FixtureRequest) -> None:
    engine, plain = request.getfixturevalue(engine_name), replace(SHORT, steps=3, guidance_scale=guidance)
    entries = [{"rounds": "1-2", "prompt": PROMPT}, {"rounds": 3, "strength": 0.5, "guidance_scale": guidance}]
    item = Item(IMAGE, PROMPT, MASK)
    results = [engine.run(item, config) for config in (plain, scheduled(entries, plain))]
    assert np.array_equal(results[0].latents, results[1].latents)
    assert np.array_equal(results[0].frames, results[1].frames)
    assert len(engine.simulator.loops) <= 2
    assert results[0].provenance["schedule"] == results[1].provenance["schedule"]


def test_batches_share_the_schedule_and_keep_their_own_prompts(torch_engine: PieEngine) -> None:
    config = scheduled(RAMPED)
    items = [Item(IMAGE, PROMPT, MASK, "a"), Item(IMAGE, "heart", MASK, "b")]
    for item, result in zip(items, torch_engine.run(items, config), strict=True):
        assert distance(result.latents, torch_engine.run(item, config).latents) < TOLERANCE
        prompts = [one["prompt"] for one in result.provenance["simulated"]["rounds"]]
        assert prompts == [item.prompt] * 3 + ["lung"] * 2


def test_prompts_are_encoded_and_buffers_allocated_once(
    ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    class Counting(TorchBackend):
        def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
            calls.append(f"text {len(ids)}")
            return super().encode_text(ids)

        def bind_unet(self, batch: int, height: int, width: int) -> Any:
            calls.append(f"bind {batch}")
            return super().bind_unet(batch, height, width)

    allocate = Buffers.allocate
    monkeypatch.setattr(Buffers, "allocate", lambda *a, **k: calls.append("buffers") or allocate(*a, **k))
    engine = PieEngine(Counting(ddim_checkpoint, model_info(ddim_checkpoint)))
    engine.run(Item(IMAGE, PROMPT), scheduled(RAMPED))
    # One set of buffers and one U-Net with and one without guidance; the empty prompt and two others.
    assert calls == ["buffers", "text 3", "bind 1", "bind 2"]
    calls.clear()
    # The same kinds of round in another order and with other prompts: nothing is bound anew. No more than three
    # prompts at once, which is what an engine for one item is compiled for.
    other = [{**entry, "prompt": word} for entry, word in zip(RAMPED, ("lung", "heart", "severe"), strict=True)]
    engine.run(Item(IMAGE, PROMPT), scheduled(other))
    assert calls == ["text 3", "text 1"]


def test_captured_rounds_of_several_kinds(ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """One captured step serves every number of steps; prompts and guidance are copied between rounds."""
    entries = [
        {"rounds": "1-4", "guidance_scale": [2, 5]},
        {"rounds": "5-8", "prompt": "lung", "strength": 0.25},
        {"rounds": "9-10", "guidance_scale": 1},
        {"rounds": "11-12", "prompt": "heart"},
    ]
    config = scheduled(entries, replace(SHORT, num_inference_steps=4), steps=12)
    backend = TorchBackend(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint))
    expected = PieEngine(backend).run(Item(IMAGE, PROMPT, MASK), config)
    timelines: list[EmulatedTimeline] = []
    make: Callable[..., EmulatedTimeline] = lambda *_: timelines.append(EmulatedTimeline()) or timelines[-1]  # noqa: E731
    monkeypatch.setattr(loop_module, "make_timeline", make)
    engine = PieEngine(backend)
    for _ in range(2):
        seen: list[int] = []
        result = engine.run(Item(IMAGE, PROMPT, MASK), config, on_progress=lambda done, total: seen.append(done))  # noqa: B023
        assert np.array_equal(result.latents, expected.latents)
        assert np.array_equal(result.frames, expected.frames)
        assert seen == list(range(1, 4 * 2 + 4 * 1 + 2 * 2 + 2 * 2 + 1))
    # Entry and step with guidance and without, however many steps there are in a round; and decoding.
    assert timelines[0].captures == 5
    assert result.provenance["runtime"]["cuda_graph"]


@pytest.mark.parametrize("emulated", [True, False])
def test_a_round_that_is_run_again_has_its_own_settings(
    ddim_checkpoint: Checkpoint, emulated: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The U-Net overflows in fp16 at the fourth round's prompt; a later round was begun by then."""

    class Overflowing(TorchBackend):
        def decode_latent(self, latent: torch.Tensor) -> torch.Tensor:
            self.decoded = getattr(self, "decoded", 0) + 1
            return super().decode_latent(latent)

        def bind_unet(self, batch: int, height: int, width: int) -> Any:
            inner = super().bind_unet(batch, height, width)
            backend = self

            class Call(UNetCall):
                sample, timestep, context = inner.sample, inner.timestep, inner.context

                def __call__(self) -> None:
                    inner()
                    bad = backend.precisions["unet"] == "fp16" and getattr(backend, "decoded", 0) >= 3
                    self.output = inner.output * float("inf") if bad else inner.output

            return Call()

    if emulated:
        make: Callable[..., EmulatedTimeline] = lambda *_: EmulatedTimeline(graph=lambda function: function)  # noqa: E731
        monkeypatch.setattr(loop_module, "make_timeline", make)
    config = scheduled(RAMPED)
    backend = Overflowing(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint), precision="fp16")
    with caplog.at_level(logging.WARNING):
        result = PieEngine(backend).run(Item(IMAGE, PROMPT), config)
    (rerun,) = result.provenance["reruns"]
    assert (rerun["round"], rerun["component"]) == (4, "unet")
    with torch.inference_mode():
        expected = composed(ddim_checkpoint, EXPECTED, config, masked=False)
    # fp16's unit roundoff times the square root of some 1,000 stored roundings; a wrong prompt or strength gives more.
    error = np.linalg.norm(result.latents[-1] - expected[-1]) / np.linalg.norm(expected[-1])
    assert error < 1.6e-2
