"""Stable Diffusion v1's U-Net and its VAE's decoder, walked once: surroundings are left to what is passed in.

The modules are diffusers' own, with or without fused projections of their attentions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pie_engine.regional.surroundings import Dense


def unet(net: Any, ops: Dense, sample: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
    """A `UNet2DConditionModel`'s prediction.

    Args:
        ops: what layers do to their surroundings.
        sample: [B, 4, h, w]; with `Replay` the box's alone.
        timestep: [1] float32.
        context: [B, 77, D].
    """
    time = net.time_proj(timestep.expand(sample.shape[0])).to(sample.dtype)
    emb = F.silu(net.time_embedding(time))
    h = ops.conv(net.conv_in, sample)
    skips = [h]
    for block in net.down_blocks:
        for resnet, transformer in _layers(block):
            h = _transformer(ops, transformer, _resnet(ops, resnet, h, emb), context)
            skips.append(h)
        for down in block.downsamplers or ():
            h = ops.down(down.conv, h)
            skips.append(h)
    h = _resnet(ops, net.mid_block.resnets[0], h, emb)
    for transformer, resnet in zip(net.mid_block.attentions, net.mid_block.resnets[1:], strict=True):
        h = _resnet(ops, resnet, _transformer(ops, transformer, h, context), emb)
    for block in net.up_blocks:
        for resnet, transformer in _layers(block):
            h = _transformer(ops, transformer, _resnet(ops, resnet, torch.cat([h, skips.pop()], 1), emb), context)
        for up in block.upsamplers or ():
            h = ops.up(up.conv, h)
    return ops.conv(net.conv_out, h, net.conv_norm_out)


def decode(vae: Any, ops: Dense, latent: Tensor) -> Tensor:
    """An `AutoencoderKL`'s pixels [B, 3, 8 h, 8 w] of a latent divided by the scaling factor; begins at the coarsest
    level.
    """
    decoder = vae.decoder
    h = ops.conv(decoder.conv_in, latent if vae.post_quant_conv is None else vae.post_quant_conv(latent))
    h = _resnet(ops, decoder.mid_block.resnets[0], h)
    for attention, resnet in zip(decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=True):
        if attention is not None:
            rows = ops.norm(attention.group_norm, h).flatten(2).transpose(1, 2)
            h = h + _self_attention(ops, attention, rows).transpose(1, 2).unflatten(2, h.shape[2:])
        h = _resnet(ops, resnet, h)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            h = _resnet(ops, resnet, h)
        for up in block.upsamplers or ():
            h = ops.up(up.conv, h)
    return ops.conv(decoder.conv_out, h, decoder.conv_norm_out)


def _layers(block: Any) -> Iterator[tuple[Any, Any]]:
    return zip(block.resnets, getattr(block, "attentions", None) or [None] * len(block.resnets), strict=True)


def _resnet(ops: Dense, net: Any, x: Tensor, emb: Tensor | None = None) -> Tensor:
    h = ops.conv(net.conv1, x, net.norm1)
    if emb is not None:
        h = h + net.time_emb_proj(emb)[:, :, None, None]
    return (x if net.conv_shortcut is None else net.conv_shortcut(x)) + ops.conv(net.conv2, h, net.norm2)


def _transformer(ops: Dense, net: Any, x: Tensor, context: Tensor) -> Tensor:
    if net is None:
        return x
    rows = ops.norm(net.norm, x)
    # A convolution of one pixel in v1; a linear layer over tokens where the checkpoint says so.
    linear = isinstance(net.proj_in, nn.Linear)
    y = net.proj_in(rows.flatten(2).transpose(1, 2)) if linear else net.proj_in(rows).flatten(2).transpose(1, 2)
    for block in net.transformer_blocks:
        y = y + _self_attention(ops, block.attn1, block.norm1(y))
        y = y + _cross_attention(block.attn2, block.norm2(y), context)
        y = y + block.ff(block.norm3(y))
    if linear:
        return x + net.proj_out(y).transpose(1, 2).unflatten(2, x.shape[2:])
    return x + net.proj_out(y.transpose(1, 2).unflatten(2, x.shape[2:]))


def _self_attention(ops: Dense, attn: Any, x: Tensor) -> Tensor:
    if getattr(attn, "fused_projections", False):
        queries, keys, values = attn.to_qkv(x).chunk(3, dim=-1)
    else:
        queries, keys, values = attn.to_q(x), attn.to_k(x), attn.to_v(x)
    return _attend(attn, queries, *ops.tokens(keys, values))


def _cross_attention(attn: Any, x: Tensor, context: Tensor) -> Tensor:
    if getattr(attn, "fused_projections", False):
        keys, values = attn.to_kv(context).chunk(2, dim=-1)
    else:
        keys, values = attn.to_k(context), attn.to_v(context)
    return _attend(attn, attn.to_q(x), keys, values)


def _attend(attn: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    queries, keys, values = (part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in (queries, keys, values))
    return attn.to_out[0](F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2))
