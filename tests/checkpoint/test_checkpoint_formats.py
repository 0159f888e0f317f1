"""Every format gives the same models, bit for bit, and the same hashes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_checkpoints import SCHEDULER, ldm_unet, ldm_whole, make_models, same_weights, save_folder, write_json
from transformers import CLIPTextConfig, CLIPTextModel

from pie_engine.checkpoint import Checkpoint, load_checkpoint, single_file
from pie_engine.errors import CheckpointError


def is_loaded(checkpoint: Checkpoint, models: SimpleNamespace, unet: torch.nn.Module | None = None) -> bool:
    pairs = [(checkpoint.unet, unet or models.unet), (checkpoint.vae, models.vae)]
    return all(same_weights(*pair) for pair in [*pairs, (checkpoint.text_encoder, models.text_encoder)])


def cached(cache: Path, hub_id: str, source: Path, revision: str = "abc123", main: bool = True) -> None:
    """Put a folder into the hub cache's layout, blobs and links left out."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(source, repository / "snapshots" / revision)
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(revision)


def test_import_is_light() -> None:
    heavy = "import sys, pie_engine.checkpoint; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_folder(folder: Path, models: SimpleNamespace, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = load_checkpoint(folder)
    assert is_loaded(checkpoint, models)
    for model in (checkpoint.unet, checkpoint.vae, checkpoint.text_encoder):
        assert not model.training
        assert {(p.dtype, p.device.type, p.requires_grad) for p in model.parameters()} == {
            (torch.float32, "cpu", False)
        }
        assert not any(buffer.is_meta for buffer in model.buffers())
    assert checkpoint.scheduler_config == SCHEDULER
    assert (checkpoint.latent_channels, checkpoint.vae_scale, checkpoint.resolution_multiple) == (4, 8, 16)
    assert (checkpoint.default_resolution, checkpoint.scaling_factor, checkpoint.max_tokens) == (64, 0.18215, 77)
    assert checkpoint.prediction_type == "epsilon"
    assert checkpoint.sources["unet"] == f"{folder}/unet"
    assert capfd.readouterr() == ("", "")


def test_models_compute(folder: Path, models: SimpleNamespace) -> None:
    checkpoint = load_checkpoint(folder)
    ids = checkpoint.tokenizer("a lesion in", padding="max_length", return_tensors="pt").input_ids
    assert ids.shape == (1, 77)
    assert ids[0, 0] == checkpoint.tokenizer.bos_token_id
    states = checkpoint.text_encoder(ids).last_hidden_state  # [1, 77, 64]
    torch.testing.assert_close(states, models.text_encoder(ids).last_hidden_state, rtol=0, atol=0)
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    args = (sample, torch.tensor([3]), states)
    torch.testing.assert_close(checkpoint.unet(*args).sample, models.unet(*args).sample, rtol=0, atol=0)


