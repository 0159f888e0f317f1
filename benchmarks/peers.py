"""The engine beside the libraries that also run Stable Diffusion on a processor: first frame, rounds, memory.

    python benchmarks/peers.py [--peers diffusers openvino-genai ...] [--repeats 3] [--rounds 2] [--resolution 256]

Each peer runs in processes of its own, in an environment that this script makes in --folder at the first use (some
2 GB each): PIE's rounds through its img2img call, on a full-size checkpoint with random weights. Cold is from a
checkpoint that the peer sees for the first time, conversions included, until the first frame; warm is the same again,
in a new process, with what it kept. Warm processes of all peers take turns, --repeats times. Nothing is downloaded but
the peers' packages.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pie_engine.benchmarks.common import run, say
from pie_engine.benchmarks.harness import BenchmarkError, results
from pie_engine.benchmarks.harness.machine import identify
from pie_engine.benchmarks.peer_driver import PEERS

ROOT = Path(__file__).resolve().parents[1]
DRIVER = Path(__file__).with_name("peer_driver.py")
IMAGE = ROOT / "tests" / "data" / "golden"
# Peer -> the environment that it runs in, where that is not this one, and what is installed there.
ENVIRONMENTS = {"optimum-intel": "openvino", "openvino-genai": "openvino", "optimum-onnx": "onnx"}
PACKAGES = {
    "openvino": ["optimum-intel[openvino]", "openvino-genai", "openvino-tokenizers", "diffusers", "accelerate"],
    # Told by name: pip tries for half an hour what goes with the newest one.
    "onnx": [
        "optimum-onnx[onnxruntime]==0.1.0",
        "optimum==2.1.0",
        "transformers==4.57.3",
        "diffusers==0.36.0",
        "accelerate",
    ],
}
_TOLD = ("pie-engine", "diffusers", "transformers", "torch", "openvino", "openvino-genai", "optimum-intel",
         "onnxruntime", "optimum-onnx")  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), metavar="PEER", help=f"of {', '.join(PEERS)} (all)")
    parser.add_argument("--checkpoint", type=Path, help="diffusers folder (one with random weights is made)")
    parser.add_argument("--resolution", type=int, default=256, help="pixels (256)")
    parser.add_argument("--rounds", type=int, default=2, help="after the first frame, of each warm process (2)")
    parser.add_argument("--steps", type=int, default=5, help="guided steps of a round (5)")
    parser.add_argument("--repeats", type=int, default=3, help="warm processes of each peer (3)")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "peers", help="for environments and caches")
    parser.add_argument("--output", type=Path, default=results.FOLDER, help="folder of peers.csv")
    asked = parser.parse_args(words)
    if unknown := [name for name in asked.peers if name not in PEERS]:
        raise BenchmarkError(f"no peer is called {', '.join(unknown)}; pass some of {', '.join(PEERS)}")
    if min(asked.rounds, asked.steps, asked.repeats) < 1:
        raise BenchmarkError("rounds, steps and repeats are at least 1; pass --rounds 2 --steps 5 --repeats 3")
    checkpoint = asked.checkpoint or _random_checkpoint(asked.folder / "checkpoint")
    pythons = {name: _environment(ENVIRONMENTS.get(name), asked.folder) for name in asked.peers}
    settings = {
        "checkpoint": str(checkpoint.absolute()), "image": str(IMAGE / "image.png"), "mask": str(IMAGE / "mask.png"),
        "prompt": "an enlarged heart", "resolution": asked.resolution, "strength": 0.5, "guidance_scale": 7.5,
        "num_inference_steps": 2 * asked.steps,
    }  # fmt: skip
    caches = {name: asked.folder / "cache" / name.replace(" ", "-") for name in asked.peers}

    def measured(name: str, rounds: int) -> list[dict[str, Any]]:
        return measure(name, pythons[name], {**settings, "cache": str(caches[name]), "rounds": rounds})

    cold: dict[str, float] = {}
    warm: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in asked.peers}
    for name in asked.peers:
        shutil.rmtree(caches[name], ignore_errors=True)
        caches[name].mkdir(parents=True)
        cold[name] = measured(name, 0)[0]["since_start"]
        say(f"{name}: first frame {cold[name]:.0f} s after a new checkpoint")
    for _ in range(asked.repeats):
        for name in asked.peers:
            frames = measured(name, asked.rounds)
            warm[name].append(frames)
            rounds = [one["seconds"] for one in frames[1:]]
            say(f"{name}: first frame {frames[0]['since_start']:.1f} s, rounds {statistics.median(rounds):.1f} s")
    rows = [row(name, cold[name], warm[name], pythons[name]) for name in asked.peers]
    key = {**identify("cpu", None), "model": "sd", "resolution": asked.resolution, "steps": asked.steps}
    results.append(asked.output / "peers.csv", [{**key, **one} for one in rows])


def measure(name: str, python: str, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What the driver tells of each frame of one process.

    Raises:
        BenchmarkError: it ended with an error, whose lines stand above.
    """
    command = [python, str(DRIVER), name, json.dumps(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    frames = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"frame"')]
    if done.returncode or not frames:
        raise BenchmarkError(f"{name} ended with {done.returncode}; the lines above say why")
    return frames


def row(name: str, cold: float, warm: Sequence[Sequence[dict[str, Any]]], python: str) -> dict[str, Any]:
    """A peer's medians over its warm processes, and its largest peak."""
    first = [frames[0]["since_start"] for frames in warm]
    rounds = [one["seconds"] for frames in warm for one in frames[1:]]
    peak = max(one["peak_bytes"] for frames in warm for one in frames)
    return {
        "variant": name, "first_cold_s": cold, "first_warm_s": statistics.median(first),
        "round_s": statistics.median(rounds), "host_peak_mb": peak / 1e6, "packages": _versions(python),
    }  # fmt: skip


def _random_checkpoint(folder: Path) -> Path:
    if not folder.is_dir():
        say("a full-size checkpoint with random weights")
        partial = folder.with_name("checkpoint.partial")
        subprocess.run([sys.executable, Path(__file__).with_name("random_checkpoint.py"), partial], check=True)
        partial.rename(folder)
    return folder


def _environment(name: str | None, folder: Path) -> str:
    """The interpreter of an environment, which is made where it is not there."""
    if name is None:
        return sys.executable
    place = folder / name
    if not (place / ".made").is_file():
        say(f"environment {name}: {', '.join(PACKAGES[name])}")
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "torch==2.13.0", *PACKAGES[name]], check=True)
        # No peer needs it here, and one of another build than torch's breaks transformers.
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", "torchvision"], check=True)
        (place / ".made").touch()
    return str(place / "bin" / "python")


def _versions(python: str) -> str:
    """Names and versions of what an environment computes with."""
    program = (
        "import importlib.metadata as m, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions() if d.metadata['Name']}\n"
        "print('; '.join(f'{name} {found[name]}' for name in sys.argv[1:] if name in found))"
    )
    done = subprocess.run([python, "-c", program, *_TOLD], capture_output=True, text=True, check=True)
    return done.stdout.strip()


if __name__ == "__main__":
    run(main)
