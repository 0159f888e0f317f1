"""Putting a checkpoint together: which file or folder gives which part, in what order of preference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from pie_engine.checkpoint import components, hashing, lora, single_file
from pie_engine.checkpoint.components import Part, read_part
from pie_engine.checkpoint.json_files import read_json
from pie_engine.checkpoint.locate import (
    SD_V1_4,
    TEXT_CLASS,
    TOKENIZER_IDS,
    UNET_CLASS,
    VAE_CLASS,
    Place,
    class_of,
    component_folder,
    enclosing_pipeline,
    hub_cache,
    hub_snapshot,
    is_pipeline,
    resolve,
    subfolder_classes,
    unet_folder,
)
from pie_engine.checkpoint.spec import Checkpoint, LoraSpec
from pie_engine.checkpoint.weights import read_tensors
from pie_engine.errors import CheckpointError, argument, mention, use

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class _Base:
    """Everything a base gives but the models themselves. unet is None when `unet` replaces it."""

    unet: Part | None
    vae: Part
    text_encoder: Part
    tokenizer: Path
    tokenizer_source: str
    scheduler: dict[str, Any]
    scheduler_source: str


def load(base: str | Path | None, unet: str | Path | None, loras: tuple[LoraSpec, ...]) -> Checkpoint:
    """`load_checkpoint` without its defaults. Raises CheckpointError."""
    try:
        with components.quiet():
            return _load(base, unet, loras)
    except OSError as error:
        path = error.filename or base or unet
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror or type(error).__name__}); check the path and its permissions"
        ) from error


def _load(base: str | Path | None, unet: str | Path | None, loras: tuple[LoraSpec, ...]) -> Checkpoint:
    unet_place = None if unet is None else resolve(unet)
    if base is not None:
        base_place = resolve(base)
    elif unet_place is not None:
        base_place = _implied_base(unet_place)
    else:
        raise CheckpointError(
            f"no checkpoint given; pass {argument('checkpoint')}, {argument('unet')} or both", field="checkpoint"
        )
    parts = (_from_folder if base_place.path.is_dir() else _from_file)(base_place, unet_place)
    unet_part = parts.unet or _separate_unet(_known(unet_place), base_place)

    components.check_unet_config(unet_part)
    scheduler = components.checked_scheduler(parts.scheduler, parts.scheduler_source)
    text_encoder = components.build_text_encoder(parts.text_encoder)
    tokenizer = components.load_tokenizer(parts.tokenizer, text_encoder)
    vae = components.build_vae(parts.vae)
    unet_model = components.build_unet(unet_part)
    components.check_compatible(unet_model, vae, text_encoder, unet_part.source)
    sources = {
        "unet": unet_part.source,
        "vae": parts.vae.source,
        "text_encoder": parts.text_encoder.source,
        "tokenizer": parts.tokenizer_source,
        "scheduler": parts.scheduler_source,
    }
    for spec in loras:
        for name, layers in lora.fuse(unet_model, text_encoder, spec).items():
            sources[name] += f" + LoRA {spec.path} x {spec.scale:g} ({layers} layers)"
    hashes = {
        "unet": hashing.hash_unet(unet_model),
        "vae": hashing.hash_vae(vae),
        "text_encoder": hashing.hash_text_encoder(text_encoder),
        "tokenizer": hashing.hash_tokenizer(tokenizer),
    }
    return Checkpoint(unet_model, vae, text_encoder, tokenizer, scheduler, hashes, sources)


def _known(place: Place | None) -> Place:
    assert place is not None  # a base leaves its U-Net out only where a U-Net was given
    return place


def _implied_base(unet: Place) -> Place:
    """The base of a U-Net given alone: the pipeline folder around it, the file itself if it is whole, or SD v1.4."""
    around = enclosing_pipeline(unet.path)
    if around is not None:
        return Place(around, unet.label if around == unet.path else str(around), unet.hub_id)
    if unet.path.is_file() and single_file.identify(read_tensors(unet.path), unet.label) == "sd1":
        return unet
    snapshot = hub_snapshot(SD_V1_4)
    if snapshot is None:
        raise CheckpointError(
            f"{use('unet', unet.label)} sits in no pipeline folder (model_index.json), and its default base "
            f"{SD_V1_4} is not in the local hub cache ({hub_cache()}); pass {use('checkpoint', 'DIR')}, or run "
            f"`hf download {SD_V1_4}`",
            field="checkpoint",
        )
    return Place(snapshot, f"hub:{SD_V1_4}", SD_V1_4)


def _no_base(base: Place) -> CheckpointError:
    remedy = f"pass it as {use('unet', base.label)}"
    return CheckpointError(f"{base.label} holds a U-Net alone; {remedy}", field="checkpoint", value=base.label)


def _from_folder(base: Place, unet: Place | None) -> _Base:
    """A diffusers pipeline folder."""
    if not is_pipeline(base.path):
        if (base.path / "manifest.json").is_file():
            raise CheckpointError(
                f"{base.label} is a bundle that pie-engine build wrote, not a checkpoint; {use('engine', base.label)} "
                "runs it, and pie-engine refit puts other weights into it",
                field="checkpoint",
                value=base.label,
            )
        holds = class_of(base.path)
        if holds == UNET_CLASS:
            raise _no_base(base)
        found = f"holds a {holds}" if holds else "has no model_index.json"
        raise CheckpointError(
            f"{base.label} {found}; a {mention('checkpoint')} is a diffusers folder with model_index.json: "
            f"{base.remedy}, or pass it as {argument('unet')} if it is a trainer's output",
            field="checkpoint",
            value=base.label,
        )

    def part(name: str, cls: str) -> Part:
        folder = component_folder(base, name, cls)
        return read_part(folder, f"{base.label}/{folder.name}")

    scheduler = base.path / "scheduler" / "scheduler_config.json"
    return _Base(
        unet=part("unet", UNET_CLASS) if unet is None else None,
        vae=part("vae", VAE_CLASS),
        text_encoder=part("text_encoder", TEXT_CLASS),
        tokenizer=base.path / "tokenizer",
        tokenizer_source=f"{base.label}/tokenizer",
        scheduler=read_json(scheduler),
        scheduler_source=f"{base.label}/scheduler",
    )


def _from_file(base: Place, unet: Place | None) -> _Base:
    """A whole Stable Diffusion v1.x single file. In a pipeline folder, its configs and scheduler are the folder's."""
    tensors = read_tensors(base.path)
    kind = single_file.identify(tensors, base.label)
    if kind != "sd1":
        raise _no_base(base)
    folder = base.path.parent
    beside = is_pipeline(folder)

    def config(name: str, cls: str) -> dict[str, Any] | None:
        return read_json(folder / name / "config.json") if beside and class_of(folder / name) == cls else None

    scheduler = folder / "scheduler" / "scheduler_config.json"
    has_scheduler = beside and scheduler.is_file()
    tokenizer, tokenizer_source = _tokenizer_for(base)
    return _Base(
        unet=single_file.unet_part(tensors, base.label, config("unet", UNET_CLASS)) if unet is None else None,
        vae=single_file.vae_part(tensors, base.label, config("vae", VAE_CLASS)),
        text_encoder=single_file.text_part(tensors, base.label, config("text_encoder", TEXT_CLASS)),
        tokenizer=tokenizer,
        tokenizer_source=tokenizer_source,
        scheduler=read_json(scheduler) if has_scheduler else dict(single_file.SD_V1_SCHEDULER),
        scheduler_source=str(scheduler.parent) if has_scheduler else "Stable Diffusion v1 (PNDM)",
    )


