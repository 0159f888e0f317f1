"""The fused step's eager reference against the formulas written out, element by element in float64."""

from __future__ import annotations

import pytest
import torch
from kernels_cases import (
    ABSOLUTE,
    STORED,
    Case,
    compare_flags,
    compare_rounds,
    entry_arguments,
    step_arguments,
    step_cases,
)

from pie_engine.kernels.denoise_step import denoise_step
from pie_engine.kernels.noising import noising
from pie_engine.kernels.table import columns, history_of


@pytest.mark.parametrize("case", step_cases(), ids=str)
def test_step(case: Case) -> None:
    given = step_arguments(case)
    d = {name: value.double() for name, value in given.items() if isinstance(value, torch.Tensor)}
    kept, batch = case.kept, case.shape[0]
    a, b, signal, noise, scale, timestep, last, *rest = d["table"][1].tolist()
    assert last == case.last
    c, p, q, matrix = rest[:kept], rest[kept : 2 * kept], rest[2 * kept : 3 * kept], rest[3 * kept :]
    if case.guided:
        u, conditional = d["output"][:batch], d["output"][batch:]
        e = u + d["guidance"].reshape(-1, 1, 1, 1) * (conditional - u)
    else:
        e = d["output"]
    expected = a * d["x"] + b * e
    history = torch.zeros_like(d["history"])
    for j in range(kept):
        expected += c[j] * d["history"][j]
        history[j] = p[j] * d["x"] + q[j] * e
        for other in range(kept):
            history[j] += matrix[j * kept + other] * d["history"][other]
    if case.mask_channels is not None:
        background = d["original"] if last else signal * d["z0"] + noise * d["eps"]
        m = d["weight"] if last else d["mask"]
        expected = m * expected + (1 - m) * background

    denoise_step(**given)
    state, io = STORED[given["x"].dtype], STORED[given["output"].dtype]
    torch.testing.assert_close(given["x"].double(), expected, rtol=state, atol=ABSOLUTE)
    torch.testing.assert_close(given["history"].double(), history, rtol=state, atol=ABSOLUTE)
    assert not given["flags"].any()
    for half in given["sample"].chunk(2 if case.guided else 1):
        torch.testing.assert_close(half.double(), scale * expected, rtol=io, atol=ABSOLUTE)
    assert given["timestep"].item() == timestep
    assert given["row"].tolist() == [2]


def test_rounds() -> None:
    compare_rounds(denoise_step)


def test_flags() -> None:
    compare_flags(denoise_step)


@pytest.mark.parametrize("kept", [0, 3])
@pytest.mark.parametrize("bare", [True, False])
def test_entry(kept: int, bare: bool) -> None:
    given = entry_arguments(Case(kept=kept, mask_channels=None if bare else 1, io="fp16"))
    noising(**given)
    expected = 0.3 * given["z"].double() + (0 if bare else 0.9 * given["eps"].double())
    torch.testing.assert_close(given["x"].double(), expected, rtol=1e-6, atol=1e-6)
    for half in given["sample"].chunk(2):
        torch.testing.assert_close(half.double(), 0.7 * expected, rtol=STORED[torch.float16], atol=ABSOLUTE)
    assert not given["history"].any()
    assert not given["flags"].any()
    assert given["timestep"].item() == 481.0


def test_entry_reads_an_inverted_noise_back() -> None:
    z, eps = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    x, back = torch.empty_like(z), torch.empty_like(z)
    noising(x, None, None, None, None, z, eps, torch.tensor([0.6, 0.8, 1.0, 0.0]))
    noising(back, None, None, None, None, z, x, torch.tensor([-0.6 / 0.8, 1 / 0.8, 1.0, 0.0]))
    torch.testing.assert_close(back, eps)


def test_entry_in_place() -> None:
    """A round's first latent is the last one of the round before, in the same memory."""
    z, eps = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    expected = 0.6 * z + 0.8 * eps
    noising(z, None, None, None, None, z, eps, torch.tensor([0.6, 0.8, 1.0, 0.0]))
    torch.testing.assert_close(z, expected)


def test_table_layout() -> None:
    assert [history_of(columns(kept)) for kept in range(6)] == list(range(6))
