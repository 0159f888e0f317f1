"""The fused operations in C++ against the eager references: values, flags, errors, and what torch makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernels_cases import (
    Case,
    compare_entry,
    compare_flags,
    compare_rounds,
    compare_step,
    entry_arguments,
    step_arguments,
    step_cases,
)
from torch import Tensor

from pie_engine import cpp_ext
from pie_engine.errors import BackendError

GUIDED = Case((2, 4, 5, 7), 1)
LARGE = Case((3, 4, 64, 72), 2, mask_channels=4, io="fp16")  # 108 tiles: several threads' worth


@pytest.fixture(scope="module")
def operations() -> cpp_ext.Operations:
    try:
        return cpp_ext.load()
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", [*step_cases(), Case((2, 3, 6, 5), 4), LARGE], ids=str)
def test_step(operations: cpp_ext.Operations, case: Case) -> None:
    compare_step(operations.denoise_step, case)


@pytest.mark.parametrize("case", [*step_cases(), LARGE], ids=str)
def test_entry(operations: cpp_ext.Operations, case: Case) -> None:
    compare_entry(operations.noising, case)


def test_flags(operations: cpp_ext.Operations) -> None:
    compare_flags(operations.denoise_step)


def test_rounds(operations: cpp_ext.Operations) -> None:
    compare_rounds(operations.denoise_step)


def test_a_gpu_has_no_implementation_of_these(operations: cpp_ext.Operations) -> None:
    for name in ("denoise_step", "noising"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"pie_engine::{name}", "CPU")
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"pie_engine::{name}", "CUDA")


def run_on(threads: int, operation: Callable[..., None], arguments: dict[str, Any]) -> list[Tensor]:
    torch.set_num_threads(threads)
    operation(**arguments)
    return [value for value in arguments.values() if isinstance(value, Tensor)]


def test_threads_do_not_change_a_bit(operations: cpp_ext.Operations, two_threads: None) -> None:
    for make, operation in ((step_arguments, operations.denoise_step), (entry_arguments, operations.noising)):
        one, two = (run_on(threads, operation, make(LARGE)) for threads in (1, 2))
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_an_item_does_not_depend_on_its_batch(operations: cpp_ext.Operations) -> None:
    together, alone = step_arguments(LARGE), step_arguments(LARGE)
    last = slice(2, 3)
    for name in ("x", "flags", "guidance", "mask", "z0", "eps", "weight", "original"):
        alone[name] = alone[name][last].clone()
    alone["history"] = alone["history"][:, last].clone()
    for name in ("sample", "output"):
        alone[name] = alone[name][2::3].clone()
    operations.denoise_step(**together)
    operations.denoise_step(**alone)
    assert torch.equal(together["x"][last], alone["x"])
    assert torch.equal(together["sample"][2::3], alone["sample"])


def test_entry_in_place(operations: cpp_ext.Operations) -> None:
    """z or eps may be x itself; the other way round reads an inverted noise back."""
    z, eps = torch.randn(1, 4, 9, 9), torch.randn(1, 4, 9, 9)
    expected = 0.6 * z + 0.8 * eps
    for x in (z.clone(), eps.clone()):
        first, second = (x, eps) if torch.equal(x, z) else (z, x)
        operations.noising(x, None, None, None, None, first, second, torch.tensor([0.6, 0.8, 1.0, 0.0]))
        torch.testing.assert_close(x, expected)


@pytest.mark.parametrize("width", [7, 64], ids=["remainder", "vector"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_conversions_are_torchs(operations: cpp_ext.Operations, dtype: torch.dtype, width: int) -> None:
    """Every 16-bit value to float32, and random bits of float32 back: subnormal, infinite and NaN ones among them."""
    identity = torch.tensor([1.0, 0.0, 1.0, 0.0])

    def copy(values: Tensor, x: Tensor, sample: Tensor) -> None:
        operations.noising(x, None, sample, torch.zeros(1), None, values, None, identity)

    bits = torch.arange(-(2**15), 2**15 + 6).to(torch.int16)[: 65536 // width * width + width - 65536 % width]
    stored = bits[: len(bits) // width * width].view(dtype).view(-1, 1, 1, width)
    x, widened = torch.empty_like(stored), torch.empty(stored.shape)
    copy(stored, x, widened)
    torch.testing.assert_close(widened, stored.float(), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(x, stored, rtol=0, atol=0, equal_nan=True)

    generator = torch.Generator().manual_seed(0)
    random = (
        torch.randint(-(2**31), 2**31, (4096, 1, 16, width), generator=generator).to(torch.int32).view(torch.float32)
    )
    # Half of them within fp16's range, where ties and subnormal values are.
    random[::2] = torch.ldexp(
        1 + random[::2].view(torch.int32).remainder(2**12) / 2**12, torch.randint(-26, 17, (2048, 1, 16, width))
    )
    narrowed = torch.empty(random.shape, dtype=dtype)
    copy(random, torch.empty_like(random), narrowed)
    torch.testing.assert_close(narrowed, random.to(dtype), rtol=0, atol=0, equal_nan=True)


WRONG: list[tuple[str, Any, str]] = [
    ("x", lambda a: a["x"].transpose(2, 3).contiguous().transpose(2, 3), "x is not contiguous; pass x.contiguous"),
    ("x", lambda a: a["x"][0], r"x has 3 dimensions; pass \[B, C, h, w\]"),
    ("x", lambda a: a["x"].double(), "x is Double; pass Float, Half or BFloat16"),
    ("history", lambda a: a["history"][0], "history has 4 dimensions"),
    ("history", lambda a: a["history"].half(), "history is Half; convert it to Float"),
    ("history", lambda a: a["history"].repeat(5, 1, 1, 1, 1), "history keeps 5 latents, and this kernel at most 4"),
    ("history", lambda a: a["history"].repeat(2, 1, 1, 1, 1), r"table has the shape \[3, 11\]; pass \[k, 17\]"),
    ("sample", lambda a: a["sample"][:2], r"sample has the shape \[2, 4, 5, 7\]; pass \[4, 4, 5, 7\]"),
    ("sample", lambda a: a["sample"].half(), "sample is Half; convert it to Float"),
    ("timestep", lambda a: a["timestep"].double(), "timestep is Double; convert it to Float"),
    ("flags", lambda a: a["flags"].long(), "flags is Long; convert it to Int"),
    ("output", lambda a: a["output"][:2], r"output has the shape \[2, 4, 5, 7\]; pass \[4, 4, 5, 7\]"),
    ("output", lambda a: a["output"].to(memory_format=torch.channels_last), "output is not contiguous"),
    ("table", lambda a: a["table"].double(), "table is Double; convert it to Float"),
    ("table", lambda a: a["table"][:, :-1], r"table has the shape \[3, 10\]; pass \[k, 11\]"),
    ("row", lambda a: a["row"].fill_(3), "row is 3, and the table has 3; set it to 0 to 2"),
    ("row", lambda a: a["row"].fill_(-1), "row is -1, and the table has 3"),
    ("row", lambda a: a["row"].long(), "row is Long; convert it to Int"),
    ("row", lambda a: a["row"][0], r"row has the shape \[\]; pass \[1\]"),
    ("guidance", lambda a: a["guidance"][:1], r"guidance has the shape \[1\]; pass \[2\]"),
    ("guidance", lambda a: None, r"has the shape \[4, 4, 5, 7\]; pass \[2, 4, 5, 7\]"),
    ("mask", lambda a: a["mask"].repeat(1, 2, 1, 1), r"mask has the shape \[2, 2, 5, 7\]; pass \[2, 1, 5, 7\]"),
    ("z0", lambda a: None, "mask is given without z0; masked steps need z0, eps, weight and original"),
    ("eps", lambda a: None, "mask is given without eps"),
    ("weight", lambda a: None, "mask is given without weight"),
    ("original", lambda a: None, "mask is given without original"),
    ("eps", lambda a: a["eps"].bfloat16(), "eps is BFloat16; convert it to Float"),
    ("weight", lambda a: a["weight"].expand(2, 4, 5, 7), r"weight has the shape \[2, 4, 5, 7\]; pass \[2, 1, 5, 7\]"),
    ("original", lambda a: a["original"][:1], r"original has the shape \[1, 4, 5, 7\]; pass \[2, 4, 5, 7\]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_step_refuses(operations: cpp_ext.Operations, name: str, wrong: Any, message: str) -> None:
    arguments = step_arguments(GUIDED)
    arguments[name] = wrong(arguments)
    before = arguments["x"].clone()
    with pytest.raises(RuntimeError, match=message) as caught:
        operations.denoise_step(**arguments)
    assert "\n" not in str(caught.value).strip()
    assert torch.equal(arguments["x"], before)  # refused before anything is written
    assert arguments["flags"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("z", lambda a: a["z"][:1], r"z has the shape \[1, 4, 5, 7\]; pass \[2, 4, 5, 7\]"),
        ("eps", lambda a: a["eps"].half(), "eps is Half; convert it to Float"),
        (
            "sample",
            lambda a: a["sample"][:3],
            r"sample has the shape \[3, 4, 5, 7\]; pass a multiple of x's batch of 2",
        ),
        ("timestep", lambda a: None, "sample is given without timestep"),
        ("flags", lambda a: a["flags"].float(), "flags is Float; convert it to Int"),
        ("entry", lambda a: a["entry"][:3], r"entry has the shape \[3\]; pass \[4\]"),
    ],
)
def test_entry_refuses(operations: cpp_ext.Operations, name: str, wrong: Any, message: str) -> None:
    arguments = entry_arguments(GUIDED)
    arguments[name] = wrong(arguments)
    with pytest.raises(RuntimeError, match=message):
        operations.noising(**arguments)


VARIANTS = [GUIDED, Case((1, 4, 4, 4), 0, guided=False, mask_channels=None, last=True, state="bf16", io="fp16")]


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_opcheck(operations: cpp_ext.Operations, case: Case) -> None:
    torch.library.opcheck(operations.denoise_step, (), step_arguments(case))
    torch.library.opcheck(operations.noising, (), entry_arguments(case))


class Round(torch.nn.Module):
    """Both operations, as a round runs them."""

    def __init__(self, operations: cpp_ext.Operations) -> None:
        super().__init__()
        self.operations = operations

    def forward(self, entry: dict[str, Any], step: dict[str, Any]) -> Tensor:
        self.operations.noising(**entry)
        self.operations.denoise_step(**{**step, "x": entry["x"]})
        return entry["x"] * 1.0


def test_compile_and_export_see_through(operations: cpp_ext.Operations) -> None:
    def arguments() -> tuple[dict[str, Any], dict[str, Any]]:
        return entry_arguments(GUIDED), step_arguments(GUIDED)

    module = Round(operations)
    expected = module(*arguments())
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments()), expected)
    exported = torch.export.export(module, arguments())
    names = {str(node.target) for node in exported.graph.nodes}
    assert {"pie_engine.denoise_step.default", "pie_engine.noising.default"} <= names
    assert torch.equal(exported.module()(*arguments()), expected)
