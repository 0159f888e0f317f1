"""What every output says about how it came to be."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pie_engine import __version__
from pie_engine.outputs.frames import STATEMENT
from pie_engine.packages import installed

if TYPE_CHECKING:
    from pie_engine.config import MethodConfig, RunConfig
    from pie_engine.imaging.item import Item, PreparedItem
    from pie_engine.model.info import ModelInfo
    from pie_engine.rounds.methods import Chosen
    from pie_engine.rounds.simulator import Simulator

_RECORDED = (
    "torch", "diffusers", "transformers", "onnxruntime", "openvino", "numpy", "pillow", "safetensors", "pydicom",
    "highdicom", "nibabel",
)  # fmt: skip


def describe_run(config: RunConfig, what: str) -> dict[str, Any]:
    """The part of a provenance that is the same for every item: statement, settings, versions, machine.

    Args:
        what: the run in words.
    """
    return {
        "statement": STATEMENT,
        "synthetic": True,
        "what": what,
        "settings": config.to_dict(),
        "versions": {
            "pie-engine": __version__,
            "python": platform.python_version(),
            **{name: installed(name) for name in _RECORDED},
        },
        "machine": {"system": platform.system(), "architecture": platform.machine()},
    }


def describe_item(
    item: PreparedItem, asked: Item, config: RunConfig, method: MethodConfig, chosen: Chosen, simulator: Simulator
) -> dict[str, Any]:
    """What can be said of an item before it is simulated: what two runs that give the same have in common.

    Args:
        asked: the item as it was given; a method may have put another prompt into `item`.
    """
    instead = {"instead_of": asked.prompt} if method.name == "control" else {}
    backend = simulator.backend
    return {
        **describe_run(config, chosen.what),
        "item_id": item.item_id,
        "input": item.facts,
        "simulated": describe_simulated(item, chosen.config, backend.model),
        "model": {"hashes": backend.model.hashes},
        "backend": {"name": backend.name, "precisions": dict(backend.precisions), "device": str(backend.device)},
        "runtime": {"fused_step": simulator.kernels.name, "compile": simulator.runtime.compile},
        "method": {**method.to_dict(), **chosen.facts, **instead},
    }


def say_stopped(stopped: Mapping[str, Any], steps: int) -> str:
    """Where a tolerance ended the rounds of a run, in words.

    Args:
        stopped: as provenance has it (`pie_engine.rounds.stopping.Stopping.stopped`).
        steps: N.
    """
    after = stopped["after"]
    repeated = f"frames {after + 1} to {steps} repeat" if after + 1 < steps else f"frame {steps} repeats"
    return (
        f"stopped after round {after} of {steps}: the next is bound to change no pixel by more than "
        f"{stopped['bound']:.2g} grey levels, and all that are left by {stopped['drift']:.2g} if their rate rises no "
        f"further; {repeated} frame {after}"
    )


def say_regional(regional: Mapping[str, Any], steps: int) -> str:
    """What the rounds of a run computed, in words, where that was a box; else an empty string.

    Args:
        regional: as provenance has it (`pie_engine.rounds.regional.Regional.describe`).
        steps: N.
    """
    if not regional["used"]:
        return ""
    box, (height, width), off = regional["box"], regional["latents"], regional["grey_levels"]
    whole = ", ".join(map(str, regional["whole"]))
    return (
        f"rounds {whole} of {steps} computed the whole picture, the others a box of {box['height']} x {box['width']} "
        f"of its {height} x {width} latents; by the steps that were checked the last frame is {off:.2g} grey levels "
        f"from that of whole rounds (limit {regional['limit']:g})"
    )


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
        regions, finding_shares = item.facts["roi"]["regions"], item.facts["roi"]["finding_shares"]
        simulated["findings"] = [
            {
                "prompt": text,
                "regions": [number for number, region in enumerate(regions, 1) if region["prompt"] == text],
                "share": share,
            }
            for text, share in zip(item.prompts, finding_shares, strict=True)
        ]
    if config.schedule is None:
        return simulated
    prompts = [prompt if settings.prompt is None else settings.prompt for settings in config.rounds]
    cut = {one.prompt: model.cut_off(one.prompt) for one in config.rounds if one.prompt is not None}
    cut.setdefault(prompt, simulated["prompt_cut_off"] or "")
    rounds = [
        {
            "round": number,
            "prompt": text,
            **({"prompt_cut_off": cut[text]} if cut[text] else {}),
            "strength": settings.strength,
            "guidance_scale": settings.guidance_scale,
            "denoising_steps": settings.kind.denoising_steps,
        }
        for number, (text, settings) in enumerate(zip(prompts, config.rounds, strict=True), start=1)
    ]
    return simulated | {"rounds": rounds}
