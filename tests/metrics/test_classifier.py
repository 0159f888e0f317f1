"""Classifiers from files: against the same arithmetic by hand, and the demo's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pie_engine.errors import BackendError, CheckpointError, ConfigError, InputError, PieError
from pie_engine.metrics.classifier import Classifier, read_classifiers
from pie_engine.metrics.perceptual import read_distances

SPEC: dict[str, Any] = {"file": "m.pt", "size": 4, "channels": 3, "range": [0, 1], "mean": 0, "std": 1}


class _Channels(torch.nn.Module):
    """Each channel's mean, and its first row's: [N, 3, H, W] to [N, 6]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x[:, :, 0].mean(2)], 1)


class _First(torch.nn.Module):
    """The mean of a channels-last picture's first channel: [N, H, W, C] to [N]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., 0].mean((1, 2))


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """Write a TorchScript model and its JSON, and open it."""

    def write(module: torch.nn.Module, stem: str = "spec", /, **values: Any) -> Classifier:
        torch.jit.script(module).save(str(tmp_path / "m.pt"))
        (tmp_path / f"{stem}.json").write_text(json.dumps({**SPEC, **values}))
        return Classifier(tmp_path / f"{stem}.json", trust=True)

    return write


def colours(count: int = 3, side: int = 4) -> np.ndarray:
    """Pictures of one colour each."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[:] = np.array([[51 * i, 102, 204] for i in range(count)], np.uint8)[:, None, None]
    return images


def test_normalisation_and_activations_by_hand(make: Any) -> None:
    spec = {"range": [-1, 1], "mean": [0.2, 0.0, -0.2], "std": [0.5, 1.0, 2.0]}
    images = colours()
    logits = (images[:, 0, 0] / 127.5 - 1 - spec["mean"]) / spec["std"]
    sigmoid = make(_Channels(), **spec, activation="sigmoid", output=2).confidence(images)
    assert sigmoid == pytest.approx(1 / (1 + np.exp(-logits[:, 2])), abs=1e-6)
    names = ["a", "b", "c", "d", "e", "f"]
    softmax = make(_Channels(), **spec, activation="softmax", classes=names, output="b").confidence(images)
    powers = np.exp(np.concatenate([logits, logits], 1))
    assert softmax == pytest.approx(powers[:, 1] / powers.sum(1), abs=1e-6)
    assert make(_Channels(), activation="none", output=0).confidence(images) == pytest.approx([0, 0.2, 0.4], abs=1e-6)


def test_layout_greys_and_size_by_hand(make: Any) -> None:
    images = colours(side=8)  # of one colour: resizing keeps it
    last = {"channels": 1, "layout": "NHWC", "activation": "none"}
    luma = make(_First(), **last).confidence(images)
    red, green, blue = images[:, 0, 0].T / 255
    assert luma == pytest.approx(0.299 * red + 0.587 * green + 0.114 * blue, abs=1e-6)
    assert make(_First(), **last, grey="mean").confidence(images) == pytest.approx((red + green + blue) / 3, abs=1e-6)
    halves = np.zeros((1, 8, 6, 3), np.uint8)
    halves[:, :4] = 255
    tall = make(_Channels(), size=[8, 6], activation="none", output=3)
    assert tall.confidence(halves) == pytest.approx([1.0])  # the first row: height comes first, nothing is turned
    assert make(_Channels(), size=[2, 3], activation="none", output=3).confidence(halves)[0] > 0.8


def test_the_demos_classifier_is_declared_by_its_json() -> None:
    ort = pytest.importorskip("onnxruntime")
    from pie_engine.demo.assets import SEVERITY_JSON, SEVERITY_ONNX
    from pie_engine.demo.data import cohort, render_all

    grey = render_all(cohort("test", 21))  # more than one batch, the last one not full
    images = np.repeat(grey[..., None], 3, axis=3)
    images[:, :40, :, 0] //= 2  # colour, too
    one = Classifier(SEVERITY_JSON)
    assert one.name == "enlarged heart"
    found = one.confidence(images)
    pictures = ((images.mean(axis=3) / 255 - 0.45) / 0.27).astype(np.float32)[:, None]
    session = ort.InferenceSession(str(SEVERITY_ONNX), providers=["CPUExecutionProvider"])
    assert found == pytest.approx(session.run(["confidence"], {"image": pictures})[0], abs=1e-5)
    assert found.max() - found.min() > 0.5


