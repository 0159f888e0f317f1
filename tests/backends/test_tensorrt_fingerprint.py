"""Which engines run where, told before a library is touched; what `auto` takes; and how a group is cut into batches."""

from __future__ import annotations

import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import GOLDEN
from machines import A5000, ADA, H100, pretend, pretend_installed, pretend_openvino

from pie_engine import PieEngine
from pie_engine.backends.gpu import Gpu
from pie_engine.backends.tensorrt import backend as backend_module
from pie_engine.backends.tensorrt import library
from pie_engine.backends.tensorrt.backend import TensorRTBackend, check_engines
from pie_engine.backends.tensorrt.fingerprint import buckets, obstacle
from pie_engine.config import COMPONENTS, FLAVOURS, Placement, RuntimeConfig
from pie_engine.errors import BackendError, BundleError, ConfigError
from pie_engine.machine import loading
from pie_engine.machine.selection import choose_for_bundle, choose_for_checkpoint
from pie_engine.model.bundle import Bundle, open_bundle, write_manifest
from pie_engine.rounds.batches import split_group

VERSION = "1.7.1.116"
TWIN = Gpu(0, "NVIDIA RTX A4000", "8.6", 16_000_000_000)  # of the A5000's capability, with fewer cores
PLANS = b"no plan at all"
MANY = {"flavour": "tensorrt-rtx", "capabilities": ["7.5", "8.9", "12.0"]}


def make(**changes: Any) -> dict[str, Any]:
    """A fingerprint that fits the A5000 of `here`."""
    return {
        "flavour": "tensorrt", "version": VERSION, "gpu": A5000.name, "capabilities": ["8.6"], "driver_floor": "13.0",
        **changes,
    }  # fmt: skip


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """An A5000 with both libraries."""
    pretend(monkeypatch, A5000)
    for flavour in FLAVOURS:
        pretend_installed(monkeypatch, flavour, VERSION)
    monkeypatch.setattr(library, "import_library", lambda flavour: None)


