"""Runs that are interrupted keep the rounds that they have, and --resume goes on to what an undisturbed run gives."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import GOLDEN

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.errors import ConfigError
from pie_engine.rounds.resuming import Interrupted

SMALL = {"num_inference_steps": 4, "resolution": 32, "steps": 4}
ITEM = Item(GOLDEN / "image.png", "heart", GOLDEN / "mask.png")
KINDS: dict[str, dict[str, Any]] = {
    "shared noise": {},
    "fresh noise": {"noise": "fresh"},
    "inversion": {"inversion": "ddim"},
    "published": {"semantics": "official"},
    "a sampler with a history": {"scheduler": "unipc", "strength": 1.0},
}


@pytest.fixture(scope="module")
def engine() -> PieEngine:
    return PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu")


def stopping_at(evaluation: int, number: int = signal.SIGINT) -> Callable[[int, int], None]:
    """A progress callback that an interrupt reaches after some U-Net evaluations."""

    def report(done: int, total: int) -> None:
        if done == evaluation:
            raise KeyboardInterrupt(number)

    return report


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_on_is_what_an_undisturbed_run_gives(engine: PieEngine, kind: str, tmp_path: Path) -> None:
    config = RunConfig(**{**SMALL, **KINDS[kind]})
    whole = engine.run(ITEM, config)
    evaluations = whole.provenance["schedule"]["unet_evaluations"]
    with pytest.raises(Interrupted) as stopped:
        engine.run(ITEM, config, on_progress=stopping_at(3 * evaluations // 4))
    partial = stopped.value.results[0]
    assert partial.provenance["partial"] == {"rounds": 2, "of": 4}
    assert np.array_equal(partial.frames, whole.frames[:3])
    partial.save(tmp_path / "out")
    seen: list[int] = []
    # Another engine, as it would be in another process.
    other = PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu")
    resumed = other.run(ITEM, config, on_progress=lambda done, total: seen.append(done), resume=tmp_path / "out")
    assert seen == [*range(evaluations // 2 + 1, evaluations + 1)]
    assert np.array_equal(resumed.frames, whole.frames)
    assert np.array_equal(resumed.latents, whole.latents)
    assert resumed.change == whole.change
    assert len(resumed.provenance["seconds"]["rounds"]) == 4
    for result in (resumed, whole):
        del result.provenance["seconds"], result.provenance["runtime"]["cuda_graph_note"]
    assert resumed.provenance == whole.provenance


def test_an_interrupt_in_the_first_round_keeps_nothing(engine: PieEngine) -> None:
    with pytest.raises(KeyboardInterrupt) as stopped:
        engine.run(ITEM, RunConfig(**SMALL), on_progress=stopping_at(1))
    assert not isinstance(stopped.value, Interrupted)


def test_patients_that_are_whole_are_kept_too(engine: PieEngine) -> None:
    # One has a mask and the other none, so that each runs by itself, the one after the other.
    items = [Item(GOLDEN / "image.png", "heart", item_id="a"), replace(ITEM, item_id="b")]
    with pytest.raises(Interrupted) as stopped:
        engine.run(items, RunConfig(**SMALL), on_progress=stopping_at(8 + 3))
    whole, partial = sorted(stopped.value.results, key=lambda result: "partial" in result.provenance)
    assert (len(whole.latents), "partial" in whole.provenance) == (4, False)
    assert (len(partial.latents), partial.provenance["partial"]["rounds"]) == (1, 1)


def interrupt(monkeypatch: Any, evaluation: int, number: int = signal.SIGINT) -> None:
    """The command line is interrupted after some U-Net evaluations."""

    stop = stopping_at(evaluation, number)
    monkeypatch.setattr("pie_engine.cli.progress.show_rounds", lambda rounds, quiet: nullcontext(stop))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_on_the_command_line(simulate: Any, monkeypatch: Any, tmp_path: Path, number: int, code: int) -> None:
    out, words = tmp_path / "out", ("--steps", "3", "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupt(patch, 2, number)
        outcome = simulate(*words)
    assert outcome.code == code
    assert outcome.err == (
        f"pie-engine: error: interrupted after round 1 of 3; these are in {out}, and the same command with --resume "
        f"--output {out} goes on from there\n"
    )
    partial = json.loads((out / "provenance.json").read_text())
    assert partial["partial"]["rounds"] == 1
    assert sorted(path.name for path in (out / "frames").iterdir()) == ["000.png", "001.png"]
    assert "interrupted after round 1 of 3" in (out / "report.html").read_text()
    assert simulate(*words, "--resume").code == 0
    assert simulate("--steps", "3", "--output", tmp_path / "whole").code == 0
    for path in (tmp_path / "whole" / "frames").iterdir():
        assert (out / "frames" / path.name).read_bytes() == path.read_bytes()
    assert "partial" not in json.loads((out / "provenance.json").read_text())


def test_what_differs_is_refused_by_its_name(simulate: Any, monkeypatch: Any, tmp_path: Path, image: Path) -> None:
    out = tmp_path / "out"
    words = ("--steps", "3", "--output", out, "--resume")
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        assert simulate(*words).code == 130  # which began anew, for there was none
    before = (out / "provenance.json").read_bytes()
    for more, line in (
        (("--guidance-scale", "3"), "guidance_scale was 7.5 in the run that was interrupted in"),
        (("--steps", "4"), "steps was 3 in the run that was interrupted"),
        (("--item-id", "b"), 'item_id was "0" in the run'),
        (("--method", "control", "--healthy-prompt", "x"), 'method.name was "pie"'),
        (("--prompt", "lung"), 'simulated.prompt was "heart" in the run'),
        (("--mask", image.with_name("mask.png")), "input.mask_sha256 was null in the run"),
        (("--backend", "torch"), "backend.name was "),
    ):
        outcome = simulate(*words, *more)
        assert (outcome.code, outcome.out) == (2, "")
        assert line in outcome.err.splitlines()[-1]
    assert (out / "provenance.json").read_bytes() == before
    (out / "latents.safetensors").write_bytes(b"another")
    assert "latents.safetensors is not what the interrupted run wrote (SHA-256)" in simulate(*words).err


def test_what_cannot_be_resumed(refuse: Any, simulate: Any, tmp_path: Path) -> None:
    assert simulate("--output", tmp_path / "out").code == 0
    line = refuse("--output", tmp_path / "out", "--resume")
    assert "holds a whole result, with nothing to resume; leave out --resume to run it again" in line


def test_a_run_whose_precision_was_raised_is_refused(engine: PieEngine, tmp_path: Path) -> None:
    config = RunConfig(**SMALL)
    with pytest.raises(Interrupted) as stopped:
        engine.run(ITEM, config, on_progress=stopping_at(5))
    partial = stopped.value.results[0]
    partial.provenance["reruns"] = [{"round": 2, "component": "unet", "from": "fp16", "to": "fp32", "items": ["0"]}]
    partial.save(tmp_path / "out")
    with pytest.raises(ConfigError, match="unet ran in fp32 from round 2 on"):
        engine.run(ITEM, config, resume=tmp_path / "out")
    with pytest.raises(ConfigError, match="resume goes on with one run; pass one item"):
        engine.run([ITEM], config, resume=tmp_path / "out")


def test_a_whole_result_outlives_an_interrupted_run(simulate: Any, monkeypatch: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert simulate("--output", out).code == 0
    before = (out / "provenance.json").read_bytes()
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        outcome = simulate("--output", out, "--steps", "2")
    assert f"these are in {out}.partial" in outcome.err
    assert (out / "provenance.json").read_bytes() == before
    assert simulate("--output", f"{out}.partial", "--steps", "2", "--resume").code == 0
