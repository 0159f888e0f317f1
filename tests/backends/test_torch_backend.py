"""What the PyTorch backend does to a model before it runs it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pie_engine.backends.torch_backend import TorchBackend, fuse_projections
from pie_engine.backends.torch_blocks import fuse_unet, fuse_vae, is_fused
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.config import RuntimeConfig
from pie_engine.demo.assets import CHECKPOINT
from pie_engine.kernels import blocks
from pie_engine.machine.devices import _runs_on


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def test_fused_projections_compute_the_same_with_no_more_weights(ddim_checkpoint: Checkpoint) -> None:
    unet, vae = copy.deepcopy(ddim_checkpoint.unet), copy.deepcopy(ddim_checkpoint.vae)
    weights = sum(p.numel() for p in (*unet.parameters(), *vae.parameters()))
    sample, context = draw(2, 4, 16, 16), draw(2, 77, unet.config.cross_attention_dim)
    pixels = draw(1, 3, 128, 128)
    with torch.no_grad():
        before = unet(sample, 500, context).sample, vae.encode(pixels).latent_dist.parameters
        fuse_projections(unet)
        fuse_projections(vae)
        after = unet(sample, 500, context).sample, vae.encode(pixels).latent_dist.parameters
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in (*unet.parameters(), *vae.parameters())) == weights
    assert any(name.endswith("to_qkv.weight") for name, _ in unet.named_parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("demo", [False, True])
def test_fused_blocks_compute_the_same(
    ddim_checkpoint: Checkpoint, memory_format: torch.memory_format, demo: bool
) -> None:
    """In float64, where another order of additions is no difference."""
    checkpoint = load_checkpoint(CHECKPOINT) if demo else copy.deepcopy(ddim_checkpoint)
    for model in (checkpoint.unet, checkpoint.vae):
        torch.nn.Module.to(model, torch.float64)
    unet, vae = copy.deepcopy(checkpoint.unet), copy.deepcopy(checkpoint.vae)
    fuse_unet(unet, blocks.EAGER)
    fuse_vae(vae, blocks.EAGER)
    for model in (unet, vae):
        torch.nn.Module.to(model, memory_format=memory_format)
    sample, context = draw(2, 4, 16, 16).double(), draw(2, 77, unet.config.cross_attention_dim).double()
    pixels, latent = draw(1, 3, 128, 128).double(), draw(1, 4, 16, 16).double()
    timesteps = torch.tensor([500.0, 17.0])
    with torch.no_grad():
        times, keys_values = unet.time_projections(timesteps), unet.context_projections(context)
        for row, timestep in enumerate(timesteps):
            expected = checkpoint.unet(sample, timestep, encoder_hidden_states=context).sample
            got = unet(sample, times[row : row + 1], encoder_hidden_states=keys_values).sample
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
        pairs = [
            (vae.encode(pixels).latent_dist.parameters, checkpoint.vae.encode(pixels).latent_dist.parameters),
            (vae.decode(latent).sample, checkpoint.vae.decode(latent).sample),
        ]
    for got, expected in pairs:
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    # None was added or left beside its replacement; only biases that were added up are fewer.
    for own, plain in ((unet, checkpoint.unet), (vae, checkpoint.vae)):
        fewer = sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in own.parameters())
        assert 0 <= fewer < 0.01 * sum(p.numel() for p in plain.parameters())


def test_fused_blocks_follow_the_schedule_and_the_prompt(
    ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run, prompts changing between rounds, with what depends on the timestep alone computed ahead."""
    from golden import GOLDEN

    from pie_engine import Item, PieEngine, RoundRange, RoundSchedule, RunConfig

    schedule = RoundSchedule((RoundRange(2, 2, prompt="lung", strength=0.9), RoundRange(3, 3, guidance_scale=1.0)))
    config = RunConfig(steps=3, num_inference_steps=6, resolution=128, schedule=schedule)
    item = Item(GOLDEN / "image.png", "the heart lung", GOLDEN / "mask.png")
    results = []
    for kernels in (None, blocks.EAGER):
        backend = TorchBackend(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint))
        if kernels is not None:
            fuse_unet(backend._unet, kernels)
            fuse_vae(backend._vae, kernels)
            assert type(backend.bind_unet(2, 8, 8)).__name__ == "_BoundBlocks"
        results.append([PieEngine(backend).run(item, replace(config, **own)) for own in ({}, {"inversion": "ddim"})])
    for plain, fused in zip(*results, strict=True):
        torch.testing.assert_close(
            torch.from_numpy(fused.latents), torch.from_numpy(plain.latents), rtol=1e-4, atol=1e-3
        )


