"""The fused step's eager reference against the formulas written out, element by element in float64."""

from __future__ import annotations

import pytest
import torch
from pie_engine.kernels.denoise_step import Background, Blend, StepRow, denoise_step, write_input
from torch import Tensor

SHAPE = (2, 4, 3, 5)


def tensors(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def row(kept: int) -> StepRow:
    values = tensors(1, 5 + 3 * kept + kept * kept).tolist()
    scalars = [torch.tensor(v) for v in values[:5]]
    vectors = [torch.tensor(values[5 + i * kept : 5 + (i + 1) * kept]) for i in range(3)]
    matrix = torch.tensor(values[5 + 3 * kept :]).reshape(kept, kept)
    a, b, signal, noise, scale = scalars
    c, p, q = vectors
    return StepRow(a, b, c, matrix, p, q, signal, noise, scale)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [None, 1, 4])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_step(kept: int, guided: bool, channels: int | None, last: bool, dtype: torch.dtype) -> None:
    r = row(kept)
    x, history = tensors(2, *SHAPE), tensors(3, kept, *SHAPE)
    halves = 2 if guided else 1
    output = tensors(4, halves * SHAPE[0], *SHAPE[1:]).to(dtype)
    unet_input = torch.full(output.shape, float("nan"), dtype=dtype)  # poisoned: every element must be written
    guidance = torch.tensor([1.5, 7.5]).reshape(2, 1, 1, 1) if guided else None
    mask = None if channels is None else torch.rand(2, channels, 3, 5, generator=torch.Generator().manual_seed(5))
    z0, eps, z = tensors(6, *SHAPE), tensors(7, *SHAPE), tensors(8, *SHAPE)

    d = [t.double() for t in (x, history, output)]
    if guided:
        u, c = d[2][:2], d[2][2:]
        e = u + guidance.double() * (c - u)
    else:
        e = d[2]
    expected = r.a.double() * d[0] + r.b.double() * e
    kept_expected = torch.zeros_like(d[1])
    for j in range(kept):
        expected += r.c[j].double() * d[1][j]
        kept_expected[j] = r.p[j].double() * d[0] + r.q[j].double() * e
        for other in range(kept):
            kept_expected[j] += r.P[j, other].double() * d[1][other]
    if mask is not None and last:
        expected = z + (0.01 * (1 - mask) + 0.75 * mask).double() * (expected - z)
    elif mask is not None:
        expected = mask * expected + (1 - mask.double()) * (r.next_signal * z0 + r.next_noise * eps)

    blend = None if mask is None else Blend(z, 0.01 * (1 - mask) + 0.75 * mask)
    denoise_step(x, history, output, unet_input, r, guidance, mask, Background(z0, eps), blend, last)
    # A few float32 operations on values of order 10.
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(history.double(), kept_expected, rtol=1e-5, atol=2e-5)
    if last:
        assert unet_input.isnan().all()  # nothing follows, nothing is written
    else:
        for half in unet_input.chunk(halves):
            assert torch.equal(half, (r.next_scale * x).to(dtype))


def test_background_and_blend_may_read_different_originals() -> None:
    """The published code's final blend and background read two different posterior samples."""
    r, mask = row(0), torch.zeros(1, 1, 2, 2)
    x, output, buffer = (torch.ones(1, 4, 2, 2) for _ in range(3))
    z_background, z_blend = torch.full_like(x, 3.0), torch.full_like(x, 5.0)
    background, blend = Background(z_background, torch.zeros_like(x)), Blend(z_blend, torch.zeros(1, 1, 2, 2))
    denoise_step(x, x[None, :0][0:0], output, buffer, r, None, mask, background, blend, last=False)
    torch.testing.assert_close(x, r.next_signal * z_background)
    denoise_step(x, x[None, :0][0:0], output, buffer, r, None, mask, background, blend, last=True)
    assert torch.equal(x, z_blend)


def test_write_input_fills_every_half() -> None:
    buffer = torch.empty(4, 4, 2, 2, dtype=torch.float16)
    write_input(torch.ones(2, 4, 2, 2), buffer, torch.tensor(0.5))
    assert (buffer == 0.5).all()
