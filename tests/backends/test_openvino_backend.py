"""OpenVINO: bound addresses, precisions, and what it is refused for."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from golden import GOLDEN
from machines import needs_openvino

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends import openvino_session
from pie_engine.backends.graph_backend import NAMES
from pie_engine.backends.openvino_backend import OpenVINOBackend
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import build_bundle, model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import COMPONENTS, BuildConfig
from pie_engine.errors import BackendError, ConfigError
from pie_engine.export.graph import TOLERANCE, relative_error
from pie_engine.model.bundle import Bundle

pytestmark = pytest.mark.skipif(not openvino_session.installed(), reason="openvino is not installed")

ITEM = Item(GOLDEN / "image.png", "the heart lung", GOLDEN / "mask.png")
SHORT = RunConfig(steps=2, num_inference_steps=6, resolution=64, feather=4)
BF16 = needs_openvino("bf16", dtype="bf16")
FOUND = ("FP32", "INT8")  # what OpenVINO lists on a processor without bf16


def test_it_writes_to_the_bound_tensors(bundle: Bundle) -> None:
    """No copies: the addresses that OpenVINO reads and writes are those of the torch tensors."""
    bound: Any = OpenVINOBackend(bundle, threads=1).bind_unet(2, 8, 8)
    request = bound._graph._request
    inputs = [request.get_input_tensor(index).data.ctypes.data for index in range(3)]
    assert inputs == [tensor.data_ptr() for tensor in (bound.sample, bound.timestep, bound.context)]
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        bound.sample.normal_()
        bound.output.fill_(float("nan"))
        bound()
        assert bound.output.isfinite().all()
        outputs.append(bound.output.clone())
        # After a run, which for a graph of dynamic shapes may put another tensor there.
        assert request.get_output_tensor(0).data.ctypes.data == bound.output.data_ptr()
    assert not torch.allclose(*outputs)


def test_results_are_overwritten_and_not_allocated_anew(bundle: Bundle) -> None:
    backend = OpenVINOBackend(bundle, threads=1)
    latent = torch.randn(1, 4, 16, 16)
    first = backend.decode_latent(latent)
    kept = first.clone()
    second = backend.decode_latent(2 * latent)
    assert first.data_ptr() == second.data_ptr()
    assert not np.allclose(kept, second)
    backend.release()
    assert torch.equal(backend.decode_latent(latent), kept)


def test_sizes_take_turns(bundle: Bundle, ddim_checkpoint: Checkpoint) -> None:
    """One compiled graph serves several bindings, each of its own shape, whichever is called next."""
    backend = OpenVINOBackend(bundle, threads=1)
    torch_backend = TorchBackend(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint))
    shapes = [(2, 8, 8), (1, 16, 8)]
    calls = [(backend.bind_unet(*shape), torch_backend.bind_unet(*shape)) for shape in shapes]
    for timestep in (900.0, 100.0):
        for own, reference in calls:
            for tensor in (own.sample, own.context):
                tensor.normal_()
            own.timestep.fill_(timestep)
            for name in ("sample", "timestep", "context"):
                getattr(reference, name).copy_(getattr(own, name))
            with torch.inference_mode():
                own()
                reference()
            assert relative_error(own.output.numpy(), reference.output.numpy()) < TOLERANCE["fp32"]


@pytest.fixture(scope="module")
def half(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("half") / "half.pie"
    return build_bundle(ddim_checkpoint, folder, BuildConfig(precision="fp16"))


def test_a_bundle_in_half_precision_runs_in_single(half: Bundle, ddim_checkpoint: Checkpoint) -> None:
    """Equal to PyTorch in fp32 on weights that were rounded to half: nothing else of half precision is left."""
    backend = OpenVINOBackend(half, threads=1)
    assert set(backend.precisions.values()) == {"fp32"}
    assert [backend.raise_precision(name) for name in COMPONENTS] == [None] * 4
    assert backend.bind_unet(1, 8, 8).sample.dtype == torch.float32
    rounded = copy.deepcopy(ddim_checkpoint)
    for module in (rounded.unet, rounded.vae, rounded.text_encoder):
        torch.nn.Module.to(torch.nn.Module.to(module, torch.float16), torch.float32)
    result = PieEngine(backend).run(ITEM, SHORT)
    expected = PieEngine(TorchBackend(rounded, model_info(rounded))).run(ITEM, SHORT)
    assert relative_error(result.latents, expected.latents) < TOLERANCE["fp32"]


@pytest.mark.parametrize("precision", ["fp32", BF16])
def test_the_precision_is_never_the_library_s_choice(bundle: Bundle, precision: str) -> None:
    """Left to itself OpenVINO computes in bf16 wherever it can."""
    graph = openvino_session.open_graph(bundle.graph("unet"), NAMES["unet"], precision=precision, threads=1)
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    assert graph.get_property("INFERENCE_PRECISION_HINT").to_string() == hint
    assert graph.get_property("INFERENCE_NUM_THREADS") == 1
    assert {port.get_element_type().to_string() for port in (*graph.inputs, *graph.outputs)} == {"f32"}


@pytest.mark.parametrize("precision", [BF16])
def test_bf16_is_raised_to_fp32(bundle: Bundle, precision: str) -> None:
    backend, single = OpenVINOBackend(bundle, precision=precision, threads=1), OpenVINOBackend(bundle, threads=1)
    assert set(backend.precisions.values()) == {"bf16"}
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = single.decode_latent(latent)
    assert not torch.equal(backend.decode_latent(latent), expected)
    assert backend.raise_precision("vae_decoder") == "fp32"
    assert torch.equal(backend.decode_latent(latent), expected)
    assert backend.precisions == {**dict.fromkeys(COMPONENTS, "bf16"), "vae_decoder": "fp32"}
    assert backend.raise_precision("vae_decoder") is None


@pytest.mark.parametrize("precision", [BF16])
def test_what_is_not_finite_in_bf16_is_run_again(
    bundle: Bundle, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = OpenVINOBackend.decode_latent

    def overflows(self: OpenVINOBackend, latent: torch.Tensor) -> torch.Tensor:
        return decode(self, latent) * (float("inf") if self.precisions["vae_decoder"] == "bf16" else 1.0)

    monkeypatch.setattr(OpenVINOBackend, "decode_latent", overflows)
    engine = PieEngine.load(bundle.path, backend="openvino", dtype=precision, threads=1)
    result = engine.run(ITEM, SHORT)
    assert [(rerun["component"], rerun["to"]) for rerun in result.provenance["reruns"]] == [("vae_decoder", "fp32")]
    assert result.provenance["backend"]["precisions"]["unet"] == "bf16"
    assert result.provenance["versions"]["openvino"] is not None
    assert result.frames.std() > 1


REPORTS = """
import sys
from pie_engine import PieEngine
PieEngine.load(sys.argv[1], backend="openvino", threads=1)
import openvino
print("openvino" in sys.modules, "openvino_telemetry" in sys.modules)
"""


def test_nothing_is_reported_over_the_network(bundle: Bundle) -> None:
    """OpenVINO's package sends an event when it is imported; what sends it is not even loaded."""
    words = [sys.executable, "-c", REPORTS, str(bundle.path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "True False\n"


def test_the_reporting_package_stays_usable_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: Any = SimpleNamespace()
    for module in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(openvino_session.importlib, "import_module", lambda name: sys.modules["openvino_telemetry"])
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    assert openvino_session.import_openvino() is None  # hidden while openvino is imported
    assert sys.modules["openvino_telemetry"] is theirs


def test_not_installed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    openvino_session._core.cache_clear()
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert not openvino_session.installed()
    with pytest.raises(BackendError) as caught:
        PieEngine.load(bundle.path, backend="openvino")
    expected = "backend 'openvino' is not installed; pip install 'pie-engine[openvino]', or pass backend='onnxruntime'"
    assert str(caught.value) == expected


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise ImportError("libopenvino.so: cannot open shared object file\nmore")

    monkeypatch.setattr(openvino_session.importlib, "import_module", fails)
    with pytest.raises(
        BackendError, match=r"^backend 'openvino' does not load \(libopenvino.so: cannot open [a-z ]+\);"
    ):
        openvino_session.import_openvino()


@pytest.mark.parametrize("arguments", [{"engine": True}, {"checkpoint": Path("never read")}])
def test_a_gpu_is_refused(bundle: Bundle, arguments: dict[str, Any]) -> None:
    given = {"engine": bundle.path} if "engine" in arguments else arguments
    with pytest.raises(ConfigError) as caught:
        PieEngine.load(**given, backend="openvino", device="cuda:1")
    expected = "backend openvino runs on a processor, not on cuda:1; pass device='cpu'"
    assert str(caught.value) == expected


@pytest.mark.parametrize("arguments", [{"engine": True}, {"checkpoint": Path("never read")}])
def test_bf16_on_a_processor_without_it(
    bundle: Bundle, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_session, "capabilities", lambda: FOUND)
    given = {"engine": bundle.path} if "engine" in arguments else arguments
    with pytest.raises(BackendError) as caught:
        PieEngine.load(**given, backend="openvino", dtype="bf16")
    expected = "this processor has no bf16 (OpenVINO finds FP32, INT8); pass dtype='fp32', or backend='torch'"
    assert str(caught.value) == expected


def test_another_precision_than_asked_for_is_not_passed_over(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO replaces a precision that a processor lacks, without a word: fp16 becomes bf16 or fp32."""
    if "FP16" in openvino_session.capabilities():
        pytest.skip("this processor has fp16, which this test asks for in vain elsewhere")
    monkeypatch.setitem(openvino_session._HINTS, "bf16", "f16")
    with pytest.raises(BackendError, match=r"^openvino [\d.]+ computes in \w+ here, not in bf16; pass dtype='fp32'$"):
        openvino_session.open_graph(bundle.graph("unet"), NAMES["unet"], precision="bf16", threads=1)


def test_other_dtypes_than_a_bundle_s(bundle: Bundle, half: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"dtype fp16 is not this bundle's \(fp32\); .* --precision fp16, or pass "):
        PieEngine.load(bundle.path, backend="openvino", dtype="fp16")
    with pytest.raises(ConfigError, match=r"dtype bf16 is not this bundle's \(fp16\); pass backend='torch'$"):
        PieEngine.load(half.path, backend="openvino", dtype="bf16")
    with pytest.raises(ConfigError, match=r"dtype bf16 is not this bundle's \(fp32\); pass backend='torch', or b"):
        PieEngine.load(bundle.path, backend="onnxruntime", dtype="bf16")


def test_a_graph_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no graph at all")
    with pytest.raises(BackendError) as caught:
        openvino_session.open_graph(path, NAMES["unet"], precision="fp32", threads=1)
    line = str(caught.value)
    assert "\n" not in line and f"cannot load {path} (Unable to read the model" in line
    assert line.endswith("; upgrade openvino, rebuild the bundle, or pass backend='onnxruntime'")


def test_an_operation_that_it_lacks(bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.graph("vae_decoder"))
    model.graph.node[-1].op_type = "Unheard"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BackendError, match=r"\(No conversion rule found for operations: Unheard-20\); upgrade "):
        openvino_session.open_graph(tmp_path / "model.onnx", NAMES["vae_decoder"], precision="fp32", threads=1)


def test_a_graph_of_something_else(bundle: Bundle) -> None:
    with pytest.raises(BackendError) as caught:
        openvino_session.open_graph(bundle.graph("text_encoder"), NAMES["vae_decoder"], precision="fp32", threads=1)
    found = "takes and gives ids, embeddings (latent, pixels expected); rebuild the bundle"
    assert str(caught.value) == f"{bundle.graph('text_encoder')} {found}"


def test_every_name_is_looked_up(bundle: Bundle, tmp_path: Path) -> None:
    """Values may have several names in OpenVINO, and in no order: those of the graph are among them."""
    for component in COMPONENTS:
        graph = openvino_session.open_graph(bundle.graph(component), NAMES[component], precision="fp32", threads=1)
        ports = (*graph.inputs, *graph.outputs)
        assert all(name in port.get_names() for name, port in zip(NAMES[component], ports, strict=True))


def test_half_precision_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="openvino", dtype="fp16", threads=1)
    assert set(engine.backend.precisions.values()) == {"fp32"}
