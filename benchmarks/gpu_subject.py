"""What the GPU check measures: Stable Diffusion v1.4's shape with random weights, and the engine around it.

On a processor the demo checkpoint takes its place, so that the same code is tried at a size that a processor manages.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest import mock

import numpy as np
import torch

from pie_engine import Item, PieEngine, RunConfig, RuntimeConfig
from pie_engine.backends import torch_backend
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.benchmarks.gpu_rungs import DECODE_TFLOP, MATMUL_TFLOPS, STEP_TFLOP, flags, milliseconds
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.demo.assets import CHECKPOINT

# Everything off but the graph of the step; what a later field of RuntimeConfig turns on is named where it is measured.
NOTHING: dict[str, Any] = {"fused_step": "eager", "overlap": False, "fused_blocks": False, "autotune": False}


@dataclass(frozen=True)
class Size:
    """How large a section is: full on a GPU, small on a processor."""

    device: str

    @property
    def full(self) -> bool:
        return self.device != "cpu"

    @property
    def half(self) -> str:
        """What is asked for where a GPU runs in half precision."""
        return "fp16" if self.full else "fp32"

    @property
    def resolution(self) -> int:
        return 512 if self.full else 64

    @property
    def repeats(self) -> int:
        return 7 if self.full else 1

    def config(self, rounds: int, **settings: Any) -> RunConfig:
        """25 guided steps a round."""
        if not self.full:
            settings.setdefault("num_inference_steps", 4)
        return RunConfig(steps=min(rounds, 10 if self.full else 2), resolution=self.resolution, **settings)

    def items(self, count: int) -> list[Item]:
        side = self.resolution
        square = np.zeros((side, side), np.uint8)
        square[side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = 255
        draw = np.random.default_rng(0)
        return [
            Item(draw.integers(0, 256, (side, side, 3), np.uint8), "cardiomegaly", square, str(i)) for i in range(count)
        ]

    def checkpoint(self, dtype: str = "fp16") -> Checkpoint:
        """A fresh one each time, always of the same values: a backend changes what it is given."""
        if not self.full:
            return load_checkpoint(CHECKPOINT)
        from transformers import CLIPTokenizer

        from pie_engine.benchmarks.random_checkpoint import make_scheduler, make_text_encoder, make_unet, make_vae

        torch.manual_seed(0)
        with torch.device(self.device):
            # nn.Module.to, as diffusers' own warns about an empty list of modules to keep in fp32.
            unet, vae, text_encoder = (
                torch.nn.Module.to(make(), torch_backend.torch_dtype(dtype)).eval().requires_grad_(False)
                for make in (make_unet, make_vae, make_text_encoder)
            )
        names = ("unet", "vae", "text_encoder", "tokenizer")
        return Checkpoint(
            unet,
            vae,
            text_encoder,
            tokenizer=CLIPTokenizer.from_pretrained(CHECKPOINT / "tokenizer"),
            scheduler_config={**make_scheduler().config, "_class_name": "PNDMScheduler"},
            hashes=dict.fromkeys(names, "0" * 64),
            sources=dict.fromkeys(names, "random"),
        )


def make_engine(size: Size, wanted: dict[str, Any], precision: str | None = None, plain: bool = False) -> PieEngine:
    """The one place where an engine is put together.

    Args:
        wanted: settings of RuntimeConfig; those that it does not have are left out (`unknown`).
        plain: without fused projections and weights that lie channels last, which have no switch of their own.
    """
    precision = precision or size.half
    runtime = RuntimeConfig(**{key: value for key, value in wanted.items() if key not in unknown(wanted)})
    checkpoint = size.checkpoint("fp32" if precision == "fp32" else precision)
    with _separate_projections() if plain else contextlib.nullcontext():
        backend = TorchBackend(
            checkpoint, model_info(checkpoint), device=size.device, precision=precision, **_to_backend(runtime)
        )
    if plain:
        for module in (checkpoint.unet, checkpoint.vae):
            torch.nn.Module.to(module, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return PieEngine(backend, runtime=runtime)


def _to_backend(runtime: RuntimeConfig) -> dict[str, Any]:
    names = inspect.signature(TorchBackend.__init__).parameters
    given = {"runtime": runtime, "compile": runtime.compile}
    return {name: value for name, value in given.items() if name in names}


def _separate_projections() -> Any:
    return mock.patch.object(torch_backend, "fuse_projections", lambda model: None)


def unknown(wanted: dict[str, Any]) -> list[str]:
    """Settings that this revision's RuntimeConfig does not have."""
    return sorted(set(wanted) - {field.name for field in fields(RuntimeConfig)})


