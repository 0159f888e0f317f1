"""The components as PyTorch modules: any device and dtype, optionally compiled with torch.compile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pie_engine.backends.host_memory import keep_freed_memory
from pie_engine.backends.protocol import BoxedNetwork, UNetCall
from pie_engine.backends.torch_blocks import fuse_unet, fuse_vae, is_fused
from pie_engine.backends.torch_boxed import boxed_decoder, boxed_unet
from pie_engine.config import COMPONENTS, RuntimeConfig
from pie_engine.regional.layout import obstacle

if TYPE_CHECKING:
    from pie_engine.checkpoint import Checkpoint
    from pie_engine.kernels.blocks import BlockKernels
    from pie_engine.model.info import ModelInfo

log = logging.getLogger(__name__)

_VAE_PARTS = {"vae_encoder": ("encoder", "quant_conv"), "vae_decoder": ("post_quant_conv", "decoder")}


def torch_dtype(name: str) -> torch.dtype:
    """ "fp32", "fp16" or "bf16" as a torch dtype."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


class TorchBackend:
    """A checkpoint's own modules, moved to one device and dtype: the checkpoint must not be used for anything else.

    On a GPU in half precision the blocks of U-Net and VAE are those of `torch_blocks`, over Triton's fused norms, and
    weights lie channels last, which is how tensor cores read convolutions. Without them (`fused_blocks` off, Triton not
    at hand, an architecture that they do not know, or `compile`, which fuses by itself) the query, key and value
    projections of each attention are fused into one matrix.

    Args:
        runtime: which optimisations run: `compile`, `fused_blocks`, `autotune`.
        in_fp32: components that stay in fp32 whatever the precision: those that a bundle in fp16 keeps in it.
        reload: reads the checkpoint again, for a component that has to run in fp32 after all: its rounded weights would
            do worse, and those beyond fp16's range not at all. None makes do with the rounded ones.

    Attributes:
        blocks: whose kernels the blocks run on, "triton", or "" for PyTorch's own.
    """

    name = "torch"
    stream: torch.cuda.Stream | None = None
    capture_obstacle = ""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: ModelInfo,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        runtime: RuntimeConfig | None = None,
        reload: Callable[[], Checkpoint] | None = None,
        in_fp32: Collection[str] = (),
    ):
        self.model = model
        self.device = torch.device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self._runtime = runtime or RuntimeConfig()
        self._reload = reload
        self.precisions: dict[str, str] = {}
        self._vae, self._unet, self._text_encoder = checkpoint.vae, checkpoint.unet, checkpoint.text_encoder
        self._kernels = None if precision == "fp32" else self._select_kernels()
        # A component that stays in fp32 keeps PyTorch's own blocks, and with it the other half of its VAE.
        self._fuse(self._unet, None if "unet" in in_fp32 else self._kernels)
        self._fuse(self._vae, None if _VAE_PARTS.keys() & {*in_fp32} else self._kernels)
        for component in COMPONENTS:
            used = "fp32" if component in in_fp32 else precision
            for module in self._parts(component).values():
                self._place(module, used)
            self.precisions[component] = used
        self.blocks = self._kernels.name if self._kernels and is_fused(self._unet) else ""

    def encode_text(self, ids: Tensor) -> Tensor:
        return self._text_encoder(ids.to(self.device))[0]

    def encode_image(self, pixels: Tensor) -> Tensor:
        dtype = torch_dtype(self.precisions["vae_encoder"])
        with self._tuned():
            return self._vae.encode(pixels.to(self.device, dtype)).latent_dist.parameters.float()

    def decode_latent(self, latent: Tensor) -> Tensor:
        dtype = torch_dtype(self.precisions["vae_decoder"])
        with self._tuned():
            return self._vae.decode(latent.to(self.device, dtype)).sample.float()

    def bind_unet(self, batch: int, height: int, width: int) -> UNetCall:
        info, dtype = self.model, torch_dtype(self.precisions["unet"])
        bound = _BoundBlocks if is_fused(self._unet) else _BoundUNet
        return bound(
            self._compile() if self._runtime.compile else self._unet,
            self._tuned,
            sample=torch.empty((batch, info.latent_channels, height, width), device=self.device, dtype=dtype),
            timestep=torch.empty(1, device=self.device),
            context=torch.empty((batch, info.max_tokens, info.text_width), device=self.device, dtype=dtype),
        )

    @property
    def regional_obstacle(self) -> str:
        """Why a box cannot be computed alone, or an empty string."""
        if is_fused(self._unet) or is_fused(self._vae):
            return "the fused blocks of a GPU compute whole pictures"
        if self._runtime.compile:
            return "a compiled U-Net computes whole pictures"
        return obstacle(self._unet.config) or obstacle(self._vae.config)

    def bind_boxed(self, component: str, batch: int, height: int, width: int, box: tuple[int, int]) -> BoxedNetwork:
        info = self.model
        shape, dtype = (batch, info.latent_channels, height, width), torch_dtype(self.precisions[component])
        if component == "vae_decoder":
            return boxed_decoder(self._vae, self._tuned, shape=shape, box=box, dtype=dtype, device=self.device)
        context = (info.max_tokens, info.text_width)
        return boxed_unet(
            self._unet, self._tuned, context=context, shape=shape, box=box, dtype=dtype, device=self.device
        )

    def batch_sizes(self, resolution: int) -> tuple[int, ...] | None:
        return None

    def release(self) -> None:
        pass  # modules hold no buffers

    def raise_precision(self, component: str) -> str | None:
        before = self.precisions[component]
        if before == "fp32":
            return None
        parts = self._parts(component)
        fresh = parts if self._reload is None else self._fresh_parts(component, self._reload())
        try:
            for module in fresh.values():
                self._place(module, "fp32")
        except BaseException:  # memory ran out: the component stays usable as it was
            for module in parts.values():
                self._place(module, before)
            raise
        for name, module in fresh.items():
            if component in _VAE_PARTS:
                setattr(self._vae, name, module)
            else:
                setattr(self, f"_{name}", module)
        self.precisions[component] = "fp32"
        return "fp32"

    def _parts(self, component: str) -> dict[str, torch.nn.Module]:
        if component in _VAE_PARTS:
            return _vae_parts(self._vae, component)
        return {component: self._unet if component == "unet" else self._text_encoder}

    def _fresh_parts(self, component: str, checkpoint: Checkpoint) -> dict[str, torch.nn.Module]:
        model = checkpoint.vae if component in _VAE_PARTS else getattr(checkpoint, component)
        if component != "text_encoder":
            self._fuse(model, None)
        return _vae_parts(model, component) if component in _VAE_PARTS else {component: model}

    def _select_kernels(self) -> BlockKernels | None:
        if not self._runtime.fused_blocks or self._runtime.compile:
            return None
        from pie_engine.kernels.blocks import select_blocks

        return select_blocks(self.device)

    def _fuse(self, model: Any, kernels: BlockKernels | None) -> None:
        """Put a U-Net or VAE together for a GPU, unless another backend has done so."""
        if self.device.type != "cuda" or is_fused(model):
            return
        if kernels is not None:
            try:
                (fuse_unet if model is self._unet else fuse_vae)(model, kernels)
            except NotImplementedError as reason:
                log.info("the %s runs without fused blocks: %s", type(model).__name__, reason)
            else:
                return
        fuse_projections(model)

    @contextlib.contextmanager
    def _tuned(self) -> Iterator[None]:
        """cuDNN tries its algorithms at each new shape and keeps the fastest.

        Switched back after each call, as it holds for the whole process; a captured stage has its choice within.
        """
        if self.device.type != "cuda":
            yield
            return
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self._runtime.autotune
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def _place(self, module: torch.nn.Module, precision: str) -> None:
        on_gpu = self.device.type == "cuda"
        if on_gpu and precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # on by default: convolutions would keep 10 bits of mantissa
        layout = torch.channels_last if on_gpu and precision != "fp32" else torch.contiguous_format
        # nn.Module.to, not the diffusers override: that one warns about an empty list of modules to keep in fp32.
        torch.nn.Module.to(module, self.device, torch_dtype(precision))
        torch.nn.Module.to(module, memory_format=layout)  # type: ignore[call-overload]

    def _compile(self) -> Any:
        # Shapes are static: each has code of its own, and a cohort may have many. The graph is captured by the loop.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        return torch.compile(self._unet, fullgraph=True, dynamic=False)


