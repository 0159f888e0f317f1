"""Tensors from files, safely: safetensors, or torch.load(weights_only=True). Nothing here ever runs code from a file.

Tensors come back memory-mapped and in their stored dtype; `to_float32` makes the one copy that the model keeps.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pie_engine.checkpoint.archives import CONVERT, MAX_TENSORS, check_archive, check_tensors
from pie_engine.checkpoint.descriptions import IndexDescription, validate_config
from pie_engine.checkpoint.json_files import read_json
from pie_engine.checkpoint.tokenizer import one_line
from pie_engine.errors import CheckpointError

# A safetensors header names each tensor in about 100 bytes; trainers add their own notes, up to megabytes.
MAX_HEADER = 32 << 20
_PICKLES = (".ckpt", ".bin")


def weight_files(folder: Path, stems: Iterable[str]) -> list[Path]:
    """The weight files of a component folder: safetensors before .bin, full precision before fp16, shards all together.

    stems: names without suffix, such as "diffusion_pytorch_model". Raises CheckpointError if there are none.
    """
    for suffix in ("safetensors", "bin"):
        for stem in stems:
            for variant in ("", ".fp16"):
                single = folder / f"{stem}{variant}.{suffix}"
                index = folder / f"{stem}.{suffix}.index{variant}.json"
                if single.is_file():
                    return [single]
                if index.is_file():
                    return _shards(index)
    lone = sorted(folder.glob("*.safetensors"))
    if len(lone) == 1:
        return lone
    raise CheckpointError(
        f"{folder} holds no weights ({next(iter(stems))}.safetensors is expected); copy or download them into it"
    )


def _shards(index: Path) -> list[Path]:
    """The files that a shard index names, all beside it."""
    names = sorted(set(validate_config(IndexDescription, read_json(index), str(index))["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise CheckpointError(f"shard {name} named by {index} is not beside it; copy or download it again")
    return [index.parent / name for name in names]


def read_tensors(*files: Path) -> dict[str, Tensor]:
    """Name -> tensor, memory-mapped, in the stored dtype, over all files together. Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors.update(_read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path))
    if not tensors:
        raise CheckpointError(f"{files[0]} holds no tensors; pass a file with the weights of a model")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The free-text header of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        head = file.read(64)
    size, header = path.stat().st_size, int.from_bytes(head[:8], "little")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull`, or download the file")
    if MAX_HEADER < header < size:
        raise CheckpointError(f"{path} has a header of {header} bytes, at most {MAX_HEADER} are read; export it again")
    try:
        with safe_open(path, framework="pt") as file:
            if len(file.keys()) > MAX_TENSORS:
                raise CheckpointError(
                    f"{path} holds {len(file.keys())} tensors, at most {MAX_TENSORS} are loaded; pass a Stable "
                    "Diffusion v1.x checkpoint"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is corrupt or not safetensors ({size} bytes: {one_line(error)}); copy or download it again"
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """A .ckpt or .bin file, through PyTorch's restricted unpickler, which builds only tensors and containers."""
    if path.suffix not in _PICKLES:
        raise CheckpointError(
            f"{path} has the suffix '{path.suffix}'; .safetensors, or .ckpt that holds only tensors, is loaded: "
            f"{CONVERT}"
        )
    check_archive(path)
    try:
        # Files older than PyTorch 1.6 are not zip archives and cannot be mapped.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickle protocols, which either load or are refused here
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} is corrupt or holds pickled objects that could run code; only plain tensors are loaded "
            f"(weights_only): {CONVERT}"
        ) from None
    except Exception as error:  # torch.load raises RuntimeError, EOFError, OSError, ... on a damaged file
        raise CheckpointError(f"{path} is corrupt ({one_line(error)}); copy or download it again") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of named tensors; {CONVERT}")
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    check_tensors(tensors, path)
    return tensors


def to_float32(name: str, tensor: Tensor, source: str) -> Tensor:
    """A contiguous float32 copy. Raises CheckpointError for integer (quantised) and for non-finite weights."""
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"tensor {name} of {source} is {str(tensor.dtype).removeprefix('torch.')}; floating-point weights are "
            "expected: pass a checkpoint that is not quantised"
        )
    # Copied even when it is float32 already: a mapped file that is overwritten while we run would change the model.
    copy = tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    # The sum is cheap and not finite whenever an element is not; only then look closer (a sum can overflow by itself).
    if not torch.isfinite(copy.sum()) and not torch.isfinite(copy).all():
        raise CheckpointError(
            f"tensor {name} of {source} holds NaN or infinity; finite weights are expected: the training diverged or "
            "the file is damaged, pass an earlier checkpoint"
        )
    return copy
