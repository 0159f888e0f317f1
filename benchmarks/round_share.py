"""Where a round's time goes on a processor: U-Net, fused step, decoding, and what is left around them.

    python benchmarks/round_share.py [--variants "engine, openvino fp32"] [--rounds 10] [--strength 0.5] [--model demo]

Each backend is measured with each implementation of the fused step, on one loaded model. Clocks lie around the calls,
which are synchronous on a processor; on a GPU a round is one captured graph without parts. Shares are medians over the
repeats. For a full-size model a round of one step will do: --model sd --rounds 1 --strength 0.02.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pie_engine import PieEngine, RunConfig, RuntimeConfig
from pie_engine.benchmarks.common import (
    Bench,
    add_setting_options,
    finish,
    named_variants,
    prepare,
    print_row,
    run,
    say,
)
from pie_engine.benchmarks.harness import BenchmarkError, Spec, interleave, summarise
from pie_engine.benchmarks.harness.measure import Call
from pie_engine.benchmarks.harness.remote import remotes
from pie_engine.benchmarks.subjects import load_engine, make_item
from pie_engine.benchmarks.variants import ENGINE, engine_source

PARTS = ("unet", "step", "decode")


class Rounds:
    """A progression whose parts are timed, with one implementation of the fused step or another.

    Args:
        source: arguments of `PieEngine.load`.
        config: of `RunConfig`.
        compile: compile the U-Net with torch.compile.
    """

    def __init__(self, source: dict[str, Any], config: dict[str, Any], batch: int = 1, compile: bool = False):
        from pie_engine.kernels.dispatch import available, select

        loaded = load_engine(source, RuntimeConfig(compile=compile))
        backend, self._config = loaded.backend, RunConfig(**config)
        self._items = [make_item(self._config.resolution or 0, str(number)) for number in range(batch)]
        self._seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        self.device = str(backend.device)
        bind, decode = backend.bind_unet, backend.decode_latent
        timed = self._timed
        backend.bind_unet = lambda *shape: TimedUNet(bind(*shape), timed)  # type: ignore[method-assign]
        backend.decode_latent = timed("decode", decode)  # type: ignore[method-assign]
        self._engines = {}
        for name in available("cpu"):
            engine = PieEngine(backend, runtime=RuntimeConfig(fused_step=name))
            kernels = engine.simulator.kernels
            step, noising = (timed("step", part) for part in (kernels.denoise_step, kernels.noising))
            engine.simulator.kernels = replace(kernels, denoise_step=step, noising=noising)
            self._engines[name] = engine
        self.facts = {"implementations": list(self._engines), "chosen": select("cpu").name}

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **named)
            self._seconds[part].append(time.perf_counter() - start)
            return result

        return call

    def run(self, implementation: str) -> dict[str, Any]:
        for seconds in self._seconds.values():
            seconds.clear()
        result = self._engines[implementation].run(self._items, self._config)[0]
        spent = {part: sum(seconds) for part, seconds in self._seconds.items()}
        return {**spent, "total": sum(result.provenance["seconds"]["rounds"])}


class TimedUNet:
    """The bound U-Net with a clock around its call."""

    def __init__(self, unet: Any, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]):
        self._unet = unet
        self._call = timed("unet", lambda: unet())

    def __call__(self) -> None:
        self._call()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)


def measure(bench: Bench, specs: dict[str, Spec], repeats: int, required: bool) -> list[dict[str, Any]]:
    """Rows of every backend with every implementation, as many backends at once as memory holds."""
    rows = []
    names = list(specs)
    for start in range(0, len(names), bench.at_once):
        group = {name: specs[name] for name in names[start : start + bench.at_once]}
        told: dict[str, list[dict[str, Any]]] = {}

        def keep(name: str, repeat: int, call: Call, told: dict[str, list[dict[str, Any]]] = told) -> None:
            print_row(name, repeat, call)
            if repeat >= 0:
                told.setdefault(name, []).append(call.facts)

        with remotes(group, on_load=say, required=required) as subjects:
            pairs = {
                f"{name}, {step} step": (name, step)
                for name, subject in subjects.items()
                for step in subject.facts["implementations"]
            }
            calls = {title: functools.partial(subjects[name], step) for title, (name, step) in pairs.items()}
            samples = interleave(calls, repeats, on_call=keep)
        for title, (name, step) in pairs.items():
            rows.append(describe(bench, title, name, step, summarise(samples[title]), told[title]))
    return rows


def describe(
    bench: Bench, title: str, name: str, step: str, columns: dict[str, Any], facts: list[dict[str, Any]]
) -> dict[str, Any]:
    """The row of a backend with an implementation."""
    shares = {part: statistics.median(fact[part] / fact["total"] for fact in facts) for part in PARTS}
    rest = statistics.median(1 - sum(fact[part] for part in PARTS) / fact["total"] for fact in facts)
    say(f"{title}: " + ", ".join(f"{part} {100 * share:.2f} %" for part, share in {**shares, "rest": rest}.items()))
    return {
        "variant": title,
        "backend": ENGINE[name]["backend"],
        "dtype": ENGINE[name]["dtype"],
        "implementation": step,
        **columns,
        "round_s": statistics.median(fact["total"] for fact in facts) / bench.setting.rounds,
        **{f"{part}_share": share for part, share in shares.items()},
        "rest_share": rest,
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting_options(parser)
    parser.add_argument("--variants", help="engines, separated by semicolons (default: all that are installed)")
    arguments = parser.parse_args(words)
    if arguments.device not in (None, "cpu"):
        raise BenchmarkError(f"device {arguments.device!r} runs a round as one graph without parts; pass --device cpu")
    arguments.device = "cpu"
    bench = prepare(arguments)
    setting, specs = bench.setting, {}
    for name in named_variants(arguments, setting):
        given = dict(ENGINE[name])
        source = engine_source(setting, given.pop("backend"), given.pop("dtype"))
        subject = {"source": source, "config": setting.config(), "batch": setting.batch, **given}
        specs[name] = Spec("pie_engine.benchmarks.round_share:Rounds", subject, setting.threads)
    finish(bench, "round_share", measure(bench, specs, arguments.repeats, required=bool(arguments.variants)))


if __name__ == "__main__":
    run(main)
