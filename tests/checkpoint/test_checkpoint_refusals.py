"""Bad input: one line each, with the value, the limit and the remedy. Nothing is unpickled, or left random."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tiny_checkpoints import ldm_whole, refused, save_folder, write_json
from torch import Tensor

from pie_engine.checkpoint import load_checkpoint


def test_nothing_given() -> None:
    refused("pass checkpoint, unet or both")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ("", "does not exist"),
        ("./no/such/folder", "does not exist.*check the path"),
        ("models/sd.safetensors", "does not exist.*check the path"),
        (
            "clinic/chest",
            "neither a file or folder here nor .* local hub cache.*downloads nothing.*hf download clinic/chest",
        ),
    ],
)
def test_missing(value: str, match: str) -> None:
    refused(match, value)


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["ckpt", "legacy ckpt", "plain pickle", "bin in a folder", "renamed to safetensors"])
def test_malicious_pickle_is_not_run(form: str, models: SimpleNamespace, copied: Path, tmp_path: Path) -> None:
    target = tmp_path / "owned"
    content = {"state_dict": ldm_whole(models), "callback": Bomb(target)}
    path = tmp_path / "bad.ckpt"
    if form == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy ckpt")
    if form == "bin in a folder":
        shutil.move(path, copied / "unet" / "diffusion_pytorch_model.bin")
        (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        path = copied
    elif form == "renamed to safetensors":
        path = path.rename(tmp_path / "bad.safetensors")
    refused("corrupt or not safetensors" if "renamed" in form else "safetensors where you trust it", path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ""])
def test_other_suffixes_are_refused_unread(suffix: str, models: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save(ldm_whole(models), path)
    refused("is loaded: convert it to .safetensors", path)


@pytest.mark.parametrize("damage", ["half", "header", "empty", "lfs", "huge header"])
def test_damaged_safetensors(damage: str, copied: Path) -> None:
    path = copied / "unet" / "diffusion_pytorch_model.safetensors"
    content = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3438167540\n"
    changed = {"half": content[: len(content) // 2], "header": content[:100], "empty": b"", "lfs": pointer}
    path.write_bytes(changed.get(damage, struct.pack("<Q", 2**62) + content[8:]))
    refused("git lfs pull" if damage == "lfs" else r"corrupt.*bytes.*copy or download it again", copied)


def test_truncated_ckpt(models: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save(ldm_whole(models), path)
    path.write_bytes(path.read_bytes()[:5000])
    refused("corrupt", path)


def test_missing_parts(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("no model_index.json", tmp_path / "empty")
    refused("no UNet2DConditionModel.*no config.json", copied, unet=tmp_path / "empty")
    for part, match in (
        ("tokenizer/merges.txt", "merges.txt is missing"),
        ("scheduler/scheduler_config.json", "scheduler_config.json is missing"),
        ("text_encoder/config.json", "has no CLIPTextModel"),
        ("vae/diffusion_pytorch_model.safetensors", "holds no weights"),
        ("unet/config.json", "StableDiffusionPipeline and has no UNet2DConditionModel"),
    ):
        (copied / part).unlink()
        refused(match, copied)


def test_missing_shard(copied: Path, models: SimpleNamespace) -> None:
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    models.unet.save_pretrained(copied / "unet", max_shard_size="200KB")
    next((copied / "unet").glob("*-00002-*")).unlink()
    refused("shard .*00002.* is not beside it", copied)


def test_shard_outside_of_the_folder(copied: Path) -> None:
    (copied / "unet" / "diffusion_pytorch_model.safetensors").rename(copied / "elsewhere.safetensors")
    index = {"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}
    write_json(copied / "unet" / "diffusion_pytorch_model.safetensors.index.json", index)
    refused("is not beside it", copied)


@pytest.mark.parametrize(
    "content", ["{not json", "[1]", '{"_class_name": "UNet2DConditionModel", "layers_per_block": {}}']
)
def test_damaged_config(content: str, copied: Path) -> None:
    (copied / "unet" / "config.json").write_text(content)
    refused("not valid JSON|not a JSON object|not usable", copied)


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape", "nan", "quantised"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_every_tensor_is_accounted_for(part: str, change: str, copied: Path) -> None:
    path = next((copied / part).glob("*.safetensors"))
    state = load_file(path)
    name = next(name for name in state if name.endswith("weight"))
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state["strange.weight"] = torch.ones(2)
    else:
        value = {"shape": torch.ones(2, 3), "nan": state[name] * torch.nan, "quantised": state[name].to(torch.int8)}
        state[name] = value[change]
    save_file(state, path)
    match = {
        "missing": "lacks tensor",
        "unexpected": "unexpected tensor strange.weight",
        "shape": r"is \[2, 3\].*expects",
    }
    refused({**match, "nan": "NaN", "quantised": "int8"}[change], copied)


def test_tokenizer_of_another_model(copied: Path) -> None:
    path = copied / "tokenizer" / "vocab.json"
    write_json(path, json.loads(path.read_text()) | {"zebra</w>": 49407})
    refused("token id 49407 but the text encoder has", copied)


def test_damaged_tokenizer(copied: Path) -> None:
    (copied / "tokenizer" / "vocab.json").write_text("{")
    refused("tokenizer .* cannot be read", copied)


def test_unknown_prediction_type(copied: Path) -> None:
    write_json(
        copied / "scheduler" / "scheduler_config.json", {"_class_name": "DDIMScheduler", "prediction_type": "flow"}
    )
    refused("prediction_type 'flow'", copied)


def test_unreadable(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal of the operating system is simulated."""
    original = Path.open

    def deny(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == "diffusion_pytorch_model.safetensors":
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", deny)
    refused("diffusion_pytorch_model.safetensors cannot be read .Permission denied.*permissions", copied)


def test_libraries_keep_their_verbosity(folder: Path) -> None:
    from diffusers.utils import logging

    logging.set_verbosity_info()
    try:
        load_checkpoint(folder)
        assert logging.get_verbosity() == logging.INFO
    finally:
        logging.set_verbosity_warning()


def test_saved_file_may_change_after_loading(copied: Path) -> None:
    """Weights are copied out of the mapped file: overwriting it does not change a loaded model."""
    checkpoint = load_checkpoint(copied)
    before: Tensor = checkpoint.vae.decoder.conv_in.weight.clone()
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(bytes(path.stat().st_size // 2))
    assert torch.equal(before, checkpoint.vae.decoder.conv_in.weight)
    assert isinstance(checkpoint.vae, AutoencoderKL)


def test_folder_without_pipeline_index_is_named(tmp_path: Path, models: SimpleNamespace) -> None:
    folder = save_folder(models, tmp_path / "base")
    (folder / "model_index.json").unlink()
    refused("has no model_index.json", folder)
