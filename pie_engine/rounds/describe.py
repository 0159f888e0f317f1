"""What provenance says of how frames were computed: schedule, backend, what was captured, what ran again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pie_engine.config import RuntimeConfig
    from pie_engine.rounds.loop import Loop


def describe_computation(loop: Loop, runtime: RuntimeConfig, *, evaluations: int, rounds: bool) -> dict[str, Any]:
    """The part of a provenance that the items of a batch share: how their frames were computed.

    Args:
        evaluations: U-Net calls of the batch.
        rounds: whether they are PIE's; what gives others runs uncaptured.
    """
    plan, backend, kernels = loop.plan, loop.plan.backend, loop.plan.kernels
    timesteps = plan.timesteps
    return {
        "schedule": {
            "class": plan.sampler.schedule.name,
            # A list, or one for each number of denoising steps that rounds have.
            "timesteps": next(iter(timesteps.values())) if len(timesteps) == 1 else timesteps,
            "unet_evaluations": evaluations,
        },
        "model": {"hashes": backend.model.hashes},
        "backend": {
            "name": backend.name,
            "precision": backend.precisions["unet"],
            "precisions": dict(backend.precisions),
            "device": str(backend.device),
            "batch": plan.shape.batch,
        },
        "runtime": {
            "fused_step": kernels.name,
            "fused_step_note": kernels.note or None,
            "fused_blocks": getattr(backend, "blocks", "") or None,
            "autotune": runtime.autotune and backend.device.type == "cuda",
            "cuda_graph": rounds and loop.captured,
            "cuda_graph_note": (loop.note or None) if rounds else "baselines run uncaptured",
            "overlap": rounds and loop.overlapping,
            "compile": runtime.compile,
        },
        "reruns": list(loop.reruns),
    }
