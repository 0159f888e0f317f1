"""The kernels between matrix products compiled for every supported GPU, here, by their own launchers.

The launchers run up to the launch, with a GPU pretended: sizes, constants and argument types are those of the real
networks, which compilations chosen by hand would have to repeat. No registers may spill, and the accesses of the images
have to be as wide as the numbers of channels allow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pie_engine.kernels import triton_launch
from pie_engine.kernels.compile_check import _ACCESS, CAPABILITIES, _resources
from pie_engine.kernels.geglu import geglu_triton
from pie_engine.kernels.group_norm import group_norm_triton
from pie_engine.kernels.layer_norm import add_layer_norm_triton
from pie_engine.kernels.residual import add_residual_triton

pytest.importorskip("triton", reason="triton is not installed")

HALF = torch.float16


@pytest.fixture
def compilations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What the launchers compile for the capability that is the fixture's parameter, instead of launching it."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", request.param, 32)
    pretended = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", pretended)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    compiled: list[Any] = []
    make = triton_launch.jitted.__wrapped__

    class WarmUp:
        def __init__(self, kernel: Any):
            # Its own, because what it compiles must not be taken for a kernel of this machine's GPU.
            self.kernel = make(kernel)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **kwargs: compiled.append(self.kernel.run(*args, grid=grid, warmup=True, **kwargs))

    monkeypatch.setattr(triton_launch, "jitted", functools.cache(WarmUp))
    return compiled


def image(items: int, channels: int, side: int, dtype: torch.dtype = HALF) -> Tensor:
    """Never touched, and so never in memory."""
    return torch.empty(items, side, side, channels, dtype=dtype).permute(0, 3, 1, 2)


def norm(items: int, channels: int, side: int, one_launch: bool | None = None, **options: Any) -> Callable[[], Any]:
    def call() -> None:
        x = image(items, channels, side, options.get("dtype", HALF))
        row = torch.empty(channels, dtype=x.dtype)
        shift = torch.empty(items, channels, dtype=x.dtype) if options.get("shifted", True) else None
        group_norm_triton(x, row, row, 32, 1e-5, silu=True, shift=shift, one_launch=one_launch)

    return call


def layer_norm(channels: int) -> Callable[[], Any]:
    rows, row = torch.empty(2, 64, channels, dtype=HALF), torch.empty(channels, dtype=HALF)
    return lambda: add_layer_norm_triton(rows, rows, row, row, 1e-5, shift=row)


def residual(channels: int) -> Callable[[], Any]:
    return lambda: add_residual_triton(image(2, channels, 32), image(2, channels, 32), torch.empty(channels).half())


# What is launched, and the bytes of the widest accesses of its images: 20 or 60 channels in a program of one launch
# allow no wider ones.
CASES = {
    "held 640x8x8": (norm(2, 640, 8), 8),
    "held 1280x16x16": (norm(2, 1280, 16), 16),
    "held 2560x16x16": (norm(2, 2560, 16), 16),
    "held 640x32x32": (norm(2, 640, 32), 8),
    "looped 960x32x32": (norm(2, 960, 32, True), 8),
    "held 320x32x32": (norm(2, 320, 32), 8),
    "looped 320x64x64": (norm(2, 320, 64, True), 8),
    "looped 1920x32x32": (norm(2, 1920, 32, True), 8),
    "blocks 320x64x64": (norm(2, 320, 64, False), 16),
    "blocks 960x64x64": (norm(2, 960, 64, False), 16),
    "blocks 1280x32x32": (norm(2, 1280, 32, False), 16),
    "blocks 128x512x512": (norm(1, 128, 512, shifted=False), 16),
    "blocks 512x64x64 fp32": (norm(1, 512, 64, dtype=torch.float32), 16),
    "layer norm 320": (layer_norm(320), 16),
    "layer norm 1280": (layer_norm(1280), 16),
    "residual 320": (residual(320), 16),
    "geglu 1280": (lambda: geglu_triton(torch.empty(2, 4096, 2560, dtype=HALF)), 16),
}
# One of each kernel, for the GPUs beside the one that all are compiled for.
REPRESENTATIVE = ("held 2560x16x16", "looped 1920x32x32", "blocks 320x64x64", "layer norm 1280", "geglu 1280")
# 64 elements per thread leave the 128 registers that 512 threads have none to spare. Four of them are kept elsewhere on
# this GPU, once per thread; tiles half as large would be read twice instead.
SPILLED = {(120, "held 2560x16x16"): 16}


@pytest.mark.parametrize(
    ("compilations", "name"),
    [(90, name) for name in CASES]
    + [(capability, name) for capability in CAPABILITIES if capability != 90 for name in REPRESENTATIVE],
    indirect=["compilations"],
)
def test_compiles_well(compilations: list[Any], name: str) -> None:
    call, width = CASES[name]
    call()
    assert len(compilations) == (2 if name.startswith("blocks") else 1)
    for kernel in compilations:
        registers, spilled = _resources(kernel.asm["cubin"])
        accesses = [
            (direction, int(elements or 1) * int(bits) // 8)
            for direction, elements, bits in _ACCESS.findall(kernel.asm["ptx"])
        ]
        capability, warps = kernel.metadata.target.arch, kernel.metadata.num_warps
        print(f"sm_{capability} {name}: {kernel.name} {warps} warps {registers} registers {spilled} spilled")  # noqa: T201
        assert spilled <= SPILLED.get((capability, name), 0)
        assert registers * warps * 32 <= 65536
        for direction in ("ld", "st"):
            if direction == "st" and "norm_kernel" in kernel.name and name.startswith("blocks"):
                continue  # writes statistics alone
            assert max(bytes_ for way, bytes_ in accesses if way == direction) == width, accesses
