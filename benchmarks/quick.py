"""The quick form of the benchmarks, behind `pie-engine bench`: one patient, a few repeats, plain data.

from pie_engine.benchmarks.quick import Quick, bench
found = bench(Quick(rounds=3))
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.benchmarks.harness import BenchmarkError, MemoryRanOut, Remote, Samples, Spec, interleave, summarise
from pie_engine.config import DTYPES, RunConfig

if TYPE_CHECKING:
    from pie_engine.benchmarks.harness.machine import Limits
    from pie_engine.benchmarks.quick_model import Model

# The eager baselines by the names that --compare takes, on a processor and on a GPU.
COMPARE = {
    "published": ("eager fp32, as published", "eager fp32, as published"),
    "tuned": ("eager bf16, tuned", "eager fp16, tuned"),
}
# What --quick takes for these three: the least that still runs every part on every backend.
QUICKEST: Mapping[str, Any] = {"rounds": 1, "strength": 0.04, "repeats": 1}
_PARTS = ("unet", "step", "decode")


@dataclass(frozen=True)
class Quick:
    """What is compared, and on which progression.

    Attributes:
        engine: a bundle. Eager PyTorch runs checkpoints: no such baseline runs, and no arithmetic is counted.
        checkpoint, unet, lora: a checkpoint, as `PieEngine.load` takes it, but LoRA as text ("FILE:SCALE"). Without
            any of these four the embedded demo checkpoint.
        backends: None for all that run here and need no compiling.
        dtype: None for fp32 on a processor, fp16 on a GPU, a bundle's own.
        compare: names of `COMPARE`; the first is what speed-ups refer to. None for "published" where it can run.
        rounds, strength, resolution: as `RunConfig` takes them, with 50 steps to a full schedule; resolution in pixels.
        batch: items that the engine runs at once; eager baselines run one.
        repeats: timed progressions of each variant, after one that warms up.
        threads: of every library, on a processor; None for all cores.
        device: "cpu", "cuda" or "cuda:N"; None for a GPU if there is one.
        limits_scale: divides the sizes that the machine's limits are measured with, to try the function itself.

    Raises:
        BenchmarkError, ConfigError: a value is unknown or out of range, or two contradict each other.
    """

    engine: str | Path | None = None
    checkpoint: str | Path | None = None
    unet: str | Path | None = None
    lora: tuple[str, ...] = ()
    backends: tuple[str, ...] | None = None
    dtype: str | None = None
    compare: tuple[str, ...] | None = None
    rounds: int = 3
    strength: float = 0.5
    resolution: int | None = None
    batch: int = 1
    repeats: int = 3
    threads: int | None = None
    device: str | None = None
    limits_scale: int = 1

    def __post_init__(self) -> None:
        from pie_engine.benchmarks.quick_model import BACKENDS

        if self.engine is not None and (self.checkpoint or self.unet or self.lora):
            raise BenchmarkError("a bundle and a checkpoint are given; pass --engine or --checkpoint")
        for name in ("batch", "repeats", "threads", "limits_scale"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BenchmarkError(f"{name} {value} is not a positive number; pass --{name} 1 or more")
        for backend in self.backends or ():
            if backend not in BACKENDS:
                raise BenchmarkError(f"backend {backend!r} is unknown; pass one of {', '.join(BACKENDS)}")
        for name in self.compare or ():
            if name not in COMPARE:
                raise BenchmarkError(f"compare {name!r} is unknown; pass one of {', '.join(COMPARE)}, or none")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise BenchmarkError(f"dtype {self.dtype!r} is unknown; pass one of {', '.join(DTYPES)}")
        if self.engine is not None and self.compare:
            raise BenchmarkError("eager PyTorch runs checkpoints, not bundles; pass --checkpoint, or --compare none")
        RunConfig(steps=self.rounds, strength=self.strength, resolution=self.resolution)


def bench(config: Quick | None = None, on_line: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure, in processes of their own, and describe.

    Args:
        on_line: told of progress.

    Returns:
        What JSON can hold. "rows": one per variant, in the order they ran; times are seconds per
        item, "seconds" and "warm_up_seconds" the raw ones of each call; a variant that ran out of memory has "error"
        instead. "round": where the fastest engine's round goes, on a processor. "notes": what was left out, and why.

    Raises:
        BenchmarkError: a variant cannot be made, or fails for another reason than memory. PieError: as
            `PieEngine.load`.
    """
    from pie_engine.benchmarks.common import place
    from pie_engine.benchmarks.harness.machine import identify, limits_of
    from pie_engine.benchmarks.quick_model import open_model
    from pie_engine.machine.environment import processor_cores, versions

    config = config or Quick()
    device, threads = place(argparse.Namespace(device=config.device, threads=config.threads))
    config = replace(config, device=device, threads=threads)
    model = open_model(config, on_line)
    config = replace(config, resolution=model.resolution)
    specs = {**eager_specs(config, model.checkpoint), **engine_specs(config, model.sources)}
    lower = {name for spec in specs.values() if (name := spec.arguments.get("dtype", model.dtype)) != "fp32"}
    on_line("measuring what this machine reaches at best")
    # In half precision a processor without arithmetic for it takes minutes.
    wanted = ["fp32", *sorted(lower - ({"fp16"} if device == "cpu" else set()))]
    limits = limits_of(device, wanted, threads, config.limits_scale)

    errors: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        subjects = _load(stack, specs, errors, on_line)
        samples = measure(subjects, config.repeats, errors, on_line)
        medians = {name: statistics.median(calls.seconds) for name, calls in samples.items() if name in model.sources}
        fastest = min(medians, key=lambda name: medians[name], default=None)
    shares = None
    if fastest is not None and device == "cpu":  # on a GPU a round is one captured graph without parts
        on_line(f"where a round of {fastest} goes")
        with contextlib.suppress(MemoryRanOut):
            shares = _shares(config, fastest, model.sources[fastest])
    rows = _rows(config, model, limits, specs, subjects, samples)
    rows += [{"variant": name, "error": error} for name, error in errors.items()]
    key = identify(device, threads)
    return {
        "date": key["date"],
        "machine": {"device": key["device"], "threads": threads, "cores": processor_cores()},
        "versions": {name: number for name, number in versions().items() if number is not None},
        "revision": key["revision"],
        "limits": {dtype: {**asdict(limit), "flops": limit.flops} for dtype, limit in limits.items()},
        "config": {"model": model.name, "dtype": model.dtype, **_settings(config)},
        "baseline": next(iter(samples), None),
        "rows": sorted(rows, key=lambda row: list(specs).index(row["variant"])),
        "round": shares,
        "notes": model.notes,
    }


