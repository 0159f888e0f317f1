"""SECURITY.md says what the code does: its limits are the code's, and each promise has a test."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import annotated_types
import pytest
import torch
from dependencies import closure
from packaging.requirements import Requirement
from PIL import PngImagePlugin
from safetensors.torch import save_file

from pie_engine.checkpoint import archives, descriptions, json_files, tokenizer, weights
from pie_engine.errors import CheckpointError
from pie_engine.imaging import limits
from pie_engine.imaging.formats import raster

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def highest(kind: type[descriptions.Description], field: str) -> int:
    """The upper bound of a described value."""
    return next(part.le for part in kind.model_fields[field].metadata if isinstance(part, annotated_types.Le))


def longest(kind: Any) -> int:
    return next(part.max_length for part in kind.__metadata__[0].metadata if hasattr(part, "max_length"))


LIMITS = {
    "a JSON file": f"{json_files.MAX_BYTES >> 20} MiB, nested {json_files.MAX_DEPTH} levels deep",
    "training timesteps of a scheduler": f"{highest(descriptions.SchedulerDescription, 'num_train_timesteps'):,}",
    "layers per level of a U-Net or VAE": f"{highest(descriptions.VaeDescription, 'layers_per_block')}",
    "levels of a U-Net or VAE": f"{longest(descriptions.Widths)}",
    "transformers of a U-Net": f"{descriptions.MAX_TRANSFORMERS}",
    "layers of a text encoder": f"{highest(descriptions.TextEncoderDescription, 'num_hidden_layers')}",
    "tokens of a prompt that a text encoder may ask for": (
        f"{highest(descriptions.TextEncoderDescription, 'max_position_embeddings'):,}"
    ),
    "tensors of a file": f"{archives.MAX_TENSORS:,}",
    "header of a safetensors file": f"{weights.MAX_HEADER >> 20} MiB",
    "description of the tensors in a `.ckpt` or `.bin` file": f"{archives.MAX_PICKLE >> 20} MiB",
    "files of a tokenizer": f"{tokenizer.MAX_BYTES >> 20} MiB",
    "any image: a picture, a DICOM frame, a NIfTI slice, a TIFF tile": f"{limits.MAX_PIXELS:,} pixels (8,192 x 8,192)",
    "PNG: texts, unpacked": (
        f"{PngImagePlugin.MAX_TEXT_CHUNK >> 20} MiB each, {PngImagePlugin.MAX_TEXT_MEMORY >> 20} MiB together"
    ),
    "JPEG: scans of a progressive file": f"{limits.MAX_SCANS}",
    "TIFF: pages": f"{limits.MAX_PAGES:,}",
    "GIF, WebP and animated PNG: all pictures up to the chosen one": f"{limits.MAX_ANIMATED_PIXELS:,} pixels",
    "DICOM: a file": f"{limits.MAX_DICOM_FILE >> 30} GiB, {limits.MAX_FRAMES:,} frames",
    "DICOM: a deflated data set, inflated": f"{limits.MAX_INFLATED >> 20} MiB",
    "DICOM: a compressed frame, decoded": "the size that the header says",
    "NIfTI: a gzipped file, unpacked": f"{limits.MAX_UNPACKED >> 30} GiB",
    "NIfTI: what stands before the first voxel": f"{limits.MAX_NIFTI_HEADER >> 20} MiB",
}


def test_every_limit_is_the_codes() -> None:
    table = PAGE.partition("## Limits")[2].partition("## Reporting")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE))
    del rows["Of"]
    assert rows.keys() == LIMITS.keys()
    for name, limit in LIMITS.items():
        assert rows[name].startswith(limit), name


def test_the_formats_of_images_are_the_codes() -> None:
    listed = re.search(r"whatever its name: (.+) \(Pillow\), DICOM", PAGE)
    assert listed is not None and tuple(listed[1].upper().split(", ")) == raster.FORMATS


def test_a_tokenizer_that_is_too_large(tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_text("{}")
    with (tmp_path / "vocab.json").open("wb") as file:
        file.truncate(tokenizer.MAX_BYTES + 1)  # a hole: nothing is written
    with pytest.raises(CheckpointError, match="at most 67108864 are read"):
        tokenizer.read_tokenizer(tmp_path)


def test_a_header_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.write((weights.MAX_HEADER + 1).to_bytes(8, "little") + b"{")
        file.truncate(weights.MAX_HEADER + 100)
    with pytest.raises(CheckpointError, match="at most 33554432 are read"):
        weights.read_tensors(path)


def test_too_many_tensors(tmp_path: Path) -> None:
    save_file({str(i): torch.zeros(0) for i in range(archives.MAX_TENSORS + 1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="holds 20001 tensors, at most 20000 are loaded"):
        weights.read_tensors(tmp_path / "a.safetensors")


def test_no_address_is_invented() -> None:
    assert "@" not in PAGE and "http" not in PAGE


def test_dependencies_of_the_wheel() -> None:
    """As it was installed: what has an extra's marker is no part of it."""
    found = closure("pie-engine")
    needed = [line for line in distribution("pie-engine").requires or [] if "extra ==" not in line]
    assert {Requirement(line).name for line in needed} <= found.keys()
    assert {"torch", "diffusers", "sympy"} <= found.keys()
    assert not {"pytest", "hypothesis", "openvino", "bandit"} & found.keys()
