"""`pie-engine run --finding`: which regions belong to which finding, what the output says, what is refused."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from pie_engine.cli.patient import add_finding_option, add_region_options, regions_from
from pie_engine.engine import PieEngine
from pie_engine.errors import ConfigError


def regions(*words: str) -> list[tuple[str, float | None, str | None]]:
    parser = argparse.ArgumentParser()
    add_region_options(parser)
    add_finding_option(parser)
    found = regions_from(parser.parse_args(words).mask, "mask") or []
    return [(str(region.source), region.beta, region.prompt) for region in found]


def test_regions_follow_their_finding() -> None:
    words = ("--mask", "a.png:0.5", "--finding", "lung", "--mask", "b.nii", "--mask-label", "2", "--mask", "c.png")
    assert regions(*words, "--finding", "heart", "--mask", "d.png:0.9") == [
        ("a.png", 0.5, None), ("b.nii", None, "lung"), ("c.png", None, "lung"), ("d.png", 0.9, "heart"),
    ]  # fmt: skip
    for bare in (("--finding", "lung"), ("--finding", "lung", "--finding", "heart", "--mask", "a.png")):
        with pytest.raises(ConfigError, match="finding 'lung' has no region; put its --mask after it"):
            regions(*bare)


def test_outputs(pie: Any, bundle: Any, image: Path, tmp_path: Path) -> None:
    outcome = pie(
        "run", "--engine", bundle.path, "--image", image, "--finding", "heart <i>", "--mask-box", "20,20,150,200",
        "--finding", "lung", "--mask-box", "150,20,280,200:0.9", "--mask-box", "20,210,100,250", "--steps", "1",
        "--num-inference-steps", "2", "--resolution", "32", "--feather", "0", "--output", tmp_path / "out", "--quiet",
    )  # fmt: skip
    assert (outcome.code, outcome.err) == (0, "")
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    first, second = provenance["simulated"]["findings"]
    assert (first["prompt"], first["regions"], second["prompt"], second["regions"]) == (
        "heart <i>",
        [1],
        "lung",
        [2, 3],
    )
    covered = provenance["input"]["roi"]
    assert first["share"] + second["share"] == pytest.approx(covered["output_share"], abs=1e-6)
    assert [region["prompt"] for region in covered["regions"]] == ["heart <i>", "lung", "lung"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<dd>heart &lt;i&gt; + lung</dd>" in page
    assert f"<dt>Finding 2: regions 2, 3, {second['share']:.1%} of the image</dt><dd>lung</dd>" in page


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--finding", "lung"), "finding 'lung' has no region; put its --mask after it, or pass the text as --prompt"),
        (("--finding", "lung", "--mask", "MASK"), "prompt 'heart' is never used: each region has its own finding"),
        (
            ("--mask", "MASK", "--finding", "lung", "--mask-box", "9,9,99,99", "--semantics", "official"),
            "a mask of 2 regions is not what the published code computes",
        ),
        (
            ("--mask", "MASK", "--finding", "lung", "--mask-box", "9,9,99,99", "--method", "vae"),
            "method 'vae' has one prompt for all regions; pass --prompt, leave out --finding",
        ),
    ],
)
def test_refusals(refuse: Any, mask: Path, words: Any, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PieEngine, "load")
    assert line in refuse(*(mask if word == "MASK" else word for word in words))