def test_an_onnx_model_of_one_batch_size_and_two_outputs(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    node = onnx.helper.make_node
    picture = onnx.helper.make_tensor_value_info("x", 1, [2, 3, 4, 4])
    outputs = [onnx.helper.make_tensor_value_info(name, 1, [2, 3, 1, 1]) for name in ("mean", "half")]
    graph = onnx.helper.make_graph(
        [node("GlobalAveragePool", ["x"], ["mean"]), node("Mul", ["mean", "k"], ["half"])],
        "g", [picture], outputs, [onnx.helper.make_tensor("k", 1, [1], [0.5])],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "m.onnx")

    def confidence(**values: Any) -> np.ndarray:
        own = {**SPEC, "file": "m.onnx", "activation": "none", **values}
        (tmp_path / "a.json").write_text(json.dumps(own))
        return Classifier(tmp_path / "a.json", trust=True).confidence(colours())

    assert confidence() == pytest.approx([0, 0.2, 0.4], abs=1e-6)
    assert confidence(tensor="half", output=2) == pytest.approx([0.4] * 3, abs=1e-6)
    with pytest.raises(ConfigError, match=r"tensor 'other' is not an output of m\.onnx; pass one of mean, half"):
        confidence(tensor="other")
    with pytest.raises(
        CheckpointError, match=r"classifier .*a\.json: .*does not take .*2, 3, 5, 5.*it takes \[2, 3, 4, 4\]"
    ):
        confidence(size=5)


def test_names_have_to_differ(make: Any, tmp_path: Path) -> None:
    make(_Channels(), "one", activation="none")
    make(_Channels(), "two", activation="none", name="second")
    assert [one.name for one in read_classifiers([tmp_path / "one.json", tmp_path / "two.json"], trust=True)] == [
        "one",
        "second",
    ]
    make(_Channels(), "three", activation="none", name="second")
    with pytest.raises(ConfigError, match="two classifiers are named 'second'"):
        read_classifiers([tmp_path / f"{name}.json" for name in ("one", "two", "three")], trust=True)


def test_refusals(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {**SPEC, "activation": "none"}
    for values, line in (
        ({"activation": "relu"}, r"activation 'relu' is unknown; pass one of none, sigmoid, softmax"),
        ({"channels": 2}, "channels 2 is unknown; pass 1 or 3"),
        ({"size": [4, 4, 4]}, r"size \[4, 4, 4\] has 3 numbers"),
        ({"size": 0}, r"size 0 is outside \[1, 8192\]"),
        ({"std": 0}, "std 0 is not above 0"),
        ({"mean": [0, 0]}, r"mean \[0, 0\] has 2 numbers and not 3"),
        ({"range": [1, 1]}, "makes every pixel the same"),
        ({"range": 255}, "range 255 has 1 numbers and not 2"),
        ({"layout": "CHW"}, "layout 'CHW' is unknown"),
        ({"output": "x"}, "output 'x' is not one of the classes"),
        ({"output": -1}, "output -1 is outside"),
        ({"normalise": True}, "'normalise' is unknown"),
        ({"file": "m.h5"}, r"m\.h5 is neither ONNX nor TorchScript"),
        ({"file": "none.pt"}, r"none\.pt does not exist"),
        ({"file": "bad.pt"}, r"bad\.pt is no TorchScript model"),
        ({"file": "bad.onnx"}, r"bad\.onnx is no ONNX model"),
        ({"file": 3}, "file 3 is not text"),
        ({"tensor": "y"}, "names an ONNX output and m.pt is TorchScript"),
    ):
        for name in ("bad.pt", "bad.onnx"):
            (tmp_path / name).write_text("none of it")
        with pytest.raises(PieError, match=line) as caught:
            make(_Channels(), **{**good, **values})
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(f"classifier {tmp_path / 'spec.json'}: "), caught.value
    for text, line in (
        ("[]", "not a JSON object"),
        ("{", "is not a JSON object"),
        ("[" * 100_000, r"is not a JSON object \(nested deeper than 64 levels\)"),
        ("{}", "'size' is missing"),
    ):
        (tmp_path / "spec.json").write_text(text)
        with pytest.raises(ConfigError, match=line):
            Classifier(tmp_path / "spec.json", trust=True)
    with pytest.raises(ConfigError, match="No such file"):
        Classifier(tmp_path / "nowhere.json")
    for values, line, kind in (
        ({"output": 6}, r"output 6 is beyond the model's 6; pass one in \[0, 5\]", ConfigError),
        ({"range": [0, 255], "output": 2}, r"activation none, and the model gave 204, outside \[0, 1\]", ConfigError),
        ({"channels": 1, "layout": "NHWC"}, r"does not take \[3, 4, 4, 1\]|gave", CheckpointError),
    ):
        module = _Channels() if kind is ConfigError else torch.nn.Linear(3, 1)
        with pytest.raises(kind, match=line):
            make(module, **{**good, **values}).confidence(colours())
    with pytest.raises(ConfigError, match="softmax over 1 output is always 1"):
        make(_First(), **{**good, "activation": "softmax", "layout": "NHWC"}).confidence(colours())
    with pytest.raises(InputError, match=r"expected uint8 \[N, H, W, 3\]"):
        make(_Channels(), **good).confidence(colours()[0])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"pip install 'pie-engine\[cpu\]'"):
        make(_Channels(), **{**good, "file": "bad.onnx"})


class _Program(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((1, 2, 3))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ts", ".torchscript"])
def test_a_program_is_not_loaded_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    torch.jit.script(_Program()).save(str(tmp_path / f"m{suffix}"))
    (tmp_path / "a.json").write_text(json.dumps({**SPEC, "file": f"m{suffix}", "activation": "none"}))
    (tmp_path / "b.json").write_text(json.dumps({**SPEC, "file": f"m{suffix}"}))
    assert Classifier(tmp_path / "a.json", trust=True).file.name == f"m{suffix}"
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("it was loaded"))
    line = rf"m{suffix} is TorchScript, a program that could do anything .* export it to ONNX, or pass trust=True"
    for read in (read_classifiers, read_distances):
        with pytest.raises(ConfigError, match=line):
            read([tmp_path / ("a.json" if read is read_classifiers else "b.json")])