def without_overlap(engine: PieEngine) -> PieEngine:
    """The same backend and weights, on one stream."""
    return PieEngine(engine.backend, runtime=replace(engine.runtime, overlap=False))


@contextlib.contextmanager
def quick_compile(size: Size) -> Iterator[None]:
    """On a processor torch.compile traces only: generating code takes it minutes."""
    if size.full:
        yield
        return
    compile_ = torch.compile
    with mock.patch("torch.compile", lambda *a, **k: compile_(*a, **{**k, "backend": "eager"})):
        yield


def measure_engine(engine: PieEngine, size: Size, config: RunConfig, batch: int = 1) -> dict[str, Any]:
    """Milliseconds of a guided step and of decoding, by events around replays; call it when the engine has run twice.

    Where it fails, what the run itself gave is still told: the error is one of the results.
    """
    try:
        times = _measure_stages(engine, size, config)
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        return {"ok": False, "error": f"{type(error).__name__}: {str(error)[:200]}"}
    if size.full:
        times |= shares(times["ms_per_guided_step"], times["decode_ms"], batch)
    return times


def _measure_stages(engine: PieEngine, size: Size, config: RunConfig) -> dict[str, Any]:
    """The step is timed over a round: entry, which is timed alone too and taken off, and then each of its steps."""
    loop = list(engine.simulator.loops.values())[-1]
    stages, timeline, steps = loop.stages, loop._timeline, config.denoising_steps
    entry, step, decoding = (stages[name] for name in ("entry", "step", "decoding"))

    def round_() -> None:
        entry()
        for _ in range(steps):
            step()

    with torch.inference_mode():
        with timeline.main():
            round_()
            alone = milliseconds(entry, size.device, size.repeats)["ms"]
            whole = milliseconds(round_, size.device, size.repeats)
        timeline.synchronize()
        with timeline.decoding():
            decoding()
            decode = milliseconds(decoding, size.device, size.repeats)["ms"]
        timeline.synchronize()
    each = {name: (whole[name] - alone) / steps for name in ("ms", "p20", "p80")}
    return {
        "ms_per_guided_step": each["ms"],
        "p20": each["p20"],
        "p80": each["p80"],
        "entry_ms": alone,
        "decode_ms": decode,
        "captured": {name: stage.reason or stage.captured for name, stage in stages.items()},
    }


def shares(step_ms: float, decode_ms: float, batch: int = 1) -> dict[str, float]:
    """How much of the GPU's rate in matrix products a step and a decoding reach."""
    return {
        "share_of_790": STEP_TFLOP * batch / (step_ms / 1e3) / MATMUL_TFLOPS,
        "decode_share_of_790": DECODE_TFLOP * batch / (decode_ms / 1e3) / MATMUL_TFLOPS,
    }


def engine_flags(engine: PieEngine) -> dict[str, Any]:
    """The flags within the engine's calls: it lets cuDNN search in these only."""
    searches = getattr(engine.runtime, "autotune", False) and engine.backend.device.type == "cuda"
    return {**flags(), "cudnn_benchmark": searches}


def describe(engine: PieEngine, result: Any, precision: str) -> dict[str, Any]:
    """What was on."""
    provenance = result.provenance
    return {
        "dtype": precision,
        "flags": engine_flags(engine),
        "runtime": provenance.get("runtime"),
        "reruns": len(provenance.get("reruns") or []),
        "precisions": dict(engine.backend.precisions),
    }
