"""Where a model runs, and with which optimisations."""

from __future__ import annotations

import re

from pie_engine.config.build import FLAVOURS
from pie_engine.config.run import DTYPES, RuntimeConfig
from pie_engine.config.settings import setting, settings
from pie_engine.errors import ConfigError, mention, use

# In the order that `auto` tries: compiled engines, PyTorch on a GPU, OpenVINO and ONNX Runtime on the processor.
BACKENDS = ("auto", *FLAVOURS, "torch", "openvino", "onnxruntime")


@settings
class Placement:
    """Backend, device, precision, threads and optimisations of one model.

    TensorRT runs a bundle's engines, OpenVINO and ONNX Runtime its graphs; of a checkpoint they build a bundle in the
    cache first. PyTorch runs the models of either. "auto" takes the processor only where torch sees no GPU, or where
    the device says so.

    Attributes:
        runtime: which optimisations run.

    Raises:
        ConfigError: a value is unknown or out of range, or two contradict each other.
    """

    backend: str = setting(
        "what runs the model; auto takes the first of tensorrt, tensorrt-rtx, torch on a GPU, openvino and onnxruntime "
        "that can run what is given",
        default="auto", choices=BACKENDS,
    )  # fmt: skip
    device: str | None = setting(
        "cpu, cuda or cuda:N", default=None, open="a GPU if the backend finds one", example="cpu", metavar="NAME",
    )  # fmt: skip
    dtype: str | None = setting(
        "precision (bf16: torch, openvino)", default=None, choices=DTYPES,
        open="fp16 for torch on a GPU, where what is not finite runs again in fp32; else fp32 or the bundle's",
    )  # fmt: skip
    threads: int | None = setting(
        "processor threads of the model, one per processor at most", default=None, low=1, high=1_000_000,
        open="the backend's choice", example=1,
        metavar="N",
    )  # fmt: skip
    verify: bool = setting(
        "hash all files of a bundle, also those that have not been written since they were last hashed", default=False
    )
    runtime: RuntimeConfig = RuntimeConfig()

    def __post_init__(self) -> None:
        if self.device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigError(
                f"{mention('device')} {self.device!r} is unknown (cpu, cuda or cuda:N); pass {use('device', 'cpu')}",
                field="device", value=self.device, limit="cpu, cuda or cuda:N",
            )  # fmt: skip
        if self.runtime.compile and self.backend not in ("auto", "torch"):
            raise ConfigError(
                f"{mention('compile')} is for PyTorch modules; pass {use('backend', 'torch')}, or leave it out"
            )
