"""Which engines run where, told before a library is touched; what `auto` takes; and how a group is cut into batches."""

from __future__ import annotations

import json
import logging
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
from pie_engine.backends.gpu import Gpu, probe
from pie_engine.backends.tensorrt import backend as backend_module
from pie_engine.backends.tensorrt import library
from pie_engine.backends.tensorrt.backend import TensorRTBackend, check_engines
from pie_engine.backends.tensorrt.engine import read_plan
from pie_engine.backends.tensorrt.fingerprint import buckets, describe_target, obstacle, runs_on, same_release
from pie_engine.bundling import build_bundle
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import COMPONENTS, FLAVOURS, BuildConfig, EngineConfig
from pie_engine.errors import BackendError, BundleError, ConfigError
from pie_engine.imaging.item import split_group
from pie_engine.machine.selection import choose_for_bundle, choose_for_checkpoint
from pie_engine.model.bundle import MANIFEST, Bundle, open_bundle, write_manifest

VERSION = "1.7.1.116"
TWIN = Gpu(0, "NVIDIA RTX A4000", "8.6", 16_000_000_000)  # of the A5000's capability, with fewer cores
PLANS = b"no plan at all"


def make(**changes: Any) -> dict[str, Any]:
    """A fingerprint that fits the A5000 of `here`."""
    return {
        "flavour": "tensorrt", "version": VERSION, "gpu": A5000.name, "capabilities": ["8.6"],
        "hardware_compatibility": "none", "driver_floor": "13.0", **changes,
    }  # fmt: skip


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """An A5000 with both libraries."""
    pretend(monkeypatch, A5000)
    for flavour in FLAVOURS:
        pretend_installed(monkeypatch, flavour, VERSION)
    monkeypatch.setattr(library, "import_library", lambda flavour: None)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_an_engine_of_this_machine_has_no_obstacle(here: None, flavour: str) -> None:
    assert obstacle(make(flavour=flavour)) is None


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_library_is_missing(here: None, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    pretend_installed(monkeypatch, flavour, None)
    assert obstacle(make(flavour=flavour)) == f"{flavour} is not installed (pip install 'pie-engine[{flavour}]')"


@pytest.mark.parametrize("version", ["2.7.1.116", "1.6.1.116", "1.7.2.116", "1.7"])
def test_another_release_is_refused(here: None, version: str) -> None:
    assert obstacle(make(version=version)) == f"it was compiled by tensorrt {version}, and {VERSION} is installed"


@pytest.mark.parametrize("version", ["1.7.1", "1.7.1.117", "1.7.1.post1", "1.7.1.116+cu13"])
def test_another_build_of_a_release_is_taken(here: None, version: str) -> None:
    assert same_release(version, VERSION)
    assert obstacle(make(version=version)) is None


def test_no_gpu_and_too_few(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert obstacle(make(), 1) == "this machine has no GPU 1"
    pretend(monkeypatch, reason="no NVIDIA driver")
    assert obstacle(make()) == "this machine shows no GPU (no NVIDIA driver)"


def test_the_gpu_that_is_asked_about_counts(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, H100, A5000)
    assert obstacle(make(), 1) is None
    assert obstacle(make(), 0) == (
        "it was compiled for NVIDIA RTX A5000 (compute capability 8.6), and NVIDIA H100 80GB HBM3 has 9.0"
    )


@pytest.mark.parametrize(
    ("changes", "gpu", "expected"),
    [
        ({}, A5000, True),
        ({}, ADA, False),
        ({}, TWIN, False),  # kernels were chosen for one model of GPU
        ({"gpu": None}, TWIN, True),
        ({"hardware_compatibility": "same-compute-capability"}, TWIN, True),
        ({"hardware_compatibility": "same-compute-capability"}, ADA, False),
        ({"hardware_compatibility": "ampere-plus"}, ADA, True),
        ({"hardware_compatibility": "ampere-plus"}, H100, True),
        ({"hardware_compatibility": "ampere-plus"}, Gpu(0, "Tesla T4", "7.5", 1), False),
        ({"hardware_compatibility": "ampere-plus"}, Gpu(0, "a later one", "12.0", 1), True),
        ({"flavour": "tensorrt-rtx"}, TWIN, True),  # compiles its kernels where it runs
        ({"flavour": "tensorrt-rtx", "capabilities": ["7.5", "8.9", "12.0"]}, ADA, True),
        ({"flavour": "tensorrt-rtx", "capabilities": ["7.5", "8.9", "12.0"]}, A5000, False),
        ({"flavour": "tensorrt-rtx", "capabilities": ["12.0"]}, Gpu(0, "GB10", "12.1", 1), False),
    ],
)
def test_which_gpus_an_engine_takes_in(changes: dict[str, Any], gpu: Gpu, expected: bool) -> None:
    assert runs_on(make(**changes), gpu) is expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "NVIDIA RTX A5000 (compute capability 8.6)"),
        ({"gpu": None}, "compute capability 8.6"),
        ({"hardware_compatibility": "ampere-plus"}, "compute capability 8.0 and above"),
        ({"hardware_compatibility": "same-compute-capability"}, "compute capability 8.6"),
        ({"flavour": "tensorrt-rtx", "capabilities": ["8.6", "12.0"]}, "compute capability 8.6, 12.0"),
    ],
)
def test_what_an_engine_was_compiled_for_in_words(changes: dict[str, Any], expected: str) -> None:
    assert describe_target(make(**changes)) == expected


