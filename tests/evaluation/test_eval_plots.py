"""The rounds as a picture: what is drawn is what the summary says."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine.errors import OutputError
from pie_engine.evaluation import rounds_plot
from pie_engine.evaluation.results import check_plots
from pie_engine.evaluation.rounds_plot import draw_rounds


def _entries(*means: float, spread: float | None = 0.1, first: int = 0, n: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "round": index,
            "mean": mean,
            "low": None if spread is None else mean - spread,
            "high": None if spread is None else mean + spread,
            "n": n,
        }
        for index, mean in enumerate(means, first)
    ]


def _summary(rounds: dict[str, Any], patients: int = 4) -> dict[str, Any]:
    return {"runs": 5, "patients": patients, "interval": {"level": 0.95}, "rounds": rounds}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are encoded."""
    figures: list[Any] = []
    monkeypatch.setattr(rounds_plot, "encode_figures", lambda figure, *rest: figures.append(figure) or {})
    return figures


def test_lines_and_bands_are_the_figures(drawn: list[Any]) -> None:
    rounds = {
        "confidence: a": _entries(0.1, 0.5, 0.9),
        "confidence: b": _entries(0.2, 0.3, 0.4, spread=None, n=1),
        "clip_i": _entries(1, 0.9, 0.8),
        "psnr_inside": _entries(30, 20, first=1),  # has no panel
        "ssim_outside": [],
        "increment_inside": _entries(0.4, 0.2, first=1),
    }
    draw_rounds(_summary(rounds))
    shown = [axes for axes in drawn[0].axes if axes.axison]
    assert [axes.get_title() for axes in shown] == [
        "Classifier's confidence", "CLIP-I against the input", "Step size of each round",
    ]  # fmt: skip
    confidence, clip, step = shown
    assert [list(line.get_ydata()) for line in confidence.lines] == [[0.1, 0.5, 0.9], [0.2, 0.3, 0.4]]
    assert [text.get_text() for text in confidence.get_legend().get_texts()] == ["a", "b"]
    assert clip.get_legend() is None
    assert list(step.lines[0].get_xdata()) == [1, 2]  # no step leads to the input
    band = confidence.collections[0].get_paths()[0].vertices
    assert sorted(set(band[:, 1].round(6))) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert not any(len(path.vertices) for path in confidence.collections[1].get_paths())  # one patient has no band
    assert drawn[0].get_suptitle() == (
        "5 runs of 4 patients (n from 1 to 4, by measure and round): mean over patients, band: 95% bootstrap interval"
    )


def test_one_patient(drawn: list[Any]) -> None:
    rounds = {"change_inside": _entries(0, 3, spread=None, n=1)}
    draw_rounds({**_summary(rounds, patients=1), "runs": 1})
    assert drawn[0].get_suptitle() == "1 run of 1 patient; no interval with one patient"
    assert drawn[0].axes[0].get_ylim()[0] == 0


def test_the_picture_is_marked_and_repeats() -> None:
    summary = _summary({"change_inside": _entries(0, 3), "ssim_inside": _entries(1, 0.9)})
    (picture,) = draw_rounds(summary).values()
    with Image.open(io.BytesIO(picture)) as image:
        assert "simulated" in image.text["Comment"]
        assert np.asarray(image.convert("L")).std() > 5
    assert draw_rounds(summary) == {"rounds.png": picture}


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 'pie-engine\[eval\]'"):
        check_plots()
