"""The demo's severity classifier: how confident it is that a chest picture shows an enlarged heart."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pie_engine.demo.assets import SEVERITY_JSON, SEVERITY_ONNX
from pie_engine.errors import BackendError, CheckpointError, InputError


class SeverityClassifier:
    """Runs `severity.onnx` on the processor, with the normalisation that `severity.json` declares."""

    def __init__(self, model: Path = SEVERITY_ONNX, description: Path = SEVERITY_JSON) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                "the severity classifier needs onnxruntime, which is not installed; pip install 'pie-engine[cpu]'"
            ) from error
        for path in (model, description):
            if not path.is_file():
                raise CheckpointError(
                    f"{path.name} is missing; make it: python -m pie_engine.demo.training.chest --output DIR"
                )
        spec = json.loads(description.read_text(encoding="utf-8"))
        self.size: int = spec["size"]
        self._mean, self._std = np.float32(spec["mean"]), np.float32(spec["std"])
        self._session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def confidence(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Confidence that the heart is enlarged, 0 to 1: uint8 [N, size, size] or [N, size, size, 3] to float32 [N]."""
        if images.dtype != np.uint8 or images.shape[1:3] != (self.size, self.size) or images.ndim not in (3, 4):
            raise InputError(
                f"expected uint8 [N, {self.size}, {self.size}] or [..., 3], got {images.dtype} {list(images.shape)}; "
                f"resize to {self.size} x {self.size} first"
            )
        grey = images.mean(axis=3, dtype=np.float32) if images.ndim == 4 else images.astype(np.float32)
        normalised = ((grey / 255 - self._mean) / self._std)[:, None]  # [N, 1, size, size]
        return self._session.run(["confidence"], {"image": normalised})[0]
