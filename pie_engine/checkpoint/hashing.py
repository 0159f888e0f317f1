"""Content hashes of what was loaded: the same model has the same hash from any file format and sharding."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTokenizer

# Only what changes the numbers: a library's bookkeeping differs between versions and between file formats.
_UNET_IGNORED = {"sample_size"}
_VAE_KEYS = [
    "in_channels",
    "out_channels",
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "down_block_types",
    "up_block_types",
    "act_fn",
    "norm_num_groups",
    "scaling_factor",
    "shift_factor",
    "latents_mean",
    "latents_std",
    "mid_block_add_attention",
    "use_quant_conv",
    "use_post_quant_conv",
]
TEXT_KEYS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
]


def hash_unet(model: UNet2DConditionModel) -> str:
    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_") and k not in _UNET_IGNORED}
    return hash_tensors(config, model.state_dict())


def hash_vae(model: AutoencoderKL) -> str:
    config = dict(model.config)
    return hash_tensors({key: config.get(key) for key in _VAE_KEYS}, model.state_dict())


def hash_text_encoder(model: CLIPTextModel) -> str:
    # transformers 5 dropped the "text_model." level from its names: hash without it.
    tensors = {name.removeprefix("text_model."): tensor for name, tensor in model.state_dict().items()}
    return hash_tensors({key: getattr(model.config, key) for key in TEXT_KEYS}, tensors)


def hash_tokenizer(tokenizer: CLIPTokenizer) -> str:
    """Over vocabulary, merges, special tokens and length: what decides which ids a prompt becomes."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    content = [sorted(model["vocab"].items()), model["merges"], special, tokenizer.model_max_length]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def hash_tensors(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """sha256 over config entries (None = absent) and over name, dtype, shape and bytes of every tensor, sorted by name.

    Each tensor is hashed by itself, in threads (hashlib releases the GIL), and the digests are hashed in order.
    """
    entries = {key: value for key, value in config.items() if value is not None}
    total = hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode())
    names = sorted(tensors)
    # Two workers even on one core: the next tensor is paged in while this one is hashed.
    with ThreadPoolExecutor(max_workers=max(2, min(8, os.cpu_count() or 1))) as pool:
        for name, digest in zip(names, pool.map(lambda name: _digest(tensors[name]), names), strict=True):
            tensor = tensors[name]
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {digest}\n".encode())
    return total.hexdigest()


def _digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().flatten().numpy().data).hexdigest()
