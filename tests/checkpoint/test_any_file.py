"""Any file either loads or is refused in one line: configs, weights, LoRA. HYPOTHESIS_PROFILE=fuzz looks longer."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from generated import VALUES, changed, damaged
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from tiny_checkpoints import ldm_whole, make_models

from pie_engine.checkpoint import LoraSpec, lora
from pie_engine.checkpoint.components import (
    Part,
    check_unet_config,
    checked_scheduler,
    empty_text_encoder,
    empty_unet,
    empty_vae,
    quiet,
)
from pie_engine.checkpoint.json_files import parse_object
from pie_engine.checkpoint.single_file import identify, text_part, unet_part, vae_part
from pie_engine.checkpoint.weights import read_tensors
from pie_engine.errors import PieError
from pie_engine.rounds.schedule import build_schedule

GOLDEN = Path(__file__).parents[2] / "pie_engine" / "demo" / "checkpoint"
CONFIGS = {part: json.loads((GOLDEN / part / "config.json").read_text()) for part in ("unet", "vae", "text_encoder")}
SCHEDULER = json.loads((GOLDEN / "scheduler" / "scheduler_config.json").read_text())
SCHEDULERS = ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]


def loads_or_is_refused(make: Callable[[], Any]) -> Any:
    """What it makes, or None after an error of ours in one line."""
    try:
        with quiet():
            return make()
    except PieError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return None


@given(st.text(max_size=200) | st.binary(max_size=200) | VALUES.map(json.dumps))
def test_json(text: str | bytes) -> None:
    try:
        assert isinstance(parse_object(text), dict)
    except ValueError as error:
        assert str(error)


@given(changed(CONFIGS["unet"]))
def test_unet_config(config: dict[str, Any]) -> None:
    def make() -> Any:
        check_unet_config(Part(config, {}, "U"))
        return empty_unet(config, "U")

    loads_or_is_refused(make)


@given(changed(CONFIGS["vae"]))
def test_vae_config(config: dict[str, Any]) -> None:
    vae = loads_or_is_refused(lambda: empty_vae(config, "V"))
    assert vae is None or vae.config.scaling_factor > 0


@given(changed(CONFIGS["text_encoder"]))
def test_text_encoder_config(config: dict[str, Any]) -> None:
    loads_or_is_refused(lambda: empty_text_encoder(config, "T"))


@given(changed(SCHEDULER), st.sampled_from([None, *SCHEDULERS]))
def test_scheduler_config(config: dict[str, Any], name: str | None) -> None:
    def make() -> Any:
        known = checked_scheduler({**config, **({"_class_name": name} if name else {})}, "S")
        return build_schedule(known, name=None, num_inference_steps=4, denoising_steps=2)

    loads_or_is_refused(make)


_MODELS = make_models()
_WHOLE = ldm_whole(_MODELS)
_SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 32, 64]), max_size=4)


@given(st.data())
def test_single_file(data: st.DataObject) -> None:
    """Other shapes, fewer tensors, tensors of other models."""
    tensors = dict(_WHOLE)
    telling = [name for name in tensors if any(part in name for part in _TELLING)]
    for name in data.draw(st.lists(st.sampled_from(telling), min_size=1, max_size=3)):
        if data.draw(st.booleans()):
            tensors.pop(name, None)
        else:
            tensors[name] = torch.zeros(data.draw(_SHAPES))

    def make() -> Any:
        if identify(tensors, "F") == "sd1":
            return [part(tensors, "F", None) for part in (unet_part, vae_part, text_part)]
        return unet_part(tensors, "F", None)

    loads_or_is_refused(make)


_TELLING = (
    "input_blocks.", "out.2", "middle_block.1", "conv_in", "conv_out", "post_quant", "embeddings", "layers.0.mlp.fc1",
    "block.0.conv2", "mid.attn_1",
)  # fmt: skip


def _pickle() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.float16)}, "epoch": 3}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


def _archive(pickle: bytes) -> bytes:
    buffer, out = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.float16)}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(out, "w") as changed_archive:
        for name in archive.namelist():
            changed_archive.writestr(name, pickle if name.endswith("data.pkl") else archive.read(name))
    return out.getvalue()


@given(content=damaged(_pickle()).map(_archive) | damaged(_archive(_pickle())))
def test_pickled_tensors(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    path.write_bytes(content)
    loads_or_is_refused(lambda: read_tensors(path))


@given(content=damaged(save({"a": torch.zeros(2, 3)}, {"lora_adapter_metadata": "{}"})))
def test_safetensors(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)
    loads_or_is_refused(lambda: read_tensors(path))


_LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
_SETTINGS = {"unet.lora_alpha": 4, "unet.alpha_pattern": {"attn1.to_q": 2}, "unet.use_rslora": False, "lora_alpha": 1}
_NAMES = st.sampled_from(
    [f"unet.{_LAYER}.lora_A.weight", f"unet.{_LAYER}.lora_B.weight", f"unet.{_LAYER}.alpha",
     f"{_LAYER}.lora_mid.weight", f"lora_unet_{_LAYER.replace('.', '_')}.lora_down.weight",
     "base_model.model.x.lora_A.weight", "x"]
)  # fmt: skip
_DTYPES = st.sampled_from([torch.float32, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool, torch.complex64])


@given(
    shapes=st.dictionaries(_NAMES, st.tuples(st.sampled_from([(2, 32), (32, 2), ()]) | _SHAPES, _DTYPES), max_size=4),
    settings=changed(_SETTINGS) | VALUES,
    good=st.booleans(),
)
def test_lora(tmp_path_factory: pytest.TempPathFactory, shapes: Any, settings: Any, good: bool) -> None:
    tensors = {name: torch.zeros(tuple(shape)).to(dtype) for name, (shape, dtype) in shapes.items()}
    if good:
        tensors[f"unet.{_LAYER}.lora_A.weight"] = torch.ones(2, 32)
        tensors[f"unet.{_LAYER}.lora_B.weight"] = torch.zeros(32, 2)
    path = tmp_path_factory.getbasetemp() / "any-lora.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(settings)})
    models: SimpleNamespace = _MODELS
    loads_or_is_refused(lambda: lora.fuse(models.unet, models.text_encoder, LoraSpec(path)))