def test_another_model_of_the_same_capability_is_named(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "Compiled for 8.6, and this has 8.6" would puzzle."""
    pretend(monkeypatch, TWIN)
    assert obstacle(make()) == (
        "it was compiled for NVIDIA RTX A5000 (compute capability 8.6), and NVIDIA RTX A4000 has 8.6"
    )


@pytest.mark.parametrize(
    ("floor", "driver", "fits"),
    [
        ("13.0", "13.0", True),
        ("13.0", "13.2", True),
        ("13.0", "12.9", False),
        ("12.0", "13.0", True),
        ("9.0", "13.0", True),  # numbers, not text
        ("13.0", "", True),  # a driver that does not say
        (None, "11.0", True),
    ],
)
def test_the_driver_s_floor(
    here: None, monkeypatch: pytest.MonkeyPatch, floor: str | None, driver: str, fits: bool
) -> None:
    pretend(monkeypatch, A5000, driver=driver)
    reason = obstacle(make(driver_floor=floor))
    assert reason == (None if fits else f"it needs a driver for CUDA {floor} or later, and this one serves {driver}")


def test_buckets_in_words() -> None:
    entries = [{"resolutions": [768, 512], "batches": [4]}, {"resolutions": [512], "batches": [1, 4]}]
    assert buckets(entries) == "512, 768 pixels, batch 1, 4"


def test_a_plan_that_was_cut_or_altered_is_not_read(tmp_path: Path) -> None:
    import hashlib

    plan, content = tmp_path / "unet.plan", bytes(range(256)) * 20
    sha256 = hashlib.sha256(content).hexdigest()
    plan.write_bytes(content)
    assert read_plan(plan, sha256) == content
    for wrong in (content[:-1], b"", content[:100] + b"\xff" + content[101:], content + b"\0"):
        plan.write_bytes(wrong)
        with pytest.raises(BundleError, match=r"unet.plan does not match its manifest \(SHA-256 [0-9a-f]{12}...\)"):
            read_plan(plan, sha256)


@pytest.fixture(scope="module")
def engines(ddim_checkpoint: Checkpoint, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with real engines for 8.6 and 12.0; in single precision, so that its graphs are those of `bundle`."""
    pytest.importorskip("tensorrt_rtx")
    config = EngineConfig("tensorrt-rtx", capabilities=("8.6", "12.0"), resolutions=(64,))
    path = tmp_path_factory.mktemp("engines") / "rtx.pie"
    return build_bundle(ddim_checkpoint, path, BuildConfig(precision="fp32", opset=20, engines=config))


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's runtime must not be reached: it runs what it is given."""
    rtx = pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(rtx, "Runtime", lambda *args: pytest.fail("the runtime was touched"))


def load(bundle: Bundle, **arguments: Any) -> PieEngine:
    return PieEngine.load(bundle.path, **{"backend": "tensorrt-rtx", **arguments})


def copied(bundle: Bundle, folder: Path) -> Bundle:
    return open_bundle(shutil.copytree(bundle.path, folder / "copy.pie"))


@pytest.mark.trt
def test_real_engines_without_a_gpu(engines: Bundle, untouched: None) -> None:
    if probe().gpus:
        pytest.skip("there is a GPU")
    with pytest.raises(BundleError, match=r"do not run here: this machine shows no GPU .*--backend onnxruntime"):
        load(engines)
    with pytest.raises(
        ConfigError, match=r"tensorrt-rtx runs on an NVIDIA GPU, not on cpu; pass --backend onnxruntime"
    ):
        load(engines, device="cpu")
    with pytest.raises(BundleError, match=r"holds no tensorrt engines; build them: .* --backend tensorrt$"):
        load(engines, backend="tensorrt")


@pytest.mark.trt
def test_real_engines_on_a_foreign_gpu(engines: Bundle, untouched: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, H100)
    with pytest.raises(BundleError, match=r"compiled for compute capability 8.6, 12.0, and NVIDIA H100 .* has 9.0"):
        load(engines)
    pretend(monkeypatch, A5000, driver="12.8")
    with pytest.raises(BundleError, match=r"needs a driver for CUDA 13.0 or later, and this one serves 12.8"):
        load(engines)
    pretend(monkeypatch, A5000)
    assert set(check_engines(engines, "tensorrt-rtx")) == set(COMPONENTS)


@pytest.mark.trt
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_damaged_plan_is_refused_before_the_runtime_sees_it(
    engines: Bundle, untouched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, component: str
) -> None:
    pretend(monkeypatch, A5000)
    damaged = copied(engines, tmp_path)
    plan = damaged.path / f"engines/tensorrt-rtx/{component}.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    with pytest.raises(BundleError, match=rf"{component}.plan does not match its manifest .*; rebuild it"):
        load(damaged)
    plan.write_bytes(content[:-1])
    with pytest.raises(BundleError, match=rf"{component}.plan has \d+ bytes \(manifest: \d+\); rebuild it"):
        load(damaged)
    plan.unlink()
    with pytest.raises(BundleError, match=rf"lacks engines/tensorrt-rtx/{component}.plan"):
        load(damaged)


@pytest.mark.trt
def test_a_plan_that_changes_after_it_was_verified(
    engines: Bundle, untouched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is loaded is what was hashed, even if the file was exchanged in between."""
    pretend(monkeypatch, A5000)
    verified = copied(engines, tmp_path)
    plan = verified.path / "engines/tensorrt-rtx/text_encoder.plan"
    plan.write_bytes(plan.read_bytes()[::-1])
    monkeypatch.setattr(backend_module, "Engine", lambda *args: pytest.fail("something was loaded"))
    with pytest.raises(BundleError, match=r"text_encoder.plan does not match its manifest"):
        TensorRTBackend(verified, "tensorrt-rtx", device="cuda:0")


@pytest.mark.trt
@pytest.mark.parametrize("field", ["file", "capabilities", "profiles"])
def test_a_fingerprint_that_lacks_something(engines: Bundle, untouched: None, tmp_path: Path, field: str) -> None:
    broken = copied(engines, tmp_path)
    manifest = json.loads((broken.path / MANIFEST).read_text())
    del manifest["engines"][0][field]
    write_manifest(broken.path, manifest)
    with pytest.raises(BundleError, match=rf"incomplete manifest.json \('{field}'\)"):
        load(broken)


@pytest.mark.trt
def test_auto_goes_on_without_engines_that_do_not_fit(
    engines: Bundle, untouched: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if probe().gpus:
        pytest.skip("there is a GPU")
    pretend_openvino(monkeypatch, None)
    with caplog.at_level(logging.WARNING):
        engine = load(engines, backend="auto", threads=1)
    assert engine.backend.name == "onnxruntime"
    assert engine.chosen is not None and "this machine shows no GPU" in engine.chosen
    assert "going on without them" in caplog.text


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
                    "component": name,
                    "file": file,
                    "flavour": flavour,
                    "resolutions": [64],
                    "batches": [1],
                }
                own |= {"precision": "fp16", "weights": "fixed", "profiles": [], "attention": {}}
                own["weights_hash"] = bundle.weights_hash(name)
                entries.append({**make(), **own, **changes.get(flavour.replace("-", "_"), {})})
        write_manifest(folder, {**bundle.manifest, "engines": entries})
        return open_bundle(folder)

    return run


def test_auto_for_a_bundle(here: None, holding: Any, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    def choose(found: Bundle, device: str | None = None) -> tuple[str, str]:
        choice = choose_for_bundle(found, device)
        assert choice.why.startswith(choice.name)
        return choice.name, choice.why

    assert choose(bundle) == ("onnxruntime", "onnxruntime; the bundle holds no compiled engines")
    both = holding(*FLAVOURS)
    assert choose(both, "cpu") == ("onnxruntime", "onnxruntime; --device cpu was asked for")
    assert choose(both) == choose(both, "cuda") == choose(both, "cuda:0")
    assert choose(both) == ("tensorrt", "tensorrt; the bundle holds engines for this GPU")
    name, why = choose(holding("tensorrt-rtx"))
    assert (name, "no tensorrt engines in the bundle" in why) == ("tensorrt-rtx", True)
    assert not caplog.records
    name, why = choose(both, "cuda:1")
    assert name == "onnxruntime" and why.count("this machine has no GPU 1") == 2


def test_auto_passes_over_engines_of_another_gpu(
    here: None, holding: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    both = holding(*FLAVOURS, tensorrt={"gpu": H100.name, "capabilities": ["9.0"]})
    choice = choose_for_bundle(both, None)
    assert choice.name == "tensorrt-rtx"
    assert "it was compiled for NVIDIA H100 80GB HBM3 (compute capability 9.0)" in choice.why
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().endswith("; going on without them")
    assert "rebuild it" not in choice.why
    pretend_installed(monkeypatch, "tensorrt-rtx", None)
    choice = choose_for_bundle(both, None)
    assert choice.name == "onnxruntime" and "tensorrt-rtx is not installed" in choice.why


def test_auto_needs_a_torch_that_sees_the_gpu(here: None, holding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    both = holding("tensorrt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = choose_for_bundle(both, None)
    assert choice.name == "onnxruntime" and f"torch {torch.__version__} sees no GPU" in choice.why


def test_auto_passes_over_a_library_that_does_not_load(
    here: None, holding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(flavour: str) -> None:
        if flavour == "tensorrt":
            raise BackendError("backend 'tensorrt' does not load (libnvinfer.so.11); install it")

    monkeypatch.setattr(library, "import_library", load)
    choice = choose_for_bundle(holding(*FLAVOURS), None)
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
        (False, None, None, True, "torch", "--compile"),
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
    choice = choose_for_checkpoint(device, dtype, compile)
    assert choice.name == expected
    assert choice.why.startswith(expected) and reason in choice.why


def test_auto_for_a_checkpoint_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    choice = choose_for_checkpoint(None, None, False)
    assert choice.name == "torch" and "pip install 'pie-engine[cpu]'" in choice.why


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_checkpoint_is_not_read_for_a_backend_that_cannot_run(monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    import pie_engine.checkpoint as checkpoint

    monkeypatch.setattr(checkpoint, "load_checkpoint", lambda *args, **settings: pytest.fail("read"))
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
