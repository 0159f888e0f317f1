"""PieEngine: load a model once, simulate progressions with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from pie_engine.checkpoint import LoraSpec
from pie_engine.config import MethodConfig, Placement, RunConfig, RuntimeConfig, check_interpolation, check_resolution
from pie_engine.errors import ConfigError, argument
from pie_engine.imaging.item import Item, check_findings, check_text, prepare_item
from pie_engine.imaging.item_ids import check_item_ids
from pie_engine.imaging.rules import check_trained_resolution
from pie_engine.machine.loading import Source, open_backend
from pie_engine.outputs import Result
from pie_engine.outputs.partial import read_partial
from pie_engine.outputs.provenance import describe_item
from pie_engine.pipeline import (
    OnStepEnd,
    PieOutput,
    check_output_type,
    convert,
    dtype_name,
    is_bundle,
    make_config,
    make_items,
    place,
)
from pie_engine.rounds.batches import group_items
from pie_engine.rounds.methods import choose_method
from pie_engine.rounds.regional import choose_box
from pie_engine.rounds.resuming import Interrupted
from pie_engine.rounds.severity import choose_severity
from pie_engine.rounds.simulator import OnProgress, Simulator

if TYPE_CHECKING:
    from pie_engine.backends import Backend
    from pie_engine.metrics.severity import SeverityMeasure
    from pie_engine.outputs.partial import Partial
    from pie_engine.rounds.methods import Chosen
    from pie_engine.rounds.simulator import Simulated


class PieEngine:
    """A model on a backend, ready to simulate progressions.

    Any number of threads may call one engine: calls take turns, first come, first served, and each gives what it gives
    alone. A progress callback cannot call the engine that calls it, and after a fork an engine refuses.

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
        self.runtime = runtime or RuntimeConfig()
        self.simulator = Simulator(backend, self.runtime)
        self.chosen = chosen
        self._source = source or {}
        self._looked_at: set[int] = set()  # resolutions, each warned of once

    @property
    def backend(self) -> Backend:
        """What the model runs on."""
        return self.simulator.backend

    @classmethod
    def load(
        cls,
        engine: str | Path | None = None,
        *,
        checkpoint: str | Path | None = None,
        unet: str | Path | None = None,
        lora: str | Path | LoraSpec | Sequence[str | Path | LoraSpec] = (),
        placement: Placement | None = None,
        on_component: Callable[[str], None] = lambda line: None,
        **settings: Any,
    ) -> PieEngine:
        """Load a bundle (`engine`) or a checkpoint (with `unet` over it and `lora` fused into it).

        Args:
            lora: a file or several, each with ":SCALE" after it or not.
            placement: backend, device, precision, threads and optimisations; None means the defaults.
            on_component: called with one line of progress per component that is built.
            settings: fields of `Placement`, which change it: backend="torch", device="cuda:1", dtype="bf16",
                threads=4, runtime=RuntimeConfig(overlap=False).

        Raises:
            ConfigError: contradicting arguments. CheckpointError, BundleError, BackendError: see each.
        """
        placement = place(placement, settings)
        specs = [lora] if isinstance(lora, str | Path | LoraSpec) else lora
        source = Source(engine, checkpoint, unet, tuple(map(LoraSpec.of, specs)))
        opened = open_backend(source, placement, on_component)
        return cls(opened.backend, source=opened.provenance, chosen=opened.why, runtime=placement.runtime)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        unet: str | Path | None = None,
        lora: str | Path | LoraSpec | Sequence[str | Path | LoraSpec] = (),
        torch_dtype: torch.dtype | str | None = None,
        **settings: Any,
    ) -> PieEngine:
        """Load a bundle's folder or a checkpoint (folder, single file, hub id in the local cache), as diffusers does.

        Args:
            unet: a fine-tuned U-Net in place of the checkpoint's.
            lora: files to fuse, each as "FILE" or "FILE:SCALE".
            torch_dtype: torch.float32, float16 or bfloat16, `Placement.dtype` as diffusers calls it.
            settings: device, backend, ...: see `load`.

        Raises:
            ConfigError, CheckpointError, BundleError, BackendError: as `load`.
        """
        model: dict[str, Any] = {"engine": path} if is_bundle(path) else {"checkpoint": path}
        if torch_dtype is not None:
            settings["dtype"] = dtype_name(torch_dtype)
        return cls.load(**model, unet=unet, lora=lora, **settings)

    def resolve_resolution(self, resolution: int | None) -> int:
        """The side in pixels that is computed: the model's own where none is given.

        One that is far from the model's is warned of, once.

        Raises:
            ConfigError: the model cannot compute at it.
        """
        model = self.backend.model
        resolution = model.default_resolution if resolution is None else resolution
        check_resolution(resolution, model.resolution_multiple)
        if resolution not in self._looked_at:
            self._looked_at.add(resolution)
            check_trained_resolution(resolution, model.default_resolution)
        return resolution

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Any,
        mask_image: Any = None,
        *,
        steps: int | None = None,
        num_rounds: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: OnStepEnd | None = None,
        output_type: str = "pil",
        **settings: Any,
    ) -> PieOutput:
        """Simulate progressions, called as a pipeline of diffusers is.

        Args:
            prompt: the finding, or one for each image.
            image: path, PIL image, array [H, W] or [H, W, 3] of uint8 or uint16, or tensor [3, H, W] in [0, 1]; or a
                list of them.
            mask_image: the region that may change, white; one for all, or one for each image.
            steps, num_rounds: N, the rounds; two names of one setting.
            generator: its initial seed is the seed; noise is drawn on the processor, by item (docs/usage.md).
            callback_on_step_end: called with (engine, evaluations done, in all, {}) after each U-Net evaluation.
            output_type: "pil", "np" or "pt".
            settings: any of `RunConfig`: strength, num_inference_steps, guidance_scale, negative_prompt, ...

        Returns:
            `.frames` by item, the input first, `.latents`, `.provenance`, `.save(folder)`.

        Raises:
            ConfigError, InputError, BackendError: see `run`.
        """
        check_output_type(output_type)
        config = make_config(settings, steps=steps, num_rounds=num_rounds, seed=seed, generator=generator)

        def on_progress(done: int, total: int) -> None:
            if callback_on_step_end is not None:
                callback_on_step_end(self, done, total, {})

        results = self.run(make_items(prompt, image, mask_image), config, on_progress=on_progress)
        return PieOutput([convert(result.frames, output_type) for result in results], results)

    @overload
    def run(
        self,
        items: Item,
        config: RunConfig | None = None,
        *,
        method: MethodConfig | str = "pie",
        on_progress: OnProgress | None = None,
        interpolate: int = 0,
        severity: SeverityMeasure | None = None,
        resume: str | Path | None = None,
    ) -> Result: ...

    @overload
    def run(
        self,
        items: Sequence[Item],
        config: RunConfig | None = None,
        *,
        method: MethodConfig | str = "pie",
        on_progress: OnProgress | None = None,
        interpolate: int = 0,
        severity: SeverityMeasure | None = None,
    ) -> list[Result]: ...

    def run(
        self,
        items: Item | Sequence[Item],
        config: RunConfig | None = None,
        *,
        method: MethodConfig | str = "pie",
        on_progress: OnProgress | None = None,
        interpolate: int = 0,
        severity: SeverityMeasure | None = None,
        resume: str | Path | None = None,
    ) -> Result | list[Result]:
        """Simulate the progression of one item, or of several at once: each result is the item's own, up to rounding.

        Args:
            items: those without a mask, and of other numbers of findings, run after one another.
            config: settings for all of them.
            method: PIE, or what it is compared with (docs/baselines.md): a name, where it needs nothing else. All that
                does not belong to the method is the same: inputs, regions, noise, guidance, schedule, compositing and
                measures. Strength and betas are PIE's and the control's alone. Frames of "walk", "one-shot" and
                "previous" do not start from the frame before; increments say how far they are apart.
            on_progress: called with (evaluations done, in all) after each U-Net evaluation.
            interpolate: pictures between two frames for a smooth animation (`Result.between`), 0 to 14; of methods that
                have rounds.
            severity: of even pace: what is to rise in equal parts instead of the displacement, a `Severity`, a
                `Classifier` (its logit), or any callable that gives a number for each of [N, H, W, 3] uint8 frames.
                None: the classifier that the settings name (`pace="even:FILE"`), if any.
            resume: folder of an interrupted run of this one item, whose rounds are not computed again; one that is
                empty or not there starts anew.

        Returns:
            One result per item, in order; for an item by itself, its result.

        Raises:
            ConfigError, InputError: a setting or an input cannot be used, or is not what `resume` began with; nothing
                has run then.
            BackendError: the model gave values that are not finite, or memory ran out.
            Interrupted: a KeyboardInterrupt came; its `results` hold all rounds that were finished.
        """
        alone = isinstance(items, Item)
        given = check_item_ids([items] if isinstance(items, Item) else items)
        chosen = MethodConfig(method) if isinstance(method, str) else method
        if resume is not None and not alone:
            raise ConfigError(f"{argument('resume')} goes on with one run; pass one item", field="resume")
        partial = None if resume is None else read_partial(resume)
        complete = self._complete(config or RunConfig())
        results = self._run(given, complete, chosen, on_progress, interpolate, partial, severity)
        return results[0] if alone else results

    def _run(
        self,
        items: Sequence[Item],
        config: RunConfig,
        method: MethodConfig,
        on_progress: OnProgress | None,
        interpolate: int,
        partial: Partial | None,
        severity: SeverityMeasure | None,
    ) -> list[Result]:
        """See `run`; the settings are complete."""
        method.check(config)
        paced_by = choose_severity(config, severity)
        check_findings(items, method)
        check_interpolation(interpolate, rounds=method.is_pie)
        model = self.backend.model
        chosen = choose_method(method, config, model.scheduler_config)
        given = [replace(item, prompt=method.healthy_prompt or item.prompt) for item in items]
        prepared = [prepare_item(item, chosen.config, model.vae_scale) for item in given]
        if partial is not None:
            partial.check(describe_item(prepared[0], items[0], config, method, chosen, self.simulator))
        boxes = [choose_box(item, chosen, self.backend, self.runtime)[0] for item in prepared]
        groups = group_items(prepared, boxes, self.backend.batch_sizes(config.resolution or 0), chosen.config)
        results: dict[int, Result] = {}
        for number, group in enumerate(groups):

            def report(step: int, total: int, number: int = number) -> None:
                if on_progress is not None:
                    on_progress(number * total + step, len(groups) * total)

            batch = [prepared[i] for i in group]
            finished = None if partial is None else partial.finished
            stopped: Interrupted | None = None
            try:
                simulated = self.simulator.simulate(batch, chosen, report, interpolate, finished, paced_by)
            except Interrupted as interrupt:
                simulated, stopped = interrupt.results, interrupt
            for i, one in zip(group, simulated, strict=True):
                results[i] = self._result(one, config, method, chosen, items[i], partial=stopped is not None)
            if stopped is not None:
                raise Interrupted([results[i] for i in sorted(results)], *stopped.args) from None
        return [results[i] for i in range(len(items))]

    def _result(
        self,
        simulated: Simulated,
        config: RunConfig,
        method: MethodConfig,
        chosen: Chosen,
        asked: Item,
        *,
        partial: bool,
    ) -> Result:
        """An item's frames with their provenance, which is written here and nowhere else."""
        frames, computed = simulated.frames, simulated.computed
        item, change = frames.item, frames.change
        provenance = {
            **describe_item(item, asked, config, method, chosen, self.simulator),
            **computed,
            "model": {**computed["model"], "source": self._source},
            "backend": {**computed["backend"], "chosen": self.chosen},
            "change": change.to_dict(),
            "regional": simulated.regional,
            **({} if simulated.pace is None else {"pace": simulated.pace}),
            **({} if simulated.stopped is None else {"stopped": simulated.stopped}),
            **({"partial": {"rounds": frames.rounds, "of": config.steps}} if partial else {}),
        }
        return Result(
            frames=frames.frames,
            latents=frames.latents,
            original_latent=simulated.original_latent,
            mask=None if item.mask is None else item.mask.pixels,
            change=change,
            config=config,
            provenance=provenance,
            source=item.source,
            roi=item.roi,
            between=simulated.between,
        )

    def _complete(self, config: RunConfig) -> RunConfig:
        """Settings with the resolution filled in, checked against the model."""
        check_text("negative-prompt", config.negative_prompt)
        return replace(config, resolution=self.resolve_resolution(config.resolution))
