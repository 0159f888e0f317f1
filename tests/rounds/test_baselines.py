"""Each baseline against a loop written by hand over the eager model, or against diffusers' own pipeline."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN
from PIL import Image

from pie_engine import Box, Item, OutputConfig, PieEngine, Region, RunConfig
from pie_engine.backends.onnx_backend import OnnxBackend
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import MethodConfig, RoundRange, RoundSchedule
from pie_engine.errors import BackendError, ConfigError
from pie_engine.imaging import fit, open_image
from pie_engine.model.bundle import Bundle
from pie_engine.outputs.frames import contact_sheet
from pie_engine.rounds.methods import matched_steps, slerp
from pie_engine.rounds.noise import item_noise

IMAGE, PROMPT = GOLDEN / "image.png", "the heart lung"
# In the image's own 300 x 260 pixels; the middle 260 x 260 become 64 x 64.
ROI = Box(80, 40, 180, 160)
SHORT = RunConfig(steps=3, num_inference_steps=8, resolution=64, guidance_scale=4.0, seed=5)
# In fp32, as for PIE's own rounds (tests/rounds/test_progression.py): scaled where the random model lets latents grow.
TOLERANCE = 1e-4


def distance(latent: np.ndarray, expected: torch.Tensor) -> float:
    own = expected[0].numpy()
    return float(np.abs(latent - own).max() / max(1.0, float(np.abs(own).max()) / 10))


@pytest.fixture(scope="module")
def engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))


class ByHand:
    """The eager model, and DDIM written out from Song et al. 2021, eq. 12."""

    def __init__(self, checkpoint: Checkpoint, config: RunConfig, *, masked: bool):
        self.c, self.config = checkpoint, config
        scheduler = checkpoint.scheduler_config
        betas = torch.linspace(scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, 1000, dtype=torch.float64)
        abar = torch.cumprod(1 - betas**2, 0)
        stride = 1000 // config.num_inference_steps
        self.times = [1 + stride * i for i in range(config.num_inference_steps)]  # rising, offset 1
        self.abar = {t: float(abar[t]) for t in self.times}
        self.first = float(abar[0])  # the clean latent's, set_alpha_to_one is off
        pixels = np.asarray(fit(open_image(IMAGE), 64)).astype(np.float32)
        self.pixels = torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]
        self.z0 = self.encode(self.pixels)
        self.eps = item_noise((4, 8, 8), config.seed, "0")[None]
        self.mask: torch.Tensor | None = None
        if masked:
            drawn = np.zeros((260, 300), np.uint8)
            drawn[40:160, 80:180] = 255
            fitted = np.asarray(fit(Image.fromarray(drawn), 64).convert("L")) >= 128
            self.mask = torch.from_numpy(fitted.reshape(8, 8, 8, 8).mean((1, 3), dtype=np.float32))[None, None]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.c.vae.encode(pixels).latent_dist.mean * self.c.scaling_factor

    def decode(self, latent: torch.Tensor) -> np.ndarray:
        pixels = self.c.vae.decode(latent / self.c.scaling_factor).sample[0]
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)

    def embed(self, prompt: str) -> torch.Tensor:
        ids = self.c.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
        return self.c.text_encoder(ids.input_ids)[0]

    def predict(self, x: torch.Tensor, t: int, context: torch.Tensor) -> torch.Tensor:
        return self.c.unet(x, torch.tensor(t), encoder_hidden_states=context).sample

    def invert(self, steps: int) -> torch.Tensor:
        """The noise that leads to the input, asked for at the timestep to be reached."""
        x, before, empty = self.z0, self.first, self.embed("")
        for t in self.times[:steps]:
            e = self.predict(x, t, empty)
            clean = (x - math.sqrt(1 - before) * e) / math.sqrt(before)
            before = self.abar[t]
            x = math.sqrt(before) * clean + math.sqrt(1 - before) * e
        return (x - math.sqrt(before) * self.z0) / math.sqrt(1 - before)

    def edit(self, steps: int, eps: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        times, uncond = self.times[:steps][::-1], self.embed(self.config.negative_prompt)
        x = self.noised(times[0], eps)
        for i, t in enumerate(times):
            if self.mask is not None and i:
                x = self.mask * x + (1 - self.mask) * self.noised(t, eps)
            e = self.predict(x, t, context)
            if self.config.guidance_scale > 1:
                u = self.predict(x, t, uncond)
                e = u + self.config.guidance_scale * (e - u)
            clean = (x - math.sqrt(1 - self.abar[t]) * e) / math.sqrt(self.abar[t])
            after = self.abar[times[i + 1]] if i + 1 < len(times) else self.first
            x = math.sqrt(after) * clean + math.sqrt(1 - after) * e
        return x if self.mask is None else self.z0 + self.mask * (x - self.z0)

    def noised(self, t: int, eps: torch.Tensor) -> torch.Tensor:
        return math.sqrt(self.abar[t]) * self.z0 + math.sqrt(1 - self.abar[t]) * eps


def slerp_by_hand(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    """As stable-diffusion-videos computes it."""
    angle = np.arccos(np.sum(a / np.linalg.norm(a) * (b / np.linalg.norm(b))))
    return (np.sin((1 - share) * angle) * a + np.sin(share * angle) * b) / np.sin(angle)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(
    ("settings", "method", "steps"),
    [
        ({}, {}, 8),
        ({"guidance_scale": 1.0}, {"start_prompt": "lung", "total_strength": 0.5}, 4),
        ({"negative_prompt": "lung", "beta1": 0.3, "beta2": 0.4, "strength": 0.25}, {"start_prompt": "heart"}, 8),
    ],
)
@torch.inference_mode()
def test_walk(
    engine: PieEngine,
    ddim_checkpoint: Checkpoint,
    settings: dict[str, Any],
    method: dict[str, Any],
    steps: int,
    masked: bool,
) -> None:
    config = replace(SHORT, **settings)
    item = Item(IMAGE, PROMPT, ROI if masked else None)
    result = engine.run(item, config, method=MethodConfig("walk", **method))
    hand = ByHand(ddim_checkpoint, config, masked=masked)
    inverted = hand.invert(steps)
    start, end = hand.embed(method.get("start_prompt", "")), hand.embed(PROMPT)
    for n in (1, 2, 3):
        eps = torch.from_numpy(slerp_by_hand(inverted.double().numpy(), hand.eps.double().numpy(), n / 3)).float()
        expected = hand.edit(steps, eps, start + n / 3 * (end - start))
        assert distance(result.latents[n - 1], expected) < TOLERANCE
        decoded = hand.decode(expected)
        inside = slice(None) if result.mask is None else result.mask & (np.abs(result.frames[n] - decoded) <= 1).all(-1)
        assert np.abs(result.frames[n][inside].astype(int) - decoded[inside]).max() <= 1
    if result.mask is not None:
        assert (result.frames[:, ~result.mask] == result.frames[0, ~result.mask]).all()
        assert (result.frames[3, result.mask] != result.frames[0, result.mask]).any()
    assert result.config == config
    assert result.provenance["settings"] == config.to_dict()
    assert result.provenance["method"]["total_strength"] == method.get("total_strength", 1.0)
    assert result.provenance["schedule"]["unet_evaluations"] == 4 * steps  # inversion, and three frames
    assert result.provenance["what"].startswith("3 frames of a Stable Diffusion walk")


def test_a_walk_ends_at_the_strongest_edit(engine: PieEngine) -> None:
    item, config = Item(IMAGE, PROMPT, ROI), replace(SHORT, steps=2)
    walk = engine.run([item], config, method="walk")[0]
    edit = engine.run([item], replace(config, steps=1), method=MethodConfig("one-shot", total_strength=1.0))[0]
    assert distance(walk.latents[-1], torch.from_numpy(edit.latents)) < TOLERANCE
    assert distance(walk.latents[0], torch.from_numpy(edit.latents)) > 100 * TOLERANCE


@torch.inference_mode()
def test_one_shot_is_diffusers_img2img(
    engine: PieEngine, ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of rising strength, from the input's latent, with the item's noise."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
    from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as module

    c = ddim_checkpoint
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=c.vae, text_encoder=c.text_encoder, tokenizer=c.tokenizer, unet=c.unet,
        scheduler=DDIMScheduler.from_config(c.scheduler_config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: item_noise((4, 8, 8), 5, "0")[None])
    hand = ByHand(c, SHORT, masked=False)
    result = engine.run([Item(IMAGE, PROMPT)], SHORT, method=MethodConfig("one-shot", total_strength=0.8))[0]
    # int(8 * 0.8) = 6 steps in all, so 2, 4 and 6 of them.
    assert result.provenance["method"] == {"name": "one-shot", "total_strength": 0.75, "denoising_steps": [2, 4, 6]}
    assert result.provenance["schedule"]["unet_evaluations"] == 12
    for latent, frame, strength in zip(result.latents, result.frames[1:], (0.25, 0.5, 0.75), strict=True):
        expected = pipeline(
            prompt=PROMPT, image=hand.z0, strength=strength, num_inference_steps=8, guidance_scale=4.0,
            output_type="latent",
        ).images  # fmt: skip
        np.testing.assert_allclose(latent, expected[0].numpy(), atol=TOLERANCE)
        assert np.abs(frame.astype(int) - hand.decode(expected)).max() <= 1


@pytest.mark.parametrize("settings", [{}, {"noise": "fresh"}, {"inversion": "ddim"}])
@torch.inference_mode()
def test_one_shot_with_a_mask(engine: PieEngine, ddim_checkpoint: Checkpoint, settings: dict[str, Any]) -> None:
    config = replace(SHORT, steps=4, **settings)
    method = MethodConfig("one-shot", total_strength=0.25)  # two steps at most: frames 1 to 3 share one strength
    # A beta of its own is PIE's, and changes nothing here.
    result = engine.run([Item(IMAGE, PROMPT, Region(ROI, 0.2))], config, method=method)[0]
    hand = ByHand(ddim_checkpoint, config, masked=True)
    for index, steps in enumerate((1, 1, 1, 2)):
        eps = hand.eps if config.noise == "shared" else item_noise((4, 8, 8), 5, "0", index)[None]
        eps = hand.invert(steps) if config.inversion == "ddim" else eps
        expected = hand.edit(steps, eps, hand.embed(PROMPT))
        assert distance(result.latents[index], expected) < TOLERANCE
    # What is equal is computed once; inversion runs as many steps again.
    evaluations = {"noise": 3, "fresh": 5, "ddim": 6}
    key = "fresh" if config.noise == "fresh" else config.inversion
    assert result.provenance["schedule"]["unet_evaluations"] == evaluations[key]


@torch.inference_mode()
def test_vae_is_repeated_round_trips_of_8_bit_frames(engine: PieEngine, ddim_checkpoint: Checkpoint) -> None:
    hand = ByHand(ddim_checkpoint, SHORT, masked=False)
    bare, masked = engine.run([Item(IMAGE, ""), Item(IMAGE, "", ROI)], SHORT, method="vae")
    pixels = hand.pixels
    for n in (1, 2, 3):
        latent = hand.encode(pixels)
        frame = hand.decode(latent)
        np.testing.assert_allclose(bare.latents[n - 1], latent[0].numpy(), atol=TOLERANCE)
        np.testing.assert_array_equal(bare.frames[n], frame)
        np.testing.assert_allclose(masked.latents[n - 1], latent[0].numpy(), atol=TOLERANCE)
        pixels = torch.from_numpy(frame.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    assert masked.mask is not None
    assert (masked.frames[1:, ~masked.mask] == masked.frames[0, ~masked.mask]).all()
    assert bare.provenance["schedule"]["unet_evaluations"] == 0
    assert bare.change.increment_inside[0] == 0  # the first latent is the input's
    assert bare.change.increment_inside[1] > 0


def test_a_baseline_has_frames_and_no_rounds(engine: PieEngine, tmp_path: Path) -> None:
    for method, noun, note in (("previous", "frame", "(method: previous)"), ("pie", "round", "")):
        config = replace(SHORT, steps=1, num_inference_steps=2)
        result = engine.run([Item(IMAGE, PROMPT, ROI)], config, method=method)[0]
        written = result.save(tmp_path / method, OutputConfig(report=False))
        expected = contact_sheet(result.frames, ["input", f"{noun} 1"], result.mask, note=note)
        with Image.open(written["sheet"]) as sheet:
            np.testing.assert_array_equal(np.asarray(sheet), np.asarray(expected))


def test_previous_is_the_input(engine: PieEngine) -> None:
    for result in engine.run([Item(IMAGE, PROMPT), Item(IMAGE, PROMPT, ROI)], SHORT, method="previous"):
        np.testing.assert_array_equal(result.frames, [np.asarray(fit(open_image(IMAGE), 64))] * 4)
        np.testing.assert_array_equal(result.latents, [result.original_latent] * 3)
        changes = result.change.to_dict()
        assert changes == result.provenance["change"]
        assert all(values == [0.0] * 3 for values in changes.values() if values is not None)
        assert result.provenance["schedule"]["unet_evaluations"] == 0


def test_pie_and_control_are_pie(engine: PieEngine) -> None:
    item = Item(IMAGE, PROMPT, ROI)
    plain = engine.run(item, SHORT)
    pie = engine.run([item], SHORT)[0]
    np.testing.assert_array_equal(pie.latents, plain.latents)
    assert pie.provenance["method"] == {"name": "pie"}
    control = engine.run([item], SHORT, method=MethodConfig("control", healthy_prompt="lung"))[0]
    np.testing.assert_array_equal(control.latents, engine.run(replace(item, prompt="lung"), SHORT).latents)
    assert control.provenance["simulated"]["prompt"] == "lung"
    assert control.provenance["method"] == {"name": "control", "healthy_prompt": "lung", "instead_of": PROMPT}
    assert np.abs(control.latents - plain.latents).max() > 100 * TOLERANCE


@pytest.mark.parametrize("masked", [True, False])
def test_interpolation_is_the_line_to_where_the_rounds_end(engine: PieEngine, masked: bool) -> None:
    item = Item(IMAGE, PROMPT, ROI if masked else None)
    rounds, line = engine.run(item, SHORT), engine.run(item, SHORT, method="interpolation")
    start, end = rounds.original_latent, rounds.latents[-1]
    expected = [start + np.float32(n / 3) * (end - start) for n in (1, 2, 3)]
    np.testing.assert_allclose(line.latents, expected, atol=TOLERANCE, rtol=1e-6)
    np.testing.assert_array_equal(line.frames[-1], rounds.frames[-1])
    assert line.provenance["schedule"]["unet_evaluations"] == rounds.provenance["schedule"]["unet_evaluations"]


@pytest.mark.parametrize("name", ["interpolation", "walk", "one-shot", "vae", "previous"])
def test_batches_and_backends_agree(engine: PieEngine, bundle: Bundle, name: str) -> None:
    """An item of a batch is what it would be alone, also after another kind of run, and on ONNX Runtime."""
    config = replace(SHORT, steps=2, num_inference_steps=4)
    items = [
        Item(IMAGE, PROMPT, ROI, "a"), Item(IMAGE, "lung", Box(100, 60, 200, 200), "b"),
        Item(IMAGE, PROMPT, item_id="c"),
    ]  # fmt: skip
    said: list[tuple[int, int]] = []
    together = engine.run(items, config, method=name, on_progress=lambda done, total: said.append((done, total)))
    engine.run(items[0], config)
    onnx = PieEngine(OnnxBackend(bundle, threads=1))
    for item, result in zip(items, together, strict=True):
        for other in (engine, onnx):
            alone = other.run([item], config, method=name)[0]
            # A grey level that is rounded the other way is encoded again.
            np.testing.assert_allclose(result.latents, alone.latents, atol=0.02 if name == "vae" else TOLERANCE)
    evaluations = together[0].provenance["schedule"]["unet_evaluations"]
    assert evaluations == {"interpolation": 4, "walk": 12, "one-shot": 4, "vae": 0, "previous": 0}[name]
    assert [done for done, _ in said] == list(range(1, 2 * evaluations + 1))
    assert {total for _, total in said} <= {2 * evaluations}
    runtime = together[0].provenance["runtime"]
    assert (runtime["cuda_graph"], runtime["overlap"]) == (False, False)


class Overflowing(TorchBackend):
    """Not finite in half precision, in one component's `bad` call."""

    component, bad, calls = "", 0, 0

    def _spoil(self, component: str, values: torch.Tensor) -> torch.Tensor:
        if component == self.component and self.precisions[component] != "fp32":
            self.calls += 1
            return values * (float("inf") if self.calls == self.bad else 1.0)
        return values

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._spoil("vae_encoder", super().encode_image(pixels))

    def decode_latent(self, latent: torch.Tensor) -> torch.Tensor:
        return self._spoil("vae_decoder", super().decode_latent(latent))


