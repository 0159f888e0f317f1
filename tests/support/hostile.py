"""Checkpoints that ask for more than a machine has: each returns the folder, or writes the file, that does."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WEIGHTS = "diffusion_pytorch_model"
_GIGABYTE = 10**9


def changed(part: str, **entries: Any) -> Callable[[Path], None]:
    """Other values in a config."""

    def apply(folder: Path) -> None:
        path = folder / part
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return apply


def text_in(part: str, text: str) -> Callable[[Path], None]:
    """Any text in place of a config."""
    return lambda folder: (folder / part).write_text(text) and None


def pickled(pickle: bytes) -> Callable[[Path], None]:
    """The U-Net's weights as an archive of PyTorch's with this pickle in it."""

    def apply(folder: Path) -> None:
        (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
        with zipfile.ZipFile(folder / "unet" / f"{WEIGHTS}.bin", "w") as archive:
            for name, content in _records().items():
                archive.writestr(name, pickle if name.endswith("data.pkl") else content)

    return apply


def packed(folder: Path) -> None:
    """A zip bomb: a few megabytes that unpack to a text of one gigabyte."""
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    with zipfile.ZipFile(folder / "unet" / f"{WEIGHTS}.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in _records().items():
            if not name.endswith("data.pkl"):
                archive.writestr(name, content)
                continue
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(b"\x80\x02}q\x00X" + _GIGABYTE.to_bytes(4, "little"))
                for _ in range(1000):
                    file.write(b"a" * 10**6)
                file.write(b".")


def overlapping(folder: Path) -> None:
    """An archive whose directory names one record a hundred times."""
    pickled(_records()["archive/data.pkl"])(folder)
    path = folder / "unet" / f"{WEIGHTS}.bin"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/9", bytes(10**5))
        archive.filelist += [archive.getinfo("archive/data/9")] * 99
        archive._didModify = True  # type: ignore[attr-defined]


def expanded(folder: Path) -> None:
    """Tensors of gigabytes, each one stored number seen many times."""
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    torch.save({"conv_in.weight": torch.zeros(()).expand(60000, 60000)}, folder / "unet" / f"{WEIGHTS}.bin")


def _records() -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save({"conv_in.weight": torch.zeros(4)}, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


_LARGE = b"\x8a\x05" + (6 * _GIGABYTE).to_bytes(5, "little")
# ((((), ()), ((), ())), ...), a hundred times: 2**100 tuples to hash.
_SPREAD = b"".join(b"q%ch%c\x86" % (i, i) for i in range(1, 101))

# What is done to a checkpoint -> a part of the line that refuses it.
ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "timesteps": (changed("scheduler/scheduler_config.json", num_train_timesteps=10**9), "num_train_timesteps is 1000"),
    "layers": (changed("unet/config.json", layers_per_block=10**5), "layers_per_block is 100000, should be"),
    "deep levels": (
        changed("unet/config.json", layers_per_block=16, transformer_layers_per_block=16), "at most 128 are built"
    ),
    "VAE layers": (changed("vae/config.json", layers_per_block=10**5), "layers_per_block is 100000, should be"),
    "text layers": (changed("text_encoder/config.json", num_hidden_layers=20_000), "num_hidden_layers is 20000"),
    "positions": (changed("text_encoder/config.json", max_position_embeddings=10**10), "max_position_embeddings is 1"),
    "nested": (text_in("unet/config.json", '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}"), "nested deeper than 64 levels"),
    "long": (text_in("unet/config.json", '{"a": [' + "0," * 10**7 + "0]}"), "bytes, at most 16777216 are read"),
    "packed": (packed, "is packed, which PyTorch never does"),
    "overlapping": (overlapping, "holds records that overlap"),
    "bytearray": (pickled(b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n" + _LARGE + b"\x85Rs."), "bytearray"),
    "torch.Tensor": (pickled(b"\x80\x02}X\x01\x00\x00\x00actorch\nTensor\n" + _LARGE + b"\x85Rs."), "torch.Tensor"),
    "tuples": (pickled(b"\x80\x02})" + _SPREAD + b"K\x01s."), "describes its tensors in too many operations"),
    "expanded": (expanded, "is not stored as it is read"),
}  # fmt: skip


def attack(name: str, source: Path, folder: Path) -> Path:
    """A copy of a checkpoint with one thing done to it."""
    shutil.copytree(source, folder)
    ATTACKS[name][0](folder)
    return folder
