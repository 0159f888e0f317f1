"""The loop on an emulated GPU: captured, begun one round ahead, and run again when numbers overflow."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN
from graph_emulator import EmulatedTimeline

from pie_engine import Item, PieEngine, RunConfig, RuntimeConfig
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import COMPONENTS
from pie_engine.errors import BackendError
from pie_engine.rounds import loop as loop_module
from pie_engine.rounds.buffers import Buffers

IMAGE, MASK, PROMPT = GOLDEN / "image.png", GOLDEN / "mask.png", "the heart lung"
SHORT = RunConfig(steps=4, num_inference_steps=6, resolution=64, feather=4)
ITEM = Item(IMAGE, PROMPT, MASK)


@pytest.fixture
def timelines(monkeypatch: pytest.MonkeyPatch) -> list[EmulatedTimeline]:
    """Every loop that is made from here on gets an emulated timeline, which is listed."""
    made: list[EmulatedTimeline] = []

    def make(backend: object, runtime: RuntimeConfig) -> EmulatedTimeline:
        made.append(EmulatedTimeline(lag=1 if runtime.overlap else 0))
        return made[-1]

    monkeypatch.setattr(loop_module, "make_timeline", make)
    return made


def backend_of(checkpoint: Checkpoint, precision: str = "fp32") -> TorchBackend:
    """The backend on a copy of the checkpoint: it casts what it is given."""
    return TorchBackend(
        copy.deepcopy(checkpoint),
        model_info(checkpoint),
        precision=precision,
        reload=lambda: copy.deepcopy(checkpoint),
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "unguided": {"guidance_scale": 1.0},
    "inversion": {"inversion": "ddim"},
    "fresh noise": {"noise": "fresh"},
    "pndm": {"scheduler": "pndm"},
    "euler": {"scheduler": "euler"},
    "official": {"semantics": "official"},
}


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("setting", SETTINGS)
def test_captured_rounds_compute_the_same(
    ddim_checkpoint: Checkpoint,
    timelines: list[EmulatedTimeline],
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    masked: bool,
) -> None:
    config = replace(SHORT, **{"noise": None, "composite": None, "feather": None, **SETTINGS[setting]})
    item = replace(ITEM, mask=MASK if masked else None)
    backend = backend_of(ddim_checkpoint)
    captured = PieEngine(backend)
    result = captured.run(item, config)
    # A second batch through the same captured rounds: other prompt, image, mask, guidance and betas, same shapes.
    other = Item(np.asarray(result.frames[0])[::-1].copy(), "lung", None if not masked else _half_mask(), "b")
    config_b = replace(config, beta1=0.1, beta2=0.5, seed=5, steps=3)
    if config.guided:
        config_b = replace(config_b, guidance_scale=2.0)
    second = captured.run(other, config_b)

    monkeypatch.undo()
    plain = PieEngine(backend)
    for got, expected in ((result, plain.run(item, config)), (second, plain.run(other, config_b))):
        assert np.array_equal(got.latents, expected.latents)
        assert np.array_equal(got.frames, expected.frames)
    official = config.semantics == "official"
    # Entry, step and decoding; also the frame's encoding, and the inversion's entry, step and end.
    inverted = config.inversion == "ddim"
    assert timelines[0].captures == 3 + official + 3 * inverted
    assert len(timelines) == 1
    runtime = result.provenance["runtime"]
    assert (runtime["cuda_graph"], runtime["overlap"]) == (True, not official)
    assert plain.run(item, config).provenance["runtime"]["cuda_graph_note"] == "no GPU"


def _half_mask() -> np.ndarray:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    return mask


@pytest.mark.parametrize("switch", [{"cuda_graph": False}, {"overlap": False}, {"fused_step": "eager"}])
def test_each_optimisation_switches_off(
    ddim_checkpoint: Checkpoint, timelines: list[EmulatedTimeline], switch: dict[str, Any]
) -> None:
    backend = backend_of(ddim_checkpoint)
    expected = PieEngine(backend).run(ITEM, SHORT)
    result = PieEngine(backend, runtime=RuntimeConfig(**switch)).run(ITEM, SHORT)
    assert np.abs(result.latents - expected.latents).max() < 1e-4
    runtime = result.provenance["runtime"]
    assert runtime["cuda_graph"] == switch.get("cuda_graph", True)
    assert runtime["cuda_graph_note"] == ("switched off" if "cuda_graph" in switch else None)
    assert runtime["overlap"] == switch.get("overlap", True)
    assert timelines[1].captures == (0 if "cuda_graph" in switch else 3)


def test_loops_are_kept_and_bounded(
    ddim_checkpoint: Checkpoint, timelines: list[EmulatedTimeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[object] = []
    allocate = Buffers.allocate
    monkeypatch.setattr(Buffers, "allocate", lambda *a, **k: plans.append(a) or allocate(*a, **k))
    engine = PieEngine(backend_of(ddim_checkpoint))
    sizes = (64, 96, 64, 96, 128, 96, 64)
    for size in sizes:
        engine.run(ITEM, replace(SHORT, steps=1, num_inference_steps=2, resolution=size))
    # Two are kept: 64 and 96 are reused, 128 pushes 64 out.
    assert len(plans) == 4
    assert len(timelines) == 1  # and with it one pair of streams


def test_a_dropped_loop_frees_its_memory_at_once(
    ddim_checkpoint: Checkpoint, timelines: list[EmulatedTimeline]
) -> None:
    """Without the garbage collector, which nothing on a GPU triggers."""
    engine = PieEngine(backend_of(ddim_checkpoint))
    engine.run(ITEM, replace(SHORT, steps=3))
    (loop,) = engine.simulator.loops.values()
    watched = [weakref.ref(loop), weakref.ref(loop.plan), weakref.ref(loop.plan.buffers.x)]
    del loop
    gc.disable()
    try:
        engine.simulator.loops.clear()
        assert [reference() for reference in watched] == [None, None, None]
    finally:
        gc.enable()


def test_an_error_leaves_no_loop_behind(ddim_checkpoint: Checkpoint, timelines: list[EmulatedTimeline]) -> None:
    engine = PieEngine(backend_of(ddim_checkpoint))
    expected = engine.run(ITEM, SHORT)

    def stop(done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(ITEM, SHORT, on_progress=stop)
    assert not engine.simulator.loops
    assert np.array_equal(engine.run(ITEM, SHORT).latents, expected.latents)


def test_a_frame_that_broke_once_does_not_break_later_runs(ddim_checkpoint: Checkpoint) -> None:
    """The flags of the re-encoding are its own: the first round of a run has none."""

    class Once(TorchBackend):
        calls = 0

        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().encode_image(pixels) * (float("nan") if self.calls == 3 else 1.0)

    engine = PieEngine(Once(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint)))
    config = replace(SHORT, semantics="official", noise=None, composite=None, feather=None)
    with pytest.raises(BackendError, match="round 3 gave values that are not finite in fp32 for item 0"):
        engine.run(ITEM, config)
    assert np.isfinite(engine.run(ITEM, config).latents).all()


def test_a_failed_run_that_raised_a_precision_leaves_no_stale_loop(ddim_checkpoint: Checkpoint) -> None:
    """Another kind of run was kept with the old weights; bound to them it would overflow with nothing higher left."""
    engine = PieEngine(backend_of(ddim_checkpoint, "fp16"))
    bare = replace(ITEM, mask=None)
    engine.run(bare, SHORT)

    def stop(done: int, total: int) -> None:
        engine.backend.raise_precision("unet")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(ITEM, SHORT, on_progress=stop)
    result = engine.run(bare, SHORT)
    assert next(iter(engine.simulator.loops.values())).plan.sampler.unet.sample.dtype == torch.float32
    assert result.provenance["reruns"] == []


def test_progress_counts_every_evaluation(ddim_checkpoint: Checkpoint) -> None:
    seen: list[tuple[int, int]] = []
    PieEngine(backend_of(ddim_checkpoint)).run(ITEM, SHORT, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(i + 1, 12) for i in range(12)]


def overflowing(checkpoint: Checkpoint, component: str) -> Checkpoint:
    """The same function with one tensor in the middle of a component beyond fp16's 65,504."""
    changed = copy.deepcopy(checkpoint)
    if component == "vae_decoder":
        inner, outer = changed.vae.post_quant_conv, changed.vae.decoder.conv_in
    elif component == "vae_encoder":
        inner, outer = changed.vae.encoder.conv_out, changed.vae.quant_conv
    elif component == "unet":
        attention = next(m for name, m in changed.unet.named_modules() if name.endswith("attn1"))
        inner, outer = attention.to_v, attention.to_out[0]
    else:
        attention = next(m for name, m in changed.text_encoder.named_modules() if name.endswith("self_attn"))
        inner, outer = attention.v_proj, attention.out_proj
    with torch.no_grad():
        inner.weight *= 1e7
        if inner.bias is not None:
            inner.bias *= 1e7
        outer.weight /= 1e7
    return changed


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize("semantics", ["engine", "official"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_an_overflow_is_run_again_in_single_precision(
    ddim_checkpoint: Checkpoint,
    component: str,
    semantics: str,
    emulated: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if emulated:
        monkeypatch.setattr(loop_module, "make_timeline", lambda backend, runtime: EmulatedTimeline())
    # With leakage, the original is decoded before the rounds.
    config = replace(SHORT, semantics=semantics, noise=None, composite=None, feather=None, leakage=True)
    engine = PieEngine(backend_of(overflowing(ddim_checkpoint, component), "fp16"))
    with caplog.at_level(logging.WARNING):
        result = engine.run(ITEM, config)
    expected = PieEngine(backend_of(ddim_checkpoint)).run(ITEM, config)
    assert np.isfinite(result.latents).all()
    # fp16's unit roundoff times the square root of some 1,000 stored roundings; frames are rounded in `official`.
    error = np.linalg.norm(result.latents[-1] - expected.latents[-1]) / np.linalg.norm(expected.latents[-1])
    assert error < 1.6e-2
    raised = {name: "fp32" if name == component else "fp16" for name in COMPONENTS}
    assert result.provenance["backend"]["precisions"] == raised
    (rerun,) = result.provenance["reruns"]
    assert (rerun["component"], rerun["from"], rerun["to"], rerun["items"]) == (component, "fp16", "fp32", ["0"])
    assert rerun["round"] == (1 if component == "unet" else 0)
    assert f"{component} runs in fp32 from here on" in caplog.text
    # The model overflows in every run: the next one begins in the precision that this one ended with.
    again = engine.run(ITEM, config)
    assert again.provenance["reruns"] == []
    assert np.allclose(again.latents, result.latents, atol=1e-2)


class OverflowingLate(TorchBackend):
    """Not finite in fp16 from the n-th call of one component on."""

    def __init__(self, *arguments: Any, component: str, call: int, **settings: Any):
        super().__init__(*arguments, **settings)
        self.component, self.countdown = component, call

    def decode_latent(self, latent: torch.Tensor) -> torch.Tensor:
        return self._spoil("vae_decoder", super().decode_latent(latent))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._spoil("vae_encoder", super().encode_image(pixels))

    def _spoil(self, component: str, value: torch.Tensor) -> torch.Tensor:
        if component == self.component and self.precisions[component] == "fp16":
            self.countdown -= 1
            if self.countdown <= 0:
                return value * float("inf")
        return value


@pytest.mark.parametrize("emulated", [True, False])
@pytest.mark.parametrize(
    ("component", "semantics", "noise", "call", "number"),
    [
        ("vae_decoder", "engine", "shared", 3, 3),
        ("vae_decoder", "engine", "fresh", 2, 2),
        ("vae_decoder", "official", None, 3, 3),
        ("vae_encoder", "official", None, 3, 3),  # one call is the original's; round 1 needs none of its own
    ],
)
def test_an_overflow_in_a_later_round(
    ddim_checkpoint: Checkpoint,
    component: str,
    semantics: str,
    noise: str | None,
    call: int,
    number: int,
    emulated: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounds that were begun ahead are dropped, and noises are those of the round that is run again."""
    if emulated:
        # Not captured: the fake overflow is host code, which a replay would not run.
        monkeypatch.setattr(loop_module, "make_timeline", lambda backend, runtime: EmulatedTimeline())
    config = replace(SHORT, semantics=semantics, noise=noise, composite=None, feather=None)
    runtime = RuntimeConfig(cuda_graph=False)
    backend = OverflowingLate(
        copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint), precision="fp16", component=component, call=call
    )
    result = PieEngine(backend, runtime=runtime).run(ITEM, config)
    expected = PieEngine(backend_of(ddim_checkpoint)).run(ITEM, config)
    assert len(result.latents) == 4
    error = np.linalg.norm(result.latents[-1] - expected.latents[-1]) / np.linalg.norm(expected.latents[-1])
    assert error < 1.6e-2
    (rerun,) = result.provenance["reruns"]
    assert (rerun["round"], rerun["component"]) == (number, component)


def test_only_the_bad_item_is_named(ddim_checkpoint: Checkpoint) -> None:
    class Broken(TorchBackend):
        def decode_latent(self, latent: torch.Tensor) -> torch.Tensor:
            pixels = super().decode_latent(latent)
            pixels[1] = float("nan")
            return pixels

    engine = PieEngine(Broken(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint)))
    items = [Item(IMAGE, PROMPT, None, name) for name in ("a", "b", "c")]
    with pytest.raises(BackendError, match="round 1 gave values that are not finite in fp32 for item b "):
        engine.run(items, SHORT)


def test_a_bad_prompt_names_every_item(ddim_checkpoint: Checkpoint) -> None:
    """Two items with one prompt make two rows of embeddings, the negative prompt's and theirs: no row is an item's."""

    class Broken(TorchBackend):
        def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
            embeddings = super().encode_text(ids).clone()
            embeddings[-1] = float("nan")
            return embeddings

    engine = PieEngine(Broken(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint)))
    items = [Item(IMAGE, PROMPT, None, name) for name in ("a", "b")]
    with pytest.raises(BackendError, match=r"preparation gave values .* in fp32 for item a, b \(text_encoder\)"):
        engine.run(items, SHORT)


def test_a_lack_of_memory_is_one_line(ddim_checkpoint: Checkpoint) -> None:
    class Large(TorchBackend):
        def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.empty(2**55, dtype=torch.uint8)

    engine = PieEngine(Large(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint)))
    with pytest.raises(BackendError, match=r"out of memory: one item at 64 in fp32 needed \d+\.00 GiB more; lower"):
        engine.run(ITEM, SHORT)


def test_what_cannot_be_captured_says_why(ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign(EmulatedTimeline):
        def capture(self, *, decoding: bool = False) -> Any:
            return "its work cannot be recorded"

    monkeypatch.setattr(loop_module, "make_timeline", lambda backend, runtime: Foreign())
    runtime = PieEngine(backend_of(ddim_checkpoint)).run(ITEM, SHORT).provenance["runtime"]
    assert (runtime["cuda_graph"], runtime["cuda_graph_note"]) == (False, "its work cannot be recorded")


def test_one_step_is_the_warm_up(ddim_checkpoint: Checkpoint, timelines: list[EmulatedTimeline]) -> None:
    engine = PieEngine(backend_of(ddim_checkpoint))
    runtime = engine.run(ITEM, replace(SHORT, steps=1, num_inference_steps=2)).provenance["runtime"]
    assert (runtime["cuda_graph"], timelines[0].captures) == (False, 0)
    assert runtime["cuda_graph_note"] == "the first step is the warm-up; there was no second one to capture"
    runtime = engine.run(ITEM, replace(SHORT, steps=1)).provenance["runtime"]  # three steps: captured within the round
    assert (runtime["cuda_graph"], timelines[0].captures) == (True, 1)


def test_a_stage_that_fails_to_be_captured_is_in_provenance(
    ddim_checkpoint: Checkpoint, timelines: list[EmulatedTimeline]
) -> None:
    class ReadsTheHost(TorchBackend):
        def decode_latent(self, latent: torch.Tensor) -> torch.Tensor:
            assert latent.abs().max().item() < 1e6
            return super().decode_latent(latent)

    engine = PieEngine(ReadsTheHost(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint)))
    runtime = engine.run(ITEM, SHORT).provenance["runtime"]
    assert runtime["cuda_graph"]
    assert runtime["cuda_graph_note"] == "decoding: operation not permitted when stream is capturing"


def test_too_little_memory_for_higher_precision_leaves_the_engine_usable(
    ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PieEngine(backend_of(overflowing(ddim_checkpoint, "unet"), "fp16"))
    place = TorchBackend._place

    def fails(self: TorchBackend, module: torch.nn.Module, precision: str) -> None:
        if precision == "fp32":
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        place(self, module, precision)

    with monkeypatch.context() as patch:
        patch.setattr(TorchBackend, "_place", fails)
        with pytest.raises(BackendError, match=r"out of memory: one item at 64 in fp16 needed 2\.00 GiB more"):
            engine.run(ITEM, SHORT)
    assert engine.backend.precisions["unet"] == "fp16"
    assert engine.run(ITEM, SHORT).provenance["backend"]["precisions"]["unet"] == "fp32"


@pytest.mark.gpu
@pytest.mark.parametrize("config", [SHORT, replace(SHORT, inversion="ddim")], ids=["noise", "inversion"])
def test_a_round_never_waits_for_the_host(ddim_checkpoint: Checkpoint, config: RunConfig) -> None:
    backend = TorchBackend(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint), device="cuda", precision="fp16")
    engine = PieEngine(backend)
    result = engine.run(ITEM, config)
    assert result.provenance["runtime"]["cuda_graph"], result.provenance["runtime"]["cuda_graph_note"]
    (loop,) = engine.simulator.loops.values()
    with torch.inference_mode(), loop._timeline.main():
        try:
            torch.cuda.set_sync_debug_mode("error")
            for stage in loop.stages.values():
                stage()  # replayed
                stage._function()  # as it runs uncaptured
        finally:
            torch.cuda.set_sync_debug_mode("default")
