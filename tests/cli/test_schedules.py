"""`pie-engine run --schedule`: what the output says of it, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pie_engine.engine import PieEngine

ROUNDS = [{"rounds": 1, "prompt": "lung <b>", "strength": 0.5}, {"rounds": "2-3", "guidance_scale": [1, 4]}]


def schedule(folder: Path, entries: object) -> Path:
    path = folder / "rounds.json"
    path.write_text(json.dumps(entries))
    return path


def test_outputs_and_what_reads_them(simulate: Any, pie: Any, tmp_path: Path) -> None:
    outcome = simulate("--steps", "3", "--strength", "1", "--schedule", schedule(tmp_path, ROUNDS))
    assert (outcome.code, outcome.err) == (0, "")
    provenance = json.loads((tmp_path / "result" / "provenance.json").read_text())
    assert provenance["settings"]["schedule"] == [{**ROUNDS[0], "rounds": "1"}, ROUNDS[1]]
    own = [("lung <b>", 0.5, 7.5, 1), ("heart", 1.0, 1.0, 2), ("heart", 1.0, 4.0, 2)]
    names = ("prompt", "strength", "guidance_scale", "denoising_steps")
    expected = [{"round": n, **dict(zip(names, one, strict=True))} for n, one in enumerate(own, 1)]
    assert provenance["simulated"]["rounds"] == expected
    page = (tmp_path / "result" / "report.html").read_text()
    assert "<dd>lung &lt;b&gt; \u2192 heart</dd>" in page
    assert "<dd>1 to 7.5, see Settings</dd>" in page
    assert '<th scope="row">1</th><td>lung &lt;b&gt;</td><td>0.5</td><td>7.5</td><td>1</td>' in page
    # Its rounds are not those that a decay is fitted to; the other measures take it as it is.
    refused = pie("converge", tmp_path / "result")
    assert refused.code == 2
    assert refused.err.endswith("ran on a schedule, and a decay is that of equal rounds; pass a run without one\n")
    assert pie("eval", tmp_path / "result", "--output", tmp_path / "measures").code == 0


@pytest.mark.parametrize(
    ("entries", "words", "line"),
    [
        ([{"rounds": "2-4", "prompt": "a"}], (), "schedule: round 4 is beyond the 3 of steps; pass --steps 4"),
        (
            [{"rounds": "1-3", "prompt": "a"}],
            (),
            "prompt is never used: the schedule gives every round its",
        ),
        ([{"rounds": 1, "strength": 0.2}], (), "strength 0.2 in round 1 of the schedule of 2 steps runs no denoising"),
        (
            [{"rounds": 1, "prompt": "a"}],
            ("--semantics", "official"),
            "a schedule is not what the published code c",
        ),
        (
            [{"rounds": 1, "guidance": 2}],
            (),
            "schedule: key 'guidance' is unknown; pass one of rounds, prompt, strength",
        ),
    ],
)
def test_refusals(
    refuse: Any, tmp_path: Path, entries: Any, words: Any, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(PieEngine, "load")
    assert line in refuse("--steps", "3", "--schedule", schedule(tmp_path, entries), *words)


def test_a_prompt_is_needed_in_every_round(pie: Any, image: Path, tmp_path: Path) -> None:
    path = schedule(tmp_path, [{"rounds": "1-2", "prompt": "a"}])
    words = ("run", "--image", image, "--checkpoint", "none", "--schedule", path, "--output", tmp_path / "out")
    outcome = pie(*words, "--steps", "3")
    assert (
        outcome.err == "pie-engine: error: the schedule has no prompt in round 3; write one there, or pass --prompt\n"
    )
    assert "none" in pie(*words, "--steps", "2").err  # the checkpoint is the first thing that is missing
