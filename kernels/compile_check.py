"""Compile the Triton kernels for every supported GPU, on any machine, and check what came out.

    python -m pie_engine.kernels.compile_check [80 90 ...]

A kernel that spills registers or reads its planes element by element is correct and slow, which no test of its results
shows. Registers are read from the machine code, accesses from the PTX.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pie_engine.kernels.denoise_step import denoise_step_kernel
from pie_engine.kernels.noising import noising_kernel
from pie_engine.kernels.triton_launch import BLOCK, UNSPECIALISED, WARPS, jitted

CAPABILITIES = (80, 86, 89, 90, 100, 120)
KERNELS = {"denoise_step": denoise_step_kernel, "noising": noising_kernel}
_TYPES = {"fp32": 4, "fp16": 2, "bf16": 2}  # Triton's names, bytes
_LOADED = {
    "denoise_step": (
        "x_ptr",
        "output_ptr",
        "history_ptr",
        "mask_ptr",
        "z0_ptr",
        "eps_ptr",
        "weight_ptr",
        "original_ptr",
    ),
    "noising": ("z_ptr", "eps_ptr"),
}
_STORED = ("x_ptr", "history_ptr", "sample_ptr")
# For instance "@%p1 ld.global.v4.b32": the direction, the elements of a vector, the bits of each.
_ACCESS = re.compile(r"\b(ld|st)\.global(?:\.\w+(?:::\w+)*)*?(?:\.v(\d))?\.[bfsu](\d+)\b")


@dataclass(frozen=True)
class Variant:
    """What a kernel is compiled for; with a guidance, and a mask that the channels share.

    `masked` means for `noising` that it is given a noise; `sampled`, that it writes a U-Net input, as every step does.
    """

    kernel: str = "denoise_step"
    state: str = "fp32"
    io: str = "fp16"
    kept: int = 0
    masked: bool = True
    sampled: bool = True

    def __str__(self) -> str:
        masked, sampled = "masked" if self.masked else "bare", "" if self.sampled else " alone"
        return f"{self.kernel} {self.state}/{self.io} K{self.kept} {masked}{sampled}"

    def pointers(self) -> dict[str, str | None]:
        """Triton's type of every pointer; None for one that is left out."""
        history = self.state if self.kept else None
        sample, timestep = (self.io, "fp32") if self.sampled else (None, None)
        types = {"x_ptr": self.state, "history_ptr": history, "sample_ptr": sample, "timestep_ptr": timestep}
        outside = self.state if self.masked else None
        if self.kernel == "noising":
            return {**types, "flags_ptr": "i32", "z_ptr": self.state, "eps_ptr": outside, "entry_ptr": "fp32"}
        types |= {"flags_ptr": "i32", "output_ptr": self.io, "table_ptr": "fp32", "row_ptr": "i32"}
        types |= {"guidance_ptr": "fp32"}
        return types | dict.fromkeys(("mask_ptr", "z0_ptr", "eps_ptr", "weight_ptr", "original_ptr"), outside)

    def planes(self) -> dict[str, list[int]]:
        """Bytes that each thread loads and stores at once when it does so as it should, one number per plane."""
        pointers = self.pointers()
        times = {"history_ptr": self.kept, "sample_ptr": 2, "output_ptr": 2}
        width = BLOCK // (32 * WARPS)
        return {
            direction: sorted(
                width * _TYPES[kind]
                for name in names
                if (kind := pointers[name]) is not None
                for _ in range(times.get(name, 1))
            )
            for direction, names in (("ld", _LOADED[self.kernel]), ("st", _STORED))
        }


@dataclass(frozen=True)
class Report:
    """What the compiler made of one variant. `loads` and `stores` are the bytes of every access wider than 4."""

    capability: int
    variant: Variant
    registers: int
    spilled: int
    loads: list[int]
    stores: list[int]

    @property
    def problems(self) -> list[str]:
        problems = [f"spills {self.spilled} bytes"] if self.spilled else []
        for name, got, expected in (
            ("loads", self.loads, self.variant.planes()["ld"]),
            ("stores", self.stores, self.variant.planes()["st"]),
        ):
            if got != expected:
                problems.append(f"vector {name} of {got} bytes instead of {expected}")
        return problems

    def __str__(self) -> str:
        verdict = "; ".join(self.problems) or "ok"
        return f"sm_{self.capability:<4} {self.variant!s:<42} {self.registers:>3} registers  {verdict}"


def variants() -> Iterator[Variant]:
    """The variants that the engine launches: a float32 state, and the U-Net's own dtype."""
    for io, kept, masked in itertools.product(("fp16", "bf16", "fp32"), (0, 1, 3), (True, False)):
        yield Variant(io=io, kept=kept, masked=masked)
    for io, kept in itertools.product(("fp16", "bf16", "fp32"), (0, 1, 3)):
        yield Variant("noising", io=io, kept=kept)
    yield Variant("noising", sampled=False)  # reads an inverted noise back


def compile_for(
    capability: int, selected: Iterable[Variant] | None = None, *, divisible: bool = True, **options: int
) -> list[Report]:
    """Compile variants for one compute capability, 80 for 8.0, without a GPU.

    Args:
        selected: all of `variants()` unless given.
        divisible: whether h w is a multiple of 16, which is what vector accesses need.
        options: further compiler options, such as `maxnreg`.
    """
    selected = variants() if selected is None else selected
    return [_compile(capability, variant, divisible, options) for variant in selected]


def _compile(capability: int, variant: Variant, divisible: bool, options: dict[str, int]) -> Report:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, pointers = jitted(KERNELS[variant.kernel]), variant.pointers()
    fixed = {"KEPT": variant.kept, "HALVES": 2, "MASK_PER_CHANNEL": False, "BLOCK": BLOCK}
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], int | None] = {}
    attributes: dict[tuple[int, ...], list[Any]] = {}
    for i, name in enumerate(kernel.arg_names):
        if name in fixed or (name in pointers and pointers[name] is None):
            signature[name], constants[(i,)] = "constexpr", fixed.get(name)
            continue
        signature[name] = f"*{pointers[name]}" if name in pointers else "i32"
        if name not in UNSPECIALISED and (name in pointers or divisible):
            attributes[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": WARPS, **options},
    )
    wide: dict[str, list[int]] = {"ld": [], "st": []}
    for direction, elements, bits in _ACCESS.findall(compiled.asm["ptx"]):
        if (width := int(elements or 1) * int(bits) // 8) > 4:
            wide[direction].append(width)
    registers, spilled = _resources(compiled.asm["cubin"])
    return Report(capability, variant, registers, spilled, sorted(wide["ld"]), sorted(wide["st"]))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers per thread, and bytes of stack per thread: these kernels have no arrays, so all of it is spills."""
    import triton

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        dumped = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", dumped)
    if found is None:
        raise RuntimeError(f"cuobjdump lists no registers: {dumped.strip()!r}")
    return int(found[1]), int(found[2])


def main(arguments: list[str] | None = None) -> int:
    """Write one line per variant; 1 when one of them spills or does not use vector accesses."""
    parser = argparse.ArgumentParser(prog="python -m pie_engine.kernels.compile_check", description=main.__doc__)
    parser.add_argument("capability", type=int, nargs="*", help=f"80 for 8.0 (default: {CAPABILITIES})")
    count = failed = 0
    for capability in parser.parse_args(arguments).capability or CAPABILITIES:
        for report in compile_for(capability):
            sys.stdout.write(f"{report}\n")
            count, failed = count + 1, failed + bool(report.problems)
    sys.stdout.write(f"{failed} of {count} fail\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
