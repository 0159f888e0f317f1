"""`pie-engine inspect`: bundles with engines that were never compiled, on machines that are pretended."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import A5000, ADA, H100, pretend, pretend_installed

from pie_engine.config import COMPONENTS
from pie_engine.model.bundle import Bundle, write_manifest

BUILD = "pie-engine build --checkpoint 'some where' --output copy.pie"
MakeBundle = Callable[..., Path]


VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}


@pytest.fixture
def make(bundle: Bundle, tmp_path: Path) -> MakeBundle:
    """The golden bundle with engines of one flavour; options change their entries, `only` those of one component."""

    def run(flavour: str = "tensorrt-rtx", *, only: str | None = None, build: str = BUILD, **options: Any) -> Path:
        folder = Path(shutil.copytree(bundle.path, tmp_path / f"{len(list(tmp_path.iterdir()))}.pie"))
        entries = []
        for name in COMPONENTS:
            file = f"engines/{flavour}/{name}.plan"
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(b"no plan at all")
            entry = {
                "component": name, "file": file, "flavour": flavour, "version": VERSIONS[flavour], "gpu": None,
                "capabilities": ["8.6", "12.0"], "driver_floor": "13.0",
                "resolutions": [64], "batches": [1, 2], "weights": "fixed", "optimisation_level": None,
                "precision": "fp16", "weights_hash": bundle.weights_hash(name), "bytes": 14, "seconds": 1.5,
                "profiles": [{"sample": [[2, 4, 8, 8]] * 3}, {"ids": [[1, 77], [2, 77], [5, 77]]}],
                "attention": {"graph": 8, "fused": 8},
            }  # fmt: skip
            entries.append({**entry, **(options if only in (None, name) else {})})
        write_manifest(folder, {**bundle.manifest, "engines": entries, "build_command": build})
        return folder

    return run


@pytest.fixture(autouse=True)
def a_gpu_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An A5000 with the release that compiled the plans."""
    pretend(monkeypatch, A5000)
    for flavour, version in VERSIONS.items():
        pretend_installed(monkeypatch, flavour, version)


