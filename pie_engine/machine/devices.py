"""The device that a backend computes on: whether it is there, and what it is called, before any weights are read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from pie_engine.backends import onnx_session, openvino_session
from pie_engine.errors import ConfigError, use
from pie_engine.machine.processors import usable_processors
from pie_engine.machine.selection import Choice, wants_gpu

if TYPE_CHECKING:
    from pie_engine.config import Placement

log = logging.getLogger(__name__)


def limit_threads(threads: int | None) -> int | None:
    """As many threads as were asked for, at most one for each processor that this process may use, with a warning.

    More of them only wait for one another: 64 take a hundred times as long as 2 on two processors.
    """
    usable = usable_processors()
    if threads is None or threads <= usable:
        return threads
    log.warning(
        "threads %d is more than the %d processor%s that this process may use; %d run%s",
        threads, usable, "s" * (usable > 1), usable, "s" * (usable == 1),
    )  # fmt: skip
    return usable


def torch_device(placement: Placement, choice: Choice) -> str:
    """The device for PyTorch, and its threads set."""
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    if not wants_gpu(placement.device):
        return "cpu"
    return check_gpu(placement.device or "cuda", str(choice.dtype))


def check_openvino(placement: Placement) -> str:
    """The precision that OpenVINO computes in, once it is known to run here."""
    device = placement.device
    if device is not None and device != "cpu":
        raise ConfigError(
            f"backend openvino runs on a processor, not on {device}; pass {use('device', 'cpu')}",
            field="device", value=device, limit="cpu",
        )  # fmt: skip
    openvino_session.import_openvino()
    if placement.dtype == "bf16":
        openvino_session.check_bf16()
        return "bf16"
    return "fp32"


def onnx_device(device: str | None) -> str:
    """The device for ONNX Runtime: a GPU if asked for, or if both PyTorch and ONNX Runtime can use one."""
    providers = onnx_session.import_onnxruntime().get_available_providers()
    if device is None:
        usable = torch.cuda.is_available() and "CUDAExecutionProvider" in providers
        device = "cuda" if usable else "cpu"
    if device.startswith("cuda"):
        device = check_gpu(device, "fp32")
        onnx_session.check_cuda_provider()
    return device


def check_gpu(device: str, dtype: str) -> str:
    """The device with its number, "cuda:0": engines other than PyTorch know no current device."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"device {device!r} needs an NVIDIA GPU and this machine shows none; pass {use('device', 'cpu')}",
            field="device", value=device, limit="cpu",
        )  # fmt: skip
    index = int(device.partition(":")[2] or torch.cuda.current_device())
    if index >= torch.cuda.device_count():
        raise ConfigError(
            f"device {device!r} is not one of {torch.cuda.device_count()} GPUs; pass {use('device', 'cuda:0')}",
            field="device", value=device, limit=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
        )  # fmt: skip
    capability = torch.cuda.get_device_capability(index)
    name = f"{torch.cuda.get_device_name(index)} (compute capability {capability[0]}.{capability[1]})"
    if not _runs_on(torch.cuda.get_arch_list(), capability):
        built = ", ".join(torch.cuda.get_arch_list())
        raise ConfigError(
            f"{name} is not one that torch {torch.__version__} was built for ({built}); "
            f"install another build of torch, or pass {use('device', 'cpu')}",
            field="device",
            value=device,
        )
    if dtype == "bf16" and capability < (8, 0):
        raise ConfigError(f"{name} has no bf16 (8.0 needed); pass {use('dtype', 'fp16')}", field="dtype", value=dtype)
    return f"cuda:{index}"


def _runs_on(built: list[str], capability: tuple[int, int]) -> bool:
    """Whether a torch built for these targets runs on a GPU: sm_86 on 8.6 and up to 8.9, compute_80 on all above."""
    for target in built:
        code, _, number = target.partition("_")
        major, minor = divmod(int(number.rstrip("af")), 10)
        if (major, minor) <= capability and (code == "compute" or major == capability[0]):
            return True
    return False
