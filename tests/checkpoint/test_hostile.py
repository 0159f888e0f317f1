"""Files that ask for gigabytes or hours are refused before they get any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import ATTACKS, attack

from pie_engine.checkpoint.descriptions import PeftDescription, validate_config
from pie_engine.checkpoint.json_files import MAX_DEPTH, parse_object, read_json
from pie_engine.errors import CheckpointError, PieError

# Runs on its own, so that what it took at most can be told, and so that a bomb takes nobody else along.
_PROBE = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
import torch
from pie_engine.checkpoint import load_checkpoint
from pie_engine.errors import PieError

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

load_checkpoint(sys.argv[1])  # what an ordinary one takes, imports included
for path in sys.argv[2:]:
    before, start = peak(), time.process_time()
    try:
        load_checkpoint(path)
        said = "loaded"
    except PieError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    print(json.dumps([said, time.process_time() - start, peak() - before]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float, float]]:
    """Attack -> what was said, processor seconds, and megabytes beyond those of an ordinary checkpoint."""
    place = tmp_path_factory.mktemp("hostile")
    paths = [str(attack(name, folder, place / name.replace(" ", "-"))) for name in ATTACKS]
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, str(folder), *paths],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(lines) == len(ATTACKS), done.stderr[-2000:]
    return dict(zip(ATTACKS, map(tuple, lines), strict=True))


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, outcomes: dict[str, tuple[str, float, float]]) -> None:
    said, seconds, megabytes = outcomes[name]
    assert ATTACKS[name][1] in said
    assert "\n" not in said and len(said) < 600
    # A full-size checkpoint takes half a minute and five gigabytes; each attack took at least this much before.
    assert seconds < 10
    assert megabytes < 250


def test_a_pipe_is_no_config(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_json(tmp_path / "config.json")


def test_brackets_within_text_do_not_nest() -> None:
    assert parse_object(json.dumps({"a": "[" * 500, 'b"': '\\"' + "{" * 500})) == {
        "a": "[" * 500, 'b"': '\\"' + "{" * 500
    }  # fmt: skip
    deepest = '{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}"
    assert parse_object(deepest)
    with pytest.raises(ValueError, match="nested deeper"):
        parse_object(deepest.replace("[", "[[", 1).replace("]", "]]", 1))


@pytest.mark.parametrize(
    ("pattern", "line"),
    [("(a+)+", "should match pattern"), ("a.*", "should match pattern"), ("attn1.to_q", None), (r"^down\.attn1", None)],
)
def test_layers_of_a_lora_are_named_and_not_matched(pattern: str, line: str | None) -> None:
    """An expression from a file could take hours to match."""
    settings = {"alpha_pattern": {pattern: 4}}
    if line is None:
        assert validate_config(PeftDescription, settings, "LoRA x") == settings
        return
    with pytest.raises(PieError, match=line):
        validate_config(PeftDescription, settings, "LoRA x")


def test_what_chooses_code_is_dropped(folder: Path, tmp_path: Path) -> None:
    """A config may name kernels to fetch, classes to import, or precisions to convert to."""
    from pie_engine.checkpoint import load_checkpoint

    plain = load_checkpoint(folder)
    path = attack("layers", folder, tmp_path / "extra")
    for part in ("unet", "vae", "text_encoder"):
        config = json.loads((folder / part / "config.json").read_text())
        extra = {"_attn_implementation": "stranger/kernel", "auto_map": {"AutoModel": "x.Y"}, "quantization_config": {}}
        (path / part / "config.json").write_text(json.dumps({**config, **extra, "return_dict": False}))
    found = load_checkpoint(path)
    assert found.hashes == plain.hashes
    assert found.text_encoder.config._attn_implementation == plain.text_encoder.config._attn_implementation
    for model in (found.unet, found.vae, found.text_encoder):
        assert not {"auto_map", "quantization_config"} & set(dict(model.config) if model is not found.text_encoder else
                                                             model.config.to_dict())  # fmt: skip
