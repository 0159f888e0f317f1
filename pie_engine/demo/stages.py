"""What the trainings share: stages that are run once, their records, and a checkpoint's files."""

import copy
import ctypes
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pie_engine.demo.train_unet import Denoiser, UnetTraining, build_scheduler


def run_stages(output: Path, config: Any, stages: Sequence[Callable[[Path, Any], dict]]) -> dict:
    """Run every stage that `output` does not hold yet; return and write the record of what was measured.

    Args:
        config: a dataclass, handed to every stage.
        stages: functions called `_name` of (output, config) to what they measured.
    """
    _keep_freed_memory()
    output.mkdir(parents=True, exist_ok=True)
    record: dict = {"config": asdict(config), "hardware": _hardware(), "stages": {}}
    for stage in stages:
        name = stage.__name__.removeprefix("_")
        done = output / f"stage-{name}.json"
        if not done.exists():
            start = time.perf_counter()
            measured = stage(output, config)
            measured["stage_seconds"] = round(time.perf_counter() - start, 1)
            _write_json(done, measured)
        record["stages"][name] = json.loads(done.read_text())
    _write_json(output / "training.json", record)
    return record


def save_denoiser(model: Denoiser, checkpoint: Path) -> None:
    """Write U-Net, text encoder, scheduler and the folder's index, the weights as fp16."""
    for name, part in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        copy.deepcopy(part).half().save_pretrained(checkpoint / name)
    # transformers 5 drops the prefix that every published Stable Diffusion v1 checkpoint has.
    text_file = checkpoint / "text_encoder" / "model.safetensors"
    named = {"text_model." + key.removeprefix("text_model."): value for key, value in load_file(text_file).items()}
    save_file(named, text_file, metadata={"format": "pt"})
    build_scheduler().save_pretrained(checkpoint / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": version("diffusers"),
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(checkpoint / "model_index.json", index)


def load_denoiser(checkpoint: Path, config: UnetTraining) -> tuple[Denoiser, CLIPTokenizer]:
    """What `save_denoiser` wrote, in float32, and its tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(checkpoint / "tokenizer")
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", torch_dtype=torch.float32)
    model = Denoiser(config, tokenizer, unet.config.sample_size)
    model.unet.load_state_dict(unet.state_dict())
    model.text_encoder = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32)
    return model, tokenizer


def load_vae(output: Path) -> AutoencoderKL:
    """The autoencoder as shipped: fp16 weights, computed in float32."""
    return AutoencoderKL.from_pretrained(output / "checkpoint" / "vae", torch_dtype=torch.float32).eval()


def _keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory: on a virtual machine, page faults cost ten times the work otherwise."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        for option, value in ((trim_threshold, 2**31 - 1), (top_pad, 2**29), (mmap_max, 0)):
            libc.mallopt(option, value)


def _hardware() -> dict:
    """What the record needs to compare times: processor, threads, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
    }


def _write_json(path: Path, data: dict) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
