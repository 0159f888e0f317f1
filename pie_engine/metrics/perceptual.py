"""LPIPS, or any other distance that a model computes from two pictures; its file is the user's.

{"file": "lpips_alex.pt", "size": 256, "channels": 3, "range": [-1, 1], "mean": 0, "std": 1}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pie_engine.errors import CheckpointError
from pie_engine.metrics.network import Network
from pie_engine.metrics.picture import PictureSpec, check_texts, distinct, naming, read_declaration

_OWN_KEYS = ("file", "name", "tensor", "notes")


class PictureDistance:
    """A distance of two pictures by an ONNX or TorchScript model that takes two and gives one number per pair.

    Args:
        path: JSON file that declares it, with the keys of `Classifier` but for "classes", "output" and "activation".
        trust: see `Network`.

    Attributes:
        name: what the tables call it.
        file: the model's file.

    Raises:
        ConfigError: the JSON file is missing, no JSON, or a value in it is unknown or out of range.
        CheckpointError, BackendError: see `Network`.
    """

    def __init__(self, path: str | Path, *, trust: bool = False):
        self._path = path = Path(path)
        values = read_declaration(path, "distance", _OWN_KEYS)
        with naming("distance", path):
            self._spec = PictureSpec.parse(values)
            check_texts(values)
            self.name = values.get("name", path.stem)
            self.file = path.parent / values["file"]
            self._network = Network(self.file, inputs=2, output=values.get("tensor"), trust=trust)

    def between(self, images: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Distance of each of [N, H, W, 3] uint8 from a reference [H, W, 3] uint8, float64 [N].

        Raises:
            InputError: another shape or dtype.
            CheckpointError: the model does not take its declared input, or does not give one finite number per pair.
        """
        pictures = self._spec.prepare(images)
        one = self._spec.prepare(reference[None])
        with naming("distance", self._path):
            found = self._network(pictures, np.repeat(one, len(pictures), axis=0))
        if found.size != len(pictures):
            raise CheckpointError(
                f"distance {self.name}: the model gave {list(found.shape)} for {len(pictures)} pairs; one number each "
                "expected"
            )
        return found.reshape(len(pictures))


def read_distances(paths: Sequence[str | Path], *, trust: bool = False) -> list[PictureDistance]:
    """Several distances, whose names have to differ.

    Raises:
        ConfigError: two have the same name; and see `PictureDistance`.
    """
    return distinct([PictureDistance(path, trust=trust) for path in paths], "distances")
