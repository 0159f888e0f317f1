"""Increments over the rounds on a logarithmic axis, as SVG or PNG: a geometric decay is a straight line there."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

from pie_engine.outputs.report.charts import round_ticks

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _BOTTOM, _TITLE, _KEY_LINE = 76, 16, 46, 30, 19
_SIZE = 13
_TEXT, _MUTED, _GRID = "#1b1f24", "#545d68", "#d0d5db"
# Okabe and Ito, as in the report; dashes tell them apart too.
_COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#9c4f83")
_DASHES: tuple[tuple[int, ...], ...] = ((), (8, 4), (2, 4), (9, 3, 2, 3))
_RADIUS = 3.5
# Past this many points markers would hide the line.
_MOST_MARKERS = 60
# A PNG has this many pixels per unit of the SVG, and is drawn twice as large first.
_SCALE, _OVER = 2, 2
_NOTE = "Measured on a simulation; research use only, not for diagnosis."

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """One line: (round, value) each; `marked` draws its points too. Values that are not positive are left out."""

    name: str
    points: Sequence[Point]
    marked: bool = False


@dataclass(frozen=True)
class _Text:
    x: float
    y: float
    words: str
    anchor: str = "middle"
    colour: str = _MUTED
    upright: bool = False
    bold: bool = False


@dataclass(frozen=True)
class _Line:
    points: Sequence[Point]
    colour: str
    width: float = 1.0
    dash: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Dot:
    x: float
    y: float
    colour: str


def draw_semilog(title: str, unit: str, curves: Sequence[Curve], rounds: int, suffix: str) -> bytes:
    """A plot as the bytes of a file.

    Args:
        unit: what the upward axis measures, and in what.
        curves: up to four; the first sets the range of the upward axis and has a positive value.
        rounds: number of the last round.
        suffix: ".svg" or ".png".
    """
    shapes = _layout(title, unit, curves, rounds)
    return _png(shapes) if suffix == ".png" else _svg(shapes, title)


def _layout(title: str, unit: str, curves: Sequence[Curve], rounds: int) -> list[Any]:
    top, bottom = _TITLE + _KEY_LINE * len(curves) + 4, _HEIGHT - _BOTTOM
    first, values = ([v for curve in some for _, v in curve.points if v > 0] for some in (curves[:1], curves))
    # Room for the other curves too, but not for one that leaves the first far behind.
    low, high = math.log10(max(min(values), min(first) / 5) / 1.5), math.log10(min(max(values), max(first) * 5) * 1.5)

    def x(number: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * number / rounds

    def y(exponent: float) -> float:
        return bottom - (bottom - top) * (exponent - low) / (high - low)

    shapes: list[Any] = [_Text(_LEFT, 18, title, "start", _TEXT, bold=True)]
    for value in log_ticks(10**low, 10**high):
        up = y(math.log10(value))
        shapes += [
            _Line([(_LEFT, up), (_WIDTH - _RIGHT, up)], _GRID),
            _Text(_LEFT - 8, up + 4.5, f"{value:g}", "end"),
        ]
    shapes += [_Text(x(number), bottom + 18, str(number)) for number in round_ticks(rounds)]
    shapes += [
        _Line([(_LEFT, bottom), (_WIDTH - _RIGHT, bottom)], _MUTED),
        _Text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, "round"),
        _Text(16, (top + bottom) / 2, unit, upright=True),
    ]
    for index, curve in enumerate(curves):
        colour, dash = _COLOURS[index], _DASHES[index]
        marked = curve.marked and len(curve.points) <= _MOST_MARKERS
        logs = [(number, math.log10(value)) for number, value in curve.points if value > 0]
        points = [(x(number), y(exponent)) for number, exponent in logs if low <= exponent <= high]
        level = _TITLE + _KEY_LINE * index + 2
        key = [(_LEFT, level), (_LEFT + 32, level)]
        shapes += [_Line(line, colour, 2.0, dash) for line in (points, key) if len(line) > 1]
        shapes += [_Dot(across, up, colour) for across, up in (*points, (_LEFT + 16, level)) if marked]
        shapes.append(_Text(_LEFT + 40, level + 4.5, curve.name, "start", _TEXT))
    return shapes


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones: 1, 2 and 5 of each decade, or decades, or every second, third, ..."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 3 else (1,)
    every = math.ceil(len(decades) / 9)
    # From text, so that a tick is the decimal number that its label says.
    found = [float(f"{step}e{decade}") for decade in decades if decade % every == 0 for step in steps]
    return [value for value in found if low <= value <= high]


def _svg(shapes: Sequence[Any], title: str) -> bytes:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" font-family="system-ui, sans-serif" font-size="{_SIZE}">',
        f"<title>{escape(title)}</title><desc>{_NOTE}</desc>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
    ]
    for shape in shapes:
        if isinstance(shape, _Text):
            place = f'x="{shape.x:.2f}" y="{shape.y:.2f}"'
            if shape.upright:
                place = f'transform="translate({shape.x:.2f} {shape.y:.2f}) rotate(-90)"'
            weight = ' font-weight="600"' if shape.bold else ""
            parts.append(
                f'<text {place} text-anchor="{shape.anchor}" fill="{shape.colour}"{weight}>{escape(shape.words)}</text>'
            )
        elif isinstance(shape, _Dot):
            parts.append(f'<circle cx="{shape.x:.2f}" cy="{shape.y:.2f}" r="{_RADIUS}" fill="{shape.colour}"/>')
        else:
            points = " ".join(f"{across:.2f},{up:.2f}" for across, up in shape.points)
            dash = f' stroke-dasharray="{" ".join(map(str, shape.dash))}"' if shape.dash else ""
            pen = f'fill="none" stroke="{shape.colour}" stroke-width="{shape.width:g}"{dash}'
            parts.append(f'<polyline points="{points}" {pen}/>')
    return ("\n".join([*parts, "</svg>"]) + "\n").encode()


def _png(shapes: Sequence[Any]) -> bytes:
    from PIL import Image, ImageDraw, ImageFont
    from PIL.PngImagePlugin import PngInfo

    scale = _SCALE * _OVER
    picture = Image.new("RGB", (_WIDTH * scale, _HEIGHT * scale), "#ffffff")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(_SIZE * scale)
    for shape in shapes:
        if isinstance(shape, _Text) and shape.upright:
            left, top, right, bottom = (round(edge) for edge in draw.textbbox((0, 0), shape.words, font))
            strip = Image.new("RGB", (right + left, bottom + top), "#ffffff")
            ImageDraw.Draw(strip).text((0, 0), shape.words, shape.colour, font)
            strip = strip.rotate(90, expand=True)
            picture.paste(strip, (round((shape.x - _SIZE) * scale), round(shape.y * scale) - strip.height // 2))
        elif isinstance(shape, _Text):
            anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
            bold = 0.15 * scale if shape.bold else 0
            draw.text((shape.x * scale, shape.y * scale), shape.words, shape.colour, font, anchor, stroke_width=bold)
        elif isinstance(shape, _Dot):
            reach = _RADIUS * scale
            across, up = shape.x * scale, shape.y * scale
            draw.ellipse((across - reach, up - reach, across + reach, up + reach), shape.colour)
        else:
            for stroke in _strokes(shape.points, shape.dash):
                points = [(across * scale, up * scale) for across, up in stroke]
                draw.line(points, shape.colour, round(shape.width * scale), "curve")
    info = PngInfo()
    info.add_text("Software", "pie-engine")
    info.add_text("Description", _NOTE)
    data = io.BytesIO()
    picture.resize((_WIDTH * _SCALE, _HEIGHT * _SCALE), Image.Resampling.LANCZOS).save(data, "PNG", pnginfo=info)
    return data.getvalue()


def _strokes(points: Sequence[Point], dash: tuple[int, ...]) -> list[list[Point]]:
    """A line cut into its dashes, which Pillow does not draw."""
    if not dash:
        return [list(points)]
    strokes: list[list[Point]] = [[points[0]]]
    index, left = 0, float(dash[0])
    for (x0, y0), (x1, y1) in pairwise(points):
        length, done = math.hypot(x1 - x0, y1 - y0), 0.0
        while length - done > left:
            done += left
            here = (x0 + (x1 - x0) * done / length, y0 + (y1 - y0) * done / length)
            if index % 2 == 0:
                strokes[-1].append(here)
            else:
                strokes.append([here])
            index += 1
            left = float(dash[index % len(dash)])
        left -= length - done
        if index % 2 == 0:
            strokes[-1].append((x1, y1))
    return [stroke for stroke in strokes if len(stroke) > 1]
