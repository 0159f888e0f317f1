"""Which implementation of the fused operations runs here: tried out before it is relied on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pie_engine.errors import BackendError, use
from pie_engine.kernels.denoise_step import denoise_step
from pie_engine.kernels.noising import noising

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """The two operations of one implementation.

    Attributes:
        name: "eager", "triton" or "cpp".
        note: why a faster implementation was passed over, or an empty string.
    """

    name: str
    denoise_step: Callable[..., None]
    noising: Callable[..., None]
    note: str = ""


EAGER = Kernels("eager", denoise_step, noising)


def select(device: torch.device | str, name: str = "auto") -> Kernels:
    """The implementation `name`, or for "auto" Triton's on a GPU and the C++ on a processor, else the eager one.

    Raises:
        BackendError: the implementation that was asked for by name does not work here.
    """
    device = torch.device(device)
    if name == "eager":
        return EAGER
    candidates = (name,) if name != "auto" else ("triton",) if device.type == "cuda" else ("cpp",)
    reasons: list[str] = []
    for candidate in candidates:
        try:
            return _try_out(_LOADERS[candidate](device), device, "; ".join(reasons))
        except Exception as error:  # compilers, drivers and loaders share no other base
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            if name != "auto":
                raise BackendError(
                    f"fused step {name!r} does not run on {device} ({reason}); pass {use('fused_step', 'auto')}",
                    field="fused_step",
                    value=name,
                ) from error
            # What is not installed is not missed; what is installed and fails is.
            level = logging.INFO if isinstance(error, BackendError) else logging.WARNING
            log.log(level, "the %s step does not run on %s (%s); another one does", candidate, device, reason)
            reasons.append(f"{candidate}: {reason}")
    return Kernels(EAGER.name, EAGER.denoise_step, EAGER.noising, "; ".join(reasons))


def available(device: torch.device | str) -> list[str]:
    """Names of the implementations that work on `device`, eager first."""
    names = []
    for name in ("eager", *_LOADERS):
        try:
            names.append(select(device, name).name)
        except BackendError:
            continue
    return names


def _triton(device: torch.device) -> Kernels:
    from pie_engine.kernels.denoise_step import denoise_step_triton
    from pie_engine.kernels.noising import noising_triton

    if device.type != "cuda":
        raise BackendError("Triton needs an NVIDIA GPU")
    return Kernels("triton", denoise_step_triton, noising_triton)


def _cpp(device: torch.device) -> Kernels:
    from pie_engine import cpp_ext

    if device.type != "cpu":
        raise BackendError("the C++ step is for processors; a GPU runs Triton's")
    operations = cpp_ext.load()
    return Kernels("cpp", operations.denoise_step, operations.noising)


_LOADERS: dict[str, Callable[[torch.device], Kernels]] = {"triton": _triton, "cpp": _cpp}


def _try_out(kernels: Kernels, device: torch.device, note: str) -> Kernels:
    """One small round of both operations against the eager ones: a kernel that does not compile is found out here."""
    from pie_engine.kernels.table import LAST, columns

    def compute(operations: Kernels) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> torch.Tensor:
            return 0.5 * torch.randn(shape, generator=generator).to(device)

        z, eps, original, x = (draw(1, 4, 4, 4) for _ in range(4))
        output = draw(2, 4, 4, 4)
        history, sample = x.new_empty(1, *x.shape), x.new_empty(output.shape)
        timestep, flags = x.new_empty(1), torch.empty(1, dtype=torch.int32, device=device)
        operations.noising(x, history, sample, timestep, flags, z, eps, draw(4))
        table, guidance, mask, weight = draw(2, columns(1)), draw(1), draw(1, 1, 4, 4), draw(1, 1, 4, 4)
        table[:, LAST] = torch.arange(2)  # a step that another one follows, then the last one
        row = torch.zeros(1, dtype=torch.int32, device=device)
        for _ in table:
            operations.denoise_step(
                x, history, sample, timestep, flags, output, table, row, guidance, mask, z, eps, weight, original
            )  # fmt: skip
        return [x, history, sample, timestep, flags.float(), row.float()]

    for got, expected in zip(compute(kernels), compute(EAGER), strict=True):
        # Some float32 operations on values of order 1.
        if not torch.allclose(got, expected, rtol=1e-4, atol=1e-4):
            raise RuntimeError(f"it computes something else than the eager step, by {(got - expected).abs().max():g}")
    return Kernels(kernels.name, kernels.denoise_step, kernels.noising, note)
