"""PieEngine: load a model once, simulate progressions with it."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.config import RunConfig, RuntimeConfig, check_interpolation, check_resolution
from pie_engine.errors import BackendError
from pie_engine.imaging.item import Item, PreparedItem, check_text, prepare_item, sizes_for, split_group
from pie_engine.machine.loading import Source, open_backend
from pie_engine.outputs import Result
from pie_engine.outputs.provenance import describe_computation, describe_run, describe_simulated
from pie_engine.rounds.finishing import Frames, finishing
from pie_engine.rounds.interpolation import decode_between
from pie_engine.rounds.memory import explain, release

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.checkpoint import LoraSpec
    from pie_engine.rounds.loop import Loop, Method
    from pie_engine.rounds.plan import Batch
    from pie_engine.rounds.timeline import Timeline

# Called with (evaluations done, evaluations in all) after each U-Net evaluation; on a GPU, after each round of them.
OnProgress = Callable[[int, int], None]


class PieEngine:
    """A model on a backend, ready to simulate progressions.

    Buffers and captured rounds of the last two kinds of run (batch size, resolution, settings) are kept, so that a
    cohort pays for them once.

    Args:
        backend: any object with the calls of `pie_engine.backends.Backend`.
        source: what provenance says of the model's origin.
        chosen: what provenance says of why this backend was taken.
        runtime: which optimisations run.

    Raises:
        BackendError: the implementation of the fused step that `runtime` names does not run here.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        source: dict[str, Any] | None = None,
        chosen: str | None = None,
        runtime: RuntimeConfig | None = None,
    ):
        from pie_engine.kernels.dispatch import select

        self.backend = backend
        self.runtime = runtime or RuntimeConfig()
        self._source = source or {}
        self.chosen = chosen
        self._kernels = select(backend.device, self.runtime.fused_step)
        self._loops: dict[object, Loop] = {}
        self._bound_precisions = dict(backend.precisions)  # of the weights that the kept loops are bound to
        self._timeline: Timeline | None = None

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
        runtime: RuntimeConfig | None = None,
        on_component: Callable[[str], None] = lambda line: None,
    ) -> PieEngine:
        """Load a bundle (`engine`) or a checkpoint (with `unet` over it and `lora` fused into it).

        Args:
            backend: "tensorrt" and "tensorrt-rtx" run a bundle's engines, "openvino" and "onnxruntime" its graphs; for
                a checkpoint they build a bundle in the cache first. "torch" runs a checkpoint as it is. "auto" takes
                the first of tensorrt, tensorrt-rtx, torch on a GPU, openvino, onnxruntime that can run what was given.
            device: "cpu", "cuda", "cuda:1", ...; None takes a GPU if the backend finds one.
            dtype: "fp32", "fp16" or "bf16" (torch, openvino); None: fp32, or a bundle's own precision.
            threads: processor threads of the model; None leaves it to the backend.
            runtime: which optimisations run; None means all that work here.
            on_component: called with one line of progress per component that is built.

        Raises:
            ConfigError: contradicting arguments. CheckpointError, BundleError, BackendError: see each.
        """
        runtime = runtime or RuntimeConfig()
        opened = open_backend(
            Source(engine, checkpoint, unet, tuple(lora)),
            backend=backend,
            device=device,
            dtype=dtype,
            threads=threads,
            runtime=runtime,
            on_component=on_component,
        )
        return cls(opened.backend, source=opened.provenance, chosen=opened.why, runtime=runtime)

    def run(
        self,
        item: Item,
        config: RunConfig | None = None,
        *,
        on_progress: OnProgress | None = None,
        interpolate: int = 0,
    ) -> Result:
        """Simulate one progression; see `run_batch`."""
        return self.run_batch([item], config, on_progress=on_progress, interpolate=interpolate)[0]

    def run_batch(
        self,
        items: Sequence[Item],
        config: RunConfig | None = None,
        *,
        on_progress: OnProgress | None = None,
        method: Method | None = None,
        interpolate: int = 0,
    ) -> list[Result]:
        """Simulate the progression of several items at once. Each result is the item's own, up to rounding.

        Args:
            items: those without a mask, and of other numbers of findings, run after one another.
            config: settings for all of them.
            on_progress: called with (evaluations done, in all) after each U-Net evaluation.
            method: what gives the frames instead of PIE's rounds (`pie_engine.baselines`).
            interpolate: pictures between two frames for a smooth animation (`Result.between`), 0 to 14.

        Returns:
            One result per item, in order.

        Raises:
            ConfigError, InputError: a setting or an input cannot be used; nothing has run then.
            BackendError: the model gave values that are not finite, or memory ran out.
        """
        import torch

        config = config or RunConfig()
        if config.resolution is None:
            config = replace(config, resolution=self.backend.model.default_resolution)
        check_resolution(config.resolution or 0, self.backend.model.resolution_multiple)
        sizes = self.backend.batch_sizes(config.resolution or 0)
        check_text("negative-prompt", config.negative_prompt)
        check_interpolation(interpolate)
        prepared = [prepare_item(item, config, self.backend.model.vae_scale) for item in items]
        alike: dict[tuple[bool, int], list[int]] = {}
        for i, p in enumerate(prepared):
            alike.setdefault((p.mask is None, len(p.prompts)), []).append(i)
        groups = [
            part
            for (_, findings), group in sorted(alike.items())
            for part in split_group(group, sizes_for(sizes, findings, config))
        ]
        results: dict[int, Result] = {}
        with torch.inference_mode():
            for number, group in enumerate(groups):

                def report(step: int, total: int, number: int = number) -> None:
                    if on_progress is not None:
                        on_progress(number * total + step, len(groups) * total)

                with self._explaining_memory(len(group), config):
                    own = self._run_group([prepared[i] for i in group], config, report, method, interpolate)
                results.update(zip(group, own, strict=True))
        return [results[i] for i in range(len(items))]

    def _run_group(
        self, prepared: list[PreparedItem], config: RunConfig, report: OnProgress, method: Method | None, between: int
    ) -> list[Result]:
        import torch

        from pie_engine.rounds.plan import Batch

        start = time.monotonic()
        inputs = np.stack([np.asarray(p.image) for p in prepared])  # [B, H, W, 3]
        masks = [torch.from_numpy(p.mask.latent) for p in prepared if p.mask is not None]
        inside = [torch.from_numpy(p.mask.inside) for p in prepared if p.mask is not None and p.mask.inside is not None]
        shares = [torch.from_numpy(p.mask.shares) for p in prepared if p.mask is not None and p.mask.shares is not None]
        batch = Batch(
            pixels=torch.from_numpy(inputs.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous(),
            mask=torch.stack(masks) if masks else None,
            prompts=[prompt for finding in zip(*(p.prompts for p in prepared), strict=True) for prompt in finding],
            item_ids=[p.item.item_id for p in prepared],
            inside=torch.stack(inside) if inside else None,
            shares=torch.stack(shares, dim=1) if shares else None,
        )
        loop = self._take_loop(batch, config)
        loop.load(batch, config)
        original = loop.plan.original_latent.cpu().numpy()
        # Leakage outside a mask is measured against it; without a mask nothing is outside.
        decoded_original = loop.decode_original().numpy() if masks else [None] * len(prepared)
        seconds: dict[str, Any] = {"prepare": round(time.monotonic() - start, 4), "rounds": []}
        step = 0
        total = loop.plan.total_evaluations if method is None else method.evaluations(loop.plan, config)

        def on_step() -> None:
            nonlocal step
            step = min(step + 1, total)  # a round may be run again
            report(step, total)

        items = [
            Frames(item, bool(config.composite), latent, before)
            for item, latent, before in zip(prepared, original, decoded_original, strict=True)
        ]
        last = time.monotonic()
        with finishing(items) as frames:
            for result in loop.rounds(on_step) if method is None else method.rounds(loop, batch, config, on_step):
                frames.add(result)
                seconds["rounds"].append(round(time.monotonic() - last, 4))
                last = time.monotonic()
        latents = np.stack([own.latents for own in items], axis=1)  # [N, B, 4, h, w]
        moving = decode_between(loop, original, list(latents), between)
        self._keep_loop(loop, config)
        shared = describe_computation(loop, self.runtime, source=self._source, chosen=self.chosen, evaluations=total)
        shared["seconds"] = seconds
        results = []
        for i, (item, own) in enumerate(zip(prepared, items, strict=True)):
            provenance = {
                **describe_run(config),
                "item_id": item.item.item_id,
                "input": item.facts,
                "simulated": describe_simulated(item, config, self.backend.model),
                **shared,
                "change": own.change.to_dict(),
            }
            smooth = None
            if between:
                smooth = own.finish(np.stack([pictures[i] for pictures in moving]))
                smooth = smooth.reshape(config.steps, between, *smooth.shape[1:])
            pixels = None if item.mask is None else item.mask.pixels
            origin = (item.source, item.roi, smooth)
            results.append(
                Result(own.frames, own.latents, original[i], pixels, own.change, config, provenance, *origin)
            )
        return results

    def _take_loop(self, batch: Batch, config: RunConfig) -> Loop:
        """The loop for this kind of run, with its buffers and captured rounds, if it is kept; else a new one."""
        from pie_engine.rounds.buffers import Shape
        from pie_engine.rounds.loop import Loop, make_timeline
        from pie_engine.rounds.plan import Plan

        model, (height, width) = self.backend.model, batch.pixels.shape[2:]
        shape = Shape(
            batch=len(batch.item_ids),
            latent=(model.latent_channels, height // model.vae_scale, width // model.vae_scale),
            scale=model.vae_scale,
            mask_channels=None if batch.mask is None else batch.mask.shape[1],
            findings=len(batch.prompts) // len(batch.item_ids),
        )
        self._drop_stale_loops()
        # Taken out while it runs: one that is stopped by an error is not used again.
        kept = self._loops.pop(Plan.key(shape, config), None)
        if kept is not None:
            return kept
        while len(self._loops) > 1:
            del self._loops[next(iter(self._loops))]
        if self._timeline is None:
            self._timeline = make_timeline(self.backend, self.runtime)
        return Loop(Plan(self.backend, shape, config, self._kernels), self.runtime, self._timeline)

    def _keep_loop(self, loop: Loop, config: RunConfig) -> None:
        self._drop_stale_loops()  # this one was bound anew when a precision was raised, the others were not
        self._loops[loop.plan.key(loop.plan.shape, config)] = loop

    def _drop_stale_loops(self) -> None:
        """Drop loops that are bound to weights in an earlier precision, also if the run that raised it failed later."""
        if self._bound_precisions != self.backend.precisions:
            self._loops.clear()
            self._bound_precisions = dict(self.backend.precisions)

    @contextlib.contextmanager
    def _explaining_memory(self, batch: int, config: RunConfig) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # allocators share no other base
            precision = self.backend.precisions["unet"]
            message = explain(
                error, self.backend.device, batch=batch, resolution=config.resolution or 0, precision=precision
            )
            if message is None:
                raise
            # A smaller run needs the memory that this one holds: the caller may try one while handling the error.
            self._loops.clear()
            self.backend.release()
            traceback.clear_frames(error.__traceback__)
            release(self.backend.device)
            raise BackendError(message) from error
