"""Other weights in an exported graph: every parameter reaches its place, and what has none is refused."""

from __future__ import annotations

import copy
import json
import lzma
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from onnx import numpy_helper
from transformers import CLIPTextConfig, CLIPTextModel

from pie_engine.checkpoint import Checkpoint
from pie_engine.config import COMPONENTS
from pie_engine.errors import BuildError
from pie_engine.export import graph
from pie_engine.export import parameters as parameters_of
from pie_engine.export.components import component
from pie_engine.export.graph import Component, check_parity, export_component, relative_error
from pie_engine.export.load import load_graph
from pie_engine.export.parameters import Source, read_sources
from pie_engine.export.weights import STRIPPED, replace_weights, strip_weights, take_weights

# As graph.TOLERANCE for models of this size: unit roundoff 6e-8, times the square root of a dot product's length
# (up to 216 terms), times the square root of about 100 layers.
TOLERANCE = 1e-5
# A change counts as seen when it is a hundred times what rounding can do.
VISIBLE = 100 * TOLERANCE
# Softmax does not see what is added to all scores of one query, and a key's bias adds query * bias to all of them.
INVISIBLE = ("to_k.bias", "k_proj.bias")

Exported = Callable[[str, int, str], Path]


def text_config(**changes: int) -> CLIPTextConfig:
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2} | changes
    tokens = {"vocab_size": 120, "bos_token_id": 118, "eos_token_id": 119}
    return CLIPTextConfig(hidden_act="quick_gelu", **tokens, **sizes)


