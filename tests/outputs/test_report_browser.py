"""report.html in headless Chromium: keyboard, views, pixels, narrow windows, paper, and nothing on the network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import NAMES, Browser, find_browser
from PIL import Image

from pie_engine import OutputConfig, Result
from pie_engine.outputs.colours import colourise
from pie_engine.outputs.differences import differences, luminance, scale_of

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"none of {', '.join(NAMES)} on PATH, and $PIE_ENGINE_CHROMIUM is not set"
)
BANNER = "document.querySelector('.banner p').getBoundingClientRect()"


@pytest.fixture(scope="module")
def folder(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    result.save(folder / "run", confidence=[0.1, 0.4, 0.9])
    result.save(folder / "marked", OutputConfig(mark=True))
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    with Browser(PROGRAM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Browser]:
    """The report, freshly loaded. Whatever a test does, nothing is reported and nothing asked of the network."""
    browser.events.clear()
    browser.resize(1280, 900)
    browser.open(folder / "run" / "report.html")
    yield browser
    browser.evaluate("new Promise((done) => setTimeout(done, 50))")
    reported = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
    assert not [event for event in browser.events if event["method"] in reported]
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert {url.partition(":")[0] for url in asked} == {"file", "data"}
    assert sum(url.startswith("file:") for url in asked) == 1


def canvas(browser: Browser, side: str) -> np.ndarray:
    """[H, W, 3] of a panel as it is drawn, its label included."""
    uri = browser.evaluate(f"document.getElementById('{side}-canvas').toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def picture(browser: Browser, side: str, size: int) -> np.ndarray:
    """[size, size, 3] of a panel at the frames' own size: the middle of each enlarged pixel."""
    pixels = canvas(browser, side)
    zoom = pixels.shape[1] // size
    return pixels[zoom // 2 : size * zoom : zoom, zoom // 2 :: zoom]


def status(browser: Browser) -> Any:
    return browser.evaluate("document.getElementById('status').textContent")


def test_keys_move_the_frame(page: Browser, result: Result) -> None:
    size = result.frames.shape[1]
    assert status(page) == "Round 2 of 2, simulated"
    seen = []
    for key, expected in (
        ("Home", "Input, not simulated"),
        ("ArrowLeft", "Input, not simulated"),
        ("ArrowRight", "Round 1 of 2, simulated"),
        ("End", "Round 2 of 2, simulated"),
        ("ArrowLeft", "Round 1 of 2, simulated"),
    ):
        page.press(key)
        assert status(page) == expected
        assert page.evaluate("document.getElementById('frame').getAttribute('aria-valuetext')") == expected
        number = 0 if "Input" in expected else int(expected[6])
        shown = picture(page, "right", size).astype(int)
        # Enlarged smoothly: not the frame's own values, but closer to them than to any other frame's.
        apart = [np.abs(shown - frame).mean() for frame in result.frames]
        assert np.argmin(apart) == number
        assert page.evaluate("document.querySelectorAll('[aria-current=true]').length") == 1
        assert page.evaluate(f"document.querySelectorAll('.thumb')[{number}].getAttribute('aria-current')") == "true"
        seen.append(page.evaluate("document.querySelector('.cursor').getAttribute('transform')"))
    assert len(set(seen)) == 3
    assert seen[0] == seen[1]
    # The slider itself, as its own keys move it.
    page.evaluate("document.getElementById('frame').focus()")
    page.press("Home")
    assert status(page) == "Input, not simulated"
    page.press("ArrowRight")
    assert status(page) == "Round 1 of 2, simulated"


def test_everything_is_reached_by_tab(page: Browser) -> None:
    found = []
    for _ in range(14):
        page.press("Tab")
        found.append(page.evaluate("document.activeElement.id || document.activeElement.name || ''"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid" or found[-1] == ""  # the end of the page
    assert {"back", "play", "forward", "frame", "view", "overlay", "letters"} <= set(found)


def test_space_plays(page: Browser) -> None:
    page.evaluate(
        "void (window.seen = [], new MutationObserver(() => seen.push(document.getElementById('status').textContent))"
        ".observe(document.getElementById('status'), { childList: true }))"
    )
    page.press(" ")
    assert page.evaluate("document.getElementById('play').textContent") == "Pause"
    page.wait_for("seen.length >= 4")
    page.press(" ")
    assert page.evaluate("document.getElementById('play').getAttribute('aria-pressed')") == "false"
    # From the beginning, as it stood at the end, and round again.
    rounds = ["Input, not simulated", "Round 1 of 2, simulated", "Round 2 of 2, simulated"]
    assert page.evaluate("seen")[:4] == [*rounds, rounds[0]]


def test_blink(page: Browser, result: Result) -> None:
    size = result.frames.shape[1]
    page.press("b")
    assert page.evaluate("document.getElementById('left').hidden")
    first = page.evaluate("document.getElementById('right-canvas').getAttribute('aria-label')")
    page.wait_for(f"document.getElementById('right-canvas').getAttribute('aria-label') !== {first!r}")
    page.press("x")  # by hand from here on
    assert not page.evaluate("document.getElementById('automatic').checked")
    shown = []
    for _ in range(2):
        page.press("x")
        label = page.evaluate("document.getElementById('right-canvas').getAttribute('aria-label')")
        apart = [np.abs(picture(page, "right", size).astype(int) - frame).mean() for frame in result.frames]
        shown.append((label, int(np.argmin(apart))))
    assert set(shown) == {("INPUT, not simulated", 0), ("SIMULATED, round 2, research use only", 2)}
    page.press("s")
    assert not page.evaluate("document.getElementById('left').hidden")


def test_region_overlay(page: Browser, result: Result) -> None:
    assert result.mask is not None
    size = result.frames.shape[1]
    before = picture(page, "right", size)
    page.press("o")
    assert page.evaluate("document.getElementById('overlay').checked")
    after = picture(page, "right", size)
    changed = (before != after).any(axis=2)
    assert changed[result.mask].mean() > 0.99  # tinted
    assert changed[~result.mask].mean() < 0.1  # the outline alone
    page.press("o")
    assert np.array_equal(picture(page, "right", size), before)


@pytest.mark.parametrize("against", ["input", "previous"])
def test_difference_view_is_the_sheets(page: Browser, result: Result, against: str) -> None:
    """The colours of every pixel, from the frames that the page holds, are those that Python computes."""
    size = result.frames.shape[1]
    page.press("d")
    page.evaluate(
        f"(document.getElementById('against').value = '{against}',"
        "document.getElementById('against').dispatchEvent(new Event('change')))"
    )
    maps = differences(luminance(result.frames), against)
    limit = scale_of(maps).limit
    for key, number in (("End", 2), ("ArrowLeft", 1)):
        page.press(key)
        assert np.abs(picture(page, "right", size).astype(int) - colourise(maps[number - 1] / limit)).max() <= 1
        note = page.evaluate("document.getElementById('scale-note').textContent")
        low, high = min(maps[number - 1].min(), 0), max(maps[number - 1].max(), 0)
        assert f"Found {low} to +{high} grey levels." in note
        inside = np.abs(maps[number - 1])[result.mask].mean()
        assert f"inside the region {inside:.2f}, outside 0.00." in note
    ends = page.evaluate("['scale-low', 'scale-high'].map((id) => document.getElementById(id).textContent)")
    assert ends == [f"darker \u2212{limit}", f"+{limit} brighter"]
    page.evaluate(
        "(document.getElementById('limit').value = 200,"
        "document.getElementById('limit').dispatchEvent(new Event('input')))"
    )
    assert np.abs(picture(page, "right", size).astype(int) - colourise(maps[0] / 200)).max() <= 1
    assert page.evaluate("document.getElementById('limit-value').textContent") == "\u00b1200 grey levels"


def test_a_visible_mark_is_no_difference(page: Browser, folder: Path, result: Result) -> None:
    page.events.clear()
    page.open(folder / "marked" / "report.html")
    page.press("d")
    inside = np.abs(differences(luminance(result.frames), "input")[1])
    note = page.evaluate("document.getElementById('scale-note').textContent")
    assert "The visible mark is left out." in note
    assert f"Found {-255}" not in note
    assert inside.max() < 255


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_banner_stays_and_nothing_is_cut_off(page: Browser, width: int) -> None:
    page.resize(width, 600)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 450):
        page.evaluate(f"scrollTo(0, {top})")
        box = page.evaluate(f"(({BANNER}).toJSON())")
        assert (box["top"], box["bottom"] > 20) == (0, True)
        on_top = f"document.elementFromPoint(20, ({BANNER}).bottom / 2).closest('.banner') !== null"
        assert page.evaluate(on_top)


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible_in_both_schemes(page: Browser, dark: bool) -> None:
    page.resize(1280, 900, dark=dark)
    body = page.evaluate("(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.body))")

    def luminance_of(colour: str) -> float:
        share = np.array([int(part) for part in colour[4:-1].split(",")]) / 255
        light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
        return float(light @ [0.2126, 0.7152, 0.0722])

    text, background = map(luminance_of, body)
    assert (text > background) == dark
    assert (max(text, background) + 0.05) / (min(text, background) + 0.05) > 7


def test_on_paper(page: Browser, result: Result) -> None:
    page.resize(794, 1123, media="print")
    assert page.evaluate("getComputedStyle(document.getElementById('viewer')).display") == "none"
    banner = page.evaluate(f"(({BANNER}).toJSON())")
    assert banner["height"] > 15
    assert page.evaluate("getComputedStyle(document.querySelector('.banner')).display") == "table-header-group"
    heights = page.evaluate("[...document.querySelectorAll('#frames img')].map((image) => image.offsetHeight)")
    assert len(heights) == len(result.frames)
    assert min(heights) > 80
    assert page.evaluate("document.documentElement.scrollWidth") <= 794


def test_banner_on_every_printed_page(page: Browser, result: Result) -> None:
    pypdf = pytest.importorskip("pypdf")
    texts = [sheet.extract_text() for sheet in pypdf.PdfReader(io.BytesIO(page.pdf())).pages]
    assert len(texts) > 1
    for text in texts:
        assert text.startswith("SIMULATED, research use only. Not for diagnosis.")
    # What is folded up on the screen is open on paper.
    assert any("versions.torch" in text for text in texts)
    assert any(f"{result.change.increment_inside[0]:.4g}" in text for text in texts)
