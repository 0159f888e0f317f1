"""An engine bundle on disk: one folder with a manifest, the four components, and the tokenizer.

    BUNDLE/manifest.json                    what it is, and the size and SHA-256 of every other file
    BUNDLE/unet/model.onnx[.data] ...       vae_encoder, vae_decoder, text_encoder
    BUNDLE/unet_regional/model.onnx ...     vae_decoder_regional: for regional rounds, if they were asked for
    BUNDLE/engines/tensorrt/unet.plan ...   the same four, compiled, if they were asked for
    BUNDLE/tokenizer/                       vocab.json, merges.txt, ...

Nothing in a bundle is loaded before its hash matches the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from pie_engine import __version__, commands
from pie_engine.checkpoint.descriptions import (
    Description,
    SchedulerDescription,
    TextEncoderDescription,
    UNetDescription,
    VaeDescription,
    first_problem,
    shown,
    validate_config,
)
from pie_engine.checkpoint.json_files import read_object
from pie_engine.checkpoint.tokenizer import one_line
from pie_engine.config import COMPONENTS
from pie_engine.errors import BundleError, CheckpointError, argument
from pie_engine.files import find_mismatch, sha256_file
from pie_engine.model.graph_types import graph_precision
from pie_engine.model.info import ModelInfo
from pie_engine.model.manifest import Manifest
from pie_engine.model.tokenizer import load_tokenizer

MANIFEST = "manifest.json"
# Whose weights each component holds, as `Checkpoint.hashes` names them.
WEIGHTS = {"text_encoder": "text_encoder", "vae_encoder": "vae", "unet": "unet", "vae_decoder": "vae"}
# Of a component's graph for regional rounds, behind its name: a folder of the bundle.
REGIONAL = "_regional"
# Raised when bundles of earlier versions can no longer be run.
FORMAT = 1


# Relative path -> size and SHA-256.
Files = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its folder, its manifest and what is known about its model.

    Attributes:
        remembered: whether a file that has not been written since it was hashed is taken to be as it was.
    """

    path: Path
    manifest: dict[str, Any]
    model: ModelInfo
    remembered: bool = True

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

    def check_unchanged(self, component: str) -> None:
        """Raises BundleError unless a component's files are still those that the manifest names."""
        files = self.manifest["files"]
        expected = {name: files[name]["sha256"] for name in files if name.startswith(f"{component}/")}
        try:
            mismatch = find_mismatch(self.path, expected, remembered=self.remembered)
            changed = None if mismatch is None else mismatch[0]
        except OSError as error:
            changed = error.filename
        if changed is not None:
            raise BundleError(f"{self.path / changed} was changed while its model ran; load bundle {self.path} again")


def describe_files(folder: Path, known: Files | None = None) -> Files:
    """Size and SHA-256 of every file below `folder`, keyed by relative path.

    Args:
        known: what was hashed a moment ago.
    """
    names = {str(path.relative_to(folder)): path for path in _files(folder)}
    return {
        name: (known or {}).get(name) or {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for name, path in names.items()
    }


def write_manifest(folder: Path, manifest: dict[str, Any], known: Files | None = None) -> None:
    """Complete `manifest` with format, version and the files below `folder`, and write it there.

    Args:
        known: see `describe_files`.
    """
    complete = {"format": FORMAT, "pie_engine": __version__, **manifest, "files": describe_files(folder, known)}
    complete["manifest_sha256"] = manifest_hash(complete)
    (folder / MANIFEST).write_text(json.dumps(complete, indent=2) + "\n")


def open_bundle(path: str | Path, *, verify: bool = True, remembered: bool = True) -> Bundle:
    """Read a bundle and check it against its manifest.

    Args:
        verify: hash its files.
        remembered: not those that have not been written since they were last hashed.

    Raises:
        BundleError: no bundle, of another format or byte order, or a file is missing, changed or foreign, or the
            manifest contradicts itself or the graphs. The line says which, and the command that rebuilds the bundle.
    """
    path = Path(path)
    if not path.is_dir():
        if path.exists():
            raise BundleError(
                f"bundle {path} is a file; pass the folder that pie-engine build wrote, or {argument('checkpoint')}"
            )
        raise BundleError(f"bundle {path} does not exist; build it: {commands.build(path)}")
    try:
        manifest = read_object(path / MANIFEST)
    except FileNotFoundError:
        raise BundleError(
            f"{path} is not a bundle (no {MANIFEST}); pass the folder that pie-engine build wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {path} has an unreadable {MANIFEST} ({error}); build it again") from None
    command = _rebuilding(manifest, path)
    rebuild = f"rebuild it: {command}"
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"bundle {path} has format {shown(manifest.get('format'))} (pie-engine {__version__} reads {FORMAT}); "
            f"{rebuild}"
        )
    # A flipped digit in a scaling factor would give wrong images without a word.
    if manifest.get("manifest_sha256") != manifest_hash(manifest):
        raise BundleError(f"bundle {path} has a {MANIFEST} that was changed (SHA-256); {rebuild}")
    try:
        Manifest.model_validate(manifest)
    except pydantic.ValidationError as error:
        problem = first_problem(error, manifest)
        raise BundleError(f"bundle {path} has an unusable {MANIFEST} ({problem}); {rebuild}") from None
    _drop_unknown(manifest)
    manifest["build_command"] = command
    try:
        if verify:
            _verify(path, manifest["files"], rebuild, remembered)
        _check_graphs(path, manifest, rebuild)
        text_encoder = manifest.get("architecture", {}).get("text_encoder", {})
        tokenizer = load_tokenizer(path / "tokenizer", embeddings=text_encoder.get("vocab_size"))
    except (CheckpointError, OSError, ValueError) as error:
        raise BundleError(f"bundle {path} cannot be read ({one_line(error)}); {rebuild}") from None
    model = ModelInfo(
        **manifest["model"],
        hashes=manifest["hashes"],
        tokenizer=tokenizer,
        architecture=manifest.get("architecture", {}),
    )
    return Bundle(path, manifest, model, remembered)