def fuse_projections(model: Any) -> None:
    """One matrix for query, key and value (cross-attention: key and value) in each attention of a U-Net or VAE.

    diffusers keeps the separate ones beside it; they are dropped here, 113 MB of a full-size U-Net in fp16. A model
    that is fused already is left alone.
    """
    from diffusers.models.attention_processor import Attention

    if not any(isinstance(module, Attention) and hasattr(module, "to_k") for module in model.modules()):
        return
    model.fuse_qkv_projections()
    for module in model.modules():
        if isinstance(module, Attention):
            for name in ("to_q", "to_k", "to_v") if hasattr(module, "to_qkv") else ("to_k", "to_v"):
                delattr(module, name)


def _vae_parts(vae: Any, component: str) -> dict[str, torch.nn.Module]:
    parts = {name: getattr(vae, name) for name in _VAE_PARTS[component]}
    return {name: part for name, part in parts.items() if part is not None}


class _BoundUNet(UNetCall):
    """diffusers' U-Net, or one that torch.compile made of it."""

    def __init__(self, unet: Any, tuned: Callable[[], Any], *, sample: Tensor, timestep: Tensor, context: Tensor):
        self._unet, self._tuned = unet, tuned
        self.sample, self.timestep, self.context = sample, timestep, context
        self.output = sample  # replaced by the first call

    def __call__(self) -> None:
        # The module allocates its own output; keeping that one saves a copy where it is contiguous already. Within a
        # captured step its address is fixed by the capture.
        with self._tuned():
            self.output = self._predict().contiguous()

    def _predict(self) -> Tensor:
        return self._unet(self.sample, self.timestep, encoder_hidden_states=self.context, return_dict=False)[0]


class _BoundBlocks(_BoundUNet):
    """The U-Net of `torch_blocks`: what depends on prompt or timestep alone is computed where that changes."""

    def __init__(self, unet: Any, tuned: Callable[[], Any], **tensors: Tensor):
        super().__init__(unet, tuned, **tensors)
        self._keys_values = unet.context_projections(self.context)
        self._times: Tensor | None = None
        self._row: Tensor | None = None

    def condition(self, context: Tensor) -> None:
        super().condition(context)
        self._keys_values.copy_(self._unet.context_projections(self.context))

    def follow(self, timesteps: Tensor, row: Tensor) -> None:
        self._times, self._row = self._unet.time_projections(timesteps), row

    def _predict(self) -> Tensor:
        if self._times is None or self._row is None:
            times = self._unet.time_projections(self.timestep)
        else:
            times = self._times.index_select(0, self._row)
        return self._unet(self.sample, times, encoder_hidden_states=self._keys_values, return_dict=False)[0]
