"""Stable Diffusion's blocks as a GPU runs them fast: channels last, norms fused with what surrounds them.

The modules here take the weights of diffusers' own, in place, and compute the same with fewer launches and no copies
between memory layouts. What a U-Net computes from the timestep alone (22 projections in SD v1) and from the prompt
alone (16 keys and values) leaves its blocks: both become inputs, computed where they change, and each block takes its
part of them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pie_engine.kernels.blocks import BlockKernels


class FusedGroupNorm(nn.Module):
    """Group norm of a channels-last image, [N, C, H, W] or [N, C, L], with the activation that follows it."""

    def __init__(self, norm: nn.GroupNorm, kernels: BlockKernels, *, silu: bool):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self._groups, self._eps, self._silu, self._kernels = norm.num_groups, norm.eps, silu, kernels

    def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """Args: shift: [1, C], added before the norm."""
        if not x.movedim(1, -1).is_contiguous():
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        return self._kernels.group_norm(
            x, self.weight, self.bias, self._groups, self._eps, silu=self._silu, shift=shift
        )


class FusedResnet(nn.Module):
    """A residual block. The biases of its convolutions move: the first into what is added before the second norm, the
    second, and that of the shortcut, into the addition at the block's end.

    Args:
        span: where the block's own addition stands in the time projections; None for a VAE's, which has none.
    """

    def __init__(self, block: Any, kernels: BlockKernels, span: slice | None):
        super().__init__()
        self.norm1 = FusedGroupNorm(block.norm1, kernels, silu=True)
        self.norm2 = FusedGroupNorm(block.norm2, kernels, silu=True)
        self.conv1, self.conv2, self.conv_shortcut = block.conv1, block.conv2, block.conv_shortcut
        bias = block.conv2.bias
        if block.conv_shortcut is not None and block.conv_shortcut.bias is not None:
            bias = bias + block.conv_shortcut.bias
            block.conv_shortcut.bias = None
        self.bias = nn.Parameter(bias.detach(), requires_grad=False)
        self.shift = None if span is not None else nn.Parameter(block.conv1.bias.detach()[None], requires_grad=False)
        self.conv1.bias = self.conv2.bias = None
        self._span, self._kernels = span, kernels

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Args: temb: [1, all blocks' channels], the time projections, biases of the first convolutions included."""
        shift = self.shift if self._span is None or temb is None else temb[:, self._span]
        y = self.conv2(self.norm2(self.conv1(self.norm1(x)), shift))
        residual = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return self._kernels.add_residual(y, residual, self.bias)


class FusedTransformer(nn.Module):
    """A transformer over the pixels of an image: rows of channels in memory, so that no layout changes on the way.

    Args:
        spans: for each of its blocks, where its keys and values stand in the projections of the context.
    """

    def __init__(self, transformer: Any, kernels: BlockKernels, spans: list[slice]):
        super().__init__()
        self.norm = FusedGroupNorm(transformer.norm, kernels, silu=False)
        self.proj_in, self.proj_out = transformer.proj_in, transformer.proj_out
        self.blocks = nn.ModuleList(
            _TransformerBlock(block, kernels, span)
            for block, span in zip(transformer.transformer_blocks, spans, strict=True)
        )
        self._kernels = kernels

    def forward(self, x: Tensor, encoder_hidden_states: Tensor, **unused: Any) -> tuple[Tensor]:
        """Args: encoder_hidden_states: [N, 77, all blocks' channels], keys and values of the context."""
        batch, channels, height, width = x.shape
        rows = self.norm(x).movedim(1, -1).reshape(batch, height * width, channels)
        h = _linear(self.proj_in, rows)
        for block in self.blocks:
            h = block(h, encoder_hidden_states)
        h = _linear(self.proj_out, h)
        residual = x.movedim(1, -1).reshape(batch, height * width, channels)
        y = self._kernels.add_residual(h, residual)
        return (y.view(batch, height, width, channels).movedim(-1, 1),)


