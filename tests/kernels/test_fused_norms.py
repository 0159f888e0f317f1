"""The kernels between a network's matrix products against their eager references, those in float64.

As in test_triton.py, each case runs in Triton's interpreter on any machine, and compiled where a GPU is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden import GOLDEN
from torch import Tensor
from torch.nn import functional as F

from pie_engine.errors import BackendError
from pie_engine.kernels import triton_launch
from pie_engine.kernels.geglu import geglu, geglu_triton
from pie_engine.kernels.group_norm import group_norm, group_norm_triton
from pie_engine.kernels.group_norm_plan import MOST_BLOCKS, plan
from pie_engine.kernels.layer_norm import add_layer_norm, add_layer_norm_triton
from pie_engine.kernels.residual import add_residual, add_residual_triton

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Items, channels, height, width, groups: single pixels and channels, odd sizes, depths of no power of two.
SHAPES = [
    (1, 320, 4, 4, 32),
    (2, 60, 5, 7, 6),
    (3, 32, 9, 11, 32),
    (2, 21, 3, 5, 3),
    (2, 64, 1, 1, 8),
    (1, 5, 17, 13, 1),
    (1, 1, 6, 6, 1),
    (1, 48, 20, 24, 4),
]


@pytest.fixture(params=["interpreter", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device whose tensors the launchers take: both run the same cases."""
    pytest.importorskip("triton", reason="triton is not installed")
    if request.param == "gpu":
        return "cuda"
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    # Triton's own library was compiled on import, and cannot be interpreted any more.
    monkeypatch.setattr(tl, "sum", lambda tensor, axis: tl.reduce(tensor, axis, tl.standard._sum_combine))
    compiled = triton_launch.jitted

    def interpreted(kernel: Any) -> Any:
        compiled(kernel)  # binds triton.language in the kernel's module
        return InterpretedFunction(kernel)

    monkeypatch.setattr(triton_launch, "jitted", interpreted)
    return "cpu"