def _tokenizer_for(base: Place) -> tuple[Path, str]:
    """The tokenizer for a single file, and its origin: the folder beside it, or SD v1's own in the hub cache."""
    beside = base.path.parent / "tokenizer"
    if beside.is_dir():
        return beside, str(beside)
    for hub_id in TOKENIZER_IDS:
        snapshot = hub_snapshot(hub_id)
        for folder in (snapshot / "tokenizer", snapshot) if snapshot else ():
            if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
                return folder, f"hub:{hub_id}"
    raise CheckpointError(
        f"{base.label} is a single file, which has no tokenizer, and none of {', '.join(TOKENIZER_IDS)} is in the "
        f"local hub cache; put a tokenizer/ folder beside it, or run `hf download {TOKENIZER_IDS[0]}`"
    )


def _separate_unet(unet: Place, base: Place) -> Part:
    """The U-Net that was given by itself, from a folder or a file.

    A file's config: beside it, else the base's, else its shapes.
    """
    if unet.path.is_dir():
        folder = unet_folder(unet)
        return read_part(folder, unet.label if folder == unet.path else f"{unet.label}/{folder.name}")
    tensors = read_tensors(unet.path)
    kind = single_file.identify(tensors, unet.label)
    config = _config_for(unet, base, tensors)
    if kind != "unet":
        return single_file.unet_part(tensors, unet.label, config)
    if config is None:
        raise CheckpointError(
            f"{unet.label} has no config.json beside it and the base {base.label} has no U-Net config; pass a "
            f"diffusers folder as {argument('checkpoint')}, or the U-Net as a folder",
            field="unet",
            value=unet.label,
        )
    return Part(config, tensors, unet.label)


def _config_for(unet: Place, base: Place, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    if class_of(unet.path.parent) == UNET_CLASS:
        return read_json(unet.path.parent / "config.json")
    if base.path.is_dir():
        if UNET_CLASS not in subfolder_classes(base.path).values():
            return None
        return read_json(component_folder(base, "unet", UNET_CLASS) / "config.json")
    if is_pipeline(base.path.parent) and class_of(base.path.parent / "unet") == UNET_CLASS:
        return read_json(base.path.parent / "unet" / "config.json")
    # The base is a single file of the same architecture: its shapes tell the config.
    whole = read_tensors(base.path)
    bare = {
        key.removeprefix(single_file.UNET_PREFIX): value
        for key, value in whole.items()
        if key.startswith(single_file.UNET_PREFIX)
    }
    return single_file.infer_unet(bare, base.label)


def load_unet(
    unet: str | Path, config: Mapping[str, Any], loras: tuple[LoraSpec, ...]
) -> tuple[UNet2DConditionModel, str, str]:
    """`load_unet_alone` without its defaults. Raises CheckpointError."""
    try:
        with components.quiet():
            place = resolve(unet)
            part = _unet_alone(place, config)
            components.check_unet_config(part)
            model, source = components.build_unet(part), part.source
            for spec in loras:
                layers = lora.fuse(model, nn.Module(), spec)["unet"]
                source += f" + LoRA {spec.path} x {spec.scale:g} ({layers} layers)"
            return model, hashing.hash_unet(model), source
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or unet} cannot be read ({error.strerror or type(error).__name__}); check the path and "
            "its permissions"
        ) from error


def _unet_alone(place: Place, config: Mapping[str, Any]) -> Part:
    if place.path.is_dir():
        folder = unet_folder(place)
        return read_part(folder, place.label if folder == place.path else f"{place.label}/{folder.name}")
    tensors = read_tensors(place.path)
    kind = single_file.identify(tensors, place.label)
    beside = place.path.parent
    known = read_json(beside / "config.json") if class_of(beside) == UNET_CLASS else dict(config)
    return Part(known, tensors, place.label) if kind == "unet" else single_file.unet_part(tensors, place.label, known)
