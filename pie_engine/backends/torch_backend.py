"""The components as PyTorch modules: any device and dtype, optionally compiled with torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pie_engine.config import COMPONENTS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pie_engine.checkpoint import Checkpoint
    from pie_engine.model import ModelInfo


_VAE_PARTS = {"vae_encoder": ("encoder", "quant_conv"), "vae_decoder": ("post_quant_conv", "decoder")}


def torch_dtype(name: str) -> torch.dtype:
    """ "fp32", "fp16" or "bf16" as a torch dtype."""
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


class TorchBackend:
    """A checkpoint's own modules, moved to one device and dtype: the checkpoint must not be used for anything else.

    On a GPU the query, key and value projections of each attention are fused into one, and in half precision weights
    lie channels last, which is how tensor cores read convolutions.

    Args:
        reload: reads the checkpoint again, for a component that has to run in fp32 after all: its rounded weights would
            do worse, and those beyond fp16's range not at all. None makes do with the rounded ones.
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
        compile: bool = False,
        reload: Callable[[], Checkpoint] | None = None,
    ):
        import torch

        self.model = model
        self.device = torch.device(device)
        self.compiled = compile
        self._reload = reload
        self.precisions: dict[str, str] = {}
        self._vae, self._unet, self._text_encoder = checkpoint.vae, checkpoint.unet, checkpoint.text_encoder
        if self.device.type == "cuda":
            fuse_projections(self._unet)
            fuse_projections(self._vae)
        for component in COMPONENTS:
            for module in self._parts(component).values():
                self._place(module, precision)
            self.precisions[component] = precision

    def encode_text(self, ids: Tensor) -> Tensor:
        return self._text_encoder(ids.to(self.device))[0]

    def encode_image(self, pixels: Tensor) -> Tensor:
        dtype = torch_dtype(self.precisions["vae_encoder"])
        return self._vae.encode(pixels.to(self.device, dtype)).latent_dist.parameters.float()

    def decode_latent(self, latent: Tensor) -> Tensor:
        dtype = torch_dtype(self.precisions["vae_decoder"])
        return self._vae.decode(latent.to(self.device, dtype)).sample.float()

    def bind_unet(self, batch: int, height: int, width: int) -> _BoundUNet:
        import torch

        info, dtype = self.model, torch_dtype(self.precisions["unet"])
        return _BoundUNet(
            self._compile() if self.compiled else self._unet,
            sample=torch.empty((batch, info.latent_channels, height, width), device=self.device, dtype=dtype),
            timestep=torch.empty(1, device=self.device),
            context=torch.empty((batch, info.max_tokens, info.text_width), device=self.device, dtype=dtype),
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
        if self.device.type == "cuda" and component != "text_encoder":
            fuse_projections(model)
        return _vae_parts(model, component) if component in _VAE_PARTS else {component: model}

    def _place(self, module: torch.nn.Module, precision: str) -> None:
        import torch

        on_gpu = self.device.type == "cuda"
        if on_gpu and precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # on by default: convolutions would keep 10 bits of mantissa
        layout = torch.channels_last if on_gpu and precision != "fp32" else torch.contiguous_format
        # nn.Module.to, not the diffusers override: that one warns about an empty list of modules to keep in fp32.
        torch.nn.Module.to(module, self.device, torch_dtype(precision))
        torch.nn.Module.to(module, memory_format=layout)  # type: ignore[call-overload]

    def _compile(self) -> Any:
        import torch

        # Shapes are static: each has code of its own, and a cohort may have many. The graph is captured by the loop.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        return torch.compile(self._unet, fullgraph=True, dynamic=False)


def fuse_projections(model: Any) -> None:
    """One matrix for query, key and value (cross-attention: key and value) in each attention of a U-Net or VAE.

    diffusers keeps the separate ones beside it; they are dropped here, 113 MB of a full-size U-Net in fp16.
    """
    from diffusers.models.attention_processor import Attention

    model.fuse_qkv_projections()
    for module in model.modules():
        if isinstance(module, Attention):
            for name in ("to_q", "to_k", "to_v") if hasattr(module, "to_qkv") else ("to_k", "to_v"):
                delattr(module, name)


def _vae_parts(vae: Any, component: str) -> dict[str, torch.nn.Module]:
    parts = {name: getattr(vae, name) for name in _VAE_PARTS[component]}
    return {name: part for name, part in parts.items() if part is not None}


class _BoundUNet:
    def __init__(self, unet: Any, *, sample: Tensor, timestep: Tensor, context: Tensor):
        self._unet = unet
        self.sample, self.timestep, self.context = sample, timestep, context
        self.output = sample  # replaced by the first call

    def __call__(self) -> None:
        # The module allocates its own output; keeping that one saves a copy where it is contiguous already. Within a
        # captured round its address is fixed by the capture.
        output = self._unet(self.sample, self.timestep, encoder_hidden_states=self.context, return_dict=False)[0]
        self.output = output.contiguous()
