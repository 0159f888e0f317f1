"""Classifier confidence: any ONNX or TorchScript classifier, declared in a small JSON file.

    {"file": "pneumonia.onnx", "size": 224, "channels": 3, "range": [0, 1], "mean": [0.485, 0.456, 0.406],
     "std": [0.229, 0.224, 0.225], "classes": ["normal", "pneumonia"], "output": "pneumonia", "activation": "softmax"}

One classifier alone is circular where the model learnt from the same labels: pass several.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from pie_engine.config.checks import integer, one_of
from pie_engine.errors import ConfigError
from pie_engine.metrics.network import Network
from pie_engine.metrics.picture import PictureSpec, check_texts, distinct, naming, read_declaration

ACTIVATIONS = ("none", "sigmoid", "softmax")
_OWN_KEYS = ("file", "name", "classes", "output", "tensor", "activation", "notes")
# What rounding in fp32 may take a probability beyond 0 and 1.
_ROUNDING = 1e-5


class Classifier:
    """One output of a classifier as a confidence in [0, 1].

    Args:
        path: the JSON file. "file" (relative to it), "size", "channels", "range", "mean", "std" and "activation" are
            needed; "name" (its own file name), "layout" ("NCHW"), "grey" ("luma"), "classes" (names of the outputs),
            "output" (a number from 0, or one of "classes"; 0), "tensor" (name of an ONNX output; the first) and "notes"
            (ignored) may be left out.
        trust: see `Network`.

    Attributes:
        name: what the report and the tables call it.
        file: the model's file.

    Raises:
        ConfigError: the JSON file is missing, no JSON, or a value in it is unknown or out of range.
        CheckpointError, BackendError: see `Network`.
    """

    def __init__(self, path: str | Path, *, trust: bool = False):
        self._path = path = Path(path)
        values = read_declaration(path, "classifier", _OWN_KEYS)
        with naming("classifier", path):
            self._spec = PictureSpec.parse(values)
            self.name, self._index, self._activation = _parse(values, path.stem)
            self.file = path.parent / values["file"]
            self._network = Network(self.file, output=values.get("tensor"), trust=trust)

    def confidence(self, images: np.ndarray) -> np.ndarray:
        """Confidence of [N, H, W, 3] uint8, float64 [N] in [0, 1].

        Raises:
            InputError: images of another shape or dtype.
            CheckpointError: the model does not take its declared input, or gives values that are not finite.
            ConfigError: the declared output or activation does not fit what the model gives.
        """
        prepared = self._spec.prepare(images)
        with naming("classifier", self._path):
            raw = self._network(prepared)
        rows = raw.reshape(len(raw), -1)  # [N, classes]
        if self._index >= rows.shape[1]:
            raise ConfigError(
                f"classifier {self.name}: output {self._index} is beyond the model's {rows.shape[1]}; "
                f"pass one in [0, {rows.shape[1] - 1}]"
            )
        if self._activation == "softmax":
            if rows.shape[1] == 1:
                raise ConfigError(f"classifier {self.name}: softmax over 1 output is always 1; pass sigmoid or none")
            return np.asarray(softmax(rows, axis=1)[:, self._index])
        values = rows[:, self._index]
        if self._activation == "sigmoid":
            return np.asarray(expit(values))
        worst = values[np.argmax(np.abs(values - 0.5))]
        if not -_ROUNDING <= worst <= 1 + _ROUNDING:
            raise ConfigError(
                f"classifier {self.name}: activation none, and the model gave {worst:.4g}, outside [0, 1]; "
                "pass sigmoid or softmax"
            )
        return values.clip(0, 1)


def read_classifiers(paths: Sequence[str | Path], *, trust: bool = False) -> list[Classifier]:
    """Several classifiers, whose names have to differ.

    Raises:
        ConfigError: two have the same name; and see `Classifier`.
    """
    return distinct([Classifier(path, trust=trust) for path in paths], "classifiers")


def _parse(values: dict[str, Any], default: str) -> tuple[str, int, str]:
    """Name, index of the output, and activation."""
    check_texts(values)
    if "activation" not in values:
        raise ConfigError("'activation' is missing; declare it")
    one_of("activation", values["activation"], ACTIVATIONS)
    classes, output = values.get("classes", []), values.get("output", 0)
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ConfigError(f"classes {classes!r} is not a list of names; pass the outputs' names in their order")
    if isinstance(output, str):
        if output not in classes:
            raise ConfigError(
                f"output {output!r} is not one of the classes ({', '.join(classes) or 'none are declared'})"
            )
        output = classes.index(output)
    integer("output", output, 0, 10**6, 'pass its number from 0, or one of "classes"')
    return values.get("name", default), output, values["activation"]