def inspect(pie: Any, folder: Path) -> dict[str, Any]:
    outcome = pie("inspect", folder, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    return json.loads(outcome.out)


def test_a_bundle_without_engines(pie: Any, bundle: Bundle) -> None:
    found = inspect(pie, bundle.path)
    assert (found["format"], found["precision"], found["opset"]) == (1, "fp32", 20)
    assert found["bytes"] == sum(file.stat().st_size for file in bundle.path.rglob("*") if file.is_file()) - len(
        (bundle.path / "manifest.json").read_bytes()
    )
    assert found["hashes"] == bundle.manifest["hashes"] and found["sources"] == bundle.manifest["sources"]
    unet = found["components"]["unet"]
    files = (bundle.path / "unet").iterdir()
    assert unet["bytes"] == sum(file.stat().st_size for file in files)
    assert unet["nodes"] > 100 and unet["attentions"] > 0
    assert 0 < unet["relative_error"] <= unet["tolerance"]
    assert found["engines"] == [] and found["defects"] == []
    assert found["torch"] == {"runs": True, "reason": None}
    assert found["auto"]["backend"] == "torch" and "in fp16, the default on a GPU" in found["auto"]["why"]
    text = pie("inspect", bundle.path).out
    assert "\nEngines\n  none; PyTorch runs the models, OpenVINO and ONNX Runtime the graphs\n" in text
    assert "\n  in PyTorch          runs, with the graphs' weights\n" in text
    assert f"  unet                {bundle.manifest['hashes']['unet'][:12]}" in text  # where it comes from follows
    assert "Defects" not in text


def test_a_bundle_of_an_earlier_version(pie: Any, make: MakeBundle, bundle: Bundle) -> None:
    """It held the U-Net's configuration alone, and nothing here runs it on the GPU."""
    folder = make()
    known = {"unet": bundle.manifest["architecture"]["unet"]}
    shutil.rmtree(folder / "engines")
    write_manifest(folder, {**bundle.manifest, "architecture": known, "engines": [], "build_command": BUILD})
    found = inspect(pie, folder)
    reason = f"bundle {folder} holds no configuration of text_encoder, vae, which PyTorch needs: pie-engine "
    assert found["torch"]["runs"] is False and found["torch"]["reason"].startswith(reason)
    assert found["torch"]["reason"].endswith(f"rebuild it: {BUILD}, or pass --backend onnxruntime")
    assert found["auto"]["backend"] is None
    assert "has no CUDA provider" in found["auto"]["why"]
    assert found["auto"]["why"].endswith(f"; rebuild it: {BUILD}, or pass --device cpu")
    assert "\n  none                nothing runs bundle" in pie("inspect", folder).out


def test_engines_that_load(pie: Any, make: MakeBundle) -> None:
    folder = make()
    found = inspect(pie, folder)
    why = "tensorrt-rtx; the bundle holds engines for this GPU; no tensorrt engines in the bundle"
    assert found["auto"] == {"backend": "tensorrt-rtx", "why": why}
    (flavour,) = found["engines"]
    assert flavour["loads_here"] is True
    assert (flavour["reason"], flavour["remedy"], flavour["rebuild"]) == (None, None, None)
    assert (flavour["bytes"], flavour["seconds"]) == (4 * 14, 6.0)
    assert flavour["buckets"] == "64 pixels, batch 1, 2"
    assert [plan["component"] for plan in flavour["plans"]] == list(COMPONENTS)
    assert all(plan["own_weights"] for plan in flavour["plans"])
    assert flavour["plans"][0]["attention"] == {"graph": 8, "fused": 8}
    lines = pie("inspect", folder).out.splitlines()
    for line in (
        "Engines of tensorrt-rtx 1.7.1.116",
        "  loads here          yes",
        "  compiled for        compute capability 8.6, 12.0",
        "  driver              for CUDA 13.0 or later",
        "  shapes              64 pixels, batch 1, 2",
        "  size                0.0 MB, built in 6.0 s",
        "    weights           fixed, the component's own",
        "    attention         8 of 8 fused (kernel names in the plan)",
        "    profile 0         sample 2x4x8x8",
        "    profile 1         ids 1x77 to 5x77",
    ):
        assert line in lines
    assert not any("rebuild" in line for line in lines)
    own = [line for line in lines if str(folder) not in line and "/" not in line]  # paths are as long as they are
    assert max(map(len, own)) <= 100


def test_without_a_gpu(pie: Any, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    folder = make()
    found = inspect(pie, folder)
    (flavour,) = found["engines"]
    assert flavour["reason"] == "this machine shows no GPU (no NVIDIA driver)"
    assert flavour["remedy"].startswith("open it on a machine with a GPU (compute capability 8.6, 12.0)")
    assert flavour["rebuild"] == f"{BUILD} --backend tensorrt-rtx"
    assert found["auto"]["backend"] == "onnxruntime" and "no GPU (no NVIDIA driver)" in found["auto"]["why"]
    outcome = pie("inspect", folder)
    assert outcome.err == ""  # what the selection warns of is in the report
    lines = outcome.out.splitlines()
    assert "  loads here          no: this machine shows no GPU (no NVIDIA driver)" in lines
    assert f"  rebuild             {BUILD} --backend tensorrt-rtx" in lines  # whole, so that it can be copied
    assert "    attention         8 of 8 fused (kernel names in the plan)" in lines


def refused(pie: Any, folder: Path) -> dict[str, Any]:
    """The one flavour, which does not load; what auto takes then."""
    found = inspect(pie, folder)
    (flavour,) = found["engines"]
    assert flavour["loads_here"] is False
    assert found["auto"]["backend"] == "torch"
    assert f"loads here          no: {flavour['reason']}"[:60] in pie("inspect", folder).out
    return flavour


def test_another_gpu(pie: Any, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, ADA)
    flavour = refused(pie, make())
    assert flavour["reason"] == (
        "it was compiled for compute capability 8.6, 12.0, and NVIDIA RTX 6000 Ada Generation has 8.9"
    )
    assert flavour["rebuild"] == f"{BUILD} --backend tensorrt-rtx --compute-capability 8.9"
    options = {"gpu": "NVIDIA A10", "capabilities": ["8.6"]}
    flavour = refused(pie, make("tensorrt", **options))
    assert flavour["target"] == "NVIDIA A10 (compute capability 8.6)"
    assert flavour["rebuild"] == f"{BUILD} --backend tensorrt"


def test_tensorrt_rtx_on_an_h100_is_rebuilt_with_tensorrt(
    pie: Any, make: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pie_engine.cli.build import engine_config
    from pie_engine.cli.main import _parser

    pretend(monkeypatch, H100)
    flavour = refused(pie, make(build=f"{BUILD} --backend tensorrt-rtx --compute-capability 8.6"))
    assert flavour["reason"].endswith("and NVIDIA H100 80GB HBM3 has 9.0")
    # tensorrt accepts no compute capabilities, so the command has to take back those that the bundle was built for.
    config = engine_config(_parser().parse_args(shlex.split(flavour["rebuild"])[1:]))
    assert config is not None and (config.flavour, config.capabilities) == ("tensorrt", ())


def test_another_release_or_none(pie: Any, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make()
    pretend_installed(monkeypatch, "tensorrt-rtx", "1.8.0.1")
    flavour = refused(pie, folder)
    assert flavour["reason"] == "it was compiled by tensorrt-rtx 1.7.1.116, and 1.8.0.1 is installed"
    assert flavour["remedy"] == "rebuild it on this machine, or pass --backend torch"
    pretend_installed(monkeypatch, "tensorrt-rtx", None)
    flavour = refused(pie, folder)
    assert flavour["reason"].startswith("tensorrt-rtx is not installed")
    assert flavour["remedy"] == "pip install 'pie-engine[tensorrt-rtx]'"


def test_a_driver_that_is_too_old(pie: Any, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, A5000, driver="12.8")
    flavour = refused(pie, make())
    assert flavour["reason"] == "it needs a driver for CUDA 13.0 or later, and this one serves 12.8"
    assert flavour["remedy"] == "update NVIDIA's driver, or pass --backend torch"


def test_a_torch_without_cuda(pie: Any, make: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, A5000, torch_cuda=None)
    (flavour,) = inspect(pie, make())["engines"]
    assert flavour["reason"] == f"torch {torch.__version__} cannot use the GPU (pie-engine doctor says why)"


def test_weights_of_another_checkpoint(pie: Any, make: MakeBundle) -> None:
    folder = make(only="unet", weights="refittable", weights_hash="f" * 64)
    found = inspect(pie, folder)
    plans = {plan["component"]: plan for plan in found["engines"][0]["plans"]}
    assert (plans["unet"]["own_weights"], plans["vae_decoder"]["own_weights"]) == (False, True)
    assert found["defects"] == []
    assert (
        "refittable, another checkpoint's (ffffffffffff): exchanged when it is loaded\n" in pie("inspect", folder).out
    )

    folder = make(only="unet", weights_hash="f" * 64)
    defects = inspect(pie, folder)["defects"]
    assert defects == ["unet (tensorrt-rtx): its weights are fixed and not those of unet; rebuild it"]
    assert "    weights           fixed, ANOTHER CHECKPOINT'S (ffffffffffff)\n" in pie("inspect", folder).out


@pytest.mark.parametrize(
    ("precision", "remedy"), [("fp32", "build with --precision fp16"), ("fp16", "report this checkpoint's head sizes")]
)
def test_attention_that_is_not_fused(
    pie: Any, make: MakeBundle, monkeypatch: pytest.MonkeyPatch, precision: str, remedy: str
) -> None:
    pretend(monkeypatch)
    folder = make(precision=precision, attention={"graph": 8, "fused": 3})
    line = f"unet (tensorrt-rtx): 5 of 8 attentions are not fused, which is slow; {remedy}"
    assert inspect(pie, folder)["defects"] == [line]  # the VAE's one attention is no loss
    text = pie("inspect", folder).out
    assert text.count("3 of 8 fused (kernel names in the plan), DEFECT: slow\n") == 1
    assert f"\nDefects\n  - {line}\n" in text.replace("\n    head sizes", " head sizes")


def test_attention_that_nobody_counted(pie: Any, make: MakeBundle) -> None:
    folder = make("tensorrt", gpu=A5000.name, capabilities=["8.6"], attention={"graph": 8, "fused": None})
    found = inspect(pie, folder)
    assert found["defects"] == [] and found["auto"]["backend"] == "tensorrt"
    assert "    attention         8 in the graph; how many are fused is not known\n" in pie("inspect", folder).out


def test_engines_of_some_components_only(pie: Any, make: MakeBundle) -> None:
    folder = make()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engines"] = [entry for entry in manifest["engines"] if entry["component"] != "unet"]
    (folder / "engines/tensorrt-rtx/unet.plan").unlink()
    write_manifest(folder, manifest)
    assert refused(pie, folder)["reason"] == "there is no engine of unet"


def test_errors_are_one_line(pie: Any, make: MakeBundle, tmp_path: Path) -> None:
    outcome = pie("inspect", tmp_path / "nowhere")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"pie-engine: error: bundle {tmp_path / 'nowhere'} does not exist; build it: ")
    folder = make()
    (folder / "engines/tensorrt-rtx/unet.plan").write_bytes(b"another plan!!")
    outcome = pie("inspect", folder, "--json")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "unet.plan does not match its manifest (SHA-256" in outcome.err
    folder = make()
    (folder / "unet" / "model.onnx").write_bytes(b"no graph at all")
    write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    outcome = pie("inspect", folder)
    assert outcome.code == 2 and "model.onnx is not an ONNX graph (" in outcome.err


def test_names_cannot_command_the_terminal(pie: Any, make: MakeBundle) -> None:
    folder = make()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sources"]["unet"] = "some\x1b[2Jwhere"
    write_manifest(folder, manifest)
    assert "some\\x1b[2Jwhere" in pie("inspect", folder).out