def random(*shape: int, dtype: torch.dtype, device: str, mean: float = 0.0, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    values = values.to(device, dtype)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def norm_arguments(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: str, *, mean: float = 0.0, shifted: int = 0
) -> dict[str, Any]:
    """`shifted`: rows of the shift."""
    items, channels, height, width, groups = shape
    return {
        "x": random(items, channels, height, width, dtype=dtype, device=device, mean=mean),
        "weight": random(channels, dtype=dtype, device=device, mean=1, seed=1),
        "bias": random(channels, dtype=dtype, device=device, seed=2),
        "groups": groups,
        "eps": 1e-5,
        "shift": random(shifted, channels, dtype=dtype, device=device, seed=3) if shifted else None,
    }


def exact(operation: Callable[..., Any], **arguments: Any) -> Any:
    """The eager reference's result in float64."""
    wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    return operation(**wide)


def close(got: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Rounded once to its dtype, after float32 arithmetic on numbers of the size of `scale`."""
    assert torch.isfinite(got).all()
    single = torch.finfo(torch.float32).eps * 32 * scale
    # Half a unit of the last place; a whole one in the interpreter, which cuts bfloat16 off.
    unit = torch.finfo(got.dtype).eps / (1 if got.dtype == torch.bfloat16 and not got.is_cuda else 2)
    rounding = unit * 1.01 + torch.finfo(torch.float32).eps * 32
    torch.testing.assert_close(got.double(), expected, rtol=rounding, atol=single + torch.finfo(got.dtype).tiny)


def compare_norm(arguments: dict[str, Any], one_launch: bool | None, *, silu: bool = False, mean: float = 0) -> Tensor:
    y = group_norm_triton(**arguments, silu=silu, one_launch=one_launch)
    x = arguments["x"]
    assert y.dtype == x.dtype
    assert y.movedim(1, -1).is_contiguous()
    close(y, exact(group_norm, **arguments, silu=silu), 8 + abs(mean))
    return y


@pytest.mark.parametrize("one_launch", [True, False])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_group_norm(shape: Any, dtype: torch.dtype, one_launch: bool, device: str) -> None:
    if shape[2:4] == (1, 1) or shape[1] == 1:
        shape = (*shape[:4], 1)  # a group of one element has no variance
    compare_norm(norm_arguments(shape, dtype, device), one_launch)


@pytest.mark.parametrize("one_launch", [True, False])
@pytest.mark.parametrize("shifted", [0, 1, 2])
@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_with_shift_and_activation(silu: bool, shifted: int, one_launch: bool, device: str) -> None:
    for shape in ((2, 60, 5, 7, 6), (2, 64, 40, 20, 8)):
        compare_norm(norm_arguments(shape, torch.float16, device, shifted=shifted), one_launch, silu=silu)


@pytest.mark.parametrize("one_launch", [True, False])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_a_large_mean(dtype: torch.dtype, one_launch: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one tile and in several: float32 sums of squares would lose the variance altogether."""
    arguments = norm_arguments((2, 60, 23, 17, 6), dtype, device, mean=1000)
    compare_norm(arguments, one_launch, mean=1000)
    small_tiles(monkeypatch)
    compare_norm(arguments, one_launch, mean=1000)


def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles per program at sizes that the interpreter gets through."""
    for name in ("HELD_TILE", "LOOPED_TILE", "STATISTICS_TILE", "APPLY_TILE"):
        monkeypatch.setattr(f"pie_engine.kernels.group_norm_plan.{name}", 512)
    monkeypatch.setattr("pie_engine.kernels.group_norm_plan.STATISTICS_PROGRAMS", 8)
    monkeypatch.setattr("pie_engine.kernels.group_norm_plan.APPLY_PROGRAMS", 8)
    monkeypatch.setattr("pie_engine.kernels.group_norm.plan", plan.__wrapped__)


@pytest.mark.parametrize("one_launch", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, (1, 60, 31, 29, 6)], ids=str)
def test_several_tiles(shape: Any, one_launch: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_tiles(monkeypatch)
    shape = (*shape[:4], 1) if shape[2:4] == (1, 1) or shape[1] == 1 else shape
    for dtype in (torch.float16, torch.float32):
        compare_norm(norm_arguments(shape, dtype, device, shifted=shape[0]), one_launch, silu=True)


@pytest.mark.parametrize("one_launch", [True, False])
@pytest.mark.parametrize("shape", [(60, 5, 7, 6), (64, 40, 20, 8), (21, 3, 5, 3)], ids=str)
def test_an_item_does_not_depend_on_its_batch(shape: Any, one_launch: bool, device: str) -> None:
    arguments = norm_arguments((3, *shape), torch.float16, device, shifted=3)
    together = group_norm_triton(**arguments, one_launch=one_launch)
    assert torch.equal(together, group_norm_triton(**arguments, one_launch=one_launch))
    for i in range(3):
        alone = {**arguments, "x": arguments["x"][i : i + 1].clone(), "shift": arguments["shift"][i : i + 1].clone()}
        assert torch.equal(together[i : i + 1], group_norm_triton(**alone, one_launch=one_launch))


@pytest.mark.parametrize("one_launch", [True, False])
def test_a_group_that_is_not_finite_leaves_the_others(one_launch: bool, device: str) -> None:
    arguments = norm_arguments((2, 60, 5, 7, 6), torch.float16, device)
    expected = group_norm_triton(**arguments, one_launch=one_launch)
    arguments["x"][1, 25, 2, 3] = torch.inf
    y = group_norm_triton(**arguments, one_launch=one_launch)
    assert not torch.isfinite(y[1, 20:30]).any()
    y[1, 20:30] = expected[1, 20:30]
    assert torch.equal(y, expected)


def test_a_sequence(device: str) -> None:
    arguments = norm_arguments((2, 60, 5, 7, 6), torch.float16, device, shifted=2)
    expected = group_norm_triton(**arguments)
    arguments["x"] = arguments["x"].movedim(1, -1).reshape(2, 35, 60).transpose(1, 2)
    y = group_norm_triton(**arguments)
    assert torch.equal(y, expected.flatten(2))
    assert y.transpose(1, 2).is_contiguous()


def test_parameters_of_another_dtype(device: str) -> None:
    arguments = norm_arguments((2, 60, 5, 7, 6), torch.float16, device, shifted=1)
    arguments |= {name: arguments[name].float() for name in ("weight", "bias", "shift")}
    compare_norm(arguments, None)


def test_plans_cover_every_element() -> None:
    """For every level of Stable Diffusion's networks and odd sizes; few enough statistics, groups kept whole."""
    levels = [(64, 10), (64, 20), (64, 30), (32, 20), (32, 40), (32, 60), (16, 40), (16, 80), (8, 40), (8, 80)]
    sizes = [(side * side, depth, 32) for side, depth in levels]
    sizes += [(512 * 512, 4, 32), (512 * 512, 8, 32), (64 * 64, 16, 32), (1, 1, 1), (35, 7, 3), (10**6, 3, 5)]
    for size, depth, groups in sizes:
        for itemsize, one_launch in ((2, True), (4, True), (2, False), (4, False)):
            first, blocks, apply = vars(plan(size, depth, groups, itemsize, one_launch)).values()
            assert first.programs * first.groups == blocks * groups
            assert (blocks - 1) * first.span < size <= blocks * first.span
            assert first.groups * depth <= first.lanes
            assert blocks <= MOST_BLOCKS
            if one_launch:
                assert apply is None
                continue
            columns = -(-groups * depth // apply.lanes)
            spans, rest = divmod(apply.programs, columns)
            assert rest == 0
            assert (spans - 1) * apply.span < size <= spans * apply.span
            for column in range(columns):
                last = min(groups * depth, (column + 1) * apply.lanes) - 1
                assert last // depth - column * apply.lanes // depth < apply.groups


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_eager_references(dtype: torch.dtype) -> None:
    """They are PyTorch's own layers, of the channels-last and of the transformer's tensors."""
    arguments = norm_arguments((2, 60, 5, 7, 6), dtype, "cpu", shifted=2)
    x, weight, bias, shift = (arguments[name] for name in ("x", "weight", "bias", "shift"))
    tolerance: dict[str, Any] = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    y = group_norm(x, weight, bias, 6, 1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.group_norm(x, 6, weight, bias, 1e-5), **tolerance)
    shifted = (x + shift[:, :, None, None]).contiguous()
    expected = F.silu(F.group_norm(shifted, 6, weight, bias, 1e-5))
    actual = group_norm(x, weight, bias, 6, 1e-5, silu=True, shift=shift)
    torch.testing.assert_close(actual, expected, **{name: 8 * value for name, value in tolerance.items()})
    torch.testing.assert_close(add_residual(x, x, bias), x + x + bias[None, :, None, None], **tolerance)
    rows = x.movedim(1, -1).flatten(1, 2)
    torch.testing.assert_close(add_residual(rows, rows, bias), rows + rows + bias, **tolerance)
    value, gate = rows.chunk(2, -1)
    torch.testing.assert_close(geglu(rows), value * F.gelu(gate), **tolerance)
    total, normed = add_layer_norm(rows, rows, weight, bias, 1e-5)
    assert torch.equal(total, rows + rows)
    torch.testing.assert_close(normed, F.layer_norm(rows + rows, (60,), weight, bias, 1e-5), **tolerance)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(2, 60, 5, 7), (3, 21, 9, 11), (2, 7, 33), (3, 320), (5,), (2, 64, 1, 1)], ids=str)
def test_residual(shape: tuple[int, ...], dtype: torch.dtype, biased: bool, device: str) -> None:
    channels = shape[1] if len(shape) == 4 else shape[-1]
    arguments: dict[str, Any] = {
        "x": random(*shape, dtype=dtype, device=device),
        "residual": random(*shape, dtype=dtype, device=device, seed=1),
        "bias": random(channels, dtype=dtype, device=device, seed=2) if biased else None,
    }
    y = add_residual_triton(**arguments)
    assert y.dtype == dtype
    assert y.stride() == arguments["x"].stride()
    close(y, exact(add_residual, **arguments))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 80), (1, 3, 1280), (7, 2), (2, 3, 2, 26), (42,)], ids=str)
