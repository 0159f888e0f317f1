"""Figures of studies: what is written, and what is refused."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from pie_engine.errors import OutputError
from pie_engine.outputs.figure import COLOURS, DASHES, MARKERS, encode_figure, encode_figures, new_figure, save_figure


def draw(path: Path, values: tuple[float, ...] = (3.0, 4.0)) -> None:
    with new_figure() as figure:
        axes = figure.subplots()
        axes.plot(range(len(values)), values, label="one")
        axes.legend()
        save_figure(figure, path)


def test_a_png_says_what_it_is_and_shows_a_line(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert "simulated" in picture.info["Comment"] and "not for diagnosis" in picture.info["Comment"]
        blue = tuple(int("1f77b4"[i : i + 2], 16) for i in (0, 2, 4))  # matplotlib's first colour
        assert blue in {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_the_same_figure_is_the_same_file_and_another_is_not(tmp_path: Path, suffix: str) -> None:
    for name, values in (("a", (3.0, 4.0)), ("b", (3.0, 4.0)), ("c", (3.0, 5.0))):
        draw(tmp_path / (name + suffix), values)
    first, second, third = ((tmp_path / (name + suffix)).read_bytes() for name in "abc")
    assert first == second != third


def test_an_svg_holds_no_date_and_the_note() -> None:
    with new_figure() as figure:
        figure.subplots().plot([1, 2])
        text = encode_figure(figure, ".svg").decode()
    assert "<dc:date>" not in text and "not for diagnosis" in text


def test_png_and_a_format_for_papers_beside_it() -> None:
    for figures, names in (("png", ["a.png"]), ("svg", ["a.png", "a.svg"]), ("pdf", ["a.png", "a.pdf"])):
        with new_figure() as figure:
            figure.subplots().plot([1, 2])
            written = encode_figures(figure, "a", figures)
        assert list(written) == names
        with Image.open(io.BytesIO(written["a.png"])) as picture:
            assert "not for diagnosis" in picture.info["Comment"]
    assert b"/CreationDate" not in written["a.pdf"] and b"not for diagnosis" in written["a.pdf"]


def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.jpg does not end in \.png, \.svg or \.pdf; pass another name"):
        draw(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OutputError, match=r"pip install 'pie-engine\[eval\]'"), new_figure():
        pass


def test_every_colour_has_a_marker_and_a_dash_of_its_own() -> None:
    assert len(set(COLOURS)) == len(set(MARKERS)) == len(set(DASHES))
