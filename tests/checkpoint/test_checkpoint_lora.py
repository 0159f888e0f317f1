"""LoRA of every naming scheme against W + scale * alpha / rank * up @ down, in the weights and in a forward pass."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import write_json
from torch import Tensor, nn

from pie_engine.checkpoint import LoraSpec, load_checkpoint
from pie_engine.errors import CheckpointError

RANK = 4
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LINEAR = f"{ATTENTION}.to_q"  # [32, 32]
OUT = f"{ATTENTION}.to_out.0"
CONV1 = "down_blocks.0.attentions.0.proj_in"  # 1x1 convolution
CONV3 = "mid_block.resnets.1.conv1"  # 3x3 convolution
TEXT = "encoder.layers.1.self_attn.q_proj"  # [64, 64]

Naming = Callable[
    [str, str], str
]  # (module, "down" | "up" | "alpha") -> tensor name; text modules come as "text:<module>"


def kohya(module: str, role: str) -> str:
    text = module.startswith("text:")
    stem = f"lora_te_text_model_{module[5:]}" if text else f"lora_unet_{module}"
    return stem.replace(".", "_") + (".alpha" if role == "alpha" else f".lora_{role}.weight")


def peft(module: str, role: str) -> str:
    stem = f"text_encoder.text_model.{module[5:]}" if module.startswith("text:") else f"unet.{module}"
    return f"{stem}." + {"down": "lora_A.weight", "up": "lora_B.weight", "alpha": "alpha"}[role]


def diffusers(module: str, role: str) -> str:
    if module.startswith("text:"):
        return f"text_encoder.text_model.{module[5:]}.lora_linear_layer.{role}.weight"
    return f"unet.{module}.lora.{role}.weight"


def processor(module: str, role: str) -> str:
    attention, _, layer = module.removesuffix(".0").rpartition(".")
    return f"{attention}.processor.{layer}_lora.{role}.weight"


def peft_folder(module: str, role: str) -> str:
    return f"base_model.model.{module}.lora_{'A' if role == 'down' else 'B'}.weight"


def weight_of(models: SimpleNamespace, module: str) -> Tensor:
    root = models.text_encoder if module.startswith("text:") else models.unet
    return root.get_submodule(module.removeprefix("text:")).weight


def make(models: SimpleNamespace, modules: list[str], naming: Naming, alpha: float | None) -> tuple[dict, dict]:
    """A LoRA -> its tensors, and per module the up @ down in the weight's shape, alpha and scale left out."""
    random = torch.Generator().manual_seed(1)
    tensors, products = {}, {}
    for module in modules:
        shape = weight_of(models, module).shape
        down = torch.randn(RANK, *shape[1:], generator=random) * 0.2
        up = torch.randn(shape[0], RANK, *(1 for _ in shape[2:]), generator=random) * 0.2
        tensors |= {naming(module, "down"): down, naming(module, "up"): up}
        if alpha is not None:
            tensors[naming(module, "alpha")] = torch.tensor(alpha)
        products[module] = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).reshape(shape)
    return tensors, products


CASES = {
    "kohya": (kohya, [LINEAR, OUT, CONV1, CONV3, f"text:{TEXT}"], 2.0),
    "kohya without alpha": (kohya, [LINEAR], None),
    "peft": (peft, [LINEAR, OUT, CONV1, CONV3, f"text:{TEXT}"], None),
    "peft with alpha": (peft, [LINEAR], 8.0),
    "diffusers": (diffusers, [LINEAR, OUT, CONV1, f"text:{TEXT}"], None),
    "attention processors": (processor, [LINEAR, OUT], None),
}


