"""One ONNX graph -> one plan, compiled in a process of its own; and what the compiler made of it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pie_engine.backends.tensorrt.library import import_library
from pie_engine.errors import BuildError
from pie_engine.files import link_or_copy

# Input name -> smallest, usual and largest shape.
Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
OnProgress = Callable[[str], None]
# Host memory of a build over the weights' bytes: 6.3 GB for 1.72 GB in fp16 (tensorrt-rtx 1.7, two profiles).
_MEMORY_FACTOR, _MEMORY_BASE = 3.7, 400e6


@dataclass(frozen=True)
class Request:
    """What to compile.

    Attributes:
        flavour: "tensorrt" or "tensorrt-rtx".
        onnx: the graph; weights may lie beside it.
        plan: file to write.
        profiles: one per static shape bucket.
        capabilities: compute capabilities such as "8.6" (tensorrt-rtx); empty means the GPU at hand.
        hardware_compatibility: "none", "ampere-plus" or "same-compute-capability" (tensorrt).
        weights: "fixed", "refittable" or "stripped".
        optimisation_level: 0 to 5; None leaves it to the library.
        workspace_bytes: upper limit of scratch memory on the GPU; None means all of it.
        timing_cache: file that keeps kernel timings of this GPU and version, or None.
    """

    flavour: str
    onnx: str
    plan: str
    profiles: list[Profile]
    capabilities: tuple[str, ...] = ()
    hardware_compatibility: str = "none"
    weights: str = "fixed"
    optimisation_level: int | None = None
    workspace_bytes: int | None = None
    timing_cache: str | None = None


def compile_plan(request: Request, name: str, on_progress: OnProgress = lambda line: None) -> dict[str, Any]:
    """Compile, and describe what came out: bytes, seconds, host memory, layers, attentions (see `worker.build`).

    Args:
        name: the component, for messages.

    Raises:
        BuildError: the graph cannot be compiled as asked, or memory does not suffice.
        BackendError: the library is not installed.
    """
    import_library(request.flavour)  # refused here, in one line, rather than by the worker
    _check_memory(Path(request.onnx), name)
    outcome = _work({"action": "build", **asdict(request)}, name, on_progress)
    if "error" in outcome:
        raise BuildError(f"{request.flavour} cannot compile {name}: {_explain(outcome['error'], request)}")
    return outcome


def inspect_plan(flavour: str, plan: Path, name: str) -> dict[str, Any]:
    """Layers, kinds, fused attentions and memory of a plan, from the engine inspector on this machine's GPU.

    Raises:
        BuildError: the plan cannot be loaded here.
    """
    outcome = _work({"action": "inspect", "flavour": flavour, "plan": str(plan)}, name, lambda line: None)
    if "error" in outcome:
        raise BuildError(f"{name} cannot be inspected: {_one_line(outcome['error'])}")
    return outcome


def compare_plan(flavour: str, plan: Path, onnx: Path, profile: Profile, weights: str, name: str) -> float:
    """||plan - graph|| / ||graph|| on random inputs, the graph in ONNX Runtime (see `worker.compare`).

    Args:
        profile: shapes to run at.
        weights: "fixed", "refittable" or "stripped".

    Raises:
        BuildError: the plan cannot be run here, or gives values that are not finite.
    """
    request = {
        "action": "compare", "flavour": flavour, "plan": str(plan), "onnx": str(onnx), "profile": profile,
        "weights": weights, "component": name,
    }  # fmt: skip
    outcome = _work(request, name, lambda line: None)
    if "error" in outcome:
        raise BuildError(f"{name} cannot be compared with its graph: {_one_line(outcome['error'])}")
    return float(outcome["relative_error"])


def sanitised(onnx: Path, folder: Path, name: str) -> Path:
    """The graph to compile: `onnx`, or a shorter one in `folder` if polygraphy finds something to fold or drop."""
    target, weights = folder / "sanitised.onnx", onnx.with_name("model.onnx.data")
    outcome = _work({"action": "sanitise", "onnx": str(onnx), "sanitised": str(target)}, name, lambda line: None)
    if outcome["after"] >= outcome["before"]:
        return onnx
    if weights.is_file():  # which the graph looks for beside itself
        link_or_copy(weights, folder / weights.name)
    return target


def needs_decomposing(error: BuildError) -> bool:
    """Whether a compiler refused a whole attention that it has no kernel for; taken apart, it can be compiled."""
    return "not supported by a dedicated kernel" in str(error)


def _work(request: dict[str, Any], name: str, on_progress: OnProgress) -> dict[str, Any]:
    """Run the worker on a request. Its stderr is kept for the case that it dies."""
    command = [sys.executable, "-m", "pie_engine.backends.tensorrt.worker"]
    with tempfile.TemporaryFile("w+", errors="replace") as noise:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True)
        try:
            assert worker.stdin is not None and worker.stdout is not None
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.write(json.dumps(request))
                worker.stdin.close()
            outcome: dict[str, Any] | None = None
            for line in worker.stdout:
                if not line.endswith("\n"):
                    break  # killed while it wrote
                message = json.loads(line)
                outcome = message.get("outcome", outcome)
                if "phase" in message:
                    on_progress(f"{message['phase']} {message['step'] + 1}/{message['steps']}")
            code = worker.wait()
        finally:
            worker.kill()
            worker.wait()
        if outcome is not None:
            return outcome
        noise.seek(0)
        said = [line for line in noise.read().splitlines() if line.strip()]
    if code == -signal.SIGKILL:
        raise BuildError(
            f"the {request['action']} of {name} was killed, as happens when memory runs out; {_LESS_MEMORY}"
        )
    raise BuildError(
        f"the {request['action']} of {name} ended with exit status {code} "
        f"({_one_line(said[-1] if said else 'no message')}); report it with what pie-engine doctor says"
    )


_LESS_MEMORY = "close other programs, or build fewer --batch and --resolution at once"


def _check_memory(onnx: Path, name: str) -> None:
    weights = sum(path.stat().st_size for path in (onnx, onnx.with_name("model.onnx.data")) if path.is_file())
    needed, available = _MEMORY_FACTOR * weights + _MEMORY_BASE, available_memory()
    if available is not None and needed > available:
        raise BuildError(
            f"the build of {name} needs about {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free; "
            + _LESS_MEMORY
        )


def available_memory() -> int | None:
    """Bytes of host memory that a new program can take, or None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _explain(error: str, request: Request) -> str:
    line = _one_line(error)
    lowered = error.lower()
    if "outofmemory" in lowered or "out of memory" in lowered or "bad_alloc" in lowered:
        return f"{line}; {_LESS_MEMORY}"
    if request.weights != "fixed" and ("status == CUDA_SUCCESS" in error or "sm_vers_.size() == 1" in error):
        return (
            f"weights that can be exchanged are compiled on a GPU and for it alone ({line}); "
            "build on that machine without --compute-capability, or pass --weights fixed"
        )
    return line


def _one_line(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
