"""LoRA, fused on load: W += scale * alpha / rank * up @ down. No adapter is left, so every backend gets it.

Names understood, for linear and convolution layers of the U-Net and the text encoder:
- kohya: lora_unet_<path with _>.lora_down.weight, .lora_up.weight, .alpha; lora_te_text_model_...
- diffusers and peft: unet.<path>.lora_A.weight, .lora_B.weight; unet.<path>.lora.down.weight, .lora.up.weight;
  text_encoder.<path>.lora_linear_layer.down.weight
- old diffusers attention processors: [unet.]<attention>.processor.to_q_lora.down.weight
- peft's adapter_model.safetensors: base_model.model.<path>.lora_A.weight, with adapter_config.json beside it
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pie_engine.checkpoint.descriptions import PeftDescription, validate_config
from pie_engine.checkpoint.json_files import parse_object, read_json
from pie_engine.checkpoint.locate import resolve
from pie_engine.checkpoint.spec import LoraSpec
from pie_engine.checkpoint.weights import read_metadata, read_tensors, to_float32, weight_files
from pie_engine.errors import CheckpointError, argument

_DOWN = re.compile(r"(\.lora_down|\.lora\.down|\.lora_linear_layer\.down|_lora\.down|\.lora_A(\.\w+)?)\.weight")
_UP = re.compile(r"(\.lora_up|\.lora\.up|\.lora_linear_layer\.up|_lora\.up|\.lora_B(\.\w+)?)\.weight")
_ALPHA = re.compile(r"(_lora|\.lora|\.lora_linear_layer)?\.alpha")
# Part of a tensor name -> the method it belongs to, none of which is a plain up @ down.
_OTHER_METHODS = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_w": "LoHa",
    "lokr_w": "LoKr",
    "lora_mid": "LoCon with Tucker decomposition",
    "oft_": "OFT",
    "on_input": "IA3",
}
_PEFT_PREFIX = "base_model.model."


@dataclass(eq=False)
class _Layer:
    """What a file says about one layer: down [rank, in, ...], up [out, rank, ...], alpha."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def fuse(unet: nn.Module, text_encoder: nn.Module, spec: LoraSpec) -> dict[str, int]:
    """Add one LoRA to the weights, in place -> component name -> how many layers it changed.

    Raises CheckpointError if the file cannot be read, has a tensor that fits no layer, changes nothing, or is of
    another method.
    """
    place = resolve(spec.path)
    path = place.path
    if path.is_dir():
        path = weight_files(path, ("pytorch_lora_weights", "adapter_model"))[0]
    tensors = read_tensors(path)
    _refuse_other_methods(tensors, place.label)
    settings = _peft_settings(path, tensors)
    components = {"unet": unet, "text_encoder": text_encoder}
    modules = {
        (component, name): module
        for component, model in components.items()
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    }
    layers = _match(tensors, _aliases(modules), place.label)
    deltas = {
        target: _delta(layer, modules[target].weight.shape, _alpha_default(settings, *target), place.label)
        for target, layer in layers.items()
    }
    if not any(bool(up.any() and down.any()) for up, down, _ in deltas.values()):
        raise CheckpointError(
            f"LoRA {place.label} changes no layer of this model; pass a LoRA for Stable Diffusion v1.x"
        )
    for target, (up, down, factor) in deltas.items():
        weight = modules[target].weight
        with torch.no_grad():
            weight.add_((up @ down).reshape(weight.shape), alpha=spec.scale * factor)
        if not torch.isfinite(weight).all():
            raise CheckpointError(
                f"LoRA {place.label} x {spec.scale:g} makes {'.'.join(target)} infinite; use a smaller scale"
            )
    counts = {component: sum(target[0] == component for target in deltas) for component in components}
    return {component: count for component, count in counts.items() if count}


def _refuse_other_methods(tensors: Mapping[str, Tensor], source: str) -> None:
    for name in tensors:
        for marker, method in _OTHER_METHODS.items():
            if marker in name:
                raise CheckpointError(
                    f"LoRA {source} is a {method} (tensor {name}); plain LoRA is fused: merge it into the U-Net with "
                    f"the tool that made it, and pass the result as {argument('unet')}",
                    field="lora",
                    value=source,
                )


def _aliases(modules: Mapping[tuple[str, str], nn.Module]) -> dict[str, tuple[str, str]]:
    """Every name that a file may use for a layer -> (component, module name)."""
    aliases: dict[str, tuple[str, str]] = {}
    for target in modules:
        component, name = target
        if component == "unet":
            names = [name, f"unet.{name}", "lora_unet_" + name.replace(".", "_")]
        else:
            # transformers 5 dropped the "text_model." level; files have it.
            bare = name.removeprefix("text_model.")
            nested = f"text_model.{bare}"
            names = [nested, f"text_encoder.{bare}", f"text_encoder.{nested}", "lora_te_" + nested.replace(".", "_")]
        aliases.update(dict.fromkeys(names, target))
    return aliases


