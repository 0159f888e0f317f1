"""One ONNX graph -> one plan, compiled in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.backends.host_memory import available_memory
from pie_engine.errors import BuildError, argument

if TYPE_CHECKING:
    from pie_engine.bundling.target import Target

# Input name -> smallest, usual and largest shape.
Profile = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
# Host memory of a build over the weights' bytes: 6.3 GB for 1.72 GB in fp16 (tensorrt-rtx 1.7, two profiles).
_MEMORY_FACTOR, _MEMORY_BASE = 3.7, 400e6
_LESS_MEMORY = f"close other programs, or build fewer {argument('batches')} and {argument('resolutions')} at once"


def compile_plan(onnx: Path, plan: Path, profiles: list[Profile], target: Target, name: str) -> dict[str, Any]:
    """Compile `onnx`, beside which weights may lie, and write `plan`.

    Args:
        profiles: one per static shape bucket.
        name: the component, for messages.

    Returns:
        "bytes", "seconds", "host_memory_bytes" (None where the system does not say) and "fused_attention_kernels".

    Raises:
        BuildError: the graph cannot be compiled as asked, or memory does not suffice.
    """
    _check_memory(onnx, name)
    request = {"onnx": str(onnx), "plan": str(plan), "profiles": profiles, **target.to_dict()}
    command = [sys.executable, "-m", "pie_engine.backends.tensorrt.worker"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, errors="replace")
    if done.returncode == -signal.SIGKILL:
        raise BuildError(f"the build of {name} was killed, as happens when memory runs out; {_LESS_MEMORY}")
    if done.returncode or not done.stdout:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        raise BuildError(
            f"the build of {name} ended with exit status {done.returncode} "
            f"({_one_line(said[-1] if said else 'no message')}); report it with what pie-engine doctor says"
        )
    outcome: dict[str, Any] = json.loads(done.stdout)
    if "error" in outcome:
        reason, lowered = _one_line(outcome["error"]), outcome["error"].lower()
        if any(text in lowered for text in ("outofmemory", "out of memory", "bad_alloc")):
            reason += f"; {_LESS_MEMORY}"
        raise BuildError(f"{target.flavour} cannot compile {name}: {reason}")
    return outcome


def needs_decomposing(error: BuildError) -> bool:
    """Whether a compiler refused a whole attention that it has no kernel for; taken apart, it can be compiled."""
    return "not supported by a dedicated kernel" in str(error)


def _check_memory(onnx: Path, name: str) -> None:
    weights = sum(path.stat().st_size for path in (onnx, onnx.with_name("model.onnx.data")) if path.is_file())
    needed, available = _MEMORY_FACTOR * weights + _MEMORY_BASE, available_memory()
    if available is not None and needed > available:
        raise BuildError(
            f"the build of {name} needs about {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are free; "
            + _LESS_MEMORY
        )


def _one_line(text: str, limit: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