@pytest.mark.parametrize("kernels", [None, blocks.EAGER])
def test_one_checkpoint_in_two_backends(
    ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, kernels: blocks.BlockKernels | None
) -> None:
    """What the first has put together is left as it is."""

    class AsOnAGpu(TorchBackend):
        def _fuse(self, model: Any, kernels_: Any) -> None:
            device, self.device = self.device, torch.device("cuda")
            super()._fuse(model, kernels_)
            self.device = device

    monkeypatch.setattr(blocks, "select_blocks", lambda device: kernels)
    checkpoint = copy.deepcopy(ddim_checkpoint)
    outputs = []
    for _ in range(2):
        backend = AsOnAGpu(checkpoint, model_info(ddim_checkpoint), precision="bf16")
        assert is_fused(checkpoint.unet) == is_fused(checkpoint.vae) == (kernels is not None)
        assert backend.blocks == ("" if kernels is None else "eager")
        call = backend.bind_unet(2, 8, 8)
        call.sample.copy_(draw(*call.sample.shape))
        call.condition(draw(*call.context.shape))
        call.timestep.fill_(300)
        with torch.inference_mode():
            call()
        outputs.append(call.output.clone())
    assert torch.equal(*outputs)


def test_other_architectures_keep_their_own_blocks(ddim_checkpoint: Checkpoint) -> None:
    unet, vae = copy.deepcopy(ddim_checkpoint.unet), copy.deepcopy(ddim_checkpoint.vae)
    unet.down_blocks[0].resnets[0].output_scale_factor = 2.0
    vae.decoder.conv_act = torch.nn.ReLU()
    for model, fuse in ((unet, fuse_unet), (vae, fuse_vae)):
        with pytest.raises(NotImplementedError):
            fuse(model, blocks.EAGER)
        assert not is_fused(model)


def test_compiled_once_per_bound_shape(ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shapes than PyTorch keeps by itself, which is one here: the second would be an error."""
    counter, compile = CompileCounter(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda *args, **settings: compile(*args, backend=counter, **settings))
    backend = TorchBackend(
        copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint), runtime=RuntimeConfig(compile=True)
    )
    plain = TorchBackend(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint))
    with torch._dynamo.config.patch(recompile_limit=1), torch.inference_mode():
        for batch in (1, 2):
            calls = backend.bind_unet(batch, 2, 2), plain.bind_unet(batch, 2, 2)
            for call in calls:
                for tensor in (call.sample, call.context):
                    tensor.copy_(draw(*tensor.shape))
                call.timestep.fill_(300)
                call()
                call()
            torch.testing.assert_close(calls[0].output, calls[1].output, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 2
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("built", "capability", "expected"),
    [
        (["sm_80", "sm_90"], (8, 0), True),
        (["sm_80", "sm_90"], (8, 9), True),  # of the same generation, and newer
        (["sm_86"], (8, 0), False),
        (["sm_80", "sm_90"], (12, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),  # compiled by the driver
        (["sm_90a"], (9, 0), True),
        (["sm_75"], (7, 0), False),
    ],
)
def test_which_gpus_a_torch_runs_on(built: list[str], capability: tuple[int, int], expected: bool) -> None:
    assert _runs_on(built, capability) == expected
