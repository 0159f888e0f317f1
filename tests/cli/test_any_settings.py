"""Any settings file, provenance, schedule or option is taken, or refused in one line. `make fuzz` looks longer."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from generated import EDGES, VALUES, changed, damaged
from golden import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from pie_engine.cli.main import _parser, main
from pie_engine.cli.parsing import commands_of
from pie_engine.config import RoundSchedule
from pie_engine.errors import ConfigError

OPTIONS: dict[str, Any] = {
    "engine": "a.pie", "image": str(GOLDEN / "image.png"), "prompt": "heart", "item_id": "0", "steps": 3,
    "strength": 0.5, "guidance_scale": 3.0, "composite": False, "lora": ["a.safetensors:0.5"], "shift": "-3,2",
    "resolution": 32, "seed": 0, "fit": "crop", "backend": "torch", "interpolate": 0,
    "regions": [{"mask": f"{GOLDEN / 'mask.png'}:0.9"}, {"finding": "Pneumonia"}, {"mask_box": "0,0,9,9"}],
}  # fmt: skip
PROVENANCE: dict[str, Any] = {
    "options": OPTIONS, "settings": {"schedule": None}, "model": {"hashes": {"unet": "1" * 64}},
    "input": {"image_sha256": "1" * 64, "roi": {"regions": [{"sha256": "1" * 64}, {}], "keep": []}},
}  # fmt: skip
ENTRIES: dict[str, Any] = {
    "ranges": [{"rounds": "1-3", "prompt": "a", "strength": [0.2, 0.5]}, {"rounds": 4, "guidance_scale": 3}]
}


def told(*words: str) -> None:
    """`pie-engine run` prints the settings as they hold, or refuses them."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["run", *words, "--print-config"])
    if code == 0:
        assert isinstance(yaml.safe_load(out.getvalue()), dict)
    else:
        assert (code, out.getvalue(), err.getvalue().count("\n")) == (2, "", 1), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any-settings")


@given(changed(OPTIONS).map(json.dumps) | damaged(yaml.safe_dump(OPTIONS).encode()) | st.text(max_size=200))
def test_settings_files(folder: Path, content: str | bytes) -> None:
    path = folder / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    told("--config", str(path))


@given(changed(PROVENANCE, most=6) | VALUES)
def test_provenances(folder: Path, provenance: Any) -> None:
    path = folder / "provenance.json"
    path.write_text(json.dumps(provenance))
    told("--from", str(path))


RUN = commands_of(_parser())["run"]
NAMES = sorted({name for action in RUN._actions for name in action.option_strings} - {"--help", "-h", "--debug"})


@given(
    st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from([str(edge) for edge in EDGES]) | st.text(max_size=12)),
        max_size=4,
    )
)
def test_options(options: list[tuple[str, str]]) -> None:
    told("--image", "a.png", "--prompt", "x", *(f"{name}={value}" for name, value in options))


@given(changed(ENTRIES).map(lambda value: value.get("ranges")) | VALUES, st.integers(1, 12))
def test_schedules(folder: Path, value: Any, steps: int) -> None:
    path = folder / "rounds.json"
    path.write_text(json.dumps(value))
    try:
        rounds = RoundSchedule.read(path).rounds(steps, 50, 0.5, 7.5)
    except ConfigError as error:
        assert "\n" not in str(error) and len(str(error)) < 6000
        return
    assert len(rounds) == steps
    assert all(0 < one.strength <= 1 and 0 <= one.guidance_scale <= 100 for one in rounds)
