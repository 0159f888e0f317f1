"""One peer's PIE rounds, in a process of that peer's own environment; `peers.py` starts it. Imports nothing of ours but
for the engine itself.

    python benchmarks/peer_driver.py PEER '{"checkpoint": DIR, "cache": DIR, "image": FILE, ...}'

A round is what a user of the library would write: an img2img call of its pipeline on the last frame, whose pixels
outside the region are then the input's. The engine's own rounds stay in latents. Prints a line of JSON for each frame.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

START = time.perf_counter()
Frames = Iterator[Any]


def diffusers(asked: dict[str, Any]) -> Frames:
    import torch
    from diffusers import StableDiffusionImg2ImgPipeline

    torch.set_grad_enabled(False)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(asked["checkpoint"], dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return _rounds(asked, lambda image: _call(pipeline, image, asked))


def optimum_intel(asked: dict[str, Any]) -> Frames:
    """Static shapes, as its guide for speed says."""
    from optimum.intel import OVStableDiffusionImg2ImgPipeline

    folder = _converted(asked)
    pipeline = OVStableDiffusionImg2ImgPipeline.from_pretrained(folder, compile=False, ov_config={"CACHE_DIR": ""})
    side = asked["resolution"]
    pipeline.reshape(batch_size=1, height=side, width=side, num_images_per_prompt=1)
    pipeline.compile()
    pipeline.set_progress_bar_config(disable=True)
    return _rounds(asked, lambda image: _call(pipeline, image, asked))


def openvino_genai(asked: dict[str, Any]) -> Frames:
    import numpy as np
    import openvino
    from openvino_genai import Image2ImagePipeline
    from PIL import Image

    pipeline = Image2ImagePipeline(str(_converted(asked)), "CPU", INFERENCE_PRECISION_HINT="f32")

    def edit(image: Any) -> Any:
        tensor = openvino.Tensor(np.ascontiguousarray(np.asarray(image)[None]))
        made = pipeline.generate(
            asked["prompt"], tensor, strength=asked["strength"], guidance_scale=asked["guidance_scale"],
            num_inference_steps=asked["num_inference_steps"],
        )  # fmt: skip
        return Image.fromarray(made.data[0])

    return _rounds(asked, edit)


def optimum_onnx(asked: dict[str, Any]) -> Frames:
    from optimum.onnxruntime import ORTStableDiffusionImg2ImgPipeline

    folder = Path(asked["cache"]) / "onnx"
    if not folder.is_dir():
        made = ORTStableDiffusionImg2ImgPipeline.from_pretrained(asked["checkpoint"], export=True)
        made.save_pretrained(folder)
        del made
    pipeline = ORTStableDiffusionImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return _rounds(asked, lambda image: _call(pipeline, image, asked))


def _engine(backend: str) -> Callable[[dict[str, Any]], Frames]:
    """Rounds as they come are not the engine's face: each call is a run, of one round and then of all."""

    def frames(asked: dict[str, Any]) -> Frames:
        os.environ["PIE_ENGINE_CACHE"] = str(Path(asked["cache"]) / "pie-engine")
        from pie_engine import Item, PieEngine, RunConfig

        engine = PieEngine.load(checkpoint=asked["checkpoint"], backend=backend, device="cpu", dtype="fp32")
        item = Item(asked["image"], asked["prompt"], asked["mask"])
        names = ("strength", "guidance_scale", "num_inference_steps", "resolution")
        once = RunConfig(steps=1, **{name: asked[name] for name in names})
        yield engine.run(item, once).frames[1]
        if not asked["rounds"]:
            return
        start = time.perf_counter()
        result = engine.run(item, replace(once, steps=asked["rounds"]))
        spent = (time.perf_counter() - start) / asked["rounds"]
        for frame in result.frames[1:]:
            yield frame, spent

    return frames


def _call(pipeline: Any, image: Any, asked: dict[str, Any]) -> Any:
    import torch

    return pipeline(
        prompt=asked["prompt"], image=image, strength=asked["strength"], guidance_scale=asked["guidance_scale"],
        num_inference_steps=asked["num_inference_steps"], generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip


def _rounds(asked: dict[str, Any], edit: Callable[[Any], Any]) -> Frames:
    from PIL import Image

    size = (asked["resolution"],) * 2
    image = Image.open(asked["image"]).convert("RGB").resize(size)
    mask = Image.open(asked["mask"]).convert("L").resize(size)
    last = image
    for _ in range(1 + asked["rounds"]):
        last = Image.composite(edit(last), image, mask)
        yield last


def _converted(asked: dict[str, Any]) -> Path:
    """OpenVINO's own format, in fp32, converted at the first use."""
    folder = Path(asked["cache"]) / "openvino"
    if not folder.is_dir():
        from optimum.exporters.openvino import main_export
        from optimum.intel import OVConfig

        partial = folder.with_name("openvino.partial")
        main_export(
            asked["checkpoint"], partial, task="image-to-image", ov_config=OVConfig(dtype="fp32"),
            convert_tokenizer=True,
        )  # fmt: skip
        partial.rename(folder)
    return folder


PEERS: dict[str, Callable[[dict[str, Any]], Frames]] = {
    "pie-engine onnxruntime": _engine("onnxruntime"), "pie-engine openvino": _engine("openvino"),
    "diffusers": diffusers, "optimum-intel": optimum_intel, "openvino-genai": openvino_genai,
    "optimum-onnx": optimum_onnx,
}  # fmt: skip


def peak_bytes() -> int:
    """The most that the process has held so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(peer: str, asked: dict[str, Any]) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", ORT_DISABLE_TELEMETRY="1")
    last = time.perf_counter()
    for number, frame in enumerate(PEERS[peer](asked)):
        now = time.perf_counter()
        seconds = frame[1] if isinstance(frame, tuple) else now - last
        told = {"frame": number, "since_start": now - START, "seconds": seconds, "peak_bytes": peak_bytes()}
        print(json.dumps(told), flush=True)
        last = time.perf_counter()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