def _rows(
    config: Quick,
    model: Model,
    limits: Mapping[str, Limits],
    specs: Mapping[str, Spec],
    subjects: Mapping[str, Remote],
    samples: Mapping[str, Samples],
) -> list[dict[str, Any]]:
    """Of the variants that ran; the first is the baseline."""
    from pie_engine.benchmarks.quick_model import engine_dtype

    per_item = {name: _divided(calls, config.batch if name in model.sources else 1) for name, calls in samples.items()}
    rows = []
    for name, calls in per_item.items():
        subject, batch = subjects[name], specs[name].arguments.get("batch", 1)
        dtype = specs[name].arguments.get("dtype") or engine_dtype(subject.facts)
        row: dict[str, Any] = {"variant": name, "dtype": dtype, "batch": batch, "load_s": subject.load_seconds}
        row |= summarise(calls, next(iter(per_item.values())))
        row |= model.arithmetic(config, name not in model.sources, row["median_s"], limits.get(dtype, limits["fp32"]))
        rows.append(row | {"seconds": samples[name].seconds, "warm_up_seconds": samples[name].warm_up})
    return rows


def eager_specs(config: Quick, checkpoint: Mapping[str, Any] | None) -> dict[str, Spec]:
    """The eager baselines; none for a bundle."""
    from pie_engine.benchmarks.variants import EAGER, eager_spec

    if checkpoint is None:
        return {}
    compare = ("published",) if config.compare is None else config.compare
    names = [COMPARE[name][config.device != "cpu"] for name in compare]
    setting = _setting(config, str(checkpoint["checkpoint"]))
    specs = {name: eager_spec(setting, **EAGER[name]) for name in names}
    return {name: replace(spec, arguments={**spec.arguments, **checkpoint}) for name, spec in specs.items()}


