"""The GPU check's most important section: one guided step at full size, from eager PyTorch to everything on."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pie_engine import PieEngine
from pie_engine.backends.torch_backend import torch_dtype
from pie_engine.benchmarks.gpu_profile import emit_kernels
from pie_engine.benchmarks.gpu_rungs import Rung, emit, flags, milliseconds, set_tf32, wall
from pie_engine.benchmarks.gpu_subject import NOTHING, Size, describe, make_engine, measure_engine, shares, unknown
from pie_engine.rounds.schedule import make_scheduler, prepare_scheduler

# Each rung adds to the one before. Projections and layout have no switch: `plain` is without them. Nor has attention,
# which PyTorch runs in its own flash kernel unless cuDNN's is asked for.
LADDER: list[tuple[str, dict[str, Any], dict[str, bool]]] = [
    ("step graph only", {}, {"plain": True}),
    ("+ channels last, fused projections", {}, {}),
    ("+ cudnn.benchmark", {"autotune": True}, {}),
    ("+ fused blocks", {"autotune": True, "fused_blocks": True}, {}),
    ("+ cuDNN attention", {"autotune": True, "fused_blocks": True}, {"cudnn_attention": True}),
]


def rungs(size: Size) -> list[Rung]:
    rungs: list[Rung] = [("eager", functools.partial(eager, size, size.half, "ddim", "eager"))]
    rungs += [(name, functools.partial(_ladder, size, name, on, **how)) for name, on, how in LADDER]
    return [*rungs, ("everything on", functools.partial(_everything, size))]


def eager(size: Size, precision: str, scheduler_name: str | None, name: str, tf32: bool | None = None) -> None:
    """The modules of diffusers as their user runs them: each step launched from Python, weights as they are loaded.

    Args:
        scheduler_name: None is the checkpoint's own.
        tf32: on or off in convolutions and matrix products; None leaves PyTorch's defaults.
    """
    if tf32 is not None:
        set_tf32(matmul=tf32, cudnn=tf32)
    checkpoint, dtype = size.checkpoint(precision), torch_dtype(precision)
    config = size.config(1) if precision == size.half else size.config(1, num_inference_steps=12)
    scheduler = make_scheduler(checkpoint.scheduler_config, scheduler_name)
    side = size.resolution // 8
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, side, side, generator=generator).to(size.device, dtype)
    width = checkpoint.unet.config.cross_attention_dim
    context = torch.randn(2, 77, width, generator=generator).to(size.device, dtype)
    steps = 0

    def round_() -> None:
        nonlocal steps
        timesteps = prepare_scheduler(scheduler, config.num_inference_steps, config.denoising_steps)
        x, steps = noise, len(timesteps)
        for t in timesteps:
            predicted = checkpoint.unet(torch.cat([x, x]), t, encoder_hidden_states=context).sample
            u, c = predicted.chunk(2)
            x = scheduler.step(u + 7.5 * (c - u), t, x).prev_sample

    def decode() -> None:
        checkpoint.vae.decode(noise)

    with torch.inference_mode():
        first = wall(round_)
        decode()
        # Fewer repeats than of a captured step: half a second each.
        step = milliseconds(round_, size.device, 3 if size.full else 1, per=steps)
        decoding = milliseconds(decode, size.device, size.repeats)["ms"]
    times = {"ms_per_guided_step": step["ms"], "p20": step["p20"], "p80": step["p80"], "decode_ms": decoding}
    if size.full:
        times |= shares(step["ms"], decoding)
    emit(rung=name, batch=1, dtype=precision, first_round_s=first, steps=steps, flags=flags(), **times)


def _ladder(size: Size, name: str, on: dict[str, Any], plain: bool = False, cudnn_attention: bool = False) -> None:
    wanted = NOTHING | on
    engine = make_engine(size, wanted, plain=plain)
    config, item = size.config(1), size.items(1)[0]
    with _cudnn_attention() if cudnn_attention else contextlib.nullcontext():
        first = wall(lambda: engine.run(item, config))
        result = engine.run(item, config)  # entry and decoding are captured the second time that they run
    times = measure_engine(engine, size, config)
    emit(
        rung=name, batch=1, **describe(engine, result, size.half), first_run_s=first, not_known=unknown(wanted),
        round_s=result.provenance["seconds"]["rounds"], **times, **_memory(size),
    )  # fmt: skip


def _cudnn_attention() -> Any:
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def _everything(size: Size) -> None:
    """As a user gets it; then the whole progression, and where a step's time goes."""
    engine = make_engine(size, {})
    config, item = size.config(10), size.items(1)[0]
    runs: list[Any] = []
    first = wall(lambda: runs.append(engine.run(item, config)))
    second = wall(lambda: runs.append(engine.run(item, config)))
    times = measure_engine(engine, size, config)
    emit(rung="everything on", batch=1, **describe(engine, runs[1], size.half), **times, **_memory(size))
    for name, seconds, result in (("first run", first, runs[0]), ("second run", second, runs[1])):
        clocks = result.provenance["seconds"]
        emit(rung=f"whole progression, {name}", **_whole(seconds, clocks, times, config.steps, config.denoising_steps))
    _profile(engine)


def _whole(seconds: float, clocks: dict[str, Any], times: dict[str, Any], rounds: int, steps: int) -> dict[str, Any]:
    """Wall-clock of a progression, and what of it is neither a step nor a decoding."""
    inside = sum(clocks["rounds"])
    told: dict[str, Any] = {
        "rounds": rounds,
        "seconds": seconds,
        "prepare_s": clocks.get("prepare"),
        "rounds_s": inside,
        "after_rounds_s": seconds - inside - (clocks.get("prepare") or 0.0),
        "each_round_s": clocks["rounds"],
    }
    if "ms_per_guided_step" in times:
        gpu = rounds * (steps * times["ms_per_guided_step"] + times["entry_ms"] + times["decode_ms"]) / 1e3
        told |= {"steps_and_decodes_s": gpu, "rest_s": seconds - gpu}
    return told


def _profile(engine: PieEngine) -> None:
    loop = list(engine.simulator.loops.values())[-1]
    stages = loop.stages
    contexts: dict[str, Callable[[], Any]] = {"step": loop._timeline.main, "decoding": loop._timeline.decoding}
    for name, context in contexts.items():
        with torch.inference_mode(), context():
            if name == "step":
                stages["entry"]()  # five steps of a round that has more of them
            emit_kernels(
                name,
                stages[name],
                loop.plan.backend.device.type,
                calls=5 if loop.plan.backend.device.type == "cuda" else 2,
            )
        loop._timeline.synchronize()


def _memory(size: Size) -> dict[str, float]:
    return {"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if size.full else {}