class _TransformerBlock(nn.Module):
    def __init__(self, block: Any, kernels: BlockKernels, span: slice):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        attn1, attn2 = block.attn1, block.attn2
        qkv = [attn1.to_q, attn1.to_k, attn1.to_v]
        self.to_qkv = nn.Parameter(torch.cat([part.weight.detach() for part in qkv]), requires_grad=False)
        self.to_q, self.to_out1, self.to_out2 = attn2.to_q, attn1.to_out[0], attn2.to_out[0]
        self.ff_in, self.ff_out = block.ff.net[0].proj, block.ff.net[2]
        self._heads1, self._heads2, self._span, self._kernels = attn1.heads, attn2.heads, span, kernels

    def forward(self, h: Tensor, keys_values: Tensor) -> Tensor:
        k = self._kernels
        _, normed = self._norm(self.norm1, h, None)
        query, key, value = F.linear(normed, self.to_qkv).chunk(3, dim=-1)
        h, normed = self._norm(self.norm2, self.to_out1(_attend(query, key, value, self._heads1)), h)
        key, value = keys_values[..., self._span].chunk(2, dim=-1)
        h, normed = self._norm(self.norm3, self.to_out2(_attend(self.to_q(normed), key, value, self._heads2)), h)
        return k.add_residual(self.ff_out(k.geglu(self.ff_in(normed))), h)

    def _norm(self, norm: nn.LayerNorm, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._kernels.add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)


class TimeProjections(nn.Module):
    """What every residual block of a U-Net adds for a timestep, [R] -> [R, all blocks' channels]."""

    def __init__(self, unet: Any, resnets: list[Any]):
        super().__init__()
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        weights = [resnet.time_emb_proj.weight.detach() for resnet in resnets]
        biases = [resnet.time_emb_proj.bias.detach() + resnet.conv1.bias.detach() for resnet in resnets]
        self.weight = nn.Parameter(torch.cat(weights), requires_grad=False)
        self.bias = nn.Parameter(torch.cat(biases), requires_grad=False)

    def forward(self, timesteps: Tensor) -> Tensor:
        embedded = self.time_embedding(self.time_proj(timesteps).to(self.weight.dtype))
        return F.linear(F.silu(embedded), self.weight, self.bias)


class ContextProjections(nn.Module):
    """Keys and values of every cross-attention of a U-Net, [N, 77, D] -> [N, 77, all blocks' channels]."""

    def __init__(self, blocks: list[Any]):
        super().__init__()
        parts = [part.weight.detach() for block in blocks for part in (block.attn2.to_k, block.attn2.to_v)]
        self.weight = nn.Parameter(torch.cat(parts), requires_grad=False)

    def forward(self, context: Tensor) -> Tensor:
        return F.linear(context, self.weight)


def is_fused(model: Any) -> bool:
    """Whether a U-Net's or VAE's blocks are those of this module already."""
    return any(isinstance(module, FusedResnet) for module in model.modules())


def fuse_unet(unet: Any, kernels: BlockKernels) -> None:
    """Replace a U-Net's blocks in place. From then on it takes the time projections in place of timesteps, and the
    projected context: `unet.time_projections` and `unet.context_projections` make them.

    Raises:
        NotImplementedError: it has parts that the blocks here do not know; nothing has been changed then.
    """
    _check_unet(unet)
    resnets = list(_instances(unet, "ResnetBlock2D"))
    transformers = list(_instances(unet, "Transformer2DModel"))
    blocks = [block for _, _, transformer in transformers for block in transformer.transformer_blocks]
    unet.time_projections = TimeProjections(unet, [resnet for _, _, resnet in resnets])
    unet.context_projections = ContextProjections(blocks)
    unet.time_proj, unet.time_embedding = None, _Given()
    unet.get_time_embed = _as_given
    spans = _spans(resnet.out_channels for _, _, resnet in resnets)
    for (parent, name, resnet), span in zip(resnets, spans, strict=True):
        setattr(parent, name, FusedResnet(resnet, kernels, span))
    widths = _spans(block.attn2.to_k.out_features * 2 for block in blocks)
    for parent, name, transformer in transformers:
        parts = list(itertools.islice(widths, len(transformer.transformer_blocks)))
        setattr(parent, name, FusedTransformer(transformer, kernels, parts))
    unet.conv_norm_out, unet.conv_act = FusedGroupNorm(unet.conv_norm_out, kernels, silu=True), nn.Identity()


