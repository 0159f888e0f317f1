"""What the trainings share: stages that are run once, their records, and a checkpoint's files."""

import argparse
import copy
import ctypes
import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from pie_engine.demo.training.unet import Denoiser, UnetTraining, build_scheduler
from pie_engine.errors import ConfigError, PieError
from pie_engine.files import write_file, writing
from pie_engine.packages import installed


def run_stages(output: Path, config: Any, stages: Sequence[Callable[[Path, Any], dict]]) -> dict:
    """Run every stage that `training.json` in `output` does not list yet; return and write the record.

    A stage is listed after all its files are written, so one that was stopped runs again from its start. It must not
    overwrite what it reads.

    Args:
        config: a dataclass, handed to every stage.
        stages: functions called `_name` of (output, config) to what they measured.

    Returns:
        "config" and "hardware" as the first stage had them, and "stages", by name. A stage that ran on other hardware
        says so itself.

    Raises:
        ConfigError: `output` holds stages that ran with another configuration.
        OutputError: `output` cannot be written.
    """
    _keep_freed_memory()
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    path, hardware = output / "training.json", _hardware()
    given = json.loads(json.dumps(asdict(config)))  # as a file gives it back: lists for tuples
    record: dict = {"config": given, "hardware": hardware, "stages": {}}
    if path.exists():
        record = json.loads(path.read_text(encoding="utf-8"))
        _check_config(given, record["config"], output)
    for stage in stages:
        name = stage.__name__.removeprefix("_")
        if name in record["stages"]:
            continue
        start = time.perf_counter()
        measured = stage(output, config)
        measured["stage_seconds"] = round(time.perf_counter() - start, 1)
        if hardware != record["hardware"]:
            measured["hardware"] = hardware
        record["stages"][name] = measured
        _write_json(path, record)
    return json.loads(path.read_text(encoding="utf-8"))


def run_command(description: str | None, train: Callable[[Path], dict]) -> None:
    """What `python -m` runs: train into --output. What the user can mend is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint and its records")
    output = parser.parse_args().output
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        train(output)
    except PieError as error:
        parser.exit(2, f"training: {error}\n")


def save_weights(model: Denoiser, folder: Path) -> None:
    """Write U-Net and text encoder as fp16, each to a folder of its own."""
    for name, part in (("unet", model.unet), ("text_encoder", model.text_encoder)):
        copy.deepcopy(part).half().save_pretrained(folder / name)
    # transformers 5 drops the prefix that every published Stable Diffusion v1 checkpoint has.
    text_file = folder / "text_encoder" / "model.safetensors"
    named = {"text_model." + key.removeprefix("text_model."): value for key, value in load_file(text_file).items()}
    save_file(named, text_file, metadata={"format": "pt"})


def save_denoiser(model: Denoiser, checkpoint: Path) -> None:
    """Write U-Net, text encoder, scheduler and the folder's index, the weights as fp16."""
    save_weights(model, checkpoint)
    build_scheduler().save_pretrained(checkpoint / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": installed("diffusers"),
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


def load_denoiser(folder: Path, tokenizer: CLIPTokenizer, config: UnetTraining) -> Denoiser:
    """What `save_weights` wrote, in float32."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    model = Denoiser(config, tokenizer, unet.config.sample_size)
    model.unet.load_state_dict(unet.state_dict())
    model.text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return model


def load_vae(output: Path) -> AutoencoderKL:
    """The autoencoder as shipped: fp16 weights, computed in float32."""
    return AutoencoderKL.from_pretrained(output / "checkpoint" / "vae", torch_dtype=torch.float32).eval()


def _check_config(given: dict, earlier: dict, output: Path) -> None:
    """Refuse to go on with another configuration: the record would be wrong about the stages that are done."""
    values, others = dict(_leaves(given)), dict(_leaves(earlier))
    for name in {**values, **others}:
        if values.get(name) != others.get(name):
            raise ConfigError(
                f"{name} is {values.get(name)}, but the training in {output} began with {others.get(name)}; "
                "pass the same configuration, or another folder"
            )


def _leaves(config: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of nested dictionaries, by its dotted name."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


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
        **{name: installed(name) for name in ("torch", "diffusers", "transformers", "numpy")},
    }


def _write_json(path: Path, data: dict) -> None:
    write_file(path, json.dumps(data, indent=2) + "\n")