def test_new_text_encoder_names(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.rmtree(copy / "text_encoder")
    models.text_encoder.save_pretrained(copy / "text_encoder")
    checkpoint = load_checkpoint(copy)
    assert is_loaded(checkpoint, models)
    assert checkpoint.hashes == load_checkpoint(folder).hashes


def test_old_vae_attention_names(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    renames = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, old in renames.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    assert "decoder.mid_block.attentions.0.proj_attn.bias" in state
    save_file(state, file)
    assert is_loaded(load_checkpoint(copy), models)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_whole_file(suffix: str, whole: Path, folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    path = whole
    if suffix == "ckpt":
        path = tmp_path / "model.ckpt"
        torch.save({"state_dict": ldm_whole(models), "global_step": 7}, path)
        shutil.copytree(whole.parent / "tokenizer", tmp_path / "tokenizer")
    checkpoint = load_checkpoint(path)
    assert is_loaded(checkpoint, models)
    assert checkpoint.hashes == load_checkpoint(folder).hashes
    assert checkpoint.scheduler_config["_class_name"] == "PNDMScheduler"
    assert checkpoint.default_resolution == 512
    assert "tokenizer" in checkpoint.sources["tokenizer"]


def test_whole_file_with_more_levels_and_layers(whole: Path, tmp_path: Path) -> None:
    deep = make_models(
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    save_file(ldm_whole(deep), tmp_path / "deep.safetensors")
    shutil.copytree(whole.parent / "tokenizer", tmp_path / "tokenizer")
    checkpoint = load_checkpoint(tmp_path / "deep.safetensors")
    assert is_loaded(checkpoint, deep)
    sample, states = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 64)
    expected = deep.unet(sample, 9, states).sample
    torch.testing.assert_close(checkpoint.unet(sample, 9, states).sample, expected, rtol=0, atol=0)


def test_whole_file_takes_config_from_its_pipeline_folder(folder: Path, whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.copy(whole, copy / "sd.safetensors")
    config = json.loads((copy / "unet" / "config.json").read_text()) | {"attention_head_dim": 4}
    write_json(copy / "unet" / "config.json", config)
    write_json(copy / "scheduler" / "scheduler_config.json", SCHEDULER | {"_class_name": "DDIMScheduler"})
    checkpoint = load_checkpoint(copy / "sd.safetensors")
    assert checkpoint.unet.config.attention_head_dim == 4
    assert checkpoint.scheduler_config["_class_name"] == "DDIMScheduler"


def test_published_sd_v1_shapes_give_its_config() -> None:
    """The layout of the real Stable Diffusion v1.4 file, on the meta device: no weights, no memory."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
    tensors = ldm_whole(SimpleNamespace(unet=unet, vae=vae, text_encoder=text))
    assert single_file.identify(tensors, "sd") == "sd1"
    parts = [single_file.unet_part(tensors, "sd", None), single_file.vae_part(tensors, "sd", None)]
    for part, model in zip(parts, (unet, vae), strict=True):
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        assert {name: tuple(value.shape) for name, value in part.tensors.items()} == shapes
        for key, value in part.config.items():
            if key not in ("_class_name", "sample_size"):
                expected = model.config[key]
                assert value == (list(expected) if isinstance(expected, tuple) else expected), key
    config = single_file.text_part(tensors, "sd", None).config
    assert {key: config[key] for key in ("num_hidden_layers", "num_attention_heads", "vocab_size", "hidden_act")} == {
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 49408,
        "hidden_act": "quick_gelu",
    }


@pytest.mark.parametrize("hub_id", ["openai/clip-vit-large-patch14", "CompVis/stable-diffusion-v1-4"])
def test_whole_file_takes_tokenizer_from_cache(
    hub_id: str, whole: Path, models: SimpleNamespace, hub_cache: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(whole, tmp_path / "alone.safetensors"))
    with pytest.raises(CheckpointError, match=r"hf download openai/clip-vit-large-patch14"):
        load_checkpoint(path)
    (tmp_path / "repo").mkdir()
    shutil.copytree(
        whole.parent / "tokenizer", tmp_path / "repo" / ("" if "clip" in hub_id else "tokenizer"), dirs_exist_ok=True
    )
    cached(hub_cache, hub_id, tmp_path / "repo")
    checkpoint = load_checkpoint(path)
    assert is_loaded(checkpoint, models)
    assert checkpoint.sources["tokenizer"] == f"hub:{hub_id}"


@pytest.mark.parametrize("layout", ["sharded", "fp16 name", "bin", "lone name"])
def test_unet_weight_layouts(layout: str, folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    if layout == "sharded":
        file.unlink()
        models.unet.save_pretrained(copy / "unet", max_shard_size="200KB")
        assert len(list(file.parent.glob("*.safetensors"))) > 1
    elif layout == "fp16 name":
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    elif layout == "bin":
        file.unlink()
        torch.save(models.unet.state_dict(), file.with_suffix(".bin"))
    else:
        file.rename(file.with_name("finetuned.safetensors"))
    checkpoint = load_checkpoint(copy)
    assert is_loaded(checkpoint, models)
    assert checkpoint.hashes == load_checkpoint(folder).hashes


def test_half_precision_is_upcast(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    half = {name: value.half() for name, value in models.unet.state_dict().items()}
    save_file(half, copy / "unet" / "diffusion_pytorch_model.safetensors")
    checkpoint = load_checkpoint(copy)
    loaded = checkpoint.unet.state_dict()
    assert all(torch.equal(loaded[name], value.float()) for name, value in half.items())
    hashes, original = checkpoint.hashes, load_checkpoint(folder).hashes
    assert hashes["unet"] != original["unet"]
    assert hashes["vae"] == original["vae"]


def test_hash_follows_content(folder: Path, tmp_path: Path) -> None:
    original = load_checkpoint(folder).hashes
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert load_checkpoint(copy).hashes == original
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["conv_in.bias"][0] += 1e-6
    save_file(state, file)
    config = json.loads((copy / "vae" / "config.json").read_text()) | {"scaling_factor": 0.2}
    write_json(copy / "vae" / "config.json", config)
    changed = load_checkpoint(copy).hashes
    assert {name for name in original if original[name] != changed[name]} == {"unet", "vae"}


@pytest.mark.parametrize("form", ["folder", "trainer", "pipeline", "diffusers file", "ldm file", "whole file"])
def test_unet_over_base(
    form: str, folder: Path, models: SimpleNamespace, other_unet: torch.nn.Module, tmp_path: Path
) -> None:
    unet = tmp_path / "tuned"
    if form == "folder":
        other_unet.save_pretrained(unet)
    elif form == "trainer":  # the published multi-GPU trainer's output
        other_unet.save_pretrained(unet / "text_encoder")
    elif form == "pipeline":
        save_folder(SimpleNamespace(**{**vars(models), "unet": other_unet}), unet)
    else:
        unet = tmp_path / "tuned.safetensors"
        prefixed = {f"model.diffusion_model.{name}": value for name, value in ldm_unet(other_unet).items()}
        whole = ldm_whole(SimpleNamespace(**{**vars(models), "unet": other_unet}))
        save_file({"diffusers file": other_unet.state_dict(), "ldm file": prefixed}.get(form, whole), unet)
    checkpoint = load_checkpoint(folder, unet=unet)
    assert is_loaded(checkpoint, models, other_unet)
    assert checkpoint.hashes["unet"] != load_checkpoint(folder).hashes["unet"]
    assert checkpoint.sources["unet"].startswith(str(unet))
    assert checkpoint.sources["vae"] == f"{folder}/vae"


def test_unet_over_single_file_base(
    whole: Path, models: SimpleNamespace, other_unet: torch.nn.Module, tmp_path: Path
) -> None:
    save_file(other_unet.state_dict(), tmp_path / "tuned.safetensors")
    assert is_loaded(load_checkpoint(whole, unet=tmp_path / "tuned.safetensors"), models, other_unet)


def test_unet_alone(
    folder: Path, whole: Path, models: SimpleNamespace, other_unet: torch.nn.Module, hub_cache: Path, tmp_path: Path
) -> None:
    inside = folder / "unet" / "diffusion_pytorch_model.safetensors"
    for path in (folder, folder / "unet", inside, whole):
        assert is_loaded(load_checkpoint(unet=path), models)
    other_unet.save_pretrained(tmp_path / "out" / "text_encoder")
    with pytest.raises(CheckpointError, match=r"hf download CompVis/stable-diffusion-v1-4"):
        load_checkpoint(unet=tmp_path / "out")
    cached(hub_cache, "CompVis/stable-diffusion-v1-4", folder)
    checkpoint = load_checkpoint(unet=tmp_path / "out")
    assert is_loaded(checkpoint, models, other_unet)
    assert checkpoint.sources["vae"] == "hub:CompVis/stable-diffusion-v1-4/vae"


@pytest.mark.parametrize("main", [True, False])
def test_hub_id(main: bool, folder: Path, models: SimpleNamespace, hub_cache: Path) -> None:
    cached(hub_cache, "clinic/chest", folder, main=main)
    checkpoint = load_checkpoint("clinic/chest")
    assert is_loaded(checkpoint, models)
    assert checkpoint.sources["unet"] == "hub:clinic/chest/unet"


def test_hub_id_honours_hf_home(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    cached(tmp_path / "home" / "hub", "clinic/chest", folder)
    assert load_checkpoint("clinic/chest").sources["vae"] == "hub:clinic/chest/vae"


def test_sd2_folder_with_v_prediction(tmp_path: Path) -> None:
    linear = make_models(use_linear_projection=True, attention_head_dim=[4, 8])
    folder = save_folder(linear, tmp_path / "sd2")
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER | {"prediction_type": "v_prediction"})
    checkpoint = load_checkpoint(folder)
    assert is_loaded(checkpoint, linear)
    assert checkpoint.prediction_type == "v_prediction"
