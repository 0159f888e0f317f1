"""The Triton kernels against the eager reference: in Triton's interpreter on any machine, compiled where a GPU is.

The interpreter runs a kernel's Python body with numpy, program after program. It is put in here for one test at a
time, so that no environment variable decides it and the compiler stays as it is for the other tests.
"""

from __future__ import annotations

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden import GOLDEN
from kernels_cases import (
    Case,
    compare,
    compare_entry,
    compare_flags,
    compare_rounds,
    compare_step,
    entry_arguments,
    round_table,
    step_arguments,
    step_cases,
)

from pie_engine.errors import BackendError
from pie_engine.kernels import triton_launch
from pie_engine.kernels.denoise_step import denoise_step, denoise_step_triton
from pie_engine.kernels.noising import noising, noising_triton
from pie_engine.kernels.table import ENTRY_COLUMNS, LAST, columns, history_of
from pie_engine.rounds.schedule import SCHEDULERS, build_inversion, build_schedule

SD_V1 = json.loads((GOLDEN / "checkpoint_ddim" / "scheduler" / "scheduler_config.json").read_text())
# Several blocks per plane: all of them full, and the last one cut short.
BLOCKS = [Case((1, 2, 32, 32), 1, io="fp16"), Case((2, 1, 24, 40), 3, state="bf16", io="bf16", last=True)]


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device whose tensors the launchers take: both run the same cases."""
    pytest.importorskip("triton", reason="triton is not installed")
    if request.param == "gpu":
        return "cuda"
    from triton.runtime.interpreter import InterpretedFunction

    compiled = triton_launch.jitted

    def interpreted(kernel: Any) -> Any:
        compiled(kernel)  # binds triton.language in the kernel's module
        return InterpretedFunction(kernel)

    monkeypatch.setattr(triton_launch, "jitted", interpreted)
    return "cpu"


@pytest.mark.parametrize("case", [*step_cases(), *BLOCKS, Case(kept=4), Case(kept=5, mask_channels=None)], ids=str)
def test_step(case: Case, device: str) -> None:
    compare_step(denoise_step_triton, case, device)


def test_flags(device: str) -> None:
    compare_flags(denoise_step_triton, device)


def test_rounds(device: str) -> None:
    compare_rounds(denoise_step_triton, device)


@pytest.mark.parametrize("case", [*step_cases(), *BLOCKS], ids=str)
def test_entry(case: Case, device: str) -> None:
    compare_entry(noising_triton, case, device)


@pytest.mark.parametrize("source", ["z", "eps"])
@pytest.mark.parametrize("state", ["fp32", "fp16"])
def test_entry_in_place(source: str, state: str, device: str) -> None:
    arguments = entry_arguments(Case((2, 4, 3, 5), 1, state=state, io="fp16"), device)
    expected = {**arguments, "x": torch.empty_like(arguments["x"])}
    arguments["x"] = arguments[source] = arguments[source].clone()
    noising(**expected)
    noising_triton(**arguments)
    torch.testing.assert_close(arguments["x"], expected["x"])


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", [*SCHEDULERS, "inversion"])
def test_every_scheduler(name: str, masked: bool, device: str) -> None:
    """The first, a middle and the last step of its real table, and its real entry."""
    from pie_engine.rounds.sampler import pack

    schedule = build_schedule(SD_V1, name="ddim", num_inference_steps=50, denoising_steps=25)
    if name == "inversion":
        schedule = build_inversion(SD_V1, schedule.timesteps[0], num_inference_steps=50, steps=25)
    else:
        schedule = build_schedule(SD_V1, name=name, num_inference_steps=50, denoising_steps=25, corrector=not masked)
    entry, table = (torch.as_tensor(part, dtype=torch.float32) for part in pack(schedule))
    assert entry.shape == (ENTRY_COLUMNS,)
    case = Case((1, 4, 8, 8), history_of(table.shape[1]), guided=name != "inversion", io="fp16")
    case = Case(case.shape, case.kept, case.guided, 1 if masked and case.guided else None, io="fp16")
    for row in (0, len(table) // 2, len(table) - 1):
        assert table[row, LAST] == (row == len(table) - 1)
        compare(denoise_step_triton, denoise_step, step_arguments(case, device, table.to(device), row))
    compare(noising_triton, noising, {**entry_arguments(case, device), "entry": entry.to(device)})


@pytest.mark.gpu
def test_graph() -> None:
    """A graph of the entry and one of the step serve every step of every round; capture writes nothing."""
    pytest.importorskip("triton", reason="triton is not installed")
    case = Case((2, 4, 64, 64), 3, io="fp16")
    entry = entry_arguments(case, "cuda")
    step = step_arguments(case, "cuda", round_table(3).cuda(), row=0)
    shared = {name: entry[name] for name in ("x", "history", "sample", "timestep", "flags")} | {"row": step["row"]}

    def enter(operation: Any, row: torch.Tensor, **tensors: Any) -> None:
        operation(**{**entry, **tensors})
        row.zero_()

    def advance(operation: Any, **tensors: Any) -> None:
        operation(**{**step, **tensors})

    expected = {name: tensor.clone() for name, tensor in shared.items()}
    enter(noising, **expected)
    for _ in range(3):
        advance(denoise_step, **expected)
    enter(noising_triton, **shared)  # both are compiled before they are captured
    advance(denoise_step_triton, **shared)
    entering, advancing = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(entering):
        enter(noising_triton, **shared)
    with torch.cuda.graph(advancing):
        advance(denoise_step_triton, **shared)
    for _ in range(2):
        for tensor in shared.values():
            tensor.fill_(1)
        entering.replay()
        for _ in range(3):
            advancing.replay()
        torch.cuda.synchronize()
        for name, tensor in shared.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3)


def test_one_compilation_serves_all_rows_and_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Triton's own launcher decides, with a GPU pretended: all but the launch itself runs."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", 90, 32)
    pretended = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
    )
    monkeypatch.setattr(triton.runtime.driver, "_active", pretended)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    compiled = set()

    class WarmUp:
        def __init__(self, kernel: Any):
            # Its own, because what it compiles must not be taken for a kernel of this machine's GPU.
            self.kernel = make(kernel)

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **kwargs: compiled.add(self.kernel.run(*args, grid=grid, warmup=True, **kwargs).hash)

    make = triton_launch.jitted.__wrapped__
    monkeypatch.setattr(triton_launch, "jitted", functools.cache(WarmUp))
    for batch, row in itertools.product((1, 2, 4, 5), (0, 1, 16)):
        case = Case((batch, 4, 8, 8), 1, io="fp16")
        flags = torch.zeros(4, batch, dtype=torch.int32)[1]  # one row of several: aligned for batch 4 alone
        counter = torch.full((17,), row, dtype=torch.int32)[row : row + 1]
        step = step_arguments(case, table=torch.zeros(17, columns(1)))
        denoise_step_triton(**{**step, "flags": flags, "row": counter})
        noising_triton(**{**entry_arguments(case), "flags": flags})
    assert len(compiled) == 2  # one per kernel
    denoise_step_triton(**step_arguments(Case((1, 4, 3, 5), 1, io="fp16")))
    assert len(compiled) == 3  # rows of odd length take no vector accesses


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("history", torch.zeros(2, 2, 4, 8, 8), "table is torch.float32"),
        ("x", torch.zeros(2, 4, 8, 8).transpose(2, 3), "x is .* not contiguous"),
        ("output", torch.zeros(2, 4, 8, 8), r"output is .* \[4, 4, 8, 8\]"),
        ("z0", torch.zeros(2, 4, 8, 8, dtype=torch.float16), "z0 is torch.float16"),
        ("mask", torch.zeros(2, 2, 8, 8), "mask is "),
        ("eps", torch.zeros(2, 4, 8, 8, device="meta"), "eps is .* on meta"),
        ("z0", None, "mask without z0: masked steps need z0, eps, weight and original"),
        ("eps", None, "mask without eps"),
        ("weight", None, "mask without weight"),
        ("original", None, "mask without original"),
        ("weight", torch.zeros(2, 4, 8, 8), r"weight is .* \[2, 1, 8, 8\]"),
        ("original", torch.zeros(1, 4, 8, 8), "original is "),
        ("sample", torch.zeros(2, 4, 8, 8), r"sample is .* \[4, 4, 8, 8\]"),
        ("timestep", torch.zeros(1, dtype=torch.float64), "timestep is torch.float64"),
        ("row", torch.zeros(1, dtype=torch.int64), "row is torch.int64"),
        ("row", torch.zeros(2, dtype=torch.int32), r"row is torch.int32 \[2\]"),
    ],
)
def test_refused(name: str, value: Any, message: str) -> None:
    arguments = {**step_arguments(Case(kept=1)), name: value}
    with pytest.raises(ValueError, match=message) as caught:
        denoise_step_triton(**arguments)
    assert "\n" not in str(caught.value)
    if name != "row":
        assert arguments["row"].tolist() == [1]


def test_refused_entry() -> None:
    for name, value in (
        ("history", torch.zeros(1, 2, 4, 4, 8)),
        ("sample", torch.zeros(3, 4, 8, 8)),
        ("timestep", None),
    ):
        with pytest.raises(ValueError, match=f"{name} is |without {name}"):
            noising_triton(**{**entry_arguments(Case(kept=1)), name: value})


def test_a_latent_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_launch, "jitted", triton_launch.jitted.__wrapped__)
    with pytest.raises(BackendError, match="on a GPU and the latent is on cpu"):
        denoise_step_triton(**step_arguments(Case()))


def test_without_triton() -> None:
    """Its module imports, the eager step works, and the launcher says what to install."""
    script = """if True:
        import sys
        sys.modules["triton"] = None  # an import of it fails
        from kernels_cases import Case, compare_step, step_arguments
        from pie_engine.errors import BackendError
        from pie_engine.kernels.denoise_step import denoise_step, denoise_step_triton
        compare_step(denoise_step, Case())
        try:
            denoise_step_triton(**step_arguments(Case()))
        except BackendError as error:
            sys.exit(str(error))
    """
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=GOLDEN.parents[1] / "support", capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1, finished.stderr
    assert finished.stderr.strip().startswith("triton is not installed; pip install"), finished.stderr
