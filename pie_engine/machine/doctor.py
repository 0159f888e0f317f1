"""Which backends can run and build on this machine, and what the others lack."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pie_engine.backends import openvino_session
from pie_engine.backends.gpu import Machine, numbers, probe
from pie_engine.backends.host_memory import available_memory
from pie_engine.backends.tensorrt import library
from pie_engine.backends.tensorrt.library import first_line
from pie_engine.config import FLAVOURS, Placement
from pie_engine.errors import BackendError, Notice, argument, use
from pie_engine.machine.environment import (
    Problem,
    cache_facts,
    check_requirements,
    import_failure,
    onnxruntime_packages,
    onnxruntime_providers,
    processor_cores,
    versions,
)
from pie_engine.machine.selection import choose_for_checkpoint

_BACKENDS = (*FLAVOURS, "torch on GPU", "torch on CPU", "onnxruntime on GPU", "onnxruntime on CPU", "openvino on CPU")
# PyTorch's index for a driver: the oldest CUDA version that it has to serve, newest first.
_TORCH_INDEX = (((13, 0), "cu130"), ((12, 8), "cu128"), ((), "cu126"))


@dataclass(frozen=True)
class Status:
    """Whether a backend runs here, and whether what it runs can be built here.

    Attributes:
        name: such as "torch on GPU".
        problems: what keeps it from running; empty where it runs.
        builds: None where it needs no build.
        build_note: for what, or why not.
    """

    name: str
    problems: tuple[Problem, ...]
    builds: bool | None = None
    build_note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "runs": not self.problems}


def diagnose() -> dict[str, Any]:
    """Look at everything that decides what runs. What is missing or broken is reported, not raised.

    Returns:
        What JSON can hold: "versions" (None: not installed), "torch_cuda", "onnxruntime" (packages and providers),
        "openvino" (whether this processor has bf16; None where it does not load), "machine", "cache", "backends" (see
        `Status`), "fused_steps", "auto", and "problems".
    """
    machine, openvino = _probe(), _openvino()
    broken, problems = check_requirements()
    cache, packages = cache_facts(), onnxruntime_packages()
    if not cache["writable"]:
        problems.append(Problem(f"the cache folder {cache['folder']} cannot be written", "set PIE_ENGINE_CACHE"))
    if len(packages) > 1:
        what = f"{' and '.join(packages)} overwrite each other's module; keep one"
        problems.append(Problem(what, _replace_onnxruntime("gpu" if machine.gpus else "cpu")))
    if broken:  # without torch and the like, nothing else can be asked
        statuses = [Status(name, tuple(broken)) for name in _BACKENDS]
    else:
        statuses = _statuses(machine, openvino)
    return {
        "versions": versions(),
        "torch_cuda": None if import_failure("torch") else _torch().version.cuda,
        "onnxruntime": {"packages": packages, "providers": onnxruntime_providers()},
        "openvino": {"bf16": None if openvino else "BF16" in openvino_session.capabilities()},
        "machine": {
            "gpus": [asdict(gpu) for gpu in machine.gpus],
            "no_gpu_because": machine.reason or None,
            "driver_cuda": machine.driver or None,
            "cores": processor_cores(),
            "free_memory_bytes": available_memory(),
        },
        "cache": cache,
        "backends": [status.to_dict() for status in statuses],
        "fused_steps": [] if broken else _fused_steps(statuses),
        "auto": _auto(broken),
        "problems": [asdict(problem) for problem in problems],
    }


def _probe() -> Machine:
    try:
        return probe()
    except Exception as error:  # broken libraries raise what they like
        return Machine((), "", f"it cannot be asked: {first_line(error)}")


def _torch() -> Any:
    import torch

    return torch


def _statuses(machine: Machine, openvino: tuple[Problem, ...]) -> list[Status]:
    gpu, runtime = _torch_on_gpu(machine), _onnxruntime(machine)
    note = _NO_EXPORT if runtime else "anywhere: an export needs no GPU"
    return [
        *(_tensorrt(flavour, machine, gpu, exports=not runtime) for flavour in FLAVOURS),
        Status("torch on GPU", gpu),
        Status("torch on CPU", ()),
        Status("onnxruntime on GPU", _onnxruntime_on_gpu(machine, gpu, runtime), not runtime, note),
        Status("onnxruntime on CPU", runtime, not runtime, note),
        Status("openvino on CPU", openvino, not runtime, note),
    ]


_NO_EXPORT = "every export is compared with PyTorch in onnxruntime, which does not run here"


def _tensorrt(flavour: str, machine: Machine, torch_gpu: tuple[Problem, ...], *, exports: bool) -> Status:
    """Told without the library's runtime and builder, which can end the process where there is no driver."""
    try:
        library.import_library(flavour)
    except Exception as error:  # broken libraries raise what they like
        what = first_line(error).partition("; ")[0].replace(f"backend '{flavour}'", flavour)
        note = "it is not installed" if what.endswith("is not installed") else "its library cannot be used"
        return Status(flavour, (Problem(what, library.install_command(flavour)), *torch_gpu), False, note)
    unfit = _unfit(flavour, machine)
    if not exports:
        builds, note = False, _NO_EXPORT
    elif flavour == "tensorrt-rtx":
        builds, note = (
            True,
            Notice(
                f"for compute capability {', '.join(library.RTX_CAPABILITIES)}; "
                + (
                    f"{machine.gpus[0].capability} unless {argument('capabilities')} says otherwise"
                    if machine.gpus and machine.gpus[0].capability in library.RTX_CAPABILITIES
                    else f"{argument('capabilities')} chooses"
                )
            ),
        )
    elif not machine.gpus:
        builds, note = False, "it compiles on the GPU that runs the engine"
    else:
        builds, note = not unfit, unfit[0].what if unfit else f"for {machine.gpus[0].name}"
    return Status(flavour, (*unfit, *torch_gpu), builds, note)


