"""What a path or an id means: a file, a folder, or a repository in the local hub cache. Reads only small JSON files.

A folder is judged by the class its config.json names, never by the folder's own name: a published trainer writes
its U-Net into `text_encoder/`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pie_engine.checkpoint.json_files import read_json
from pie_engine.errors import CheckpointError, argument, mention, use

SD_V1_4 = "CompVis/stable-diffusion-v1-4"
# Where SD v1's tokenizer may be cached, for single files, which have none. All of them hold the same one.
TOKENIZER_IDS = (
    "openai/clip-vit-large-patch14",
    SD_V1_4,
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-v1-5",
)
UNET_CLASS, VAE_CLASS, TEXT_CLASS = "UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHT_SUFFIXES = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")


@dataclass(frozen=True)
class Place:
    """Something that exists on disk, and what to call it in messages and provenance."""

    path: Path
    label: str
    hub_id: str | None = None

    @property
    def remedy(self) -> str:
        """How to complete a place in which something is missing."""
        return f"run `hf download {self.hub_id}`" if self.hub_id else "complete the folder"


def resolve(value: str | Path) -> Place:
    """A file, a folder or a hub id -> Place. Raises CheckpointError if it is none of them."""
    text = str(value).strip()
    path = Path(text).expanduser()
    if text and (path.is_file() or path.is_dir()):
        return Place(path, text)
    if not _HUB_ID.fullmatch(text) or text.endswith(_WEIGHT_SUFFIXES):
        raise CheckpointError(
            f"'{text}' does not exist; a diffusers folder, a .safetensors or .ckpt file, or a hub id org/name is "
            "expected: check the path"
        )
    snapshot = hub_snapshot(text)
    if snapshot is None:
        raise CheckpointError(
            f"'{text}' is neither a file or folder here nor a repository in the local hub cache ({hub_cache()}); "
            f"pie-engine downloads nothing: check the path, or run `hf download {text}`"
        )
    return Place(snapshot, f"hub:{text}", text)


def hub_cache() -> Path:
    """The hub's cache folder, by the hub's own environment variables, read now and not at import."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{cache}/huggingface").expanduser() / "hub"


def hub_snapshot(repo_id: str) -> Path | None:
    """The cached snapshot of `main`, or else the newest one; None if there is none.

    Read from the cache's documented layout (models--org--name/{refs,snapshots}) and not through snapshot_download,
    which refuses a snapshot downloaded in part on purpose, such as one without the .ckpt files that nobody loads.
    """
    repository = hub_cache() / f"models--{repo_id.replace('/', '--')}"
    reference = repository / "refs" / "main"
    if reference.is_file():
        snapshot = repository / "snapshots" / reference.read_text().strip()
        if snapshot.is_dir():
            return snapshot
    snapshots = [path for path in (repository / "snapshots").glob("*") if path.is_dir()]
    return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)


def class_of(folder: Path) -> str | None:
    """The class that a component folder's config.json names; None without a config.json or a class."""
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    architectures = config.get("architectures")
    names = [config.get("_class_name"), *(architectures if isinstance(architectures, list) else [])]
    name = next((name[:80] for name in names if isinstance(name, str)), None)
    if name is None and config.get("model_type") == "clip_text_model":
        return TEXT_CLASS
    return name


def subfolder_classes(folder: Path) -> dict[str, str]:
    """Name of each direct subfolder that is a model -> its class."""
    children = sorted(path for path in folder.iterdir() if path.is_dir())
    found = {path.name: class_of(path) for path in children}
    return {name: cls for name, cls in found.items() if cls is not None}


def is_pipeline(folder: Path) -> bool:
    return (folder / "model_index.json").is_file()


def component_folder(place: Place, name: str, cls: str) -> Path:
    """The folder of the component `name` in a pipeline: `name`/ if its class is `cls`, else any other of that class.

    Raises CheckpointError saying what was found instead.
    """
    classes = subfolder_classes(place.path)
    if classes.get(name) == cls:
        return place.path / name
    if cls == TEXT_CLASS and classes.get(name) == UNET_CLASS:
        raise CheckpointError(
            f"{place.label}/{name} holds a {UNET_CLASS} where a {cls} is expected (some trainers write their U-Net "
            f"there); pass {use('unet', f'{place.label}/{name}')} over a {mention('checkpoint')} that has a text "
            "encoder"
        )
    others = [folder for folder, found in classes.items() if found == cls]
    if len(others) == 1 and name not in classes:
        return place.path / others[0]
    if name in classes:
        raise CheckpointError(
            f"{place.label}/{name} holds a {classes[name]}, not a {cls}: not a Stable Diffusion v1.x checkpoint; pass "
            "one of that architecture"
        )
    pipeline = read_json(place.path / "model_index.json").get("_class_name") if is_pipeline(place.path) else None
    found_text = ", ".join(f"{folder}: {found}" for folder, found in classes.items()) or "no model"
    raise CheckpointError(
        f"{place.label} {f'is a {pipeline} and ' if pipeline else ''}has no {cls} (found {found_text}); a Stable "
        f"Diffusion v1.x folder with {name}/ is expected: {place.remedy} or pass another one"
    )


def unet_folder(place: Place) -> Path:
    """The folder that holds the U-Net: the given one, its unet/, or any subfolder whose config names the class.

    Raises CheckpointError if there is none, or more than one to choose from.
    """
    cls = class_of(place.path)
    if cls == UNET_CLASS:
        return place.path
    if cls is not None:
        raise CheckpointError(
            f"{place.label} holds a {cls}, not a {UNET_CLASS}; pass the folder of a U-Net as {argument('unet')}"
        )
    classes = subfolder_classes(place.path)
    found = [name for name, found in classes.items() if found == UNET_CLASS]
    # A trainer that writes into text_encoder/ may have kept the untrained unet/: which one is meant is not ours to
    # guess.
    if "unet" in found and "text_encoder" not in found:
        return place.path / "unet"
    if len(found) == 1:
        return place.path / found[0]
    if found:
        raise CheckpointError(
            f"{place.label} holds {len(found)} U-Nets ({', '.join(found)}), one is expected; pass one of them, such "
            f"as {use('unet', f'{place.label}/{found[0]}')}"
        )
    listed = ", ".join(f"{name}: {cls}" for name, cls in classes.items()) or "no config.json"
    raise CheckpointError(
        f"{place.label} holds no {UNET_CLASS} (found {listed}); pass a folder whose config.json names that class, or "
        "a single .safetensors file"
    )


def enclosing_pipeline(path: Path) -> Path | None:
    """The pipeline folder that a U-Net is or sits in, at most two levels up from a file and one from a folder."""
    path = path.absolute()
    candidates = [path.parent, path.parent.parent] if path.is_file() else [path, path.parent]
    return next((candidate for candidate in candidates if is_pipeline(candidate)), None)
