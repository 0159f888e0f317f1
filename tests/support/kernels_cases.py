"""Cases that every implementation of the fused step is held to, and the comparison with the eager reference."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pie_engine.kernels.denoise_step import denoise_step
from pie_engine.kernels.noising import noising
from pie_engine.kernels.table import LAST, columns

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# One unit in the last place of what is stored: two float32 results that differ in rounding may fall on either side.
STORED = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# Some 20 roundings of 2^-24 each, on terms of order 10 that may cancel.
ABSOLUTE = 2e-5


@dataclass(frozen=True)
class Case:
    """What one launch is given.

    `mask_channels` None is no mask. `last` is a round's last step, and for the entry that it writes x alone.
    """

    shape: tuple[int, int, int, int] = (2, 4, 8, 8)
    kept: int = 0
    guided: bool = True
    mask_channels: int | None = 1
    last: bool = False
    state: str = "fp32"
    io: str = "fp32"

    def __str__(self) -> str:
        mask = "bare" if self.mask_channels is None else f"mask{self.mask_channels}"
        guided, last = "guided" if self.guided else "plain", "last" if self.last else "next"
        return f"{'x'.join(map(str, self.shape))}-K{self.kept}-{guided}-{mask}-{last}-{self.state}-{self.io}"


def step_cases() -> Iterator[Case]:
    """Sizes, dtypes and variants; odd sizes so that no vector width divides them."""
    for kept, guided, mask_channels, last in itertools.product((0, 1, 3), (True, False), (None, 1, 4), (False, True)):
        yield Case((2, 4, 3, 5), kept, guided, mask_channels, last)
    for state, io in itertools.product(DTYPES, DTYPES):
        yield Case((2, 4, 6, 10), 1, state=state, io=io)
        yield Case((1, 4, 8, 8), 3, mask_channels=4, last=True, state=state, io=io)
    for shape in ((1, 4, 1, 1), (3, 4, 7, 9), (1, 4, 16, 16), (2, 4, 33, 31), (5, 3, 2, 2)):
        yield Case(shape, 2, mask_channels=1, io="fp16")
        yield Case(shape, 2, mask_channels=1, last=True, io="fp16")


def tensors(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def step_arguments(case: Case, device: str = "cpu", table: Tensor | None = None, row: int = 1) -> dict[str, Any]:
    """Arguments by name; everything that must be written is poisoned with NaN.

    Without a table, one whose other rows are last steps where this one is not, and the other way round.
    """
    batch, state, io = case.shape[0], DTYPES[case.state], DTYPES[case.io]
    halves = 2 if case.guided else 1
    full = (halves * batch, *case.shape[1:])
    masked, nan = case.mask_channels is not None, float("nan")
    generator = torch.Generator().manual_seed(5)
    mask, weight = torch.rand(2, batch, case.mask_channels or 1, *case.shape[2:], generator=generator)
    for blend in (mask, weight):
        blend[..., 0, 0], blend[..., -1, -1] = 0.0, 1.0  # the ends have to be exact
    if table is None:
        table = tensors(1, 3, columns(case.kept))
        table[:, LAST] = float(not case.last)
        table[row, LAST] = float(case.last)
    arguments: dict[str, Any] = {
        "x": tensors(2, *case.shape, dtype=state),
        "history": tensors(3, case.kept, *case.shape, dtype=state),
        "sample": torch.full(full, nan, dtype=io),
        "timestep": torch.full((1,), nan),
        "flags": torch.zeros(batch, dtype=torch.int32),
        "output": tensors(4, *full, dtype=io),
        "table": table,
        "row": torch.tensor([row], dtype=torch.int32),
        "guidance": 1.5 + torch.arange(batch) * 3.0 if case.guided else None,
        "mask": mask.to(state) if masked else None,
        "z0": tensors(6, *case.shape, dtype=state) if masked else None,
        "eps": tensors(7, *case.shape, dtype=state) if masked else None,
        "weight": weight.to(state) if masked else None,
        "original": tensors(10, *case.shape, dtype=state) if masked else None,
    }
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def entry_arguments(case: Case, device: str = "cpu") -> dict[str, Any]:
    """Arguments of `noising`, poisoned as well; `kept` 0 with `last` leaves out everything that may be left out."""
    batch, state, io = case.shape[0], DTYPES[case.state], DTYPES[case.io]
    full = ((2 if case.guided else 1) * batch, *case.shape[1:])
    nan = float("nan")
    arguments: dict[str, Any] = {
        "x": torch.full(case.shape, nan, dtype=state),
        "history": None if case.last else torch.full((case.kept, *case.shape), nan, dtype=state),
        "sample": None if case.last else torch.full(full, nan, dtype=io),
        "timestep": None if case.last else torch.full((1,), nan),
        "flags": None if case.last else torch.ones(batch, dtype=torch.int32),
        "z": tensors(8, *case.shape, dtype=state),
        "eps": None if case.mask_channels is None else tensors(9, *case.shape, dtype=state),
        "entry": torch.tensor([0.3, 0.9, 0.7, 481.0]),
    }
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def compare(implementation: Callable[..., None], reference: Callable[..., None], arguments: dict[str, Any]) -> None:
    """Run both on the same arguments; everything they were given must then agree, and nothing stay poisoned."""
    expected = {name: value.clone() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    reference(**expected)
    implementation(**arguments)
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        assert not value.isnan().any(), f"{name} was not written everywhere"
        if value.dtype == torch.int32:
            assert torch.equal(value, expected[name]), name
        else:
            rtol = STORED[value.dtype]
            torch.testing.assert_close(value.float(), expected[name].float(), rtol=rtol, atol=ABSOLUTE)


def compare_step(implementation: Callable[..., None], case: Case, device: str = "cpu") -> None:
    compare(implementation, denoise_step, step_arguments(case, device))


def round_table(kept: int, steps: int = 3) -> Tensor:
    """Rows of a schedule that no row of another's may be taken for: only the last of them is a last step."""
    table = tensors(1, steps, columns(kept))
    table[:, LAST] = torch.arange(steps) == steps - 1
    return table


