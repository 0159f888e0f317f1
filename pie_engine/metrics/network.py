"""A model in an ONNX or TorchScript file, run on the processor in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pie_engine.errors import BackendError, CheckpointError, ConfigError, use

_ONNX = (".onnx",)
_TORCHSCRIPT = (".pt", ".pth", ".ts", ".torchscript")
_BATCH = 16


class Network:
    """Pictures in, one tensor out.

    Args:
        path: .onnx, or .pt, .pth, .ts or .torchscript (TorchScript).
        inputs: how many tensors it takes, [N, ...] float32 each.
        output: name of the output to take of an ONNX model that has several.
        trust: whether TorchScript is loaded. Such a file holds a program, which runs with all that you may do.

    Raises:
        BackendError: onnxruntime is not installed.
        CheckpointError: the file is missing, damaged, or takes or gives something else.
        ConfigError: a file of another kind, or TorchScript without `trust`.
    """

    def __init__(self, path: Path, *, inputs: int = 1, output: str | None = None, trust: bool = False):
        self.path = path
        if path.suffix.lower() not in _ONNX + _TORCHSCRIPT:
            raise ConfigError(
                f"{path.name} is neither ONNX nor TorchScript by its name; pass one of "
                f"{', '.join(_ONNX + _TORCHSCRIPT)}"
            )
        if not path.is_file():
            raise CheckpointError(f"model file {path} does not exist; pass a file that does")
        self._takes = ""  # what an ONNX model says of its inputs
        self._fixed: int | None = None  # batch size that the model was exported with, if it takes no other
        if path.suffix.lower() in _ONNX:
            self._call = self._open_onnx(inputs, output)
        elif output is not None:
            raise ConfigError(f"tensor {output!r} names an ONNX output and {path.name} is TorchScript; leave it out")
        elif not trust:
            raise ConfigError(
                f"{path.name} is TorchScript, a program that could do anything on this machine; export it to ONNX, or "
                f"pass {use('trust', True)} if you would run a program from there",
                field="trust",
                value=False,
            )
        else:
            self._call = self._open_torchscript()

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """Run all of [N, ...] float32, in batches; the result is float64 [N, ...].

        Raises:
            CheckpointError: the model takes another shape, or does not give one finite value or row per picture.
        """
        size = self._fixed or _BATCH
        return np.concatenate(
            [self._run([array[start : start + size] for array in arrays]) for start in range(0, len(arrays[0]), size)]
        )

    def _run(self, some: list[np.ndarray]) -> np.ndarray:
        count = len(some[0])
        if self._fixed is not None and count < self._fixed:
            some = [np.concatenate([array, np.repeat(array[-1:], self._fixed - count, axis=0)]) for array in some]
        try:
            found = self._call(some)
        except Exception as error:  # onnxruntime's and TorchScript's errors share no base
            raise CheckpointError(
                f"model {self.path.name} does not take {', '.join(str(list(a.shape)) for a in some)} "
                f"({self._takes or _first_line(error)}); check size, channels and layout"
            ) from error
        if not isinstance(found, np.ndarray) or found.ndim < 1 or len(found) != len(some[0]):
            shape = list(found.shape) if isinstance(found, np.ndarray) else type(found).__name__
            raise CheckpointError(
                f"model {self.path.name} gave {shape} for {len(some[0])} pictures; one row each expected"
            )
        found = found[:count].astype(np.float64)
        if not np.isfinite(found).all():
            raise CheckpointError(f"model {self.path.name} gave values that are not finite; check range, mean and std")
        return found

    def _open_onnx(self, inputs: int, output: str | None) -> Callable[[list[np.ndarray]], Any]:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                f"{self.path.name} needs onnxruntime, which is missing; pip install 'pie-engine[cpu]'"
            ) from error
        try:
            session = onnxruntime.InferenceSession(str(self.path), providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base
            raise self._damaged(error) from error
        taken, given = session.get_inputs(), [one.name for one in session.get_outputs()]
        if len(taken) != inputs:
            raise CheckpointError(
                f"model {self.path.name} takes {len(taken)} inputs, {inputs} expected; export it anew"
            )
        if any(one.type != "tensor(float)" for one in taken):
            raise CheckpointError(
                f"model {self.path.name} takes {taken[0].type}, tensor(float) expected; export it in fp32"
            )
        if output is not None and output not in given:
            raise ConfigError(f"tensor {output!r} is not an output of {self.path.name}; pass one of {', '.join(given)}")
        batch = taken[0].shape[0] if taken[0].shape else None
        self._fixed = batch if isinstance(batch, int) else None
        shapes = (", ".join(str(size) for size in one.shape) for one in taken)
        self._takes = "it takes " + " and ".join(f"[{shape}]" for shape in shapes)
        names = [one.name for one in taken]
        wanted = output or given[0]
        return lambda arrays: session.run([wanted], dict(zip(names, arrays, strict=True)))[0]

    def _open_torchscript(self) -> Callable[[list[np.ndarray]], Any]:
        try:
            module = torch.jit.load(str(self.path), map_location="cpu").eval().float()
        except RuntimeError as error:
            raise self._damaged(error) from error

        def call(arrays: list[np.ndarray]) -> Any:
            with torch.inference_mode():
                found = module(*(torch.from_numpy(array) for array in arrays))
            return found.float().numpy() if isinstance(found, torch.Tensor) else found

        return call

    def _damaged(self, error: Exception) -> CheckpointError:
        kind = "ONNX" if self.path.suffix.lower() in _ONNX else "TorchScript"
        return CheckpointError(f"{self.path} is no {kind} model ({_first_line(error)}); export it anew")


def _first_line(error: Exception) -> str:
    """The first line of a library's error, as short as it is still of use."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if len(line) <= 160 else line[:157] + "..."
