"""report.html without a browser: it holds everything, loads nothing, escapes what it is given, and tells the truth."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine import OutputConfig, Result
from pie_engine.errors import ConfigError, InputError
from pie_engine.outputs.report import find_report
from pie_engine.outputs.report.charts import Series, line_plot, ticks

HOSTILE = "</script></title><img src=x onerror=alert(1)>\"' onload=alert(2) ${last} $style \u2028"


class Page(HTMLParser):
    """Elements with their attributes, and the text within each kind of element."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = [""]
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open.append("")

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self) -> str:
        return "".join("".join(texts) for tag, texts in self.texts.items() if tag not in ("script", "style"))


def read(paths: dict[str, Any]) -> str:
    return Path(paths["report"]).read_text(encoding="utf-8")


def bytes_of(uri: str | None) -> bytes:
    assert uri is not None
    assert uri.startswith("data:image/png;base64,")
    return base64.b64decode(uri.removeprefix("data:image/png;base64,"))


@pytest.fixture
def confidence() -> list[float]:
    return [0.1, 0.4375, 0.9]


def test_it_loads_nothing(result: Result, tmp_path: Path, confidence: list[float]) -> None:
    page = Page(read(result.save(tmp_path / "run", confidence=confidence)))
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "poster", "action", "formaction", "background"):
            if name in attributes:
                assert (attributes[name] or "").startswith(("data:", "#")), (tag, name)
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
    style, script = "".join(page.texts["style"]), page.texts["script"][-1]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon|localStorage", script)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules == {
        "default-src": "'none'",
        "img-src": "data:",
        "style-src": f"'sha256-{hashes[0]}'",
        "script-src": f"'sha256-{hashes[1]}'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_it_says_what_it_is(result: Result, tmp_path: Path) -> None:
    text = read(result.save(tmp_path / "run"))
    page = Page(text)
    assert page.text().count("research use only") >= 3
    assert "Not for diagnosis" in page.text()
    assert "holds the patient's image" in page.text()
    assert page.all("html") == [{"lang": "en"}]
    labels = [image["alt"] for image in page.all("img")]
    assert labels == ["Input", "Simulated, round 1", "Simulated, round 2", "Region of interest"]
    assert all(canvas["aria-label"] for canvas in page.all("canvas"))
    assert "a baseline" not in page.text()
    other = replace(result, provenance={**result.provenance, "method": {"name": "walk"}})
    assert "walk (a baseline, not PIE)" in Page(read(other.save(tmp_path / "walk"))).text()


def test_frames_are_the_written_files(result: Result, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "run")
    images = Page(read(paths)).all("img")
    for image, path in zip(images, [*paths["frames"], paths["mask"]], strict=True):
        assert bytes_of(image["src"]) == Path(path).read_bytes()


def test_hostile_text_stays_text(result: Result, tmp_path: Path, confidence: list[float]) -> None:
    """The same elements and attributes as with harmless text, and every character of it as text."""

    def page(text: str) -> Page:
        simulated = {**result.provenance["simulated"], "prompt": text, "prompt_cut_off": text}
        settings = {**result.provenance["settings"], "negative_prompt": text}
        source = {"checkpoint": text, text: text}
        changed = {"item_id": text, "simulated": simulated, "settings": settings, "model": {"source": source}}
        own = replace(result, provenance={**result.provenance, **changed})
        return Page(read(own.save(tmp_path / "run", confidence={text: confidence})))

    plain, hostile = page("harmless"), page(HOSTILE)
    assert Counter(tag for tag, _ in plain.elements) == Counter(tag for tag, _ in hostile.elements)
    assert [sorted(attributes) for _, attributes in plain.elements] == [
        sorted(attributes) for _, attributes in hostile.elements
    ]
    assert hostile.texts["script"][-1] == plain.texts["script"][-1]
    assert hostile.text().count(HOSTILE) == plain.text().count("harmless")
    assert hostile.text().count(HOSTILE) >= 8