def _unfit(flavour: str, machine: Machine) -> list[Problem]:
    """What is wrong with the first GPU or the driver for an installed flavour."""
    problems = []
    gpu = machine.gpus[0] if machine.gpus else None
    if flavour == "tensorrt-rtx" and gpu is not None and gpu.capability not in library.RTX_CAPABILITIES:
        known = ", ".join(library.RTX_CAPABILITIES)
        what = f"it has no kernels for compute capability {gpu.capability} ({gpu.name}), only for {known}"
        other = library.installed_version("tensorrt") is not None
        remedy = Notice(f"pass {use('backend', 'tensorrt')}") if other else library.install_command("tensorrt")
        problems.append(Problem(what, remedy))
    floor = library.driver_floor(flavour)
    if not machine.serves(floor):
        what = f"it needs a driver for CUDA {floor} or later, and this one serves {machine.driver}"
        problems.append(Problem(what, "update NVIDIA's driver"))
    return problems


def _torch_on_gpu(machine: Machine) -> tuple[Problem, ...]:
    torch = _torch()
    index = next(name for oldest, name in _TORCH_INDEX if numbers(machine.driver) >= oldest)
    install = f"pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/{index}"
    build = f"torch {torch.__version__} (CUDA {torch.version.cuda})"
    if not machine.gpus:
        return (Problem(f"this machine shows no GPU ({machine.reason})", _gpu_remedy(machine)),)
    if torch.version.cuda is None:
        return (Problem(f"torch {torch.__version__} was built without CUDA", install),)
    if not torch.cuda.is_available():
        return (Problem(f"{build} finds no GPU that it can use; the driver serves CUDA {machine.driver}", install),)
    try:
        torch.zeros(1, device="cuda:0").add_(1).item()
    except Exception as error:  # an architecture that it was not built for, a GPU that is taken or broken
        return (Problem(f"{build} does not run on {machine.gpus[0].name} ({first_line(error)})", install),)
    return ()


def _gpu_remedy(machine: Machine) -> str:
    if "cuda-python is not installed" in machine.reason:
        return "pip install 'cuda-python>=12.8' (it tells whether there is one)"
    if machine.driver:
        return "see what nvidia-smi and CUDA_VISIBLE_DEVICES say"
    return "install NVIDIA's driver, if this machine has such a GPU"


def _onnxruntime(machine: Machine) -> tuple[Problem, ...]:
    reason = import_failure("onnxruntime")
    if reason is None:
        return ()
    extra = "gpu" if machine.gpus else "cpu"
    if not onnxruntime_packages():
        return (Problem("onnxruntime is not installed", f"pip install 'pie-engine[{extra}]'"),)
    return (Problem(f"onnxruntime does not load ({reason})", _replace_onnxruntime(extra)),)


def _openvino() -> tuple[Problem, ...]:
    try:
        openvino_session.import_openvino()
    except Exception as error:  # broken libraries raise what they like
        what = first_line(error).partition("; ")[0].replace("backend 'openvino'", "openvino")
        return (Problem(what, openvino_session.INSTALL),)
    return ()


def _onnxruntime_on_gpu(
    machine: Machine, torch_gpu: tuple[Problem, ...], runtime: tuple[Problem, ...]
) -> tuple[Problem, ...]:
    if runtime or not machine.gpus:
        return (*runtime, *torch_gpu)
    if "CUDAExecutionProvider" not in onnxruntime_providers():
        return (Problem("the onnxruntime at hand has no CUDA provider", _replace_onnxruntime("gpu")), *torch_gpu)
    if not torch_gpu and not _cuda_provider_starts():
        what = "onnxruntime cannot start its CUDA provider (CUDA or cuDNN is missing or of another version)"
        return (Problem(what, "pip install --upgrade 'pie-engine[gpu]'"),)
    return torch_gpu


def _replace_onnxruntime(extra: str) -> str:
    return (
        f"pip uninstall -y {' '.join(onnxruntime_packages() or ['onnxruntime'])} && pip install 'pie-engine[{extra}]'"
    )


def _cuda_provider_starts() -> bool:
    """Whether ONNX Runtime takes one node to the GPU: the list of its providers says only what it was built for."""
    import onnxruntime
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CUDAExecutionProvider"], enable_fallback=0
        )
    except Exception:  # ONNX Runtime's exceptions share no other base
        return False
    return "CUDAExecutionProvider" in session.get_providers()


def _fused_steps(statuses: list[Status]) -> list[dict[str, Any]]:
    """Each implementation of what runs between two U-Net evaluations, tried out on each device that torch runs on."""
    from pie_engine.kernels import dispatch

    runs = {status.name for status in statuses if not status.problems}
    steps = []
    for device in [name for name, needed in (("cuda:0", "torch on GPU"), ("cpu", "torch on CPU")) if needed in runs]:
        for name in ("triton", "cpp", "eager") if device == "cpu" else ("triton", "eager"):
            reason = None
            try:
                dispatch.select(device, name)
            except BackendError as error:
                reason = first_line(error.__cause__ or error)
            steps.append({"device": device, "name": name, "runs": reason is None, "reason": reason})
    return steps


def _auto(broken: list[Problem]) -> dict[str, Any]:
    """What `--backend auto` takes for a checkpoint."""
    if broken:
        return {"backend": None, "why": broken[0].what}
    choice = choose_for_checkpoint(Placement())
    return {"backend": choice.name, "why": choice.why}