@pytest.mark.parametrize(
    ("changes", "machine", "expected"),
    [
        ({}, {}, None),
        ({"flavour": "tensorrt-rtx"}, {}, None),
        ({"version": "1.7.1"}, {}, None),  # another build of the release
        ({"version": "1.7.1.117"}, {}, None),
        ({"version": "1.7.1.116+cu13"}, {}, None),
        *(({"version": v}, {}, f"by tensorrt {v}, and {VERSION} is") for v in ("2.7.1", "1.6.1", "1.7.2", "1.7")),
        ({}, {"reason": "no NVIDIA driver", "gpus": ()}, "this machine shows no GPU (no NVIDIA driver)"),
        ({}, {"index": 1}, "this machine has no GPU 1"),
        ({}, {"index": 1, "gpus": (H100, A5000)}, None),  # the GPU that is asked about counts
        ({}, {"gpus": (H100, A5000)}, f"for {A5000.name} (compute capability 8.6), and {H100.name} has 9.0"),
        # Kernels of tensorrt were chosen for one model of GPU, which is named.
        ({}, {"gpus": (TWIN,)}, f"for {A5000.name} (compute capability 8.6), and NVIDIA RTX A4000 has 8.6"),
        ({"flavour": "tensorrt-rtx"}, {"gpus": (TWIN,)}, None),  # compiles its kernels where it runs
        (MANY, {"gpus": (ADA,)}, None),
        (MANY, {}, f"it was compiled for compute capability 7.5, 8.9, 12.0, and {A5000.name} has 8.6"),
        (MANY, {"gpus": (Gpu(0, "GB10", "12.1", 1),)}, "and GB10 has 12.1"),
        ({"driver_floor": "13.0"}, {"driver": "13.2"}, None),
        ({"driver_floor": "13.0"}, {"driver": "12.9"}, "a driver for CUDA 13.0 or later, and this one serves 12.9"),
        ({"driver_floor": "9.0"}, {"driver": "13.0"}, None),  # numbers, not text
        ({"driver_floor": "13.0"}, {"driver": ""}, None),  # a driver that does not say
        ({"driver_floor": None}, {"driver": "11.0"}, None),
    ],
)
def test_what_keeps_an_engine_from_running(
    here: None, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], machine: dict[str, Any], expected: str | None
) -> None:
    index, gpus = machine.pop("index", 0), machine.pop("gpus", (A5000,))
    pretend(monkeypatch, *gpus, **machine)
    found = obstacle(make(**changes), index)
    assert found is None if expected is None else found is not None and expected in found


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_library_is_missing(here: None, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    pretend_installed(monkeypatch, flavour, None)
    assert obstacle(make(flavour=flavour)) == f"{flavour} is not installed (pip install 'pie-engine[{flavour}]')"


def test_buckets_in_words() -> None:
    entries = [{"resolutions": [768, 512], "batches": [4]}, {"resolutions": [512], "batches": [1, 4]}]
    assert buckets(entries) == "512, 768 pixels, batch 1, 4"


@pytest.fixture
def holding(bundle: Bundle, tmp_path: Path) -> Any:
    """Makes the golden bundle with engines of these flavours, never compiled."""

    def run(*flavours: str, **changes: Any) -> Bundle:
        folder = Path(shutil.copytree(bundle.path, tmp_path / f"{len(list(tmp_path.iterdir()))}.pie"))
        entries = []
        for flavour in flavours:
            for name in COMPONENTS:
                file = f"engines/{flavour}/{name}.plan"
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(PLANS)
                own: dict[str, Any] = {
                    "component": name, "file": file, "flavour": flavour, "resolutions": [64], "batches": [1],
                    "precision": "fp16", "weights": "fixed", "weights_hash": bundle.weights_hash(name), "profiles": [],
                    "attention": {},
                }  # fmt: skip
                entries.append({**make(), **own, **changes.get(flavour.replace("-", "_"), {})})
        write_manifest(folder, {**bundle.manifest, "engines": entries})
        return open_bundle(folder)

    return run


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan may reach the library: it runs what it is given."""
    monkeypatch.setattr(backend_module, "Engine", lambda *args: pytest.fail("a plan was loaded"))


def load(bundle: Bundle, **arguments: Any) -> PieEngine:
    return PieEngine.load(bundle.path, **{"backend": "tensorrt-rtx", **arguments})


def test_engines_that_cannot_run_are_refused_with_what_helps(
    here: None, untouched: None, holding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = holding("tensorrt-rtx")
    assert set(check_engines(engines, "tensorrt-rtx")) == set(COMPONENTS)
    with pytest.raises(BundleError, match=r"holds no tensorrt engines; build them: .* --backend tensorrt$"):
        load(engines, backend="tensorrt")
    pretend(monkeypatch)
    helps = "rebuild it: .*, or pass backend='onnxruntime'$"
    with pytest.raises(BundleError, match=rf"do not run here: this machine shows no GPU .*; {helps}"):
        load(engines)
    with pytest.raises(ConfigError, match=r"tensorrt-rtx runs on an NVIDIA GPU, not on cpu; pass backend='onnxr"):
        load(engines, device="cpu")


def test_a_damaged_plan_is_refused(here: None, untouched: None, holding: Any) -> None:
    damaged = holding("tensorrt-rtx")
    plan = damaged.path / "engines/tensorrt-rtx/text_encoder.plan"
    plan.write_bytes(PLANS.swapcase())
    with pytest.raises(BundleError, match=r"text_encoder.plan does not match its manifest .*; rebuild it"):
        load(damaged)
    # What is loaded is what was hashed, even if the file was exchanged since the bundle was verified.
    with pytest.raises(BundleError, match=r"text_encoder.plan does not match its manifest"):
        TensorRTBackend(damaged, "tensorrt-rtx")
    plan.write_bytes(PLANS[:-1])
    with pytest.raises(BundleError, match=r"text_encoder.plan has \d+ bytes \(manifest: \d+\); rebuild it"):
        load(damaged)
    plan.unlink()
    with pytest.raises(BundleError, match=r"lacks engines/tensorrt-rtx/text_encoder.plan"):
        load(damaged)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"capabilities": "8.6"}, "engines.0.capabilities is '8.6', should be a valid list"),
        ({"weights": "stripped"}, "engines.0.weights is 'stripped', should be 'fixed' or 'refittable'"),
        ({"file": "engines/other.plan"}, "engine's file 'engines/other.plan' is not among files"),
        *(({field: None}, f"engines.0.{field} is missing") for field in ("file", "capabilities", "profiles")),
    ],
)
def test_a_fingerprint_that_is_incomplete(holding: Any, changes: dict[str, Any], line: str) -> None:
    broken = holding("tensorrt-rtx")
    first = {
        key: value for key, value in {**broken.engines()[0], **changes}.items() if key == "gpu" or value is not None
    }
    write_manifest(broken.path, broken.manifest | {"engines": [first]})
    with pytest.raises(BundleError, match=rf"unusable manifest.json \({line}\)"):
        load(broken)


def test_auto_for_a_bundle(here: None, holding: Any, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    def choose(found: Bundle, device: str | None = None) -> tuple[str, str]:
        choice = choose_for_bundle(found, Placement(device=device))
        assert choice.why.startswith(choice.name)
        return choice.name, choice.why

    name, why = choose(bundle)
    assert name == "torch" and why.endswith("; the bundle holds no compiled engines")
    both = holding(*FLAVOURS)
    assert choose(both, "cpu") == ("onnxruntime", "onnxruntime; device cpu was asked for")
    assert choose(both) == choose(both, "cuda") == choose(both, "cuda:0")
    assert choose(both) == ("tensorrt", "tensorrt; the bundle holds engines for this GPU")
    name, why = choose(holding("tensorrt-rtx"))
    assert (name, "no tensorrt engines in the bundle" in why) == ("tensorrt-rtx", True)
    assert not caplog.records
    name, why = choose(both, "cuda:1")
    assert name == "torch" and why.count("this machine has no GPU 1") == 2  # refused when it is loaded


def test_auto_passes_over_engines_of_another_gpu(
    here: None, holding: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = holding(*FLAVOURS, tensorrt={"gpu": H100.name, "capabilities": ["9.0"]})
    choice = choose_for_bundle(both, Placement())
    assert choice.name == "tensorrt-rtx"
    assert "it was compiled for NVIDIA H100 80GB HBM3 (compute capability 9.0)" in choice.why
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().endswith("; going on without them")
    assert "rebuild it" not in choice.why
    pretend_installed(monkeypatch, "tensorrt-rtx", None)
    choice = choose_for_bundle(both, Placement())
    assert choice.name == "torch" and "tensorrt-rtx is not installed" in choice.why


def test_auto_needs_a_torch_that_sees_the_gpu(here: None, holding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = holding("tensorrt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = choose_for_bundle(both, Placement())
    assert choice.name == "onnxruntime" and f"torch {torch.__version__} sees no GPU" in choice.why


def test_auto_passes_over_a_library_that_does_not_load(
    here: None, holding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(flavour: str) -> None:
        if flavour == "tensorrt":
            raise BackendError("backend 'tensorrt' does not load (libnvinfer.so.11); install it")

    monkeypatch.setattr(library, "import_library", load)
    choice = choose_for_bundle(holding(*FLAVOURS), Placement())
    assert choice.name == "tensorrt-rtx" and "'tensorrt' does not load (libnvinfer.so.11)" in choice.why


def test_engines_of_some_components_are_none(here: None, holding: Any, tmp_path: Path) -> None:
    found = holding("tensorrt")
    found.manifest["engines"].pop()
    with pytest.raises(BundleError, match="holds no tensorrt engines"):
        check_engines(found, "tensorrt")


@pytest.mark.parametrize(
    ("gpu", "device", "dtype", "compile", "expected", "reason"),
    [
        (True, None, None, False, "torch", "a GPU"),
        (True, "cuda:0", "fp16", False, "torch", "a GPU"),
        (True, "cpu", None, False, "onnxruntime", "faster than torch on a processor; openvino is not installed"),
        (False, "cuda", None, False, "torch", "a GPU"),  # refused later, with the reason
        (False, None, None, True, "torch", "torch.compile"),
        (False, None, "bf16", False, "torch", "no bf16"),
        (False, None, "fp32", False, "onnxruntime", "(pip install 'pie-engine[openvino]')"),
    ],
)
def test_auto_for_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool, device: str | None, dtype: str | None, compile: bool, expected: str, reason: str,
) -> None:  # fmt: skip
    pretend_openvino(monkeypatch, None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    choice = choose_for_checkpoint(Placement(device=device, dtype=dtype, runtime=RuntimeConfig(compile=compile)))
    assert choice.name == expected
    assert choice.why.startswith(expected) and reason in choice.why


def test_auto_for_a_checkpoint_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = choose_for_checkpoint(Placement())
    assert choice.name == "torch" and "pip install 'pie-engine[cpu]'" in choice.why


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_checkpoint_is_not_read_for_a_backend_that_cannot_run(monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    monkeypatch.setattr(loading.checkpoints, "load_checkpoint", lambda *args, **settings: pytest.fail("read"))
    pretend(monkeypatch)
    pretend_installed(monkeypatch, flavour, "99.0.0.1")
    with pytest.raises(BackendError, match=rf"backend '{flavour}' runs on an NVIDIA GPU and this machine shows none"):
        PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend=flavour)
    monkeypatch.setitem(sys.modules, f"pretended_{flavour.replace('-', '_')}", None)
    with pytest.raises(BackendError, match=rf"pip install 'pie-engine\[{flavour}\]'"):
        PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend=flavour)


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (3, None, [[0, 1, 2]]),
        (0, None, []),
        (0, (1, 2), []),
        (5, (1, 2, 4), [[0, 1, 2, 3], [4]]),
        (7, (1, 2, 4), [[0, 1, 2, 3], [4, 5], [6]]),
        (4, (4,), [[0, 1, 2, 3]]),
        (5, (4,), [[0, 1, 2, 3], [4, 4, 4, 4]]),
        (3, (2, 4), [[0, 1], [2, 2]]),
        (1, (8,), [[0] * 8]),
        (6, (4, 3), [[0, 1, 2, 3], [4, 5, 5]]),  # in any order
    ],
)
def test_groups_are_cut_into_what_runs(count: int, sizes: tuple[int, ...] | None, expected: list[list[int]]) -> None:
    assert split_group(list(range(count)), sizes) == expected


@pytest.mark.parametrize("sizes", [(1,), (2,), (3, 5), (1, 4, 8), (7,)])
def test_every_member_of_a_group_runs_once_in_order(sizes: tuple[int, ...]) -> None:
    for count in range(1, 30):
        group = [10 * number for number in range(count)]
        parts = split_group(group, sizes)
        assert {len(part) for part in parts} <= set(sizes)
        assert list(dict.fromkeys(member for part in parts for member in part)) == group
        assert all(len(one) >= len(other) for one, other in pairwise(parts))
        # Only the last part is filled up, and by no more than the smallest size needs.
        assert sum(map(len, parts)) - count < min(sizes)
