"""PieEngine: load a model once, simulate progressions with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import RunConfig, check_resolution
from pie_engine.items import Item, PreparedItem, check_text, composite, prepare_item
from pie_engine.loading import Source, open_backend
from pie_engine.metrics import measure_change
from pie_engine.outputs import Result
from pie_engine.outputs.provenance import describe_run

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.checkpoint import LoraSpec

# Called with (evaluations done, evaluations in all) after each U-Net evaluation.
OnProgress = Callable[[int, int], None]


class PieEngine:
    """A model on a backend, ready to simulate progressions."""

    def __init__(self, backend: Backend, *, source: dict[str, Any] | None = None):
        self.backend = backend
        self._source = source or {}

    @classmethod
    def load(
        cls,
        engine: str | Path | None = None,
        *,
        checkpoint: str | Path | None = None,
        unet: str | Path | None = None,
        lora: Sequence[LoraSpec] = (),
        backend: str = "auto",
        device: str | None = None,
        dtype: str | None = None,
        threads: int | None = None,
        on_component: Callable[[str], None] = lambda line: None,
    ) -> PieEngine:
        """Load a bundle (`engine`) or a checkpoint (with `unet` over it and `lora` fused into it).

        Args:
            backend: "onnxruntime" runs a bundle; for a checkpoint it builds one in the cache first. "torch" runs a
                checkpoint as it is. "auto" takes onnxruntime for a bundle and torch for a checkpoint.
            device: "cpu", "cuda", "cuda:1", ...; None takes a GPU if the torch backend finds one.
            dtype: "fp32", "fp16" or "bf16" (torch only); None means fp32 for a checkpoint and a bundle's own precision.
            threads: processor threads of the model; None leaves it to the backend.
            on_component: called with one line of progress per component that is built.

        Raises:
            ConfigError: contradicting arguments. CheckpointError, BundleError, BackendError: see each.
        """
        opened = open_backend(
            Source(engine, checkpoint, unet, tuple(lora)),
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            on_component=on_component,
        )
        return cls(opened.backend, source=opened.provenance)

    def run(self, item: Item, config: RunConfig | None = None, *, on_progress: OnProgress | None = None) -> Result:
        """Simulate one progression; see `run_batch`."""
        return self.run_batch([item], config, on_progress=on_progress)[0]

    def run_batch(
        self, items: Sequence[Item], config: RunConfig | None = None, *, on_progress: OnProgress | None = None
    ) -> list[Result]:
        """Simulate the progression of several items at once. Each result is the item's own, up to rounding.

        Args:
            items: with and without masks; the two kinds run one after the other.
            config: settings for all of them.
            on_progress: called with (evaluations done, in all) after each U-Net evaluation.

        Returns:
            One result per item, in order.

        Raises:
            ConfigError, InputError: a setting or an input cannot be used; nothing has run then.
            BackendError: the model gave values that are not finite.
        """
        import torch

        config = config or RunConfig()
        if config.resolution is None:
            config = replace(config, resolution=self.backend.model.default_resolution)
        check_resolution(config.resolution or 0, self.backend.model.resolution_multiple)
        check_text("negative-prompt", config.negative_prompt)
        prepared = [prepare_item(item, config, self.backend.model.vae_scale) for item in items]
        masked = [i for i, p in enumerate(prepared) if p.mask is not None]
        bare = [i for i, p in enumerate(prepared) if p.mask is None]
        groups = [group for group in (masked, bare) if group]
        results: dict[int, Result] = {}
        with torch.inference_mode():
            for number, group in enumerate(groups):

                def report(step: int, total: int, number: int = number) -> None:
                    if on_progress is not None:
                        on_progress(number * total + step, len(groups) * total)

                results.update(zip(group, self._run_group([prepared[i] for i in group], config, report), strict=True))
        return [results[i] for i in range(len(items))]

    def _run_group(self, prepared: list[PreparedItem], config: RunConfig, report: OnProgress) -> list[Result]:
        import torch

        from pie_engine.progression import Batch, decode, prepare, rounds

        start = time.monotonic()
        inputs = np.stack([np.asarray(p.image) for p in prepared])  # [B, H, W, 3]
        masks = [torch.from_numpy(p.mask.latent) for p in prepared if p.mask is not None]
        batch = Batch(
            pixels=torch.from_numpy(inputs.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous(),
            mask=torch.stack(masks) if masks else None,
            prompts=[p.item.prompt for p in prepared],
            item_ids=[p.item.item_id for p in prepared],
        )
        plan = prepare(self.backend, batch, config)
        # Leakage outside a mask is measured against it; without a mask nothing is outside.
        decoded_original = _to_uint8(decode(self.backend, plan.original_latent)) if masks else [None] * len(prepared)
        seconds: dict[str, Any] = {"prepare": round(time.monotonic() - start, 4), "rounds": []}
        step = 0

        def on_step() -> None:
            nonlocal step
            step += 1
            report(step, plan.evaluations)

        latents, decoded = [], []
        last = time.monotonic()
        for result in rounds(plan, on_step):
            latents.append(result.latents.float().cpu().numpy())
            decoded.append(_to_uint8(result.pixels))
            seconds["rounds"].append(round(time.monotonic() - last, 4))
            last = time.monotonic()
        original = plan.original_latent.float().cpu().numpy()
        results = []
        for i, item in enumerate(prepared):
            own = np.stack([frames[i] for frames in decoded])
            own_latents = np.stack([z[i] for z in latents])
            frames = np.concatenate(
                [inputs[i : i + 1], composite(own, inputs[i], item.mask) if config.composite else own]
            )
            latent_mask, pixels = (None, None) if item.mask is None else (item.mask.latent, item.mask.pixels)
            change = measure_change(own_latents, original[i], own, decoded_original[i], frames, latent_mask, pixels)
            provenance = {
                **describe_run(config),
                "item_id": item.item.item_id,
                "input": item.hashes,
                "simulated": {
                    "prompt": item.item.prompt,
                    "prompt_cut_off": self.backend.model.cut_off(item.item.prompt) or None,
                    "roi_share": None if pixels is None else float(pixels.mean()),
                },
                "schedule": {
                    "class": plan.sampler.schedule.name,
                    "timesteps": plan.sampler.schedule.timesteps.tolist(),
                    "unet_evaluations": plan.evaluations,
                },
                "model": {"hashes": self.backend.model.hashes, "source": self._source},
                "backend": {
                    "name": self.backend.name,
                    "precision": self.backend.precision,
                    "device": str(self.backend.device),
                    "batch": len(prepared),
                },
                "seconds": seconds,
                "change": change.to_dict(),
            }
            results.append(Result(frames, own_latents, original[i], pixels, change, config, provenance))
        return results


def _to_uint8(pixels: Any) -> np.ndarray:
    """[B, 3, H, W] tensor in [-1, 1] -> [B, H, W, 3] uint8, clamped and rounded half to even."""
    return (pixels / 2 + 0.5).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
