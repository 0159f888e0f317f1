"""What all scripts share: options, the machine's limits, rows on the terminal and in the results file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pie_engine.benchmarks.harness import BenchmarkError, results
from pie_engine.benchmarks.harness.arithmetic import count_flops
from pie_engine.benchmarks.harness.machine import Limits, identify, limits_of
from pie_engine.benchmarks.harness.measure import Call
from pie_engine.benchmarks.subjects import model_folder
from pie_engine.benchmarks.variants import ENGINE, ON_CPU, ON_GPU, Setting, usable
from pie_engine.config import COMPONENTS, RunConfig, check_resolution
from pie_engine.errors import PieError

# Divides the sizes that the limits are measured with, for --quick-limits.
_QUICK = 16
# The columns of `summarise` where nothing could be measured.
NO_TIMES = dict.fromkeys(
    (
        "warm_up_s",
        "p20_s",
        "median_s",
        "p80_s",
        "speedup",
        "speedup_p20",
        "speedup_p80",
        "host_peak_mb",
        "device_peak_mb",
    ),
    "",
)


@dataclass
class Bench:
    """One run of a script.

    Attributes:
        model: its name in the results.
        setting: what the variants share.
        flops: of one sample, by component.
        limits: of this machine, by dtype.
        key: the columns that identify machine, versions and revision.
        output: folder of the results.
        parameters: by component.
        vae_scale: pixels per latent along one side.
        resolution_multiple: of which sides in pixels have to be multiples.
        asked_at_once: instead of `at_once`'s own estimate.
    """

    model: str
    setting: Setting
    flops: dict[str, float]
    limits: dict[str, Limits]
    key: dict[str, Any]
    output: Path = field(default=results.FOLDER)
    parameters: dict[str, int] = field(default_factory=dict)
    vae_scale: int = 8
    resolution_multiple: int = 8
    asked_at_once: int | None = None

    @property
    def at_once(self) -> int:
        """How many processes that each hold the model fit beside one another, at least three unless asked for."""
        if self.asked_at_once is not None:
            return max(3, self.asked_at_once)  # one beside the first and the one before it
        # Single precision, and half as much again for what a call needs beside the weights.
        return max(3, int(0.85 * memory(self.setting.device) / (6 * sum(self.parameters.values()) + 1e9)))

    def arithmetic(self, flops: float, seconds: float, dtype: str) -> dict[str, float]:
        """Columns: work, rate, and share of this machine's peak in the dtype that a variant's name ends in."""
        precision = next((name for name in ("bf16", "fp16") if name in dtype), "fp32")
        peak = self.limits[precision if precision in self.limits else "fp32"].flops
        rate = flops / seconds
        return {"tflop": flops / 1e12, "gflop_per_s": rate / 1e9, "peak_gflop_per_s": peak / 1e9, "share": rate / peak}


def add_setting_options(parser: argparse.ArgumentParser, *, repeats: int = 5) -> None:
    """The options of every script."""
    parser.add_argument("--model", default="demo", help="demo, sd (random weights of SD v1.4's shape) or a folder")
    parser.add_argument("--resolution", type=int, help="side in pixels (the model's own)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--num-inference-steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1, help="of the engine; eager variants run one item")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--threads", type=int, help="of every library, on a processor (all cores)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (a GPU if there is one)")
    parser.add_argument("--output", type=Path, default=results.FOLDER, help="folder of the CSV files")
    parser.add_argument(
        "--at-once", type=int, help="processes that hold the model at the same time (3 or more; what memory holds)"
    )
    parser.add_argument("--quick-limits", action="store_true", help="to try a script: limits from tiny sizes")


def prepare(arguments: argparse.Namespace) -> Bench:
    """Find or make the model, count its arithmetic, measure the machine's limits."""
    from pie_engine.checkpoint import load_checkpoint

    check(arguments)
    device, threads = place(arguments)
    folder = model_folder(arguments.model)
    checkpoint = load_checkpoint(folder)
    setting = Setting(
        checkpoint=str(folder),
        resolution=arguments.resolution or checkpoint.default_resolution,
        rounds=arguments.rounds,
        strength=arguments.strength,
        num_inference_steps=arguments.num_inference_steps,
        batch=arguments.batch,
        device=device,
        threads=threads,
    )
    RunConfig(**setting.config())  # refused here and not in each process
    check_resolution(setting.resolution, checkpoint.resolution_multiple)
    flops = count_flops(checkpoint, setting.resolution)
    facts = (count_parameters(checkpoint), checkpoint.vae_scale, checkpoint.resolution_multiple)
    del checkpoint
    dtypes = ["fp32", "bf16"] if device == "cpu" else ["fp32", "fp16", "bf16"]
    limits = measured_limits(device, dtypes, threads, arguments)
    name = folder.name if arguments.model not in ("demo", "sd") else arguments.model
    return Bench(name, setting, flops, limits, identify(device, threads), arguments.output, *facts, arguments.at_once)


def check(arguments: argparse.Namespace) -> None:
    """Refuse what no process has to be started for.

    Raises:
        BenchmarkError: a number that is not positive.
    """
    for name in ("repeats", "threads", "batch", "batches"):
        given = getattr(arguments, name, None)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and value < 1:
                raise BenchmarkError(
                    f"{name} {value} is not a positive number; pass --{name.replace('_', '-')} 1 or more"
                )


