"""Which implementation of the operations inside the networks runs here: tried out before it is relied on."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pie_engine.kernels.geglu import geglu, geglu_triton
from pie_engine.kernels.group_norm import group_norm, group_norm_triton
from pie_engine.kernels.layer_norm import add_layer_norm, add_layer_norm_triton
from pie_engine.kernels.residual import add_residual, add_residual_triton

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockKernels:
    """The operations between the matrix products of a U-Net's and a VAE's blocks, of one implementation."""

    name: str
    group_norm: Callable[..., Tensor]
    add_residual: Callable[..., Tensor]
    add_layer_norm: Callable[..., tuple[Tensor, Tensor]]
    geglu: Callable[..., Tensor]


EAGER = BlockKernels("eager", group_norm, add_residual, add_layer_norm, geglu)
TRITON = BlockKernels("triton", group_norm_triton, add_residual_triton, add_layer_norm_triton, geglu_triton)


@functools.cache
def select_blocks(device: torch.device) -> BlockKernels | None:
    """Triton's where they work, on a GPU; else None: the eager ones are references, slower than PyTorch's layers."""
    if device.type != "cuda":
        return None
    try:
        _try_out(TRITON, device)
    except Exception as error:  # compilers and drivers share no other base
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.warning("the fused norms do not run on %s (%s); PyTorch's own do", device, reason)
        return None
    return TRITON


def _try_out(kernels: BlockKernels, device: torch.device) -> None:
    """One small call of each against the eager reference: a kernel that does not compile is found out here."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.float16)

    image = draw(2, 8, 8, 32).permute(0, 3, 1, 2)  # channels last
    weight, bias, shift, rows, wide = draw(32), draw(32), draw(1, 32), draw(6, 32), draw(6, 64)

    def compute(operations: BlockKernels) -> list[Tensor]:
        return [
            operations.group_norm(image, weight, bias, 8, 1e-5, silu=True, shift=shift),
            operations.add_residual(image, image, bias),
            *operations.add_layer_norm(rows, rows, weight, bias, 1e-5),
            operations.geglu(wide),
        ]

    for got, expected in zip(compute(kernels), compute(EAGER), strict=True):
        # Each is rounded to fp16 once, on values of order 10.
        if not torch.allclose(got.float(), expected.float(), rtol=2**-9, atol=1e-3):
            raise RuntimeError(f"they compute something else than the eager ones, by {(got - expected).abs().max():g}")
