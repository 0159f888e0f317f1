"""The members of TensorRT's classes that the package uses, held to NVIDIA's own bindings: no GPU is needed for that."""

from __future__ import annotations

import ast
import importlib.util
import json
import textwrap
from pathlib import Path

import pytest
import tensorrt_api
from tensorrt_api import DATA, FILES, GIVES, NAMED, ONE_FLAVOUR, PACKAGE, SINCE_10_10, Use, lacking, read_uses

from pie_engine.backends.tensorrt.library import _OLDEST, RTX_CAPABILITIES
from pie_engine.config import EngineConfig
from pie_engine.errors import ConfigError

RECORDED: dict[str, dict[str, list[str]]] = json.loads(DATA.read_text())
RTX_ONLY = {member for member, (module, _) in ONE_FLAVOUR.items() if module == "tensorrt_rtx"}


@pytest.fixture(scope="module")
def uses() -> list[Use]:
    found, unknown = read_uses()
    assert not unknown, "tests/support/tensorrt_api.py does not know: " + "; ".join(unknown)
    return found


def test_the_tables_hold_what_is_used_and_no_more(uses: list[Use]) -> None:
    members = {use.member for use in uses}
    assert members >= {"Builder", "Runtime", "Refitter", "OnnxParser", "IExecutionContext.execute_async_v3"}
    assert set(GIVES) <= members
    assert set(ONE_FLAVOUR) <= members
    assert {f"{owner}.{name}" for owner, names in NAMED.items() for name in names} <= members
    assert tensorrt_api.DYNAMIC["ComputeCapability"] == tuple("SM" + c.replace(".", "") for c in RTX_CAPABILITIES)


def test_no_other_file_touches_the_library() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        if path in FILES:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not [name for name in names if name.split(".")[0] in ("tensorrt", "tensorrt_rtx")], path
            # Called to be refused early is fine; what it returns must not be used.
            if isinstance(node, ast.Assign | ast.Attribute) and isinstance(node.value, ast.Call):
                function = node.value.func
                name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                assert name != "import_library", f"{path}:{node.lineno}: read this file too (tensorrt_api.FILES)"


def test_what_one_flavour_lacks_is_used_only_under_its_guard(uses: list[Use]) -> None:
    for use in uses:
        if use.member in ONE_FLAVOUR:
            _, guards = ONE_FLAVOUR[use.member]
            assert set(guards) & set(use.conditions), f"{use.place}: {use.member} under {use.conditions}"


def test_the_guard_of_compute_capabilities_holds_for_tensorrt() -> None:
    with pytest.raises(ConfigError, match="tensorrt compiles for the GPU at hand, not for --compute-capability"):
        EngineConfig("tensorrt", capabilities=("8.6",))


@pytest.mark.parametrize("version", RECORDED)
def test_recorded_versions_have_what_is_used(uses: list[Use], version: str) -> None:
    absent = {use.member for use in lacking(uses, RECORDED[version])}
    old = set(SINCE_10_10) if version.startswith("10.9.") else set()
    assert absent == RTX_ONLY | old, f"write {DATA.name} anew if the package uses more than before"


def test_the_oldest_accepted_version_is_recorded() -> None:
    assert ".".join(map(str, _OLDEST["tensorrt"])) in {".".join(version.split(".")[:2]) for version in RECORDED}


def test_bindings_of_tensorrt_have_what_is_used(uses: list[Use], tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_bindings") is None:
        pytest.skip("tensorrt-cu13-bindings is not installed")
    if tensorrt_api.compiler() is None:
        pytest.skip("no C compiler for the libraries that the bindings link against")
    from importlib.metadata import distributions

    names = {dist.metadata["Name"].replace("-", "_"): dist.version for dist in distributions()}
    version = next(found for name, found in names.items() if name.startswith("tensorrt_cu") and "bindings" in name)
    tensorrt_api.make_stubs(tmp_path, int(version.partition(".")[0]))
    version, members = tensorrt_api.read_api("tensorrt_bindings", stubs=tmp_path)
    assert version.startswith(("10.", "11."))
    assert {use.member for use in lacking(uses, members)} - set(SINCE_10_10) == RTX_ONLY
    if version in RECORDED:  # the record was read from nothing else
        used = {use.member for use in uses}
        seen = {owner: [n for n in names if f"{owner}.{n}" in used] for owner, names in members.items()}
        assert seen == RECORDED[version]


@pytest.mark.trt
def test_tensorrt_rtx_has_what_is_used(uses: list[Use]) -> None:
    pytest.importorskip("tensorrt_rtx")
    _, members = tensorrt_api.read_api("tensorrt_rtx")
    assert {use.member for use in lacking(uses, members)} == set()


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f(library: Any) -> None:\n    library.Builder(1).create_netwrok(1)", "Builder.create_netwrok"),
        ("def f(library: Any) -> None:\n    b = library.Builder(1)\n    b.platform_has_fast_fp16", "Builder.platform"),
        ("def f(context: Any) -> None:\n    pass", "PARAMETERS lacks context"),
        ("def f(engine: Any) -> None:\n    [engine.device_memory_size for _ in ()]", "ICudaEngine.device_memory_size"),
        (
            "class A:\n    def __init__(self, engine: Any):\n        self.e = engine\n    def f(self):\n"
            "        self.e.x",
            "ICudaEngine.x",
        ),
        ("def f(config: Any) -> None:\n    config.max_workspace_size = 1", "IBuilderConfig.max_workspace_size"),
        ("def f(library: Any) -> None:\n    getattr(library.BuilderFlag, 'FP' + '16')", "DYNAMIC lacks BuilderFlag"),
        ("def f(x) -> Any:\n    return x", "RETURNS lacks f"),
    ],
)
def test_a_use_that_nobody_listed_is_seen(source: str, missing: str, tmp_path: Path) -> None:
    """The reader must be able to fail."""
    path = tmp_path / "worker.py"
    path.write_text(textwrap.dedent(source))
    _, unknown = read_uses((path,))
    assert any(missing in line for line in unknown), unknown


def test_conditions_are_those_that_hold(tmp_path: Path) -> None:
    path = tmp_path / "worker.py"
    path.write_text(
        "def f(library: Any, flag: bool) -> None:\n"
        "    if flag:\n        library.A\n        return\n    library.B\n"
        "    if not flag:\n        library.C\n    library.D\n"
    )
    found = {use.member: use.conditions for use in read_uses((path,))[0]}
    assert found == {"A": ("flag",), "B": ("not flag",), "C": ("not flag", "not flag"), "D": ("not flag",)}