def compare_rounds(implementation: Callable[..., None], device: str = "cpu") -> None:
    """Two rounds of one schedule, the second of two in a table: the same arguments in every step, and one counter."""
    case = Case((2, 4, 5, 7), 1, io="fp16")
    table = torch.cat((tensors(11, 2, columns(1)), round_table(1)))
    arguments = step_arguments(case, device, table.to(device), row=2)

    def rounds(step: Callable[..., None], **given: Any) -> None:
        for _ in range(2):
            given["row"].fill_(2)
            for row in (2, 3, 4):
                assert given["row"].tolist() == [row]
                step(**given)

    compare(functools.partial(rounds, implementation), functools.partial(rounds, denoise_step), arguments)
    assert arguments["row"].tolist() == [5]


def compare_entry(implementation: Callable[..., None], case: Case, device: str = "cpu") -> None:
    compare(implementation, noising, entry_arguments(case, device))


def compare_flags(implementation: Callable[..., None], device: str = "cpu") -> None:
    """One bad value anywhere names its item and no other; a flag that stands is not cleared by a good step.

    What belongs to the other of the two blends is not looked at, whatever it holds.
    """
    shape = (3, 4, 5, 7)
    values = (float("nan"), float("inf"), -float("inf"))
    names = ("x", "output", "history", "z0", "eps", "original", "mask", "weight")
    for name, value, last in itertools.product(names, values, (False, True)):
        arguments = step_arguments(Case(shape, 1, last=last), device)
        item = 1 if name != "output" else 4  # the conditional half's item 1
        channel = 0 if name in ("mask", "weight") else 3
        where = (0, 1, 3, 4, 6) if name == "history" else (item, channel, 4, 6)
        if name in ("z0", "eps", "original"):
            arguments["weight" if last else "mask"].zero_()
        arguments[name][where] = value
        arguments["flags"][2] = 1
        implementation(**arguments)
        unused = name in (("z0", "eps", "mask") if last else ("original", "weight"))
        assert arguments["flags"].tolist() == [0, int(not unused), 1], (name, value, last)
    overflowing = step_arguments(Case(shape, state="fp16"), device)
    overflowing["output"][4, 0, 2, 2] = 1e30  # finite in float32, but not as it is stored
    implementation(**overflowing)
    assert overflowing["flags"].tolist() == [0, 1, 0]
