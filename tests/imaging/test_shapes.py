"""Boxes, ellipses and polygons: which pixels belong, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from pie_engine.errors import ConfigError, InputError
from pie_engine.imaging import Box, Ellipse, Polygon, Region


def test_a_pixel_belongs_if_its_centre_does() -> None:
    drawn = Box(2, 1, 4, 3).draw((6, 5))
    assert drawn.shape == (5, 6)
    assert drawn.astype(int).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    # Centres at 1.5, 2.5, 3.5: from 1.6 on the first is out, up to 3.4 the last is.
    assert np.flatnonzero(Box(1.6, 0, 3.4, 1).draw((6, 1))[0]).tolist() == [2]
    assert np.flatnonzero(Box(1.5, 0, 3.5, 1).draw((6, 1))[0]).tolist() == [1, 2]  # shapes share an edge, no pixel
    assert np.flatnonzero(Box(3.5, 0, 5, 1).draw((6, 1))[0]).tolist() == [3, 4]


def test_ellipse_pixel_by_pixel() -> None:
    cx, cy, rx, ry = 20.3, 12.1, 9.7, 5.2
    drawn = Ellipse(cx, cy, rx, ry).draw((41, 30))
    for y in range(30):
        for x in range(41):
            assert drawn[y, x] == (((x + 0.5 - cx) / rx) ** 2 + ((y + 0.5 - cy) / ry) ** 2 <= 1)
    assert drawn.sum() == pytest.approx(np.pi * rx * ry, rel=0.03)


POLYGONS = {
    "triangle": [(3.2, 2.1), (33.7, 8.4), (12.3, 27.9)],
    "concave": [(2.1, 2.2), (35.3, 3.4), (20.2, 12.7), (30.6, 28.1), (5.3, 26.4), (14.7, 14.2)],
    "leaves the image": [(-10.3, 5.2), (50.1, 12.3), (20.4, 60.7)],
}


@pytest.mark.parametrize("name", POLYGONS)
@pytest.mark.parametrize("turn", [1, -1])
def test_polygon_against_matplotlib(name: str, turn: int) -> None:
    points = POLYGONS[name][::turn]
    centres = np.stack(np.meshgrid(np.arange(40) + 0.5, np.arange(30) + 0.5), axis=-1).reshape(-1, 2)
    expected = Outline([*points, points[0]], closed=True).contains_points(centres).reshape(30, 40)
    assert (Polygon(points).draw((40, 30)) == expected).all()


def test_polygons_of_special_kinds() -> None:
    corners = ((2, 1), (7, 1), (7, 4), (2, 4))
    assert (Polygon(corners).draw((9, 6)) == Box(2, 1, 7, 4).draw((9, 6))).all()
    bow_tie = Polygon.parse("0,0,8,8,8,0,0,8").draw((8, 8))  # crosses itself: the even-odd rule
    assert bow_tie[4, 0]
    assert bow_tie[4, 7]
    assert not bow_tie[0, 4]
    star = [(20 + 18 * np.sin(4 * np.pi * k / 5), 20 - 18 * np.cos(4 * np.pi * k / 5)) for k in range(5)]
    assert not Polygon(star).draw((40, 40))[20, 20]  # twice around its middle
    from_array = Polygon(np.array(corners, np.float32))
    assert (from_array.draw((9, 6)) == Polygon(corners).draw((9, 6))).all()


WRONG = [
    (Box, "1,2,3", "box '1,2,3' has 3 numbers, not 4; write x0,y0,x1,y1"),
    (Box, "1,2,3,x", "holds 'x', which is not a number"),
    (Box, "", "holds '', which is not a number"),
    (Box, "9,2,3,8", "has x1 3, which is not above x0 9; write the left top corner first"),
    (Box, "1,8,3,8", "has y1 8, which is not above y0 8"),
    (Box, "1,2,3,nan", "box holds nan, which is not a finite number"),
    (Box, "1,2,inf,4", "box holds inf, which is not a finite number"),
    (Ellipse, "1,2,0,4", "has rx 0, which is not greater than 0"),
    (Ellipse, "1,2,3,-4", "has ry -4, which is not greater than 0"),
    (Ellipse, "1,2,3,4,5", "has 5 numbers, not 4; write cx,cy,rx,ry"),
    (Polygon, "1,2,3,4", "has 2 points (at least 3 needed)"),
    (Polygon, "1,2,3,4,5", "has 5 numbers, not pairs of x,y"),
]


@pytest.mark.parametrize(("shape", "text", "line"), WRONG, ids=[f"{shape.__name__} {text}" for shape, text, _ in WRONG])
def test_numbers_that_make_no_shape(shape: type, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shape.parse(text)
    assert line in str(caught.value)


def test_from_python() -> None:
    for wrong in ((1, 2, "3", 4), (1, 2, None, 4), (True, 0, 3, 4)):
        with pytest.raises(ConfigError, match="not a finite number"):
            Box(*wrong)
    for points in (3, [1, 2, 3], [(1, 2, 3), (4, 5, 6), (7, 8, 9)]):
        with pytest.raises(ConfigError, match="not a sequence of"):
            Polygon(points)
    assert Box(np.float32(1), np.int64(2), 3, 4).draw((9, 9)).sum() == 4


def test_shapes_and_the_image(caplog: pytest.LogCaptureFixture) -> None:
    for shape, line in (
        (Box(50, 0, 60, 10), "box 50,0,60,10 lies outside the image of 40 x 30"),
        (Box(-9, 5, 0, 9), "lies outside the image of 40 x 30"),
        (Ellipse(20, -10, 5, 9), "ellipse 20,-10,5,9 lies outside"),
        (Box(3.6, 3, 4.4, 9), "contains no pixel centre of the image of 40 x 30; make it larger"),
        (Polygon([(3, 3), (9, 9), (20, 20)]), "contains no pixel centre"),
    ):
        with pytest.raises(InputError, match=line):
            shape.draw((40, 30))
    with caplog.at_level(logging.WARNING):
        assert Box(0, 0, 40, 30).draw((40, 30)).all()
        assert not caplog.text
        assert Box(-5, 10, 5, 99).draw((40, 30)).sum() == 5 * 20
    assert "box -5,10,5,99 reaches beyond the image of 40 x 30 and is clipped" in caplog.text


def test_regions_from_text() -> None:
    assert Region.parse("roi.png") == Region("roi.png")
    assert Region.parse("roi.png:0.5") == Region("roi.png", 0.5)
    assert Region.parse("C:/roi.png") == Region("C:/roi.png")
    assert Region.parse("1,2,3,4:0.25", Box) == Region(Box(1, 2, 3, 4), 0.25)
    assert Region.parse("1,2,3,4", Ellipse) == Region(Ellipse(1, 2, 3, 4))
    for text, shape, line in (
        ("roi.png:x", None, "mask's beta 'x' in 'roi.png:x' is not a number; write one such as roi.png:0.75"),
        ("roi.png:", None, "mask's beta '' in"),
        ("roi.png:1.5", None, r"mask's beta 1.5 is outside \[0, 1\]"),
        ("roi.png:nan", None, "mask's beta nan is not a finite number"),
        ("1,2,3,4:-1", Box, r"mask's beta -1.0 is outside \[0, 1\]"),
    ):
        with pytest.raises(ConfigError, match=line):
            Region.parse(text, shape)
    with pytest.raises(ConfigError, match="label 1 picks a part of a NIfTI or DICOM SEG file, and this mask is box"):
        Region(Box(1, 2, 3, 4), label=1)
    with pytest.raises(ConfigError, match="label 0"):
        Region("a.nii", label=0)
