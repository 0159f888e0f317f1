"""What the progression asks of a backend. Any object with these callables will do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pie_engine.model.info import ModelInfo
    from pie_engine.regional.windows import Box


class UNetCall(Protocol):
    """The U-Net bound to static buffers: write `sample` and `timestep`, call, read `output`.

    Attributes:
        sample: [B, 4, h, w] in the backend's dtype.
        timestep: [1] float32 (Euler's timesteps are fractional).
        context: [B, 77, D] in the backend's dtype, as `condition` wrote it.
        output: [B, 4, h, w] in the backend's dtype, overwritten by each call.
    """

    sample: Tensor
    timestep: Tensor
    context: Tensor
    output: Tensor

    def __call__(self) -> None: ...

    def condition(self, context: Tensor) -> None:
        """Hold these embeddings [B, 77, D] from the next call on: once per progression, or when they change."""
        self.context.copy_(context)

    def follow(self, timesteps: Tensor, row: Tensor) -> None:
        """Told once which timesteps [R] float32 will come, and where [1] int32 stands which of them a call is at: what
        depends on them alone can be computed ahead. It may be ignored: `timestep` holds the same number.
        """
        return


class BoundGraph(Protocol):
    """A graph with its addresses bound once: each call reads and writes the same tensors.

    Attributes:
        inputs, outputs: name -> tensor, zero at first.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    def __call__(self) -> None: ...


class BoxedNetwork(Protocol):
    """U-Net or VAE decoder, bound to whole pictures and to boxes of one size within them (`pie_engine.regional`).

    A call of `whole` computes everything and leaves in `surroundings` what boxes need of it; `inside` computes the
    boxes alone between `surroundings`, which may come from an earlier `whole`.

    Attributes:
        sample: [B, C, h, w], what `whole` reads: the U-Net's sample, the decoder's latent.
        timestep, context: as `UNetCall` has them, for both; None for the decoder.
        output: what `whole` gives of the whole picture.
        box: [B, C, h', w'], what `inside` reads of a sample.
        box_output: what it gives.
        surroundings: [n] in the network's dtype, the tensors of `pie_engine.regional.layout` in order.
    """

    sample: Tensor
    timestep: Tensor | None
    context: Tensor | None
    output: Tensor
    box: Tensor
    box_output: Tensor
    surroundings: Tensor

    def place(self, boxes: Sequence[Box]) -> None:
        """Where the B boxes lie from the next `whole` on, in latents."""
        ...

    def whole(self) -> None: ...

    def inside(self) -> None: ...


class Backend(Protocol):
    """The four components of a model on one device. What a call returns may be overwritten by its next call.

    Attributes:
        name: "torch", "onnxruntime", "openvino", "tensorrt" or "tensorrt-rtx".
        model: what is known about the model.
        device: where its buffers live.
        precisions: "fp32", "fp16" or "bf16", by component (`pie_engine.config.COMPONENTS`).
        stream: the CUDA stream that a foreign engine runs on, or None where the current stream is followed.
        capture_obstacle: why its calls cannot be captured in a CUDA graph, or an empty string.
    """

    name: str
    model: ModelInfo
    device: torch.device
    precisions: dict[str, str]
    stream: torch.cuda.Stream | None
    capture_obstacle: str

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids [B, 77] int64 -> embeddings [B, 77, D]."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] float32 in [-1, 1] -> posterior moments [B, 8, h, w] float32: mean, log-variance."""
        ...

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Latent divided by the scaling factor, [B, 4, h, w] float32 -> pixels [B, 3, H, W] float32."""
        ...

    def bind_unet(self, batch: int, height: int, width: int) -> UNetCall:
        """Allocate buffers for `batch` latents of height x width once, and bind the U-Net to them."""
        ...

    @property
    def regional_obstacle(self) -> str:
        """Why it cannot compute a box alone (`bind_boxed`), or an empty string."""
        ...

    def bind_boxed(self, component: str, batch: int, height: int, width: int, box: tuple[int, int]) -> BoxedNetwork:
        """Allocate buffers for `batch` latents of height x width and boxes of one size, and bind "unet" or
        "vae_decoder" to them. Only where there is no `regional_obstacle`.
        """
        ...

    def batch_sizes(self, resolution: int) -> tuple[int, ...] | None:
        """The numbers of items that can run at once at this side in pixels, ascending; None for any.

        Raises:
            ConfigError: nothing runs at this resolution.
        """
        ...

    def release(self) -> None:
        """Let go of buffers, because memory ran out: no captured round is kept that refers to them."""
        ...

    def raise_precision(self, component: str) -> str | None:
        """Run a component in fp32 from here on, because its values were not finite in less.

        What `bind_unet` returned before keeps its old weights: bind again.

        Returns:
            The new precision, or None if there is no higher one.
        """
        ...
