"""Even pace by severity: times by hand, frames whose severity rises evenly, batches, capture, resumption, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graph_emulator import EmulatedTimeline

import pie_engine.rounds.loop as loop_module
from pie_engine import Box, Interrupted, Item, PieEngine, Region, RunConfig
from pie_engine.demo.assets import CHECKPOINT, SEVERITY_JSON
from pie_engine.demo.domain import load_domain
from pie_engine.demo.phantom import render, roi_mask
from pie_engine.errors import ConfigError, InputError
from pie_engine.metrics.classifier import Classifier
from pie_engine.metrics.severity import Severity
from pie_engine.rounds.severity import at_times, choose_severity, when_reached

STEPS, OF_A_ROUND = 5, 2
SHORT = RunConfig(
    steps=STEPS, num_inference_steps=2 * OF_A_ROUND, strength=0.5, guidance_scale=3.0, resolution=128, pace="even"
)
# A model whose autoencoder gives back what it gets: of the random one, decoding alone changes more than an edit does.
PHANTOM = load_domain("chest").phantom(0, split="validation")
PICTURE, HEART, PROMPT = render(PHANTOM), roi_mask(PHANTOM), "Severe cardiomegaly. The heart is markedly enlarged."
LUNG = Box(8, 24, 48, 104)


@pytest.fixture(scope="module")
def engine() -> PieEngine:
    return PieEngine.load(checkpoint=CHECKPOINT, backend="torch")


def departure(frames: np.ndarray) -> np.ndarray:
    """The square of the mean grey level that a frame differs by from the input: far from even where distances are."""
    return np.square(np.abs(frames.astype(np.float64) - frames[0]).mean((1, 2, 3)))


def unevenness(severity: np.ndarray) -> float:
    share = (severity - severity[0]) / (severity[-1] - severity[0])
    return float(np.abs(share - np.linspace(0, 1, len(severity))).max())


def test_times_are_read_off_the_curve() -> None:
    """2 of 8 lies half-way between rounds 1 (0) and 2 (4), 6 half-way between 2 and 3."""
    when, said = when_reached(np.array([0.0, 0.0, 4.0, 8.0, 8.0]), None)
    assert when is not None and said == ""
    assert when == pytest.approx([1.5, 2.0, 2.5, 4.0], abs=1e-6)
    aims = np.arange(1.0, 5.0)[:, None] * [[1.0, 10.0]]
    assert at_times(aims, when) == pytest.approx(np.outer([1.5, 2.0, 2.5, 4.0], [1.0, 10.0]), rel=1e-6)


def test_a_fall_is_as_good_as_a_rise_and_may_end_early() -> None:
    curve = np.array([4.0, 2.0, 1.0, 0.0])
    rising, falling = when_reached(-curve, None)[0], when_reached(curve, None)[0]
    assert rising is not None and falling is not None
    assert falling == pytest.approx(rising)
    when, said = when_reached(curve, 1.0)  # 3 of 4 in three parts: 1, 2 and 3 down
    assert when is not None and said == ""
    assert when == pytest.approx([0.5, 1.0, 2.0])
    when, said = when_reached(curve, -1.0)
    assert when == pytest.approx(falling) and said == "does not come so far"


@pytest.mark.parametrize("curve", [[0.0, 0.0, 0.0], [0.0, 3.0, 2.0], [1.0, 1.3, 0.5]])
def test_what_does_not_rise_along_the_run_has_no_times(curve: list[float]) -> None:
    assert when_reached(np.array(curve), None) == (None, "does not rise")


def test_small_dips_are_levelled() -> None:
    when, _ = when_reached(np.array([0.0, 5.0, 4.9, 10.0]), None)
    assert when is not None and (np.diff(when) >= 0).all() and when[-1] == 3


def test_severity_rises_in_equal_parts(engine: PieEngine) -> None:
    item = Item(PICTURE, PROMPT, HEART)
    by_distance = engine.run(item, SHORT)
    result = engine.run(item, SHORT, severity=departure)
    before = unevenness(departure(by_distance.frames))
    assert before > 0.15
    assert unevenness(departure(result.frames)) < before / 3  # straight lines between five rounds
    pace = result.provenance["pace"]
    assert pace["displacement"] == by_distance.provenance["pace"]["displacement"] and pace["targets"][-1] == 1
    assert pace["severity"]["name"] == "departure" and pace["severity"]["followed"]
    assert pace["severity"]["of_even_displacement"] == pytest.approx(departure(by_distance.frames), abs=1e-5)
    evaluations = result.provenance["schedule"]["unet_evaluations"]
    assert evaluations == by_distance.provenance["schedule"]["unet_evaluations"] + (STEPS - 1) * OF_A_ROUND


def test_until_ends_where_it_says(engine: PieEngine) -> None:
    """Of a measure between 0 and 1, as a confidence is."""
    item = Item(PICTURE, PROMPT, HEART)
    most = departure(engine.run(item, SHORT).frames)[-1]

    def share(frames: np.ndarray) -> np.ndarray:
        return departure(frames) / (2 * most)

    result = engine.run(item, replace(SHORT, until=0.25), severity=share)
    reached = share(result.frames)
    assert reached[-1] == pytest.approx(0.25, abs=0.02)
    assert unevenness(reached) < 0.08


def test_until_out_of_reach_is_said_and_behind_is_refused(engine: PieEngine, caplog: pytest.LogCaptureFixture) -> None:
    item = Item(PICTURE, PROMPT, HEART, item_id="p7")
    most = departure(engine.run(item, SHORT).frames)[-1]
    result = engine.run(item, replace(SHORT, until=0.9), severity=lambda frames: departure(frames) / (2 * most))
    assert "item p7: <lambda> does not come so far; the last frame is the run's end" in caplog.text
    assert result.provenance["pace"]["severity"]["followed"]
    with pytest.raises(InputError, match=r"item p7 begins at <lambda> 0\.6 and moves to 1\.1, away from until 0\.5"):
        engine.run(item, replace(SHORT, until=0.5), severity=lambda frames: 0.6 + departure(frames) / (2 * most))


def test_what_does_not_rise_is_said_and_left_even_in_displacement(
    engine: PieEngine, caplog: pytest.LogCaptureFixture
) -> None:
    item = Item(PICTURE, PROMPT, HEART, item_id="p7")

    def still(frames: np.ndarray) -> np.ndarray:
        return np.ones(len(frames))

    result = engine.run(item, SHORT, severity=still)
    assert "item p7: still does not rise along the run; its frames are even in displacement instead" in caplog.text
    assert np.array_equal(result.latents, engine.run(item, SHORT).latents)
    assert not result.provenance["pace"]["severity"]["followed"]


def test_a_batch_gives_each_what_it_gets_alone(engine: PieEngine) -> None:
    items = [Item(PICTURE, PROMPT, HEART, item_id="a"), Item(PICTURE, PROMPT, LUNG, item_id="b")]
    together = engine.run(items, SHORT, severity=departure)
    for item, result in zip(items, together, strict=True):
        alone = engine.run(item, SHORT, severity=departure)
        # A pixel that is rounded the other way moves the targets by what its grey level is of the whole change.
        assert np.abs(alone.latents - result.latents).max() < 2e-3


def test_findings_go_the_same_way(engine: PieEngine) -> None:
    regions = [Region(HEART, prompt=PROMPT), Region(LUNG, beta=0.6, prompt="Pleural effusion.")]
    result = engine.run(Item(PICTURE, "", regions), SHORT, severity=departure)
    assert unevenness(departure(result.frames)) < 0.06
    assert len(result.provenance["pace"]["displacement"]) == 2


def test_captured_rounds_are_the_same_bits(engine: PieEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    item = Item(PICTURE, PROMPT, HEART)
    plain = engine.run(item, SHORT, severity=departure)
    monkeypatch.setattr(loop_module, "make_timeline", lambda backend, runtime: EmulatedTimeline())
    engine = PieEngine(engine.backend)
    for _ in range(2):
        captured = engine.run(item, SHORT, severity=departure)
        assert np.array_equal(captured.latents, plain.latents)


def test_an_interrupted_run_goes_on(engine: PieEngine, tmp_path: Path) -> None:
    item = Item(PICTURE, PROMPT, HEART)
    whole = engine.run(item, SHORT, severity=departure)

    def stop(done: int, total: int) -> None:
        if done == total - 3:  # in the fourth of the last pass's five rounds of two evaluations
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as stopped:
        engine.run(item, SHORT, severity=departure, on_progress=stop)
    partial = stopped.value.results[0]
    assert partial.provenance["partial"] == {"rounds": 3, "of": STEPS}
    partial.save(tmp_path / "out")
    resumed = engine.run(item, SHORT, severity=departure, resume=tmp_path / "out")
    assert np.array_equal(resumed.latents, whole.latents)
    assert resumed.provenance["pace"] == whole.provenance["pace"]


def test_a_classifier_is_read_from_the_settings_and_named(engine: PieEngine) -> None:
    pytest.importorskip("onnxruntime")
    config = replace(SHORT, pace=f"even:{SEVERITY_JSON}")
    result = engine.run(Item(PICTURE, PROMPT, HEART), config)
    severity = result.provenance["pace"]["severity"]
    classifier = Classifier(SEVERITY_JSON)
    assert severity["name"] == classifier.name and len(severity["sha256"]) == 64
    assert len(severity["of_even_displacement"]) == STEPS + 1


def test_of_a_classifier_it_is_the_logit() -> None:
    pytest.importorskip("onnxruntime")
    severity = Severity.of(Classifier(SEVERITY_JSON))
    assert severity.scale(np.array([0.5, 0.8])) == pytest.approx([0, np.log(4)])
    assert np.isfinite(severity.scale(np.array([0.0, 1.0]))).all()
    assert Severity.of(severity) is severity


@pytest.mark.parametrize(
    ("settings", "given", "line"),
    [
        ({"pace": "constant"}, departure, "severity sets the pace, and pace is 'constant'; pass pace='even' with it"),
        (
            {"until": 0.5},
            None,
            "until is a classifier's confidence, and none sets the pace; pass pace='even:CLASSIFIER'",
        ),
        ({"pace": "even:missing.json"}, None, "classifier missing.json cannot be read (No such file or directory)"),
    ],
)
def test_severities_that_cannot_be(settings: dict[str, Any], given: Any, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_severity(replace(SHORT, **settings), given)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"pace": "even:"}, "pace 'even:' is unknown; pass one of constant, even, even:CLASSIFIER"),
        ({"pace": "constant:x.json"}, "pace 'constant:x.json' is unknown"),
        ({"pace": "even:x.json", "noise": "fresh"}, "pace 'even:x.json' needs rounds that converge"),
        ({"pace": "constant", "until": 0.5}, "until belongs to an even pace by a classifier; pass pace='even:CLASS"),
        ({"until": 1.0}, "until 1 in 5 rounds cannot be reached; pass less than 1, such as until=0.8"),
        ({"until": 0.5, "steps": 1}, "until 0.5 in 1 round cannot be reached"),
        ({"until": 0.0}, "until 0.0 is outside (0, 1]"),
    ],
)
def test_refused_settings(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(SHORT, **settings)
    assert str(caught.value).startswith(line)
