"""What the PyTorch backend does to a model before it runs it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from pie_engine.backends.torch_backend import TorchBackend, fuse_projections
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.loading import _runs_on


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


def test_compiled_once_per_bound_shape(ddim_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shapes than PyTorch keeps by itself, which is one here: the second would be an error."""
    counter, compile = CompileCounter(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda *args, **settings: compile(*args, backend=counter, **settings))
    backend = TorchBackend(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint), compile=True)
    plain = TorchBackend(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint))
    with torch._dynamo.config.patch(recompile_limit=1), torch.inference_mode():
        for batch in range(1, 4):
            calls = backend.bind_unet(batch, 2, 2), plain.bind_unet(batch, 2, 2)
            for call in calls:
                for tensor in (call.sample, call.context):
                    tensor.copy_(draw(*tensor.shape))
                call.timestep.fill_(300)
                call()
                call()
            torch.testing.assert_close(calls[0].output, calls[1].output, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 3
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
