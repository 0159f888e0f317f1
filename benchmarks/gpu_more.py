"""Further sections of the GPU check at full size: single kernels, torch.compile, batches, and the code as published."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import numpy as np
import torch

from pie_engine.benchmarks.gpu_full import eager
from pie_engine.benchmarks.gpu_rungs import Rung, emit, flags, milliseconds, set_tf32, wall
from pie_engine.benchmarks.gpu_subject import (
    Size,
    describe,
    make_engine,
    measure_engine,
    quick_compile,
    unknown,
    without_overlap,
)  # fmt: skip
from pie_engine.benchmarks.harness import captured


def kernels(size: Size) -> list[Rung]:
    rungs: list[Rung] = [
        ("what this GPU reaches", functools.partial(_ceilings, size)),
        ("norms", functools.partial(_norms, size)),
    ]
    for batch, dtype in ((1, "fp16"), (8, "fp16"), (8, "fp32")) if size.full else ((1, "fp32"),):
        rungs.append((f"guided step, {batch} x {dtype}", functools.partial(_step, size, batch, dtype)))
    return rungs


def _ceilings(size: Size) -> None:
    """A large product and a large copy: what shares of 790 TFLOP/s and of bandwidth mean on this very machine."""
    side, copied = (8192, 2**31) if size.full else (256, 2**20)
    a, b = (torch.randn(side, side, device=size.device).to(torch.float16) for _ in range(2))
    torch.matmul(a, b)
    product = milliseconds(lambda: torch.matmul(a, b), size.device, 10)["ms"]
    source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=size.device)
    target = torch.empty_like(source)
    target.copy_(source)
    copy = milliseconds(lambda: target.copy_(source), size.device, 10)["ms"]
    emit(rung="ceilings", tflops=2 * side**3 / product / 1e9, copy_gb_per_s=2 * copied / copy / 1e6, flags=flags())


def _norms(size: Size) -> None:
    try:
        from pie_engine.benchmarks.norm_kernels import measure
    except ImportError as error:
        emit(rung="norms", skipped=str(error))
        return
    for row in measure(size.device, size.repeats):
        emit(rung="norms", **row, **({"ok": False} if row.get("error") else {}))


def _step(size: Size, batch: int, dtype: str) -> None:
    from pie_engine.benchmarks.denoise_step import Step, measure

    step = Step(batch, side=size.resolution // 8, kept=1, dtype=dtype, device=size.device)
    for name, samples in measure(step, repeats=size.repeats).items():
        seconds = statistics.median(samples.seconds)
        emit(
            rung="guided step", implementation=name, batch=batch, io=dtype, microseconds=seconds * 1e6,
            gb_per_s=step.moved / seconds / 1e9,
        )  # fmt: skip


def compiled(size: Size) -> list[Rung]:
    return [
        ("compiled U-Net", functools.partial(_compiled_unet, size)),
        ("compiled decoder", functools.partial(_compiled_decoder, size)),
    ]


def _compiled_unet(size: Size) -> None:
    config, item = size.config(1), size.items(1)[0]
    with quick_compile(size):
        engine = make_engine(size, {"compile": True})
        first = wall(lambda: engine.run(item, config))
        results: list[Any] = []
        second = wall(lambda: results.append(engine.run(item, config)))
        times = measure_engine(engine, size, config)
    emit(
        rung="compiled U-Net", batch=1, **describe(engine, results[0], size.half), compile_s=first - second,
        first_run_s=first, not_known=unknown({"compile": True}), **times,
    )  # fmt: skip


def _compiled_decoder(size: Size) -> None:
    """The decoder by itself, as diffusers has it, channels last, within a graph."""
    from pie_engine.backends.torch_backend import torch_dtype

    vae = size.checkpoint(size.half).vae
    torch.nn.Module.to(vae, memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = size.resolution // 8
    latent = torch.randn(1, 4, side, side, device=size.device).to(torch_dtype(size.half))
    with quick_compile(size), torch.no_grad():
        decode = torch.compile(lambda z: vae.decode(z, return_dict=False)[0], dynamic=False)
        first = wall(lambda: decode(latent))
        run = captured(lambda: decode(latent)) if size.full else lambda: decode(latent)
        run()
        times = milliseconds(run, size.device, size.repeats)
    emit(rung="compiled decoder", dtype=size.half, compile_s=first, decode_ms=times["ms"], flags=flags())


def batch(size: Size) -> list[Rung]:
    counts = (8, 16, 1) if size.full else (2,)
    return [(f"batch {count}", functools.partial(_batch, size, count)) for count in counts]


def _batch(size: Size, count: int) -> None:
    config, items = size.config(3), size.items(count)
    engine = make_engine(size, {})
    engine.run(items, config)
    for name, variant in (("overlap on", engine), ("overlap off", without_overlap(engine))):
        if variant is not engine:
            engine.simulator.loops.clear()  # its graphs' memory
            variant.run(items, config)
        result = variant.run(items, config)[0]
        times = measure_engine(variant, size, config, count)
        # The first round waits for what came before it: the later ones are the pace of a long progression.
        later = result.provenance["seconds"]["rounds"][1:]
        if "ms_per_guided_step" in times:
            times["ms_per_item"] = times["ms_per_guided_step"] / count
            times["decode_ms_per_item"] = times["decode_ms"] / count
        emit(
            rung=f"batch {count}, {name}", batch=count, **describe(variant, result, size.half), **times,
            round_s=float(np.median(later)), round_ms_per_item=float(np.median(later)) * 1e3 / count,
            peak_gib=torch.cuda.max_memory_allocated() / 2**30 if size.full else None,
        )  # fmt: skip


def eager_fp32(size: Size) -> list[Rung]:
    return [
        ("fp32 by default", functools.partial(_published, size, False)),
        ("fp32, TF32 off", functools.partial(_published, size, True)),
    ]


def _published(size: Size, strict: bool) -> None:
    """The published computation, with the checkpoint's own scheduler: a step of it, and one round with all it does."""
    from pie_engine.imaging import fit, prepare_mask, to_image
    from pie_engine.reference import progress_official

    if strict:
        set_tf32(matmul=False, cudnn=False)
    name = "published, eager fp32, " + ("TF32 off" if strict else "as PyTorch's default")
    eager(size, "fp32", None, name)
    checkpoint = size.checkpoint("fp32")
    config = size.config(1, num_inference_steps=10 if size.full else 4, semantics="official")
    item = size.items(1)[0]
    image = to_image(np.asarray(item.image))
    mask = prepare_mask(to_image(np.asarray(item.mask)), image.size, size.resolution, official=True)
    run = lambda: list(  # noqa: E731
        progress_official(checkpoint, fit(image, size.resolution), mask.latent, item.prompt, config)
    )
    run()
    emit(rung=f"{name}, a whole round", denoising_steps=config.denoising_steps, round_s=wall(run), flags=flags())