@pytest.mark.parametrize("case", CASES)
def test_fused(case: str, folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    naming, modules, alpha = CASES[case]
    tensors, products = make(models, modules, naming, alpha)
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    scale = 0.8
    checkpoint = load_checkpoint(folder, lora=[LoraSpec(path, scale)])
    expected = copy.deepcopy(models)
    for module, product in products.items():
        weight_of(expected, module).data.add_(scale * (RANK if alpha is None else alpha) / RANK * product)
    for loaded, wanted in ((checkpoint.unet, expected.unet), (checkpoint.text_encoder, expected.text_encoder)):
        torch.testing.assert_close(loaded.state_dict(), wanted.state_dict(), rtol=0, atol=1e-6)  # one rounding of fp32
    ids = torch.arange(77)[None] % 50
    sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    got, want, plain = (
        parts.unet(sample, torch.tensor([5]), parts.text_encoder(ids).last_hidden_state).sample
        for parts in (checkpoint, expected, models)
    )
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    assert (want - plain).abs().max() > 1e-3
    original = load_checkpoint(folder).hashes
    assert checkpoint.hashes["unet"] != original["unet"]
    assert (checkpoint.hashes["text_encoder"] != original["text_encoder"]) == any("text:" in name for name in modules)
    assert f"LoRA {path} x 0.8" in checkpoint.sources["unet"]


def test_two_add_up_and_scale_zero_does_nothing(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(make(models, [LINEAR], kohya, 2.0)[0], path)
    once = load_checkpoint(folder, lora=[LoraSpec(path, 1.0)]).unet.get_submodule(LINEAR).weight
    twice = load_checkpoint(folder, lora=[LoraSpec(path, 0.5), LoraSpec(path, 0.5)]).unet.get_submodule(LINEAR).weight
    torch.testing.assert_close(twice, once, rtol=0, atol=1e-6)
    assert load_checkpoint(folder, lora=[LoraSpec(path, 0.0)]).hashes == load_checkpoint(folder).hashes


@pytest.mark.parametrize("form", ["metadata", "adapter_config.json", "rank stabilised"])
def test_alpha_from_peft_settings(form: str, folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    """peft keeps alpha outside of the tensors; taking alpha = rank there would fuse at the wrong strength."""
    naming = peft_folder if form == "adapter_config.json" else peft
    tensors, products = make(models, [LINEAR, OUT], naming, None)
    settings = {"r": RANK, "lora_alpha": 8, "alpha_pattern": {"attn1.to_q": 2}, "use_rslora": form == "rank stabilised"}
    if form == "adapter_config.json":
        path = tmp_path
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        write_json(tmp_path / "adapter_config.json", settings)
    else:
        path = tmp_path / "lora.safetensors"
        metadata = {f"unet.{key}": value for key, value in settings.items()}
        save_file(tensors, path, {"lora_adapter_metadata": json.dumps(metadata)})
    unet = load_checkpoint(folder, lora=[LoraSpec(path)]).unet
    divisor = RANK**0.5 if form == "rank stabilised" else RANK
    for module, alpha in ((LINEAR, 2), (OUT, 8)):
        expected = weight_of(models, module) + alpha / divisor * products[module]
        torch.testing.assert_close(unet.get_submodule(module).weight, expected, rtol=0, atol=1e-6)


def refused(folder: Path, tensors: dict[str, Tensor], tmp_path: Path, match: str) -> None:
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_checkpoint(folder, lora=[LoraSpec(path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "method"),
    [("dora_scale", "DoRA"), ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("lora_mid.weight", "Tucker")],
)
def test_other_methods_are_refused_by_name(
    name: str, method: str, folder: Path, models: SimpleNamespace, tmp_path: Path
) -> None:
    tensors = make(models, [LINEAR], kohya, 2.0)[0]
    extra = kohya(LINEAR, "alpha").replace("alpha", name)
    refused(folder, {**tensors, extra: torch.ones(1)}, tmp_path, method)


def test_unmatched_are_refused_with_first_and_count(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    tensors = make(models, [LINEAR], kohya, 2.0)[0]
    strange = {f"lora_te2_layer_{index}.lora_up.weight": torch.ones(4, 4) for index in range(3)}
    refused(folder, {**tensors, **strange}, tmp_path, "3 of 6 tensors .*first: lora_te2_layer_0")


def test_misfits_are_refused(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    tensors = make(models, [LINEAR], kohya, 2.0)[0]
    wide = torch.ones(RANK, 320)
    refused(folder, {**tensors, kohya(LINEAR, "down"): wide}, tmp_path, r"\[32, 320\].*\[32, 32\]")
    refused(folder, {kohya(LINEAR, "down"): tensors[kohya(LINEAR, "down")]}, tmp_path, "down and up are expected")
    zeros = {name: torch.zeros_like(value) if "up" in name else value for name, value in tensors.items()}
    refused(folder, zeros, tmp_path, "changes no layer")
    refused(folder, {**tensors, kohya(LINEAR, "up"): torch.full((32, RANK), torch.nan)}, tmp_path, "NaN")
    refused(folder, {**tensors, kohya(LINEAR, "alpha"): torch.tensor(torch.inf)}, tmp_path, "alpha inf")


def test_model_given_as_lora_and_lora_given_as_model(folder: Path, models: SimpleNamespace, tmp_path: Path) -> None:
    refused(folder, models.unet.state_dict(), tmp_path, "fit no layer")
    save_file(make(models, [LINEAR], kohya, 2.0)[0], tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="pass it as lora="):
        load_checkpoint(folder, unet=tmp_path / "lora.safetensors")


def test_every_layer_can_be_named(models: SimpleNamespace, folder: Path, tmp_path: Path) -> None:
    """No two modules share a kohya name, so that none is fused into the wrong layer."""
    modules = [name for name, module in models.unet.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    tensors, products = make(models, modules, kohya, None)
    save_file(tensors, tmp_path / "all.safetensors")
    unet = load_checkpoint(folder, lora=[LoraSpec(tmp_path / "all.safetensors")]).unet
    for module, product in products.items():
        expected = weight_of(models, module) + product
        torch.testing.assert_close(unet.get_submodule(module).weight, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [("a.safetensors", "a.safetensors", 1.0), ("b/a.safetensors:0.8", "b/a.safetensors", 0.8), ("a:-1", "a", -1.0)],
)
def test_parse(text: str, path: str, scale: float) -> None:
    assert LoraSpec.parse(text) == LoraSpec(Path(path), scale)


@pytest.mark.parametrize("text", ["a.safetensors:strong", "a.safetensors:nan", "a.safetensors:"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(CheckpointError, match="number"):
        LoraSpec.parse(text)
