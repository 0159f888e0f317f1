"""What provenance says of how frames were computed: schedule, backend, what was captured, what ran again."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pie_engine.config import RuntimeConfig
    from pie_engine.rounds.loop import Loop


log = logging.getLogger(__name__)


def describe_pace(
    targets: np.ndarray,
    blends: np.ndarray,
    pilot_rounds: Sequence[int],
    item_ids: Sequence[str],
    severities: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """What provenance says of each item's even pace; lists hold a value per finding where there are several.

    Args:
        targets: [N, R, B], the displacement of each frame.
        blends: [N, R, B], the b that it took; 1 is all that a round's edit gives.
        pilot_rounds: after how many of its rounds each item's end was known; 0 where it was given.
        severities: what there is to say of each item's severity, where that sets the pace (`run_severity_pass`).
    """
    found = []
    for i, item in enumerate(item_ids):
        short = [number + 1 for number, taken in enumerate(blends[:, :, i]) if (taken >= 1).any()]
        if short:
            log.warning(
                "item %s: the edit of round %s does not reach as far as an even pace asks for; its frame falls short",
                item, ", ".join(map(str, short)),
            )  # fmt: skip
        one = blends.shape[1] == 1
        found.append(
            {
                "displacement": float(targets[-1, 0, i]) if one else targets[-1, :, i].tolist(),
                "blends": [round(float(b[0]), 4) if one else [round(float(v), 4) for v in b] for b in blends[:, :, i]],
                "pilot_rounds": pilot_rounds[i],
                "falling_short": short,
                **({} if severities is None else {"severity": severities[i], "targets": _shares(targets[:, :, i])}),
            }
        )
    return found


def _shares(targets: np.ndarray) -> list[float]:
    """Of [N, R], the displacement of each frame as a share of the last one's; findings go the same way."""
    return [round(float(share), 4) for share in targets[:, 0] / targets[-1, 0]]


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
