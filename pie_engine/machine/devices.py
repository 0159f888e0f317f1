"""The device that a backend computes on: whether it is there, and what it is called, before any weights are read."""

from __future__ import annotations

import logging
import re

from pie_engine.errors import ConfigError, use
from pie_engine.machine.processors import usable_processors
from pie_engine.machine.selection import Choice, wants_gpu

log = logging.getLogger(__name__)


def check_device(device: str | None) -> None:
    """Refuse what is no device. Raises ConfigError."""
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ConfigError(
            f"device {device!r} is unknown (cpu, cuda or cuda:N); pass {use('device', 'cpu')}",
            field="device", value=device, limit="cpu, cuda or cuda:N",
        )  # fmt: skip


def bound_threads(threads: int | None) -> int | None:
    """As many threads as were asked for, at most one for each processor that this process may use, with a warning.

    More of them only wait for one another: 64 take a hundred times as long as 2 on two processors.

    Raises:
        ConfigError: no number of threads.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ConfigError(
            f"threads {threads!r} is not a whole number of at least 1; pass {use('threads', 1)}",
            field="threads", value=threads, limit="at least 1",
        )  # fmt: skip
    usable = usable_processors()
    if threads is None or threads <= usable:
        return threads
    log.warning(
        "threads %d is more than the %d processor%s that this process may use; %d run%s",
        threads, usable, "s" * (usable > 1), usable, "s" * (usable == 1),
    )  # fmt: skip
    return usable


def torch_device(device: str | None, choice: Choice, threads: int | None) -> str:
    """The device for PyTorch, and its threads set."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if not wants_gpu(device):
        return "cpu"
    return check_gpu(device or "cuda", str(choice.dtype))


def check_openvino(device: str | None, dtype: str | None) -> str:
    """The precision that OpenVINO computes in, once it is known to run here."""
    from pie_engine.backends.openvino_session import check_bf16, import_openvino

    if device is not None and device != "cpu":
        raise ConfigError(
            f"backend openvino runs on a processor, not on {device}; pass {use('device', 'cpu')}",
            field="device", value=device, limit="cpu",
        )  # fmt: skip
    import_openvino()
    if dtype == "bf16":
        check_bf16()
        return "bf16"
    return "fp32"


def onnx_device(device: str | None) -> str:
    """The device for ONNX Runtime: a GPU if asked for, or if both PyTorch and ONNX Runtime can use one."""
    import torch

    from pie_engine.backends.onnx_session import check_cuda_provider, import_onnxruntime

    providers = import_onnxruntime().get_available_providers()
    if device is None:
        usable = torch.cuda.is_available() and "CUDAExecutionProvider" in providers
        device = "cuda" if usable else "cpu"
    if device.startswith("cuda"):
        device = check_gpu(device, "fp32")
        check_cuda_provider()
    return device


def check_gpu(device: str, dtype: str) -> str:
    """The device with its number, "cuda:0": engines other than PyTorch know no current device."""
    import torch

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
        kind, _, number = target.partition("_")
        major, minor = divmod(int(number.rstrip("af")), 10)
        if (major, minor) <= capability and (kind == "compute" or major == capability[0]):
            return True
    return False