def engine_specs(config: Quick, sources: Mapping[str, Mapping[str, Any]]) -> dict[str, Spec]:
    """The engine on each backend."""
    settings = _setting(config, "").config()
    return {
        name: Spec(
            "pie_engine.benchmarks.subjects:Engine",
            {"source": dict(source), "config": settings, "batch": config.batch},
            config.threads,
        )
        for name, source in sources.items()
    }


def _setting(config: Quick, checkpoint: str) -> Any:
    from pie_engine.benchmarks.variants import Setting

    return Setting(
        checkpoint, config.resolution or 0, config.rounds, config.strength, batch=config.batch,
        device=config.device or "cpu", threads=config.threads,
    )  # fmt: skip


def _settings(config: Quick) -> dict[str, Any]:
    names = ("rounds", "strength", "resolution", "batch", "repeats", "device", "threads")
    evaluations = config.rounds * RunConfig(steps=config.rounds, strength=config.strength).denoising_steps
    return {name: getattr(config, name) for name in names} | {"evaluations": evaluations}


def _load(
    stack: contextlib.ExitStack, specs: Mapping[str, Spec], errors: dict[str, str], on_line: Callable[[str], None]
) -> dict[str, Remote]:
    subjects = {}
    for name, spec in specs.items():
        try:
            subjects[name] = stack.enter_context(Remote(spec))
        except MemoryRanOut as error:
            errors[name] = str(error)
            on_line(f"{name}: {error}")
        except BenchmarkError as error:
            raise BenchmarkError(f"{name}: {error}") from None
        else:
            on_line(f"loaded {name}: {subjects[name].load_seconds:.1f} s")
    return subjects


def measure(
    subjects: Mapping[str, Any], repeats: int, errors: dict[str, str], on_line: Callable[[str], None]
) -> dict[str, Samples]:
    """`interleave`, in which a variant that runs out of memory is left out from then on.

    Args:
        subjects: each is called for a `Call`, and closed where memory ran out.
        errors: gets the line of those.
    """
    from pie_engine.benchmarks.harness.measure import Call

    def guarded(name: str) -> Callable[[], Call]:
        def run() -> Call:
            if name not in errors:
                try:
                    return subjects[name]()
                except MemoryRanOut as error:
                    errors[name] = str(error)
                    subjects[name].close()
                except BenchmarkError as error:
                    raise BenchmarkError(f"{name}: {error}") from None
            return Call(math.nan)

        return run

    def told(name: str, repeat: int, call: Call) -> None:
        which = "warm-up" if repeat < 0 else f"repeat {repeat + 1}"
        on_line(f"{which}: {name}: {errors.get(name) or f'{call.seconds:.4g} s'}")

    samples = interleave({name: guarded(name) for name in subjects}, repeats, on_call=told)
    return {name: calls for name, calls in samples.items() if name not in errors}


def _shares(config: Quick, name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of a round and the shares of its parts, from clocks within progressions of their own."""
    settings = _setting(config, "").config()
    arguments = {"source": dict(source), "config": settings, "batch": config.batch}
    with Remote(Spec("pie_engine.benchmarks.round_share:Rounds", arguments, config.threads)) as subject:
        step = subject.facts["chosen"]
        rounds = [subject(step).facts for _ in range(1 + min(2, config.repeats))][1:]
    shares = {part: statistics.median(clocks[part] / clocks["total"] for clocks in rounds) for part in _PARTS}
    return {
        "variant": name,
        "fused_step": step,
        "round_s": statistics.median(clocks["total"] for clocks in rounds) / config.rounds,
        **{f"{part}_share": share for part, share in shares.items()},
        "rest_share": 1 - sum(shares.values()),
    }


def _divided(samples: Samples, items: int) -> Samples:
    return replace(
        samples,
        warm_up=[seconds / items for seconds in samples.warm_up],
        seconds=[seconds / items for seconds in samples.seconds],
    )
