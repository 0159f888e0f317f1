"""What a bundle's manifest may say. It is ours, so a key that is not known is a mistake and not another version's."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field, model_validator

from pie_engine.checkpoint.descriptions import (
    Description,
    SchedulerDescription,
    TextEncoderDescription,
    UNetDescription,
    VaeDescription,
)
from pie_engine.config import COMPONENTS, ENGINE_WEIGHTS, FLAVOURS, PRECISIONS

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=4096)]
Bytes = Annotated[int, Field(ge=0, le=1 << 50)]
Seconds = Annotated[float, Field(ge=0, le=1e9)]
RelativeError = Annotated[float, Field(ge=0, le=1e6)]
Batch = Annotated[int, Field(ge=1, le=4096)]
Side = Annotated[int, Field(ge=8, le=16384)]
Version = Annotated[str, Field(pattern=r"^[\w.+-]{1,64}$")]
Component = Literal[COMPONENTS]  # type: ignore[valid-type]
Precision = Literal[PRECISIONS]  # type: ignore[valid-type]


class Entry(Description):
    """Base of the parts of a manifest."""

    model_config = pydantic.ConfigDict(extra="forbid")


class FileEntry(Entry):
    """A file's size and content."""

    bytes: Bytes
    sha256: Sha256


class ComponentEntry(Entry):
    """An exported graph, and how far it is from what PyTorch computes."""

    precision: Precision
    relative_error: RelativeError | None = None
    tolerance: RelativeError | None = None
    seconds: Seconds | None = None
    refitted: bool | None = None


class AttentionCount(Entry):
    """Attentions of a graph, and how many of them a plan computes in one kernel."""

    graph: Annotated[int, Field(ge=0, le=100_000)] | None = None
    fused: Annotated[int, Field(ge=0, le=100_000)] | None = None


Shape = Annotated[list[Annotated[int, Field(ge=1, le=1 << 20)]], Field(min_length=1, max_length=4)]
Shapes = Annotated[dict[str, Annotated[list[Shape], Field(min_length=3, max_length=3)]], Field(max_length=8)]


class EngineEntry(Entry):
    """A compiled plan: what it was compiled from, by and for."""

    component: Component
    file: Text
    flavour: Literal[FLAVOURS]  # type: ignore[valid-type]
    version: Version
    gpu: Text | None = None
    capabilities: Annotated[list[Annotated[str, Field(pattern=r"^\d{1,2}\.\d{1,2}$")]], Field(max_length=64)]
    driver_floor: Annotated[str, Field(pattern=r"^\d{1,3}(\.\d{1,3})*$")] | None = None
    resolutions: Annotated[list[Side], Field(max_length=64)]
    batches: Annotated[list[Batch], Field(max_length=64)]
    weights: Literal[ENGINE_WEIGHTS]  # type: ignore[valid-type]
    weights_hash: Sha256
    optimisation_level: Annotated[int, Field(ge=0, le=5)] | None = None
    workspace: Annotated[float, Field(gt=0, le=1e6)] | None = None
    precision: Precision
    profiles: Annotated[list[Shapes], Field(max_length=4096)]
    attention: AttentionCount
    relative_error: RelativeError | None = None
    bytes: Bytes | None = None
    seconds: Seconds | None = None
    host_memory_bytes: Bytes | None = None


class ModelFacts(Entry):
    """The fields of `ModelInfo` that JSON can hold."""

    scheduler_config: SchedulerDescription
    scaling_factor: Annotated[float, Field(gt=0, le=1e6)]
    latent_channels: Annotated[int, Field(ge=1, le=64)]
    text_width: Annotated[int, Field(ge=1, le=16384)]
    max_tokens: Annotated[int, Field(ge=3, le=4096)]
    vae_scale: Literal[1, 2, 4, 8, 16, 32]
    resolution_multiple: Annotated[int, Field(ge=1, le=1024)]
    default_resolution: Annotated[int, Field(ge=1, le=32768)]

    @model_validator(mode="after")
    def _whole_latents(self) -> ModelFacts:
        levels = self.resolution_multiple / self.vae_scale
        if levels not in (1, 2, 4, 8, 16, 32):
            raise ValueError(
                f"resolution_multiple {self.resolution_multiple} is not vae_scale {self.vae_scale} times a power of two"
            )
        return self


class Architecture(Entry):
    """The models' configurations; earlier versions wrote none, or the U-Net's alone."""

    unet: UNetDescription | None = None
    vae: VaeDescription | None = None
    text_encoder: TextEncoderDescription | None = None

    @model_validator(mode="before")
    @classmethod
    def _objects(cls, given: Any) -> Any:
        if isinstance(given, dict) and None in given.values():
            raise ValueError("a configuration is null")
        return given


class Hashes(Entry):
    """SHA-256 of each part's weights and settings."""

    unet: Sha256
    vae: Sha256
    text_encoder: Sha256
    tokenizer: Sha256


class Components(Entry):
    """The four graphs."""

    text_encoder: ComponentEntry
    vae_encoder: ComponentEntry
    unet: ComponentEntry
    vae_decoder: ComponentEntry


class Manifest(Entry):
    """A whole manifest."""

    format: int
    pie_engine: Version
    precision: Precision
    opset: Annotated[int, Field(ge=1, le=100)] | None = None
    model: ModelFacts
    architecture: Architecture = Architecture()
    hashes: Hashes
    sources: Annotated[dict[str, Text], Field(max_length=16)]
    components: Components
    regional: dict[Literal["unet", "vae_decoder"], ComponentEntry] = Field(default={})
    engines: Annotated[list[EngineEntry], Field(max_length=1024)] = Field(default=[])
    versions: Annotated[dict[str, Text], Field(max_length=64)] = Field(default={})
    build_command: Text
    # No file system has names with a zero byte, and each Python calls one by other words.
    files: Annotated[
        dict[Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[^\x00]+$")], FileEntry],
        Field(max_length=4096),
    ]
    manifest_sha256: Sha256
    refitted_from: Hashes | None = None

    @model_validator(mode="after")
    def _one_model(self) -> Manifest:
        """What is said twice is the same."""
        for engine in self.engines:
            if engine.file not in self.files:
                raise ValueError(f"engine's file {engine.file[:80]!r} is not among files")
        unet, vae, text = self.architecture.unet, self.architecture.vae, self.architecture.text_encoder
        facts = self.model
        said = {
            "latent_channels": [part.latent_channels for part in [vae] if part],
            "vae_scale": [2 ** (len(part.block_out_channels) - 1) for part in [vae] if part],
            "scaling_factor": [part.scaling_factor for part in [vae] if part and part.scaling_factor],
            "text_width": [part.cross_attention_dim for part in [unet] if part],
            "max_tokens": [part.max_position_embeddings for part in [text] if part],
            "resolution_multiple": [
                facts.vae_scale * 2 ** (len(part.block_out_channels) - 1) for part in [unet] if part
            ],
        }
        for name, values in said.items():
            for value in values:
                if getattr(facts, name) != value:
                    raise ValueError(f"model.{name} is {getattr(facts, name)}, its architecture's is {value}")
        return self
