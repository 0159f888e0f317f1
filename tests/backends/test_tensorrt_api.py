"""The members of TensorRT's classes that the package uses, held to NVIDIA's own bindings: no GPU is needed for that."""

from __future__ import annotations

import importlib.util
import re
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_api
from fake_tensorrt import CLASSES, target_of
from tensorrt_api import HELD, MEMBERS, RTX_ONLY, lacking, paper

from pie_engine.backends.tensorrt import worker
from pie_engine.backends.tensorrt.library import _OLDEST, RTX_CAPABILITIES

PACKAGE = Path(__file__).parents[2] / "pie_engine"
# Where the library is touched.
SOURCES = [PACKAGE / f"backends/tensorrt/{name}.py" for name in ("engine", "library", "worker")]
SOURCES.append(PACKAGE / "bundling/target.py")
PLAN = memoryview(b"name=_gemm_mha_v2 name=_gemm_mha_v2x")


def test_no_other_file_touches_the_library() -> None:
    touching = re.compile(r"import tensorrt|from tensorrt|= (library\.)?import_library\(|import_library\([^)]*\)\.")
    named = {path for path in PACKAGE.rglob("*.py") if touching.search(path.read_text())}
    assert named | {PACKAGE / "backends/tensorrt/library.py"} == set(SOURCES)


def test_what_is_listed_is_used() -> None:
    text = "".join(path.read_text() for path in SOURCES)
    unused = {member for member in MEMBERS if not re.search(rf"\b{member.partition('.')[2]}\b", text)}
    assert unused == {f"ComputeCapability.SM{capability.replace('.', '')}" for capability in RTX_CAPABILITIES}


def test_the_fake_that_runs_plans_has_nothing_that_is_not_listed() -> None:
    for cls in CLASSES:
        public = {name for name in dir(cls) if not name.startswith("_")} - {"Severity", "NONE", "OUTPUT"}
        assert {f"{cls.__name__}.{name}" for name in public} <= MEMBERS


def request(tmp_path: Path, flavour: str, **changes: Any) -> dict[str, Any]:
    profiles = [{"ids": ((size, 77),) * 3} for size in (1, 2)]
    paths = {"onnx": "model.onnx", "plan": str(tmp_path / "plan")}
    return {**paths, "profiles": profiles, **target_of(flavour, **changes).to_dict()}


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The worker's build with a library that lacks some members. Returns its outcome and the objects that it used."""

    def run(
        asked: dict[str, Any], lacks: set[str], *, parsed: bool = True, plan: Any = PLAN
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        module, one = paper(lacks)
        network = one["INetworkDefinition"]
        shapes = {"ids": (-1, 77), "timestep": (1,)}
        network.num_inputs = len(shapes)
        network.get_input.side_effect = [SimpleNamespace(name=name, shape=shape) for name, shape in shapes.items()]
        one["OnnxParser"].parse_from_file.return_value = parsed
        one["Builder"].build_serialized_network.return_value = plan
        monkeypatch.setattr(worker, "import_library", lambda flavour: module)
        return worker.build(asked), one

    return run


@pytest.mark.parametrize("weights", ["fixed", "refittable"])
def test_tensorrt_is_asked_for_what_it_has(build: Any, tmp_path: Path, weights: str) -> None:
    asked = request(tmp_path, "tensorrt", weights=weights, optimisation_level=4, workspace=0.5)
    outcome, one = build(asked, RTX_ONLY)
    assert (tmp_path / "plan").read_bytes() == PLAN
    assert (outcome["bytes"], outcome["fused_attention_kernels"]) == (len(PLAN), 1)
    config, flag = one["IBuilderConfig"], one["BuilderFlag"]
    config.clear_flag.assert_called_once_with(flag.TF32)
    assert [call.args for call in config.set_flag.call_args_list] == [(flag.REFIT,)] * (weights == "refittable")
    assert config.builder_optimization_level == 4
    config.set_memory_pool_limit.assert_called_once_with(one["MemoryPoolType"].WORKSPACE, 2**29)
    # Only inputs of more than one shape have a place in a profile.
    shapes = [call.args for call in one["IOptimizationProfile"].set_shape.call_args_list]
    assert shapes == [("ids", *[(size, 77)] * 3) for size in (1, 2)]
    assert config.add_optimization_profile.call_count == 2


@pytest.mark.parametrize("at_hand", [False, True])
def test_tensorrt_rtx_is_asked_for_capabilities_without_a_gpu_alone(build: Any, tmp_path: Path, at_hand: bool) -> None:
    changes: dict[str, Any] = {} if at_hand else {"gpu": None, "capabilities": ("8.6", "12.0")}
    _, one = build(request(tmp_path, "tensorrt-rtx", **changes), set())
    config, known = one["IBuilderConfig"], one["ComputeCapability"]
    config.set_flag.assert_called_once_with(one["BuilderFlag"].REQUIRE_USER_ALLOCATION)
    named = [call.args for call in config.set_compute_capability.call_args_list]
    assert named == ([] if at_hand else [(known.SM86, 0), (known.SM120, 1)])
    assert at_hand or config.num_compute_capabilities == 2


def test_a_compiler_that_gives_no_plan(build: Any, tmp_path: Path) -> None:
    asked = request(tmp_path, "tensorrt")
    assert build(asked, set(), plan=None)[0] == {"error": "no reason given"}
    assert build(asked, set(), parsed=False)[0] == {"error": "no such operator"}
    assert not list(tmp_path.iterdir())


def test_the_oldest_accepted_version_is_one_of_those() -> None:
    assert HELD[0].startswith(".".join(map(str, _OLDEST["tensorrt"])))


def test_bindings_of_tensorrt_have_what_is_used() -> None:
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    if tensorrt_api.compiler() is None:
        pytest.skip("no C compiler for the libraries that the bindings link against")
    names = {dist.metadata["Name"].replace("-", "_"): dist.version for dist in distributions()}
    found = next(version for name, version in names.items() if re.fullmatch(r"tensorrt_cu\d+_bindings", name))
    version, absent = lacking("tensorrt_bindings", stubbed=int(found.partition(".")[0]))
    assert version.startswith(("10.", "11.")) and absent == RTX_ONLY


@pytest.mark.trt
def test_tensorrt_rtx_has_what_is_used() -> None:
    pytest.importorskip("tensorrt_rtx")
    assert lacking("tensorrt_rtx")[1] == set()