def fuse_vae(vae: Any, kernels: BlockKernels) -> None:
    """Replace the blocks and norms of a VAE's encoder and decoder in place.

    Raises:
        NotImplementedError: it has parts that the blocks here do not know; nothing has been changed then.
    """
    for _, _, resnet in _instances(vae, "ResnetBlock2D"):
        _check_resnet(resnet, timed=False)
    for half in (vae.encoder, vae.decoder):
        if not (isinstance(half.conv_norm_out, nn.GroupNorm) and isinstance(half.conv_act, nn.SiLU)):
            raise NotImplementedError("its last norm is not a group norm with SiLU")
    for parent, name, resnet in list(_instances(vae, "ResnetBlock2D")):
        setattr(parent, name, FusedResnet(resnet, kernels, None))
    for _, _, attention in list(_instances(vae, "Attention")):
        if attention.group_norm is not None:
            attention.group_norm = FusedGroupNorm(attention.group_norm, kernels, silu=False)
    for half in (vae.encoder, vae.decoder):
        half.conv_norm_out, half.conv_act = FusedGroupNorm(half.conv_norm_out, kernels, silu=True), nn.Identity()


class _Given(nn.Module):
    """In place of a time embedding: what is given is embedded already."""

    def forward(self, times: Tensor, condition: Tensor | None = None) -> Tensor:
        return times


def _as_given(sample: Tensor, timestep: Tensor) -> Tensor:
    return timestep


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Attention of [N, L, C] to [N, M, C] by heads, [N, L, C]."""
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _linear(layer: Any, rows: Tensor) -> Tensor:
    """A linear layer, or a convolution of one pixel, over rows of channels."""
    return F.linear(rows, layer.weight.flatten(1), layer.bias)


def _instances(model: Any, name: str) -> Iterator[tuple[Any, str, Any]]:
    """(parent, name in it, module) of every module of a class of diffusers, in the order of the model's own."""
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if type(child).__name__ == name:
                yield (parent, child_name, child)


def _spans(widths: Any) -> Iterator[slice]:
    start = 0
    for width in widths:
        yield slice(start, start + width)
        start += width


def _check_resnet(resnet: Any, *, timed: bool) -> None:
    plain = (
        isinstance(resnet.nonlinearity, nn.SiLU)
        and resnet.output_scale_factor == 1.0
        and resnet.upsample is None
        and resnet.downsample is None
        and (resnet.time_emb_proj is not None) == timed
        and (not timed or (resnet.time_embedding_norm == "default" and not resnet.skip_time_act))
    )
    if not plain:
        raise NotImplementedError("a residual block is not Stable Diffusion v1's")


def _check_unet(unet: Any) -> None:
    for _, _, resnet in _instances(unet, "ResnetBlock2D"):
        _check_resnet(resnet, timed=True)
    for _, _, transformer in _instances(unet, "Transformer2DModel"):
        if not transformer.is_input_continuous:
            raise NotImplementedError("a transformer's input is not an image")
        for block in transformer.transformer_blocks:
            attn1, attn2 = block.attn1, block.attn2
            plain = (
                block.norm_type == "layer_norm"
                and type(block.ff.net[0]).__name__ == "GEGLU"
                and attn2 is not None
                and not block.only_cross_attention
                and block.pos_embed is None
                and all(hasattr(attention, "to_q") for attention in (attn1, attn2))
                and all(attention.norm_q is None and attention.norm_k is None for attention in (attn1, attn2))
                and all(attention.to_q.bias is None for attention in (attn1, attn2))
                and not attn2.norm_cross
                and all(
                    attention.group_norm is None and not attention.residual_connection for attention in (attn1, attn2)
                )
            )
            if not plain:
                raise NotImplementedError("a transformer block is not Stable Diffusion v1's")
    parts = ("class_embedding", "add_embedding", "encoder_hid_proj", "time_embed_act")
    conditions = [unet.time_embedding.cond_proj, *(getattr(unet, part, None) for part in parts)]
    if any(condition is not None for condition in conditions):
        raise NotImplementedError("it is conditioned on more than timestep and context")
    if not (isinstance(unet.conv_norm_out, nn.GroupNorm) and isinstance(unet.conv_act, nn.SiLU)):
        raise NotImplementedError("its last norm is not a group norm with SiLU")
