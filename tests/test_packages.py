"""Versions as results name them."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from pie_engine.bundling.graphs import exporter_versions
from pie_engine.config import RunConfig
from pie_engine.machine import environment
from pie_engine.outputs.provenance import describe_run
from pie_engine.packages import installed


def test_versions_are_those_of_the_modules() -> None:
    assert installed("torch") == torch.__version__
    assert installed("numpy") == np.__version__ == version("numpy")
    assert installed("no-such-package") is None


def test_a_result_names_the_build_of_torch() -> None:
    for versions in (environment.versions(), describe_run(RunConfig(), "rounds")["versions"], exporter_versions()):
        assert versions["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("from typing import Optional\n\n__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n", "2.13.0+cu130"),
        ("__version__: str = '2.13.0'\n", "2.13.0"),
        ("nothing\n", "2.13.0"),
        (None, "2.13.0"),
    ],
)
def test_the_package_of_a_cuda_build_does_not_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str | None, expected: str
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch-2.13.0.dist-info").mkdir()
    (tmp_path / "torch-2.13.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n"
    )
    if says is not None:
        (tmp_path / "torch" / "version.py").write_text(says)
    monkeypatch.syspath_prepend(tmp_path)
    assert installed("torch") == expected