def _rebuilding(manifest: dict[str, Any], path: Path) -> str:
    """The command that a manifest gives to build the bundle again, if it is one command and ours."""
    command = manifest.get("build_command")
    with contextlib.suppress(ValueError):
        # What a stranger wrote is shown for somebody to run: no second command, nothing that a shell would expand.
        words = shlex.split(command) if isinstance(command, str) and len(command) <= 4096 else []
        if words[:1] == ["pie-engine"] and shlex.join(words) == command:
            return str(command)
    return commands.build(path)


def _drop_unknown(manifest: dict[str, Any]) -> None:
    """Take what no library of ours knows out of the configurations, which come from files in the wild."""
    facts, source = manifest["model"], "bundle"
    facts["scheduler_config"] = validate_config(SchedulerDescription, facts["scheduler_config"], source)
    kinds: dict[str, type[Description]] = {
        "unet": UNetDescription, "vae": VaeDescription, "text_encoder": TextEncoderDescription,
    }  # fmt: skip
    if "architecture" in manifest:
        known = manifest["architecture"]
        manifest["architecture"] = {
            name: validate_config(kinds[name], config, source) for name, config in known.items()
        }


def _check_graphs(path: Path, manifest: dict[str, Any], rebuild: str) -> None:
    """Refuse a manifest that tells another precision than its graphs: the buffers would be read as other numbers."""
    told = {name: manifest["components"][name]["precision"] for name in COMPONENTS}
    told |= {name + REGIONAL: entry["precision"] for name, entry in manifest.get("regional", {}).items()}
    for name, precision in told.items():
        file = f"{name}/model.onnx"
        if file not in manifest["files"]:
            raise BundleError(f"bundle {path} lacks {file}; {rebuild}")
        try:
            found = graph_precision(path / file)
        except ValueError as error:
            raise BundleError(f"{path / file} is not an ONNX graph ({error}); {rebuild}") from None
        if precision != found:
            raise BundleError(f"bundle {path} has {file} in {found} where its {MANIFEST} says {precision}; {rebuild}")
    unet = told["unet"]
    if unet != manifest["precision"]:
        raise BundleError(
            f"bundle {path} has a U-Net in {unet} where its {MANIFEST} says {manifest['precision']}; {rebuild}"
        )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def manifest_hash(manifest: dict[str, Any]) -> str:
    """SHA-256 of everything that a manifest says, whatever its layout."""
    facts = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _verify(path: Path, files: dict[str, dict[str, Any]], rebuild: str, remembered: bool) -> None:
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
    mismatch = find_mismatch(path, {name: entry["sha256"] for name, entry in files.items()}, remembered=remembered)
    if mismatch is not None:
        name, found = mismatch
        raise BundleError(f"{path / name} does not match its manifest (SHA-256 {found[:12]}...); {rebuild}")