def test_geglu(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    y = geglu_triton(x)
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    assert y.dtype == dtype
    close(y, exact(geglu, x=x), 16)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(2, 5, 320), (1, 3, 1280), (7, 33), (2, 3, 2, 26), (2500,)], ids=str)
def test_layer_norm(shape: tuple[int, ...], dtype: torch.dtype, shifted: bool, residual: bool, device: str) -> None:
    def part(*size: int, seed: int) -> Tensor:
        return random(*size, dtype=dtype, device=device, seed=seed).contiguous()

    for mean in (0, 1000):
        x = part(*shape, seed=0) + mean
        arguments = {
            "x": x,
            "residual": part(*shape, seed=1) if residual else None,
            "weight": part(shape[-1], seed=2),
            "bias": part(shape[-1], seed=3),
            "eps": 1e-5,
            "shift": part(shape[-1], seed=4) if shifted else None,
        }
        total, normed = add_layer_norm_triton(**arguments)
        expected_total, expected = exact(add_layer_norm, **arguments)
        close(normed, expected, 8 + mean)
        if residual or shifted:
            close(total, expected_total)
        else:
            assert total is x


def test_a_row_does_not_depend_on_the_others(device: str) -> None:
    x = random(7, 320, dtype=torch.float16, device=device)
    weight, bias = x[0].clone(), x[1].clone()
    _, together = add_layer_norm_triton(x, None, weight, bias, 1e-5)
    for i in range(len(x)):
        assert torch.equal(add_layer_norm_triton(x[i : i + 1].clone(), None, weight, bias, 1e-5)[1][0], together[i])


