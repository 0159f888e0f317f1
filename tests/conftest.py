"""Shared by all tests: one thread, a cache of their own, the golden checkpoints, and what is skipped and why."""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pie_engine.bundle import Bundle
from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.config import RunConfig

GOLDEN = Path(__file__).parent / "data" / "golden"
CASES: dict[str, dict[str, Any]] = json.loads((GOLDEN / "cases.json").read_text())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    no_gpu = pytest.mark.skip(reason="no NVIDIA GPU on this machine")
    no_trt = pytest.mark.skip(reason="neither tensorrt nor tensorrt_rtx is installed")
    has_trt = any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx"))
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if "trt" in item.keywords and not has_trt:
            item.add_marker(no_trt)


@pytest.fixture(autouse=True, scope="session")
def _own_surroundings(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Tiny tensors gain nothing from threads and lose much on a busy machine; exports must not reach the user's cache.
    torch.set_num_threads(1)
    os.environ["PIE_ENGINE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@dataclass(frozen=True)
class Case:
    """A golden case: arguments and what the published implementation computed."""

    image: Path
    mask: Path | None
    prompt: str
    checkpoint: Path
    config: RunConfig
    frames: Path
    latents: np.ndarray


def golden_case(name: str) -> Case:
    case = CASES[name]
    settings = ("steps", "strength", "num_inference_steps", "guidance_scale", "beta1", "beta2", "seed", "resolution")
    return Case(
        image=GOLDEN / case["image"],
        mask=GOLDEN / case["mask"] if case["mask"] else None,
        prompt=case["prompt"],
        checkpoint=GOLDEN / case["checkpoint"],
        config=RunConfig(semantics="official", **{key: case[key] for key in settings}),
        frames=GOLDEN / "expected" / name,
        latents=np.load(GOLDEN / "expected" / name / "latents.npy"),
    )


@pytest.fixture(scope="session")
def ddim_checkpoint() -> Checkpoint:
    return load_checkpoint(GOLDEN / "checkpoint_ddim")


@pytest.fixture(scope="session")
def pndm_checkpoint() -> Checkpoint:
    return load_checkpoint(GOLDEN / "checkpoint_pndm")


@pytest.fixture(scope="session")
def bundle(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The DDIM golden checkpoint, exported once per session. Tests that change it copy it first."""
    from pie_engine.build import build_bundle

    return build_bundle(ddim_checkpoint, tmp_path_factory.mktemp("bundle") / "golden.pie")
