"""One set of tiny models per session, in the formats that are read most; no test sees the user's own hub cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import ldm_whole, make_models, save_folder, save_tokenizer


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache for every test."""
    cache = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    return make_models()


@pytest.fixture(scope="session")
def other_unet() -> object:
    """Same architecture, other weights: a fine-tuned U-Net."""
    unet = make_models().unet
    for parameter in unet.parameters():
        parameter.data.mul_(1.01)
    return unet


@pytest.fixture(scope="session")
def folder(models: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder. Tests that change it copy it first."""
    return save_folder(models, tmp_path_factory.mktemp("folder") / "base")


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A diffusers folder to damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def whole(models: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole LDM single file with tokenizer/ beside it."""
    place = tmp_path_factory.mktemp("whole")
    save_file(ldm_whole(models), place / "model.safetensors")
    save_tokenizer(place / "tokenizer")
    return place / "model.safetensors"