@pytest.mark.parametrize(
    ("name", "component", "bad", "frame"),
    [
        ("vae", "vae_encoder", 3, 2),
        ("one-shot", "vae_decoder", 2, 2),
        ("walk", "vae_encoder", 1, 0),
        ("walk", "vae_encoder", 2, 0),
    ],
)
def test_an_overflow_is_computed_again(
    ddim_checkpoint: Checkpoint, engine: PieEngine, name: str, component: str, bad: int, frame: int
) -> None:
    backend = Overflowing(
        copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint), precision="bf16",
        reload=lambda: copy.deepcopy(ddim_checkpoint),
    )  # fmt: skip
    backend.component, backend.bad = component, bad
    config = replace(SHORT, num_inference_steps=4)
    result = PieEngine(backend).run([Item(IMAGE, PROMPT)], config, method=name)[0]
    (rerun,) = result.provenance["reruns"]
    assert (rerun["round"], rerun["component"], rerun["to"]) == (frame, component, "fp32")
    assert np.isfinite(result.latents).all()
    exact = engine.run([Item(IMAGE, PROMPT)], config, method=name)[0]
    assert np.abs(result.frames.astype(int) - exact.frames).mean() < 10
    backend.precisions["vae_decoder"], backend.component = "fp32", "vae_decoder"
    backend._spoil = lambda component, values: values * float("nan")  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="not finite in fp32"):
        PieEngine(backend).run([Item(IMAGE, PROMPT)], config, method=name)


