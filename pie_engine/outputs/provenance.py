"""What every output says about how it came to be."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pie_engine import __version__
from pie_engine.outputs.frames import STATEMENT

if TYPE_CHECKING:
    from pie_engine.config import RunConfig, RuntimeConfig
    from pie_engine.imaging.item import PreparedItem
    from pie_engine.model.info import ModelInfo
    from pie_engine.rounds.loop import Loop

_RECORDED = (
    "torch", "diffusers", "transformers", "onnxruntime", "openvino", "numpy", "pillow", "safetensors", "pydicom",
    "highdicom", "nibabel",
)  # fmt: skip


def describe_run(config: RunConfig) -> dict[str, Any]:
    """The part of a provenance that is the same for every item: statement, settings, versions, machine."""
    return {
        "statement": STATEMENT,
        "synthetic": True,
        "what": f"{config.steps} rounds of progression from one image towards the prompt",
        "settings": config.to_dict(),
        "versions": {"pie-engine": __version__, "python": platform.python_version(), **_versions()},
        "machine": {"system": platform.system(), "architecture": platform.machine()},
    }


def describe_simulated(item: PreparedItem, config: RunConfig, model: ModelInfo) -> dict[str, Any]:
    """What one item was simulated towards: in which region, with several findings, and in which round of a schedule."""
    prompt = " + ".join(item.prompts)
    cut_off = [model.cut_off(text) for text in item.prompts]
    simulated: dict[str, Any] = {
        "prompt": prompt,
        "prompt_cut_off": "; ".join(filter(None, cut_off)) or None,
        "roi_share": None if item.mask is None else float(item.mask.pixels.mean()),
    }
    if len(item.prompts) > 1:
        regions, shares = item.facts["roi"]["regions"], item.facts["roi"]["finding_shares"]
        simulated["findings"] = [
            {
                "prompt": text,
                "regions": [number for number, region in enumerate(regions, 1) if region["prompt"] == text],
                "share": share,
            }
            for text, share in zip(item.prompts, shares, strict=True)
        ]
    if config.schedule is None:
        return simulated
    prompts = [prompt if own.prompt is None else own.prompt for own in config.rounds]
    cut = {own.prompt: model.cut_off(own.prompt) for own in config.rounds if own.prompt is not None}
    cut.setdefault(prompt, simulated["prompt_cut_off"] or "")
    rounds = [
        {
            "round": number,
            "prompt": text,
            **({"prompt_cut_off": cut[text]} if cut[text] else {}),
            "strength": own.strength,
            "guidance_scale": own.guidance_scale,
            "denoising_steps": own.kind.denoising_steps,
        }
        for number, (text, own) in enumerate(zip(prompts, config.rounds, strict=True), start=1)
    ]
    return simulated | {"rounds": rounds}


def describe_computation(
    loop: Loop, runtime: RuntimeConfig, *, source: dict[str, Any], chosen: str | None, evaluations: int
) -> dict[str, Any]:
    """The part of a provenance that the items of a batch share: how their rounds were computed.

    Args:
        source: of the model.
        chosen: why its backend was taken.
        evaluations: U-Net calls of the batch.
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
        "model": {"hashes": backend.model.hashes, "source": source},
        "backend": {
            "name": backend.name,
            "chosen": chosen,
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
            "cuda_graph": loop.captured,
            "cuda_graph_note": loop.note or None,
            "overlap": loop.overlapping,
            "compile": runtime.compile,
        },
        "reruns": list(loop.reruns),
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
