"""What sweeps are tried with: two patients, a classifier made by hand, and the golden checkpoint in eager PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bright import save_bright
from golden import GOLDEN
from PIL import Image

from pie_engine import Item, PieEngine
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bright(tmp_path_factory.mktemp("bright"))


@pytest.fixture(scope="session")
def engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))


@pytest.fixture
def patients(tmp_path: Path) -> list[Item]:
    """The golden patient, and the same mirrored."""
    with Image.open(GOLDEN / "image.png") as image, Image.open(GOLDEN / "mask.png") as mask:
        for name, picture in (("image", image), ("mask", mask)):
            Image.fromarray(np.asarray(picture)[:, ::-1]).save(tmp_path / f"{name}.png")
    prompt = "the heart lung"
    return [
        Item(GOLDEN / "image.png", prompt, GOLDEN / "mask.png", "a"),
        Item(tmp_path / "image.png", prompt, tmp_path / "mask.png", "b"),
    ]
