"""The command line in-process: `pie` runs it, `refuse` runs it and checks what every refusal promises."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pie_engine.cli.main import main
from pie_engine.model.bundle import Bundle

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@dataclass(frozen=True)
class Outcome:
    """What one command gave."""

    code: int
    out: str
    err: str


Pie = Callable[..., Outcome]
Refuse = Callable[..., str]


@pytest.fixture
def checkpoint() -> Path:
    return GOLDEN / "checkpoint_ddim"


@pytest.fixture
def image() -> Path:
    return GOLDEN / "image.png"


@pytest.fixture
def mask() -> Path:
    return GOLDEN / "mask.png"


@pytest.fixture
def greys(image: Path) -> np.ndarray:
    """[260, 300] uint8, the golden image's pixels."""
    with Image.open(image) as opened:
        return np.asarray(opened)


@pytest.fixture
def pie(capsys: pytest.CaptureFixture[str]) -> Pie:
    """Run `pie-engine` with these words."""

    def run(*words: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def simulate(pie: Pie, bundle: Bundle, image: Path, tmp_path: Path) -> Pie:
    """`pie-engine run` in its smallest form; later options override these.

    A bundle runs on ONNX Runtime, which opens one in a third of the time that OpenVINO takes.
    """

    def run(*words: object) -> Outcome:
        source = [] if "--checkpoint" in words else ["--engine", bundle.path, "--backend", "onnxruntime"]
        return pie(
            "run", *source, "--image", image, "--prompt", "heart", "--steps", "1", "--num-inference-steps", "2",
            "--resolution", "32", "--output", tmp_path / "result", "--quiet", *words,
        )  # fmt: skip

    return run


@pytest.fixture
def refuse(simulate: Pie, pie: Pie, tmp_path: Path) -> Refuse:
    """Run and check the promise: exit code 2, one line, no traceback, nothing on stdout, no file made or touched.

    `build` and `refit` alone may have said before what it was doing. Returns the line.
    """

    def run(*words: object) -> str:
        before = contents(tmp_path)
        build = words[0] in ("build", "refit")
        outcome = pie(*words) if build else simulate(*words)
        *earlier, line = outcome.err.splitlines()
        assert outcome.code == 2, outcome.err
        assert line.startswith("pie-engine: error: ")
        assert not outcome.out
        assert build or not earlier
        assert not any("error: " in progress or "Traceback" in progress for progress in earlier)
        assert contents(tmp_path) == before
        return line

    return run


@pytest.fixture
def copied_bundle(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(bundle.path, tmp_path / "copy.pie"))


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones too, with the bytes of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
