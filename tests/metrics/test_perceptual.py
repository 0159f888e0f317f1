"""A distance of two pictures from a model file, against the same arithmetic by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pie_engine.errors import CheckpointError, ConfigError, InputError, PieError
from pie_engine.metrics.perceptual import PictureDistance, read_distances

SPEC: dict[str, Any] = {"file": "m.pt", "size": 4, "channels": 3, "range": [-1, 1], "mean": 0, "std": 1}


class _Squares(torch.nn.Module):
    """As LPIPS has it: two of [N, 3, H, W] to [N, 1, 1, 1]; not symmetric, so that an exchange would show."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return ((first - second) ** 2 * (second + 2)).mean((1, 2, 3), keepdim=True)


class _Rows(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return (first - second)[:, 0, 0]


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def write(module: torch.nn.Module, stem: str = "spec", /, **values: Any) -> PictureDistance:
        torch.jit.script(module).save(str(tmp_path / "m.pt"))
        (tmp_path / f"{stem}.json").write_text(json.dumps({**SPEC, **values}))
        return PictureDistance(tmp_path / f"{stem}.json", trust=True)

    return write


def test_by_hand(make: Any) -> None:
    greys = np.arange(20, dtype=np.uint8) * 10  # more than one batch
    images = np.ones((20, 8, 8, 3), np.uint8) * greys[:, None, None, None]
    values = greys / 127.5 - 1
    found = make(_Squares()).between(images, images[3])
    assert found == pytest.approx((values - values[3]) ** 2 * (values[3] + 2), abs=1e-6)
    assert found[3] == 0


def test_refusals(make: Any, tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    with pytest.raises(CheckpointError, match=r"distance spec: the model gave \[2, 4\] for 2 pairs"):
        make(_Rows()).between(images, images[0])
    with pytest.raises(CheckpointError, match="check size, channels and layout"):
        make(torch.nn.ReLU()).between(images, images[0])
    with pytest.raises(InputError, match=r"expected uint8 \[N, H, W, 3\]"):
        make(_Squares()).between(images[0], images[0])
    for values, line in (
        ({"activation": "none"}, "'activation' is unknown"),
        ({"file": "none.pt"}, r"none\.pt does not exist"),
        ({"name": 3}, "name 3 is not text"),
        ({"std": -1}, "std -1 is not above 0"),
    ):
        with pytest.raises(PieError, match=line) as caught:
            make(_Squares(), **values)
        assert str(caught.value).startswith(f"distance {tmp_path / 'spec.json'}: ")
    make(_Squares(), "two", name="spec")
    make(_Squares())
    with pytest.raises(ConfigError, match="two distances are named 'spec'"):
        read_distances([tmp_path / "spec.json", tmp_path / "two.json"], trust=True)


def test_an_onnx_model_has_to_take_two_pictures(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    from pie_engine.demo.assets import SEVERITY_ONNX

    (tmp_path / "spec.json").write_text(json.dumps({**SPEC, "file": str(SEVERITY_ONNX)}))
    with pytest.raises(CheckpointError, match=r"severity\.onnx takes 1 inputs, 2 expected"):
        PictureDistance(tmp_path / "spec.json", trust=True)