def test_nothing_to_do(device: str) -> None:
    empty = torch.empty(0, 32, 4, 4, device=device).contiguous(memory_format=torch.channels_last)
    ones = torch.ones(32, device=device)
    assert group_norm_triton(empty, ones, ones, 8, 1e-5).shape == empty.shape
    assert add_residual_triton(empty, empty, ones).shape == empty.shape
    assert geglu_triton(torch.empty(0, 8, device=device)).shape == (0, 4)
    assert add_layer_norm_triton(torch.empty(0, 32, device=device), None, ones, ones, 1e-5)[1].shape == (0, 32)


IMAGE = torch.zeros(2, 32, 4, 6).contiguous(memory_format=torch.channels_last)
ONES = torch.ones(32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: group_norm_triton(IMAGE.contiguous(), ONES, ONES, 8, 1e-5), "not a channels-last image"),
        (lambda: group_norm_triton(IMAGE.double(), ONES, ONES, 8, 1e-5), "x is torch.float64"),
        (lambda: group_norm_triton(IMAGE, ONES, ONES, 5, 1e-5), "32 channels are not 5 groups"),
        (lambda: group_norm_triton(IMAGE, ONES[:8], ONES, 8, 1e-5), r"weight is torch.float32 \[8\]"),
        (lambda: group_norm_triton(IMAGE, ONES, ONES.to("meta"), 8, 1e-5), "bias is .* on meta"),
        (lambda: group_norm_triton(IMAGE, ONES, ONES, 8, 1e-5, shift=ONES.expand(3, 32)), "shift is "),
        (lambda: add_residual_triton(IMAGE, IMAGE.contiguous()), "residual .* is not channels-last"),
        (lambda: add_residual_triton(IMAGE, IMAGE.half()), "residual is torch.float16"),
        (lambda: add_residual_triton(IMAGE, IMAGE[:1]), "residual is "),
        (lambda: add_residual_triton(IMAGE, IMAGE, ONES[:6]), "bias is "),
        (lambda: add_residual_triton(ONES, ONES[None]), "residual is "),
        (lambda: add_residual_triton(ONES.double(), ONES.double()), "x is torch.float64"),
        (lambda: geglu_triton(torch.zeros(4, 5)), "has to be even"),
        (lambda: geglu_triton(torch.zeros(4, 6).T), "x is .* not contiguous"),
        (lambda: geglu_triton(torch.zeros(4, 6, dtype=torch.int32)), "x is torch.int32"),
        (lambda: add_layer_norm_triton(torch.zeros(32, 4).T, None, ONES, ONES, 1e-5), "x is .* not contiguous"),
        (lambda: add_layer_norm_triton(torch.zeros(4, 32), torch.zeros(32), ONES, ONES, 1e-5), "residual is "),
        (lambda: add_layer_norm_triton(torch.zeros(4, 32), None, ONES, ONES[:4], 1e-5), "bias is "),
        (lambda: add_layer_norm_triton(torch.zeros(4, 32).double(), None, ONES, ONES, 1e-5), "x is torch.float64"),
    ],
)
def test_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_tensor_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton_launch, "jitted", triton_launch.jitted.__wrapped__)
    with pytest.raises(BackendError, match="on a GPU and the tensor is on cpu"):
        add_residual_triton(ONES, ONES)


