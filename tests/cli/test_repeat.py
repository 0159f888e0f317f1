"""`run --from provenance.json` repeats a run, and refuses inputs that are not what they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def original(pie: Any, bundle: Any, image: Path, mask: Path, tmp_path: Path) -> Path:
    """A run's folder, its inputs beside it."""
    for name, source in (("a.png", image), ("m.png", mask), ("k.png", mask)):
        shutil.copy(source, tmp_path / name)
    (tmp_path / "rounds.json").write_text('[{"rounds": 2, "strength": 1}]')
    outcome = pie(
        "run", "--engine", bundle.path, "--image", tmp_path / "a.png", "--prompt", "heart", "--rounds", 2, "--seed", 7,
        "--num-inference-steps", 2, "--resolution", 32, "--mask", f"{tmp_path / 'm.png'}:0.9", "--keep-box",
        "5,5,90,90", "--mask-box=100,100,200,200", "--item-id", "b", "--shift", "-2,3", "--schedule",
        tmp_path / "rounds.json",
        "--output", tmp_path / "first", "--quiet",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return tmp_path / "first"


def frames(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((folder / "frames").iterdir())]


def provenance(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "provenance.json").read_text())
    return {name: found[name] for name in ("settings", "input", "item_id", "simulated", "method", "options")}


def test_the_same_again(pie: Any, original: Path, tmp_path: Path) -> None:
    repeat = ("run", "--from", original / "provenance.json", "--quiet")
    assert pie(*repeat, "-o", tmp_path / "again").code == 0
    assert frames(tmp_path / "again") == frames(original)
    first, again = provenance(original), provenance(tmp_path / "again")
    assert (first["options"].pop("output"), again["options"].pop("output")) == (
        str(original), str(tmp_path / "again"),
    )  # fmt: skip
    assert again == first
    # What is given beside it holds.
    assert pie(*repeat, "-o", tmp_path / "other", "--seed", 8, "--mask-box", "20,20,150,150").code == 0
    other = provenance(tmp_path / "other")
    assert other["settings"] == first["settings"] | {"seed": 8}
    assert [region["kind"] for region in other["input"]["roi"]["regions"]] == ["box"]
    assert len(other["input"]["roi"]["keep"]) == 1
    assert frames(tmp_path / "other")[1:] != frames(original)[1:]


def test_inputs_that_changed_are_refused_by_name(pie: Any, original: Path, image: Path, tmp_path: Path) -> None:
    repeat = ("run", "--from", original / "provenance.json", "--quiet", "--output", tmp_path / "again")
    for name, option, what in (("a.png", "--image", "image"), ("m.png", "--mask", "mask")):
        kept = (tmp_path / name).read_bytes()
        with (tmp_path / name).open("ab") as file:
            file.write(b"\0")
        outcome = pie(*repeat)
        assert (outcome.code, outcome.out) == (2, "")
        assert f"error: {what} {tmp_path / name} is not what the run was made with (another SHA-256)" in outcome.err
        assert f"or pass another with {option}" in outcome.err
        (tmp_path / name).write_bytes(kept)
    (tmp_path / "rounds.json").write_text('[{"rounds": 2, "strength": 0.5}]')
    assert f"schedule {tmp_path / 'rounds.json'} is not what" in pie(*repeat).err
    assert not (tmp_path / "again").exists()


def test_another_model_is_refused(pie: Any, original: Path, checkpoint: Path, tmp_path: Path) -> None:
    file = original / "provenance.json"
    found = json.loads(file.read_text())
    found["model"]["hashes"]["vae"] = "0" * 64
    file.write_text(json.dumps(found))
    repeat = ("run", "--from", file, "--quiet", "--output", tmp_path / "again")
    assert f"vae of {found['options']['engine']} is not what the run was made with" in pie(*repeat).err
    # One that is named beside it is meant.
    assert pie(*repeat, "--checkpoint", checkpoint, "--backend", "torch").code == 0


def test_what_is_refused(pie: Any, original: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("[]")
    found = json.loads((original / "provenance.json").read_text())
    del found["options"]
    (tmp_path / "old.json").write_text(json.dumps(found))
    for name, line in (
        ("none.json", "cannot be read ("),
        ("bad.json", "cannot be read (it holds no settings); pass the provenance.json of a run"),
        ("old.json", "holds no options: it is not of pie-engine run, or of an earlier version"),
    ):
        outcome = pie("run", "--from", tmp_path / name)
        assert outcome.code == 2
        assert line in outcome.err
    outcome = pie("run", "--from", original / "provenance.json", "--output", original)
    assert "holds the run that is to run again; pass another --output" in outcome.err