def test_matched_steps_by_hand(ddim_checkpoint: Checkpoint) -> None:
    """The weakest edit whose sqrt(abar) is at most that of a round to the power of N."""
    c = ddim_checkpoint.scheduler_config
    betas = np.linspace(c["beta_start"] ** 0.5, c["beta_end"] ** 0.5, 1000) ** 2
    abar = np.cumprod(1 - betas)
    config = RunConfig(strength=0.3, num_inference_steps=50)
    for rounds in (1, 2, 3, 5):
        limit = np.sqrt(abar[281]) ** rounds  # 15 steps of 20, offset 1: the first is 14 * 20 + 1
        expected = next(k for k in range(1, 51) if np.sqrt(abar[20 * (k - 1) + 1]) <= limit + 1e-12)
        assert matched_steps(c, replace(config, steps=rounds)) == expected
        assert (expected > 15) == (rounds > 1)
    assert matched_steps(c, replace(config, steps=1000)) == 50
    for scheduler in ("pndm", "euler", "dpm++", "unipc"):
        assert 15 < matched_steps(c, replace(config, steps=2, scheduler=scheduler)) < 30
    total = RunConfig(steps=1, strength=0.3, num_inference_steps=50)
    assert matched_steps(c, total) == 15


def test_slerp_by_hand() -> None:
    first, second = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    halfway = slerp(first, second, 0.5)
    # A right angle: both times sin 45 / sin 90. The second pair is parallel.
    torch.testing.assert_close(halfway, torch.tensor([[math.sqrt(2), math.sqrt(2)], [1.0, 1.0]]))
    torch.testing.assert_close(slerp(first, second, 0.0), first)
    torch.testing.assert_close(slerp(first, second, 1.0), second)
    third = slerp(first[:1], second[:1], 1 / 3)  # 30 degrees on the way
    torch.testing.assert_close(third, torch.tensor([[math.sqrt(3), 1.0]]))
    # Norms between: |a| = 1, |b| = 3 at a right angle.
    torch.testing.assert_close(
        slerp(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]), 0.5),
        torch.tensor([[math.sqrt(0.5), 3 * math.sqrt(0.5)]]),
    )