def _match(
    tensors: Mapping[str, Tensor], aliases: Mapping[str, tuple[str, str]], source: str
) -> dict[tuple[str, str], _Layer]:
    """Sort the file's tensors to the model's layers. Raises CheckpointError if one is left over."""
    layers: dict[tuple[str, str], _Layer] = {}
    unmatched = []
    for key, tensor in tensors.items():
        name, role = _split(key)
        target = aliases.get(name) or aliases.get(f"{name}.0")  # processors call to_out.0 "to_out"
        if role is None or target is None:
            unmatched.append(key)
            continue
        layer = layers.setdefault(target, _Layer())
        if role in layer.tensors:
            raise CheckpointError(
                f"LoRA {source} has two tensors for one layer ({layer.names[role]} and {key}); one is expected: pass "
                "a LoRA with one adapter"
            )
        layer.tensors[role], layer.names[role] = tensor, key
    if unmatched:
        raise CheckpointError(
            f"LoRA {source} has {len(unmatched)} of {len(tensors)} tensors that fit no layer of this model (first: "
            f"{unmatched[0]}); pass a LoRA trained for this Stable Diffusion v1.x architecture"
        )
    for target, layer in layers.items():
        if not {"down", "up"} <= layer.tensors.keys():
            raise CheckpointError(
                f"LoRA {source} has only {', '.join(layer.tensors)} for {'.'.join(target)}; down and up are expected: "
                "copy or download it again"
            )
    return layers


def _split(key: str) -> tuple[str, str | None]:
    """A tensor's name -> the layer's name and "down", "up", "alpha", or None for neither."""
    for role, pattern in (("down", _DOWN), ("up", _UP), ("alpha", _ALPHA)):
        found = re.search(rf"({pattern.pattern})$", key)
        if found:
            return key[: found.start()].removeprefix(_PEFT_PREFIX).replace(".processor.", "."), role
    return key, None


def _delta(
    layer: _Layer, shape: torch.Size, default_alpha: tuple[float | None, bool], source: str
) -> tuple[Tensor, Tensor, float]:
    """One layer -> up [out, rank], down [rank, in * kh * kw], alpha / rank.

    shape: the weight's, [out, in(, kh, kw)].
    """
    name = layer.names["down"]
    for role in ("down", "up"):
        if layer.tensors[role].ndim < 2 or not layer.tensors[role].numel():
            raise CheckpointError(
                f"LoRA {source} has {layer.names[role]} of shape {list(layer.tensors[role].shape)}; a matrix is "
                "expected: copy or download it again"
            )
    down = to_float32(name, layer.tensors["down"], f"LoRA {source}").flatten(1)
    up = to_float32(layer.names["up"], layer.tensors["up"], f"LoRA {source}").flatten(1)
    rank = down.shape[0]
    if up.shape[1] != rank or (up.shape[0], down.shape[1]) != (shape[0], shape[1:].numel()):
        raise CheckpointError(
            f"LoRA {source} has {name} for a weight [{up.shape[0]}, {down.shape[1]}] (ranks {rank} and "
            f"{up.shape[1]}), the model's is {list(shape)}; pass a LoRA trained for this model"
        )
    alpha, rank_stabilised = default_alpha
    if "alpha" in layer.tensors:
        alpha = _number(layer.tensors["alpha"])
    if alpha is None:
        alpha = float(rank)  # without an alpha, up @ down is meant as it is
    if not math.isfinite(alpha):
        raise CheckpointError(
            f"LoRA {source} has alpha {alpha} at {name}; a finite number is expected: train or export it again"
        )
    return up, down, alpha / (math.sqrt(rank) if rank_stabilised else rank)


def _number(tensor: Tensor) -> float:
    """The only number of a tensor; NaN if it holds another count or kind of them."""
    return float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else math.nan


def _peft_settings(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """peft's settings, which hold the alpha that the tensors lack, by component; "" holds what is meant for all.

    Raises:
        CheckpointError: they cannot be read, are out of bounds, or tell of a DoRA.
    """
    text = read_metadata(path).get("lora_adapter_metadata")  # written by diffusers' save_lora_weights
    beside = path.parent / "adapter_config.json"
    config: dict[str, Any] = {}
    if text:
        try:
            config = parse_object(text)
        except ValueError:
            raise CheckpointError(f"LoRA {path} has unreadable lora_adapter_metadata; export it again") from None
    elif beside.is_file() and any(name.startswith(_PEFT_PREFIX) for name in tensors):
        config = read_json(beside)
    settings: dict[str, dict[str, Any]] = {"": {}}
    for key, value in config.items():
        component, _, name = key.rpartition(".")  # "unet.lora_alpha"; in peft's own folder "lora_alpha"
        settings.setdefault(component, {})[name] = value
    described = {name: validate_config(PeftDescription, values, f"LoRA {path}") for name, values in settings.items()}
    for component, values in described.items():
        if values.get("use_dora"):
            raise CheckpointError(
                f"LoRA {path} is a DoRA ({f'{component}.' if component else ''}use_dora); plain LoRA is fused: merge "
                "it into the U-Net with the tool that made it"
            )
    return described


def _alpha_default(settings: Mapping[str, Mapping[str, Any]], component: str, name: str) -> tuple[float | None, bool]:
    """(alpha that peft's settings give a layer or None, whether it is divided by sqrt(rank) instead of rank)."""
    known = {**settings[""], **settings.get(component, {})}
    alpha = known.get("lora_alpha")
    for pattern, value in (known.get("alpha_pattern") or {}).items():
        layer = pattern.removeprefix("^").replace("\\.", ".")
        if name == layer or (not pattern.startswith("^") and name.endswith(f".{layer}")):
            alpha = value
    return (None if alpha is None else float(alpha)), bool(known.get("use_rslora"))
