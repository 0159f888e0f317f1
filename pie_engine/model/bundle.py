"""An engine bundle on disk: one folder with a manifest, the four components, and the tokenizer.

    BUNDLE/manifest.json                    what it is, and the size and SHA-256 of every other file
    BUNDLE/unet/model.onnx[.data] ...       vae_encoder, vae_decoder, text_encoder
    BUNDLE/engines/tensorrt/unet.plan ...   the same four, compiled, if they were asked for
    BUNDLE/tokenizer/                       vocab.json, merges.txt, ...

Nothing in a bundle is loaded before its hash matches the manifest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pie_engine import __version__, commands
from pie_engine.config import COMPONENTS, ENGINE_WEIGHTS, FLAVOURS, PRECISIONS
from pie_engine.errors import BundleError, argument
from pie_engine.files import sha256_file
from pie_engine.model.info import ModelInfo
from pie_engine.model.tokenizer import load_tokenizer

MANIFEST = "manifest.json"
# Whose weights each component holds, as `Checkpoint.hashes` names them.
WEIGHTS = {"text_encoder": "text_encoder", "vae_encoder": "vae", "unet": "unet", "vae_decoder": "vae"}
# Raised when bundles of earlier versions can no longer be run.
FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its folder, its manifest and what is known about its model."""

    path: Path
    manifest: dict[str, Any]
    model: ModelInfo

    @property
    def precision(self) -> str:
        """Precision of the U-Net; single components may be kept in fp32 (see `manifest["components"]`)."""
        return self.manifest["precision"]

    def engines(self, flavour: str | None = None) -> list[dict[str, Any]]:
        """The fingerprints of the compiled engines, of one flavour ("tensorrt", "tensorrt-rtx") or of all."""
        return [entry for entry in self.manifest.get("engines", []) if flavour in (None, entry["flavour"])]

    def weights_hash(self, component: str) -> str:
        """SHA-256 of the weights that a component's graph holds."""
        return self.manifest["hashes"][WEIGHTS[component]]

    def build_command(self, **options: str) -> str:
        """The command that builds this bundle, with options put last, where they win."""
        return commands.with_options(self.manifest["build_command"], options)

    @property
    def unknown_models(self) -> list[str]:
        """Models whose configuration the manifest does not hold. PyTorch cannot run a bundle that has any."""
        known = self.manifest.get("architecture", {})
        return [name for name in dict.fromkeys(WEIGHTS.values()) if name not in known]

    def graph(self, component: str) -> Path:
        """Path of a component's ONNX graph."""
        return self.path / component / "model.onnx"


def describe_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below `folder`, keyed by relative path."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in _files(folder)
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Complete `manifest` with format, version and the files below `folder`, and write it there."""
    complete = {"format": FORMAT, "pie_engine": __version__, **manifest, "files": describe_files(folder)}
    complete["manifest_sha256"] = _own_hash(complete)
    (folder / MANIFEST).write_text(json.dumps(complete, indent=2) + "\n")


def open_bundle(path: str | Path, *, verify: bool = True) -> Bundle:
    """Read a bundle and check it against its manifest.

    Raises:
        BundleError: no bundle, of another format or byte order, or a file is missing, changed or foreign. The line
            says which, and the command that rebuilds the bundle.
    """
    path = Path(path)
    if not path.is_dir():
        if path.exists():
            raise BundleError(
                f"bundle {path} is a file; pass the folder that pie-engine build wrote, or {argument('checkpoint')}"
            )
        raise BundleError(f"bundle {path} does not exist; build it: {commands.build(path)}")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        raise BundleError(
            f"{path} is not a bundle (no {MANIFEST}); pass the folder that pie-engine build wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {path} has an unreadable {MANIFEST} ({error}); build it again") from None
    rebuild = f"rebuild it: {manifest.get('build_command', commands.build(path))}"
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"bundle {path} has format {manifest.get('format')} (pie-engine {__version__} reads {FORMAT}); {rebuild}"
        )
    # A flipped digit in a scaling factor would give wrong images without a word.
    if manifest.get("manifest_sha256") != _own_hash(manifest):
        raise BundleError(f"bundle {path} has a {MANIFEST} that was changed (SHA-256); {rebuild}")
    try:
        info = manifest["model"]
        missing = [name for name in COMPONENTS if name not in manifest["components"]]
        if missing:
            raise KeyError(missing[0])
        if manifest["precision"] not in PRECISIONS or not isinstance(manifest["sources"], dict):
            raise ValueError("precision or sources")
        architecture = manifest.get("architecture", {})  # earlier versions wrote none, or the U-Net's alone
        if not isinstance(architecture, dict) or not all(isinstance(own, dict) for own in architecture.values()):
            raise ValueError("architecture")
        _check_engines(manifest)
        if verify:
            _verify(path, manifest["files"], rebuild)
        model = ModelInfo(**info, hashes=manifest["hashes"], tokenizer=load_tokenizer(path / "tokenizer"))
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise BundleError(f"bundle {path} has an incomplete {MANIFEST} ({error}); {rebuild}") from None
    return Bundle(path, manifest, model)


_ENGINE_FIELDS = {
    "component": str, "file": str, "flavour": str, "version": str, "capabilities": list, "resolutions": list,
    "batches": list, "precision": str, "weights": str, "weights_hash": str, "profiles": list, "attention": dict,
}  # fmt: skip


def _check_engines(manifest: dict[str, Any]) -> None:
    """Raises KeyError or ValueError for an entry that what reads it later would trip over."""
    for entry in manifest.get("engines", []):
        for name, kind in _ENGINE_FIELDS.items():
            if not isinstance(entry[name], kind):
                raise ValueError(f"engine's {name}")
        known = entry["flavour"] in FLAVOURS and entry["weights"] in ENGINE_WEIGHTS
        if not known or entry["file"] not in manifest["files"]:
            raise ValueError("engine's flavour, weights or file")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def _own_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of everything that a manifest says, whatever its layout."""
    facts = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _verify(path: Path, files: dict[str, dict[str, Any]], rebuild: str) -> None:
    root = os.path.realpath(path)
    for name, entry in files.items():
        file = path / name
        # A manifest from elsewhere must not make the engine read outside the bundle. (Path.resolve raises at a link
        # to itself before Python 3.13.)
        if not Path(os.path.realpath(file)).is_relative_to(root):
            raise BundleError(f"bundle {path} names a file outside itself ({name}); {rebuild}")
        if not file.is_file():
            raise BundleError(f"bundle {path} lacks {name}; {rebuild}")
        if file.stat().st_size != entry["bytes"]:
            raise BundleError(f"{file} has {file.stat().st_size} bytes (manifest: {entry['bytes']}); {rebuild}")
    unknown = {str(file.relative_to(path)) for file in _files(path)} - files.keys()
    if unknown:
        raise BundleError(
            f"bundle {path} holds {sorted(unknown)[0]}, which its manifest does not name; delete it, or {rebuild}"
        )
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the interpreter lock
        hashes = pool.map(lambda name: sha256_file(path / name), files)
        for (name, entry), found in zip(files.items(), hashes, strict=True):
            if found != entry["sha256"]:
                raise BundleError(f"{path / name} does not match its manifest (SHA-256 {found[:12]}...); {rebuild}")