@pytest.mark.parametrize(
    ("method", "settings", "line"),
    [
        (
            {"name": "gan"},
            {},
            r"method 'gan' is unknown; pass one of pie, interpolation, walk, one-shot, previous, vae, control",
        ),
        ({"name": "vae", "start_prompt": "x"}, {}, "start_prompt belongs to method walk, not to 'vae'"),
        ({"name": "pie", "total_strength": 0.5}, {}, "total_strength belongs to method walk and one-shot"),
        ({"name": "walk", "healthy_prompt": "x"}, {}, "healthy_prompt belongs to method control"),
        ({"name": "control"}, {}, "pass healthy_prompt=TEXT"),
        ({"name": "control", "healthy_prompt": "\udcff"}, {}, "is not UTF-8"),
        ({"name": "walk", "start_prompt": 3}, {}, "start_prompt 3 is not text"),
        ({"name": "walk", "total_strength": 0.0}, {}, r"total_strength 0.0 is outside \(0, 1\]"),
        ({"name": "walk", "total_strength": 0.1}, {}, "0.1 of 8 steps runs no denoising step"),
        ({"name": "walk"}, {"semantics": "official"}, "semantics 'official' is not used by method 'walk'"),
        ({"name": "one-shot"}, {"semantics": "official"}, "pass semantics='engine'"),
        ({"name": "vae"}, {"inversion": "ddim"}, "inversion 'ddim' is not used by method 'vae'"),
        ({"name": "previous"}, {"noise": "fresh"}, "noise 'fresh' is not used by method 'previous'"),
        ({"name": "walk"}, {"noise": "fresh"}, "pass noise='shared'"),
        ({"name": "one-shot"}, {"schedule": [RoundRange(1, 1, strength=0.5)]}, "leave out schedule"),
        (
            {"name": "control", "healthy_prompt": "x"},
            {"schedule": [RoundRange(1, 1, prompt="y")]},
            "the schedule's prompts would take the place",
        ),
    ],
)
def test_refusals(engine: PieEngine, method: dict[str, Any], settings: dict[str, Any], line: str) -> None:
    if "schedule" in settings:
        settings = {"schedule": RoundSchedule(tuple(settings["schedule"]))}
    if "semantics" in settings:
        config = RunConfig(steps=3, num_inference_steps=8, resolution=64, **settings)
    else:
        config = replace(SHORT, **settings)
    with pytest.raises(ConfigError, match=line) as caught:
        engine.run([Item(IMAGE, PROMPT)], config, method=MethodConfig(**method))
    assert "\n" not in str(caught.value)