def place(arguments: argparse.Namespace) -> tuple[str, int | None]:
    """The device, and the threads on a processor.

    Raises:
        BenchmarkError: the device is not here.
    """
    import torch

    from pie_engine.machine.devices import limit_threads
    from pie_engine.machine.environment import processor_cores

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu":
        kind, _, number = device.partition(":")
        if kind != "cuda" or not (number or "0").isdecimal() or int(number or 0) >= torch.cuda.device_count():
            raise BenchmarkError(
                f"device {device!r} is not here (cpu, or one of {torch.cuda.device_count()} GPUs); pass --device cpu"
            )
    return device, limit_threads(arguments.threads) or (processor_cores() if device == "cpu" else None)


def measured_limits(
    device: str, dtypes: list[str], threads: int | None, arguments: argparse.Namespace
) -> dict[str, Limits]:
    """What this machine reaches at best, by dtype; said as it is found."""
    say("measuring what this machine reaches at best")
    limits = limits_of(device, dtypes, threads, _QUICK if arguments.quick_limits else 1)
    for dtype, limit in limits.items():
        say(
            f"  {dtype}: {limit.matmul_flops / 1e9:.0f} GFLOP/s in matrix products, "
            f"{limit.convolution_flops / 1e9:.0f} in convolutions; {limit.copy_bytes / 1e9:.1f} GB/s copied"
        )
    return limits


def count_parameters(checkpoint: Any) -> dict[str, int]:
    """Parameters by component; those of the VAE's halves without the convolutions between them."""
    modules = (checkpoint.text_encoder, checkpoint.vae.encoder, checkpoint.unet, checkpoint.vae.decoder)
    counts = (sum(parameter.numel() for parameter in module.parameters()) for module in modules)
    return dict(zip(COMPONENTS, counts, strict=True))


def memory(device: str) -> int:
    """Bytes of the device's memory."""
    if device != "cpu":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def finish(bench: Bench, name: str, rows: Sequence[Mapping[str, Any]], told: Sequence[str] = ()) -> None:
    """Print the rows and append them to the results file `name`.csv.

    Args:
        told: columns that tell rows of one variant apart.

    Raises:
        BenchmarkError: there are none.
    """
    if not rows:
        raise BenchmarkError("nothing that was to be measured runs here; the lines above say why")
    for row in rows:
        what = ", ".join([row["variant"], *(f"{name} {row[name]}" for name in told if name in row)])
        if row["median_s"] == "":
            say(f"{what:<46} {row['note']}")
            continue
        speedup = f"  {row['speedup']:.2f} x" if row.get("speedup", "") != "" else ""
        say(f"{what:<46}{row['median_s']:10.4g} s  [{row['p20_s']:.4g}, {row['p80_s']:.4g}]{speedup}")
    path = bench.output / f"{name}.csv"
    shared = {**bench.key, "model": bench.model, **bench.setting.columns()}
    results.append(path, [{**shared, **row} for row in rows])
    say(f"{len(rows)} rows added to {path}")


def named_variants(arguments: argparse.Namespace, setting: Setting) -> list[str]:
    """The engines that --variants names, or all that are installed.

    Raises:
        BenchmarkError: a name that is not an engine's.
    """
    if not arguments.variants:
        return [name for name in usable(ON_CPU if setting.device == "cpu" else ON_GPU) if name in ENGINE]
    names = [name.strip() for name in arguments.variants.split(";")]
    for name in names:
        if name not in ENGINE:
            raise BenchmarkError(f"variant {name!r} is no engine; pass one of {'; '.join(ENGINE)}")
    return names


def flops_at(bench: Bench, resolution: int) -> dict[str, float]:
    """Operations of one sample at another resolution, by component."""
    from pie_engine.checkpoint import load_checkpoint

    if resolution == bench.setting.resolution:
        return bench.flops
    return count_flops(load_checkpoint(bench.setting.checkpoint), resolution)


def exceeds_memory(device: str, loaded: int, peak: int, before: int, batch: int) -> str:
    """Why a batch is not tried: a processor's system ends other programs too where memory runs out.

    Args:
        loaded, peak: bytes of the process when it had loaded, and of the batch `before`.

    Returns:
        One line, or an empty string where it fits or where only the device's own memory would run out.
    """
    needed = loaded + max(0, peak - loaded) * batch / before
    if device != "cpu" or needed < 0.85 * memory(device):
        return ""
    return f"out of memory: batch {batch} would take about {needed / 1e9:.1f} of {memory(device) / 1e9:.1f} GB"


def print_row(name: str, repeat: int, call: Call) -> None:
    """One line per call, as it happens."""
    say(f"  {'warm-up' if repeat < 0 else f'repeat {repeat + 1}'}: {name}: {call.seconds:.4g} s")


def say(line: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def run(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """A script's entry: what the user can mend is one line on stderr and exit code 2."""
    try:
        main(sys.argv[1:])
    except PieError as error:
        say(f"benchmark: {error}")
        sys.exit(2)
    sys.exit(0)