def test_without_triton() -> None:
    """The modules import without it."""
    script = """if True:
        import sys
        sys.modules["triton"] = None  # an import of it fails
        import pie_engine.kernels.geglu, pie_engine.kernels.group_norm, pie_engine.kernels.layer_norm
    """
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=GOLDEN.parent.parent, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


# Stable Diffusion v1 at 512 pixels: the U-Net's levels with their widest concatenated inputs, and the decoder's ends.
REAL = [
    (2, 320, 64, 64, 32),
    (2, 960, 64, 64, 32),
    (2, 640, 32, 32, 32),
    (2, 1920, 32, 32, 32),
    (16, 1280, 16, 16, 32),
    (2, 2560, 16, 16, 32),
    (2, 2560, 8, 8, 32),
    (1, 512, 128, 128, 32),
    (1, 256, 512, 512, 32),
    (1, 128, 512, 512, 32),
]


@pytest.mark.gpu
@pytest.mark.parametrize("one_launch", [True, False])
@pytest.mark.parametrize("shape", REAL, ids=str)
def test_real_group_norms(shape: Any, one_launch: bool) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    arguments = norm_arguments(shape, torch.float16, "cuda", mean=3, shifted=shape[0])
    y = compare_norm(arguments, one_launch, silu=True, mean=3)
    assert torch.equal(y, group_norm_triton(**arguments, silu=True, one_launch=one_launch))
    alone = {**arguments, "x": arguments["x"][:1].clone(), "shift": arguments["shift"][:1].clone()}
    assert torch.equal(y[:1], group_norm_triton(**alone, silu=True, one_launch=one_launch))


@pytest.mark.gpu
@pytest.mark.parametrize(("pixels", "channels"), [(4096, 320), (1024, 640), (256, 1280), (64, 1280)])
def test_real_transformer_blocks(pixels: int, channels: int) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    half: dict[str, Any] = {"dtype": torch.float16, "device": "cuda"}
    x, residual = random(2, pixels, channels, **half), random(2, pixels, channels, seed=1, **half)
    weight, bias, shift = (random(channels, seed=seed, **half) for seed in (2, 3, 4))
    arguments = {"x": x, "residual": residual, "weight": weight, "bias": bias, "eps": 1e-5, "shift": shift}
    got, expected = add_layer_norm_triton(**arguments), exact(add_layer_norm, **arguments)
    close(got[0], expected[0])
    close(got[1], expected[1], 8)
    close(add_residual_triton(x, residual, bias), exact(add_residual, x=x, residual=residual, bias=bias))
    wide = random(2, pixels, 8 * channels, **half)
    close(geglu_triton(wide), exact(geglu, x=wide), 16)


@pytest.mark.gpu
def test_graph() -> None:
    """A resnet's norms and residual in a CUDA graph, workspace and outputs from the graph's own memory."""
    pytest.importorskip("triton", reason="triton is not installed")
    small = norm_arguments((2, 64, 8, 8, 32), torch.float16, "cuda", shifted=2)
    large = {**norm_arguments((2, 64, 64, 64, 32), torch.float16, "cuda"), "one_launch": False}

    def run() -> list[Tensor]:
        x = group_norm_triton(**large, silu=True)
        return [add_residual_triton(x, large["x"], large["bias"]), group_norm_triton(**small)]

    expected = [y.clone() for y in run()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for _ in range(2):
        for y in got:
            y.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert all(map(torch.equal, got, expected))
