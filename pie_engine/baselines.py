"""What PIE is compared with, over the same backends, masks, outputs and report (docs/baselines.md).

from pie_engine.baselines import simulate

results = simulate(engine, items, config, "walk")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import METHODS, MethodConfig, RunConfig, check_interpolation
from pie_engine.errors import ConfigError
from pie_engine.imaging import as_regions
from pie_engine.rounds.methods import (
    OneShot,
    Previous,
    RoundTrips,
    Walk,
    matched_steps,
    rising_schedule,
    rising_steps,
    slerp,
)

if TYPE_CHECKING:
    from pie_engine.engine import OnProgress, PieEngine
    from pie_engine.imaging.item import Item
    from pie_engine.outputs import Result
    from pie_engine.rounds.loop import Method

__all__ = ["METHODS", "MethodConfig", "check_findings", "matched_steps", "simulate", "slerp"]

_WHAT = {
    "walk": "{n} frames of a Stable Diffusion walk from the input towards the prompt",
    "one-shot": "{n} image-to-image edits of the input, of rising strength, towards the prompt",
    "previous": "the input {n} times",
    "vae": "{n} round trips of the input through the autoencoder",
    "control": "{n} rounds of progression from one image towards the healthy prompt",
}


def simulate(
    engine: PieEngine,
    items: Sequence[Item],
    config: RunConfig | None = None,
    method: MethodConfig | str = "pie",
    *,
    on_progress: OnProgress | None = None,
    interpolate: int = 0,
) -> list[Result]:
    """Simulate items by PIE or a baseline; everything that does not belong to the method is the same.

    The same inputs, regions, noise, guidance, schedule (T, scheduler), compositing and measures; N frames after the
    input. `provenance["method"]` has the method's name and parameters, `provenance["settings"]` the settings that all
    methods of a comparison share, whether a method uses them or not.

    Args:
        items: as for `PieEngine.run_batch`.
        config: settings; strength and betas are PIE's and the control's alone.
        method: a name, where it needs nothing else.
        on_progress: called with (evaluations done, in all).
        interpolate: pictures between two frames, of methods that have rounds; see `PieEngine.run_batch`.

    Returns:
        One result per item, in order. Those of "walk", "one-shot", "previous" and "vae" have no rounds: frame n does
        not start from frame n - 1 (but for "vae"), and increments say how far the frames are apart.

    Raises:
        ConfigError: the method has no use for a setting; and, as InputError and BackendError, see `run_batch`.
    """
    config = config or RunConfig()
    method = MethodConfig(method) if isinstance(method, str) else method
    method.check(config)
    check_interpolation(interpolate, rounds=method.is_pie)
    check_findings(items, method)
    if method.name == "control":
        assert method.healthy_prompt is not None
        healthy = [replace(item, prompt=method.healthy_prompt) for item in items]
        results = engine.run_batch(healthy, config, on_progress=on_progress, interpolate=interpolate)
        return [
            _described(result, result.config, method, {"instead_of": item.prompt})
            for result, item in zip(results, items, strict=True)
        ]
    if method.name == "pie":
        return [
            _described(one, one.config, method, {})
            for one in engine.run_batch(items, config, on_progress=on_progress, interpolate=interpolate)
        ]
    source, own, facts = _prepare(engine, config, method)
    results = engine.run_batch(items, own, on_progress=on_progress, method=source)
    if method.name == "previous":
        results = [_untouched(result) for result in results]
    return [
        _described(result, replace(config, resolution=result.config.resolution), method, facts) for result in results
    ]


def check_findings(items: Sequence[Item], method: MethodConfig) -> None:
    """Refuse findings with regions of their own where a method does not run PIE's guidance. Raises ConfigError."""
    own = any(region.prompt is not None for item in items for region in as_regions(item.mask))
    if own and method.name != "pie":
        raise ConfigError(f"method {method.name!r} has one prompt for all regions; pass --prompt, leave out --finding")


def _prepare(engine: PieEngine, config: RunConfig, method: MethodConfig) -> tuple[Method, RunConfig, dict[str, Any]]:
    """A baseline, the settings that its plan is made with, and what provenance says of it."""
    if method.name == "walk":
        total = 1.0 if method.total_strength is None else method.total_strength
        start = method.start_prompt or ""
        return (
            Walk(start),
            replace(config, strength=total, inversion="ddim"),
            {"start_prompt": start, "total_strength": total},
        )
    if method.name == "one-shot":
        most = config.num_inference_steps
        if method.total_strength is None:
            steps = matched_steps(engine.backend.model.scheduler_config, config)
        else:
            steps = int(most * method.total_strength)
        each = rising_steps(steps, config.steps)
        own = replace(config, schedule=rising_schedule(each, most))
        return OneShot(), own, {"total_strength": steps / most, "denoising_steps": list(each)}
    return (Previous() if method.name == "previous" else RoundTrips()), config, {}


def _described(result: Result, config: RunConfig, method: MethodConfig, facts: dict[str, Any]) -> Result:
    """The result with its method in provenance, and the settings that were asked for."""
    provenance = {**result.provenance, "method": {**method.to_dict(), **facts}, "settings": config.to_dict()}
    if method.name in _WHAT:
        provenance["what"] = _WHAT[method.name].format(n=config.steps)
    if not method.is_pie:
        uncaptured = {"cuda_graph": False, "cuda_graph_note": "baselines run uncaptured", "overlap": False}
        provenance["runtime"] = {**provenance["runtime"], **uncaptured}
    return replace(result, config=config, provenance=provenance)


def _untouched(result: Result) -> Result:
    """The input's own pixels have not been through the autoencoder, so nothing leaked either."""
    still = None if result.change.decoded_outside is None else [0.0] * len(result.latents)
    change = replace(result.change, decoded_outside=still)
    frames = np.repeat(result.frames[:1], len(result.frames), axis=0)
    return replace(result, frames=frames, change=change, provenance={**result.provenance, "change": change.to_dict()})
