"""Shared by all tests: one thread, a cache of their own, the golden checkpoints, and what is skipped and why."""

from __future__ import annotations

import gc
import importlib.util
import os

import fuzzing
import pytest
import torch
from golden import GOLDEN
from ship_graphs import fill_cache

from pie_engine.checkpoint import Checkpoint, load_checkpoint
from pie_engine.model.bundle import Bundle

fuzzing.register()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Where the run may be cut short before pytest's own list: see benchmarks/gpu_check.py."""
    if report.failed and os.environ.get("PIE_TESTS_TELL"):
        print(f"\n== {report.nodeid}\n{report.longreprtext}")  # noqa: T201


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
    base = tmp_path_factory.getbasetemp()
    # Under pytest-xdist all workers share one cache, so that each component is exported once: it is locked.
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ["PIE_ENGINE_CACHE"] = str(shared / "cache")
    fill_cache(shared / "cache")


@pytest.fixture(autouse=True, scope="module")
def _little_to_look_through() -> None:
    # Builds and reruns collect garbage, which takes a second where all libraries are imported: what lives by now stays.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def ddim_checkpoint() -> Checkpoint:
    return load_checkpoint(GOLDEN / "checkpoint_ddim")


@pytest.fixture(scope="session")
def pndm_checkpoint() -> Checkpoint:
    return load_checkpoint(GOLDEN / "checkpoint_pndm")


@pytest.fixture(scope="session")
def bundle(ddim_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The DDIM golden checkpoint, exported once per session. Tests that change it copy it first."""
    from pie_engine.bundling import build_bundle

    return build_bundle(ddim_checkpoint, tmp_path_factory.mktemp("bundle") / "golden.pie")