@pytest.fixture(scope="module")
def blank(ddim_checkpoint: Checkpoint) -> Checkpoint:
    """The hardest weights to export for others: all norms one, all else zero.

    Every kind of layer, and no more: exports are slow. More channels than norm groups, so that a norm does not cancel
    the bias before it.
    """
    with torch.random.fork_rng():
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(12,),
            layers_per_block=1,
            norm_num_groups=6,
            cross_attention_dim=12,
            attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D",),
            mid_block_type=None,
            up_block_types=("UpBlock2D",),
        )
        vae = AutoencoderKL(
            block_out_channels=(12, 12),
            layers_per_block=1,
            norm_num_groups=6,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
        text_encoder = CLIPTextModel(text_config())
    for module in (unet, vae, text_encoder):
        for name, parameter in module.eval().requires_grad_(False).named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return replace(ddim_checkpoint, unet=unet, vae=vae, text_encoder=text_encoder)


@pytest.fixture(scope="module")
def other(blank: Checkpoint) -> Checkpoint:
    """The same architecture with random weights, no two alike."""
    generator = torch.Generator().manual_seed(1)
    parts = {name: copy.deepcopy(getattr(blank, name)) for name in ("unet", "vae", "text_encoder")}
    for module in parts.values():
        for name, parameter in module.named_parameters():
            parameter.copy_(draw(name, parameter, generator))
    return replace(blank, **parts)


@pytest.fixture(scope="module")
def exported(blank: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The blank checkpoint's graphs, each exported once."""
    paths: dict[tuple[str, int, str], Path] = {}

    def export(name: str, opset: int, precision: str = "fp32") -> Path:
        key = (name, opset, precision)
        if key not in paths:
            folder = tmp_path_factory.mktemp(f"{name}-{opset}-{precision}")
            paths[key] = export_component(component(blank, name), folder, precision=precision, opset=opset)
        return paths[key]

    return export


def draw(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values that keep activations near one: weights by their fan-in, norms about one, biases about zero."""
    values = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim == 1:
        return 0.5 * values + (1.0 if name.endswith("weight") else 0.0)
    return values if "embedding.weight" in name else values / parameter[0].numel() ** 0.5


def evaluate(part: Component) -> np.ndarray:
    with torch.no_grad():
        return part.module(*part.inputs.values()).numpy()


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def stored(parameter: torch.Tensor, source: Source, tensor: onnx.TensorProto) -> np.ndarray:
    array = parameter.numpy()
    return (array.T if source.transposed else array).reshape(tensor.dims).copy()


# Both opsets, attention whole and taken apart, of one; each takes an export, and an evaluation for every parameter.
@pytest.mark.parametrize(("name", "opset"), [*((name, 20) for name in COMPONENTS), ("text_encoder", 23)])
def test_every_parameter_reaches_its_place(
    exported: Exported, other: Checkpoint, name: str, opset: int, tmp_path: Path
) -> None:
    """First all weights at once through the written file, then one at a time: the graph follows each."""
    part = component(other, name)
    reference = evaluate(part)
    path = exported(name, opset, "fp32")
    written = replace_weights(path, part.module, tmp_path, precision="fp32")
    assert check_parity(part, path, reference, precision="fp32") > 0.1  # A is not B
    assert check_parity(part, written, reference, precision="fp32") <= TOLERANCE

    model = onnx.load(written)
    sources = read_sources(model, part.module)
    places = {source.parameter: (place, source) for place, source in sources.items()}
    parameters = dict(part.module.named_parameters())
    assert places.keys() == parameters.keys()
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for place in sources:  # an initialiser that is also an input can be overridden per run
        tensor = tensors[place]
        model.graph.input.append(onnx.helper.make_tensor_value_info(place, tensor.data_type, tensor.dims))
    session = open_session(model)
    feeds = {key: tensor.numpy() for key, tensor in part.inputs.items()}
    generator = torch.Generator().manual_seed(2)
    for key, parameter in parameters.items():
        place, source = places[key]
        before = parameter.clone()
        parameter.copy_(draw(key, parameter, generator))
        expected = evaluate(part)
        output = session.run(None, feeds | {place: stored(parameter, source, tensors[place])})[0]
        parameter.copy_(before)
        assert relative_error(output, expected) <= TOLERANCE, key
        seen = relative_error(reference, expected)
        assert seen <= TOLERANCE if key.endswith(INVISIBLE) else seen >= VISIBLE, (key, seen)


@pytest.mark.parametrize(
    ("name", "opset", "precision"),
    [*((name, 20, "fp32") for name in COMPONENTS), ("text_encoder", 23, "fp32"), ("text_encoder", 23, "fp16")],
)
def test_the_weights_come_back(
    exported: Exported, blank: Checkpoint, other: Checkpoint, name: str, opset: int, precision: str, tmp_path: Path
) -> None:
    """Bit for bit, rounded in fp16: no two are alike, so that each can only be its own."""
    part = component(other, name)
    written = replace_weights(exported(name, opset, precision), part.module, tmp_path, precision=precision)
    empty = copy.deepcopy(component(blank, name).module)
    for parameter in empty.parameters():
        parameter.fill_(torch.nan)
    take_weights(written, empty)
    expected, found = dict(part.module.named_parameters()), dict(empty.named_parameters())
    assert found.keys() == expected.keys()
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    for key, parameter in found.items():
        assert parameter.dtype == dtype and parameter.is_contiguous() and not parameter.requires_grad
        assert torch.equal(parameter, expected[key].to(dtype)), key
    with torch.no_grad():
        output = empty.float()(*part.inputs.values()).numpy()
    assert relative_error(output, evaluate(part)) <= (0 if precision == "fp32" else graph.TOLERANCE["fp16"])


@pytest.mark.parametrize(("name", "opset"), [("vae_encoder", 20), ("text_encoder", 23)])
def test_half_precision_within_its_tolerance(
    exported: Exported, other: Checkpoint, name: str, opset: int, tmp_path: Path
) -> None:
    part = component(other, name)
    written = replace_weights(exported(name, opset, "fp16"), part.module, tmp_path, precision="fp16")
    assert check_parity(part, written, evaluate(part), precision="fp16") <= graph.TOLERANCE["fp16"]
    assert {parameter.dtype for parameter in part.module.parameters()} == {torch.float32}
    with pytest.raises(BuildError, match="is in fp16, not fp32"):
        replace_weights(exported(name, opset, "fp16"), part.module, tmp_path / "none", precision="fp32")


def test_the_file_is_what_an_export_would_have_written(exported: Exported, other: Checkpoint, tmp_path: Path) -> None:
    """To the byte: the shape of a graph does not depend on the weights that it was exported with."""
    part = component(other, "text_encoder")
    expected = export_component(part, tmp_path, precision="fp32", opset=20).read_bytes()
    written = replace_weights(exported("text_encoder", 20, "fp32"), part.module, tmp_path, precision="fp32")
    assert written.read_bytes() == expected


def test_weights_beside_the_graph(
    exported: Exported, blank: Checkpoint, other: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("blank", "expected", "written", "inline")]
    for folder in folders:
        folder.mkdir()
    part = component(other, "text_encoder")
    inline = replace_weights(exported("text_encoder", 20, "fp32"), part.module, folders[3], precision="fp32")
    monkeypatch.setattr(graph, "EXTERNAL_BYTES", 1000)
    path = export_component(component(blank, "text_encoder"), folders[0], precision="fp32", opset=20)
    export_component(part, folders[1], precision="fp32", opset=20)
    written = replace_weights(path, part.module, folders[2], precision="fp32")
    for file in ("model.onnx", "model.onnx.data"):
        assert (folders[2] / file).read_bytes() == (folders[1] / file).read_bytes()
    assert (folders[2] / "model.onnx.data").stat().st_size > 10_000
    assert check_parity(part, written, evaluate(part), precision="fp32") <= TOLERANCE
    # Bundles share their files with the cache by hard link, which onnx alone refuses to read.
    (tmp_path / "shared").hardlink_to(written.with_name("model.onnx.data"))
    with pytest.raises(onnx.checker.ValidationError):
        onnx.load(written)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in load_graph(written).graph.initializer}
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(inline).graph.initializer}
    assert weights.keys() == expected.keys()
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)
    restored = copy.deepcopy(component(blank, "text_encoder").module)
    take_weights(written, restored)
    written.with_name("model.onnx.data").write_bytes(bytes(100))  # they are its own by now
    assert all(map(torch.equal, restored.parameters(), part.module.parameters()))
    replace_weights(path, part.module, folders[2], precision="fp32")
    back = replace_weights(written, component(blank, "text_encoder").module, folders[3], precision="fp32")
    assert back.with_name("model.onnx.data").read_bytes() == path.with_name("model.onnx.data").read_bytes()


def test_weights_outside_the_folder_are_refused(
    exported: Exported, other: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    model = onnx.load(exported("text_encoder", 20, "fp32"))
    onnx.save(model, source / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    proto = onnx.load(source / "model.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../secret"
    (source / "model.onnx").write_bytes(proto.SerializeToString())
    module = component(other, "text_encoder").module
    for read in (load_graph, lambda path: replace_weights(path, module, tmp_path, precision="fp32")):
        with pytest.raises(BuildError, match=r"lies in ../secret, outside its graph's folder; build the bundle again"):
            read(source / "model.onnx")


@pytest.mark.parametrize("beside", [False, True])
def test_weights_that_are_cut_off_are_refused(
    exported: Exported, blank: Checkpoint, beside: bool, tmp_path: Path
) -> None:
    model = onnx.load(exported("text_encoder", 20, "fp32"))
    known = read_sources(model, component(blank, "text_encoder").module)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name in known)
    tensor.raw_data = tensor.raw_data[:-4]
    if beside:
        onnx.external_data_helper.set_external_data(tensor, "model.onnx.data")
    onnx.save(model, tmp_path / "model.onnx")
    module = copy.deepcopy(component(blank, "text_encoder").module)
    with pytest.raises(BuildError, match=rf"{tensor.name} \[.*\] does not hold its numbers; build this checkpoint"):
        take_weights(tmp_path / "model.onnx", module)


def test_a_plain_export_merges_equal_weights_and_drops_zeros(
    blank: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the exporter must not see such weights, and that a graph where it did takes no others."""
    monkeypatch.setattr(parameters_of, "_coinciding", lambda numbers: [])
    part = component(blank, "text_encoder")
    path = export_component(part, tmp_path, precision="fp32", opset=23)
    merged = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert len({name for name, _ in part.module.named_parameters()} & merged) < 10
    with pytest.raises(BuildError, match="build this checkpoint"):
        read_sources(onnx.load(path), part.module)


@pytest.mark.parametrize(
    ("name", "opset", "precision"), [("text_encoder", 20, "fp32"), ("vae_encoder", 20, "fp16"), ("unet", 20, "fp32")]
)
def test_stripped_and_filled_again(
    exported: Exported, blank: Checkpoint, other: Checkpoint, name: str, opset: int, precision: str, tmp_path: Path
) -> None:
    """To the byte what replacing gives, and nothing of the weights is left in between."""
    path = exported(name, opset, precision)
    stripped = tmp_path / STRIPPED
    stripped.write_bytes(strip_weights(path, component(blank, name).module))
    assert stripped.stat().st_size < path.stat().st_size / 4
    folders = [tmp_path / "filled", tmp_path / "replaced"]
    for folder in folders:
        folder.mkdir()
    module = component(other, name).module
    filled = replace_weights(stripped, module, folders[0], precision=precision)
    replaced = replace_weights(path, module, folders[1], precision=precision)
    assert filled.read_bytes() == replaced.read_bytes()
    assert strip_weights(filled, module) == stripped.read_bytes()


def test_stripped_with_weights_beside_the_graph(
    exported: Exported, blank: Checkpoint, other: Checkpoint, tmp_path: Path
) -> None:
    """All of them, the constants that are no weights as well, in one file beside the graph."""
    for folder in ("beside", "filled"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "beside" / "model.onnx"
    model = onnx.load(exported("unet", 20, "fp32"))
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            onnx.external_data_helper.set_external_data(tensor, "model.onnx.data")
    onnx.save(model, path)
    stripped = tmp_path / STRIPPED
    stripped.write_bytes(strip_weights(path, component(blank, "unet").module))
    part = component(other, "unet")
    filled = replace_weights(stripped, part.module, tmp_path / "filled", precision="fp32")
    assert filled.with_name("model.onnx.data").stat().st_size == path.with_name("model.onnx.data").stat().st_size
    assert check_parity(part, filled, evaluate(part), precision="fp32") <= TOLERANCE


def damaged(content: bytes, how: str) -> bytes:
    if how == "cut off":
        return content[:-100]
    if how == "not xz":
        return b"graph" + content
    model = onnx.load_model_from_string(lzma.decompress(content))
    if how == "silent":
        del model.metadata_props[:]
    elif how == "wrong kind":
        model.metadata_props[0].value = json.dumps({"weight": 3})
    elif how == "deep":
        model.metadata_props[0].value = "[" * 100_000
    elif how == "elsewhere":
        places = json.loads(model.metadata_props[0].value)
        places["nowhere"] = places.pop(min(places))
        model.metadata_props[0].value = json.dumps(places)
    else:
        return bytes(1 << 16)
    return lzma.compress(model.SerializeToString())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut off", "is not an ONNX graph"),
        ("not xz", "is not an ONNX graph"),
        ("zeros", "is not an ONNX graph"),
        ("silent", "does not say which weights it holds"),
        ("wrong kind", "does not say which weights it holds"),
        ("deep", "does not say which weights it holds"),
        ("elsewhere", "the graph has no nowhere"),
    ],
)
def test_a_damaged_stripped_graph_is_refused(
    exported: Exported, blank: Checkpoint, how: str, message: str, tmp_path: Path
) -> None:
    module = component(blank, "text_encoder").module
    stripped = tmp_path / STRIPPED
    stripped.write_bytes(damaged(strip_weights(exported("text_encoder", 20, "fp32"), module), how))
    with pytest.raises(BuildError, match=message) as caught:
        replace_weights(stripped, module, tmp_path, precision="fp32")
    assert "\n" not in str(caught.value) and "pie-engine build" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [STRIPPED]


def test_exported_weights_are_the_checkpoints(exported: Exported, blank: Checkpoint) -> None:
    """The stand-ins of the export are gone, also from group norms taken apart and linear layers."""
    part = component(blank, "vae_decoder")
    path = exported("vae_decoder", 20, "fp32")
    model = onnx.load(path)
    parameters = dict(part.module.named_parameters())
    sources = read_sources(model, part.module)
    for tensor in model.graph.initializer:
        if tensor.name in sources:
            source = sources[tensor.name]
            assert np.array_equal(numpy_helper.to_array(tensor), stored(parameters[source.parameter], source, tensor))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, "has shape"),
        ({"intermediate_size": 24}, "has shape"),
        ({"num_hidden_layers": 2}, r"layers.1\S+ has no place in the graph; build this checkpoint"),
        ({"num_hidden_layers": 0}, r"the graph has a place for \S+layers.0\S+, which the checkpoint lacks; build this"),
    ],
)
def test_another_architecture_is_refused(
    exported: Exported, blank: Checkpoint, changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = exported("text_encoder", 23, "fp32")
    deviating = replace(blank, text_encoder=CLIPTextModel(text_config(**changes)))
    with pytest.raises(BuildError, match=message):
        replace_weights(path, component(deviating, "text_encoder").module, tmp_path, precision="fp32")
    assert not list(tmp_path.iterdir())