def figures_of(text: str) -> list[list[str]]:
    table = re.search(r'<table class="figures">.*?</table>', text, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr>(.*?)</tr>", table[0], re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_figures_are_those_measured(result: Result, tmp_path: Path, confidence: list[float]) -> None:
    groups, names, *rows = figures_of(read(result.save(tmp_path / "run", confidence=confidence)))
    change = result.change
    assert change.displacement_outside and change.frame_outside and change.decoded_outside
    titles = ["Classifier's confidence", "Step size of each round", "Distance from the input", "Change from the input"]
    assert groups[0] == "Round"
    assert [html.unescape(group).partition("<br>")[0] for group in groups[1:]] == titles
    expected = [
        ("confidence", confidence, 0),
        ("inside the region", change.increment_inside, 1),
        ("inside the region", change.displacement_inside, 1),
        ("outside, before compositing", change.displacement_outside, 1),
        ("inside the region", change.frame_inside, 1),
        ("outside, as written", change.frame_outside, 1),
        ("outside, before compositing", change.decoded_outside, 1),
    ]
    assert names == [name for name, _, _ in expected]
    assert [row[0] for row in rows] == ["input", "1", "2"]
    for column, (_, values, first) in enumerate(expected, 1):
        for number in range(3):
            value = f"{values[number - first]:.4g}" if number >= first else ""
            assert rows[number][column] == value


def points_of(svg: str, index: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Rounds and values of a line, read off its axes as a person does, and the upward axis's end."""
    up = [(float(y) - 4, float(t)) for y, t in re.findall(r'class="up" x="[\d.]+" y="([\d.]+)"[^>]*>([^<]+)<', svg)]
    along = [(float(x), float(t)) for x, t in re.findall(r'<text x="([\d.]+)" y="[\d.]+"[^>]*>(\d+)<', svg)]
    line = re.search(rf'class="curve series-{index}"[^>]*points="([^"]*)"', svg)
    assert line is not None
    points = np.array([point.split(",") for point in line[1].split()], float)
    (x0, a0), (x1, a1) = along[0], along[-1]
    (y0, v0), (y1, v1) = up[0], up[-1]
    rounds = a0 + (points[:, 0] - x0) * (a1 - a0) / (x1 - x0)
    return rounds, v0 + (points[:, 1] - y0) * (v1 - v0) / (y1 - y0), v1


def test_plots_show_those_figures(result: Result, tmp_path: Path, confidence: list[float]) -> None:
    text = read(result.save(tmp_path / "run", confidence={"A & B": confidence}))
    plots = re.findall(r"<svg class=\"plot\".*?</svg>", text, re.DOTALL)
    change = result.change
    assert change.displacement_outside and change.decoded_outside
    for plot, index, values, first in (
        (0, 0, confidence, 0),
        (1, 0, change.increment_inside, 1),
        (2, 0, change.displacement_inside, 1),
        (2, 1, change.displacement_outside, 1),
        (3, 0, change.frame_inside, 1),
        (3, 2, change.decoded_outside, 1),
    ):
        rounds, read_off, top = points_of(plots[plot], index)
        assert np.allclose(rounds, np.arange(first, 3), atol=0.01)
        assert np.allclose(read_off, values, rtol=0, atol=2e-4 * top)  # a hundredth of a pixel's rounding
    assert "A &amp; B" in plots[0]
    assert "A & B" not in plots[0]
    for unit in ("confidence, 0 to 1", "latent units, RMS", "mean absolute grey levels", ">round<"):
        assert unit in text


def test_axes() -> None:
    assert ticks(1.0) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.333) == [0, 0.1, 0.2, 0.3, 0.4]
    assert ticks(0) == [0, 1]
    for top in (1e-14, 3.1e-7, 0.99, 1.01, 17, 255, 123456.0):
        found = ticks(top)
        assert 3 <= len(found) <= 6
        assert found[-1] >= top > found[-2]
    svg = line_plot("t", "u", [Series("s", [0.0] * 1000)], 1000)
    assert svg.count("<path") == 1  # markers would hide a line of a thousand points; the legend keeps its own
    assert points_of(svg, 0)[0][-1] == pytest.approx(1000, abs=0.1)
    below = line_plot("t", "u", [Series("s", [1.0, -0.2, 0.0], 0)], 2, 1.0)
    marks = [float(text) for text in re.findall(r'class="up"[^>]*>([^<]+)<', below)]
    assert marks == pytest.approx([-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1])
    top, under, zero = (float(point.split(",")[1]) for point in re.search(r'points="([^"]+)"', below)[1].split())
    assert under - top == pytest.approx(6 * (under - zero), abs=0.05)


def test_without_region_and_classifier(result: Result, tmp_path: Path) -> None:
    provenance = {**result.provenance, "simulated": {**result.provenance["simulated"], "roi_share": None}}
    change = {**provenance["change"], "displacement_outside": None, "decoded_outside": None, "frame_outside": None}
    own = replace(result, mask=None, provenance={**provenance, "change": change})
    page = Page(read(own.save(tmp_path / "run")))
    assert "roi" not in [image.get("id") for image in page.all("img")]
    assert "none, all may change" in page.text()
    assert len(page.all("figure")) == 2 + 3  # panels, plots
    assert next(a for a in page.all("label") if a.get("class") == "overlay") == {"class": "overlay", "hidden": None}


def test_confidence_that_does_not_fit(result: Result, tmp_path: Path) -> None:
    for wrong, line in (
        ([0.1, 0.2], "has 2 values for 3 frames"),
        ({"a": [0.1, 0.2, 1.5]}, "confidence 'a' holds 1.5, outside"),
        ([0.1, float("nan"), 0.2], "holds nan, outside"),
    ):
        with pytest.raises(ConfigError, match=re.escape(line)):
            result.save(tmp_path / "run", confidence=wrong)
    assert not list(tmp_path.iterdir())


def test_many_frames_are_thinned_out(result: Result, tmp_path: Path) -> None:
    rounds = 130
    change = {key: [1.0] * rounds for key in result.provenance["change"]}
    provenance = {**result.provenance, "change": change}
    provenance["settings"] = {**provenance["settings"], "steps": rounds}
    frames = np.zeros((rounds + 1, 16, 16, 3), np.uint8)
    own = replace(result, frames=frames, mask=None, provenance=provenance)
    page = Page(read(own.save(tmp_path / "run")))
    assert "60 of 131 frames" in page.text()
    data = json.loads(page.texts["script"][0])
    assert (len(data["rounds"]), data["rounds"][0], data["rounds"][-1]) == (60, 0, rounds)
    assert len(page.all("img")) == 60


def test_written_later_it_is_the_same(result: Result, tmp_path: Path, confidence: list[float]) -> None:
    with_report = result.save(tmp_path / "with", confidence=confidence)
    without = result.save(tmp_path / "without", OutputConfig(report=False), confidence=confidence)
    assert "report" not in without
    assert find_report(tmp_path / "with") == (tmp_path.resolve() / "with" / "report.html", False)
    path, written = find_report(tmp_path / "without")
    assert written
    one, other = Path(with_report["report"]).read_text(), path.read_text()
    assert (
        one.replace('<th scope="row">outputs.report</th><td>yes', '<th scope="row">outputs.report</th><td>no') == other
    )
    # It belongs to the result now, which a later one replaces.
    result.save(tmp_path / "without")


def test_folders_without_a_report(result: Result, tmp_path: Path) -> None:
    paths = result.save(tmp_path / "run", OutputConfig(report=False))
    (tmp_path / "empty").mkdir()
    for folder, line in (
        (tmp_path / "empty", "holds no report.html, and no provenance.json to write one from; pass the folder"),
        (tmp_path / "none", "does not exist; pass the folder that pie-engine run wrote"),
        (Path(paths["sheet"]), "is a file; pass the folder"),
    ):
        with pytest.raises(InputError, match=re.escape(line)):
            find_report(folder)
    frame = Path(paths["frames"][1])
    provenance = Path(paths["provenance"])
    before = provenance.read_bytes()
    for damage in (b"", frame.read_bytes()[:200], b"no picture"):
        frame.write_bytes(damage)
        with pytest.raises(InputError, match=r"cannot be shown \(\w+ in its files\); run pie-engine run again"):
            find_report(tmp_path / "run")
    Image.new("RGB", (4, 4)).save(frame)  # of another size
    with pytest.raises(InputError, match="cannot be shown"):
        find_report(tmp_path / "run")
    assert provenance.read_bytes() == before
    for damage in (b"[]", b"{", b"{}", b'{"files": 3}', b"\xff"):
        provenance.write_bytes(damage)
        with pytest.raises(InputError, match="cannot be shown"):
            find_report(tmp_path / "run")
    assert not (tmp_path / "run" / "report.html").exists()
