"""Images that show nothing, prompts that say nothing and ids that name two: refused or warned of, however they came."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinical_files import write_dicom
from PIL import Image

from pie_engine.config import RoundSchedule, RunConfig
from pie_engine.errors import InputError
from pie_engine.imaging import Box, Reading, Region
from pie_engine.imaging.item import Item, check_item, prepare_item
from pie_engine.imaging.item_ids import check_item_ids
from pie_engine.imaging.rules import RULES, check_trained_resolution

CONFIG = RunConfig(resolution=64)
FORMS = ("png", "tiff", "array", "picture", "dicom", "nifti")
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "dicom-nifti.md"


def ramp(height: int, width: int) -> np.ndarray:
    return np.linspace(0, 255, height * width).astype(np.uint8).reshape(height, width)


def given(form: str, folder: Path, pixels: np.ndarray) -> Any:
    """A path, an array or a picture of these greys."""
    path = folder / f"x.{form}"
    if form == "array":
        return pixels
    if form == "picture":
        return Image.fromarray(pixels)
    if form == "dicom":
        return write_dicom(path, pixels)
    if form == "nifti":
        nibabel = pytest.importorskip("nibabel")
        nibabel.save(nibabel.Nifti1Image(pixels.T.astype(np.int16), np.eye(4)), folder / "x.nii")
        return folder / "x.nii"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("pixels", "line"),
    [
        (ramp(1, 1), "has 1 x 1 pixels (at least 8 on each side needed); pass the image itself"),
        (ramp(7, 64), "has 64 x 7 pixels (at least 8 on each side needed); pass the image itself"),
        (ramp(8, 10_000), "has 10000 x 8 pixels (one side at most 16 times the other); crop it"),
        (np.full((64, 64), 9, np.uint8), "is one grey ("),
    ],
)
def test_what_shows_nothing_is_refused(tmp_path: Path, form: str, pixels: np.ndarray, line: str) -> None:
    with pytest.raises(InputError) as caught:
        check_item(Item(given(form, tmp_path, pixels), "x"), CONFIG)
    assert line in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_enlarged_is_warned_of(tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture) -> None:
    source = given(form, tmp_path, ramp(40, 100))
    check_item(Item(source, "x"), CONFIG)
    assert "has 100 x 40 pixels and is enlarged 1.6 times to resolution 64: it holds no detail" in caplog.text
    caplog.clear()
    check_item(Item(source, "x"), RunConfig(resolution=64, fit="pad"))  # the longer side is what is fitted
    check_item(Item(source, "x"), RunConfig(resolution=40))
    assert "is enlarged" not in caplog.text.replace(str(tmp_path), "")


def test_the_smallest_and_the_longest_are_taken(caplog: pytest.LogCaptureFixture) -> None:
    check_item(Item(ramp(8, 128), "x"), RunConfig(resolution=8))
    assert not caplog.text


@pytest.mark.parametrize("form", ["png", "dicom", "nifti", "array"])
def test_a_window_that_shows_nothing(tmp_path: Path, form: str) -> None:
    values = ramp(64, 64).astype(np.uint16) * 200 if form in ("png", "array") else ramp(64, 64)
    nothing = Item(given(form, tmp_path, values), "x", reading=Reading(window_center=1e6, window_width=10))
    with pytest.raises(InputError, match=r"is one grey .0 of 255. all over as it is windowed; pass window_center and"):
        check_item(nothing, CONFIG)


@pytest.mark.parametrize(
    ("slope", "intercept"),
    [("0", "0"), ("1E300", "0"), ("1E-300", "0"), ("1", "1E300"), ("1E400", "0"), ("1", "-1E400")],
)
def test_rescaling_that_leaves_no_numbers(tmp_path: Path, slope: str, intercept: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", ramp(64, 64), RescaleSlope="1", RescaleIntercept="0")
    data = path.read_bytes()
    for tag, text in ((b"\x28\x00\x53\x10DS", slope), (b"\x28\x00\x52\x10DS", intercept)):  # pydicom writes no such
        text += " " * (len(text) % 2)
        begin = data.index(tag) + 6
        length = int.from_bytes(data[begin : begin + 2], "little")
        data = data[:begin] + len(text).to_bytes(2, "little") + text.encode() + data[begin + 2 + length :]
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"has a rescale slope of .*finite, at most 3.4e.38, the slope at least 1.2e-38"
    ):
        check_item(Item(path, "x"), CONFIG)


def test_every_rule_is_in_the_docs() -> None:
    text = PAGE.read_text()
    for rule in RULES:
        verdict = "refused" if rule.refused else "warned of"
        assert f"| {rule.name} | {rule.limit} | {verdict} |" in text


def test_resolutions_far_from_the_models(caplog: pytest.LogCaptureFixture) -> None:
    for resolution in (256, 512, 1024):
        check_trained_resolution(resolution, 512)
    assert not caplog.text
    for resolution in (248, 1032):
        check_trained_resolution(resolution, 512)
        assert f"resolution {resolution} is far from the 512 that the model was trained at" in caplog.text
    assert "pass resolution=512" in caplog.text


def test_blank_prompts(caplog: pytest.LogCaptureFixture) -> None:
    image = ramp(64, 64)
    for text in (" ", "\t\n", "\N{NO-BREAK SPACE}"):
        for item in (Item(image, text), Item(image, "", Region(Box(0, 0, 40, 40), prompt=text))):
            with pytest.raises(InputError, match="is blank; pass what the progression moves towards"):
                check_item(item, CONFIG)
    assert not caplog.text
    check_item(Item(image, ""), CONFIG)
    assert "prompt is empty: the progression moves towards no finding, as a control does" in caplog.text
    caplog.clear()
    # Where it is read nowhere, nothing is said of it.
    check_item(Item(image, "", Region(Box(0, 0, 40, 40), prompt="heart")), CONFIG)
    schedule = RoundSchedule.parse([{"rounds": "1-10", "prompt": "heart"}])
    check_item(Item(image, ""), RunConfig(resolution=64, schedule=schedule))
    assert not caplog.text


def test_ids_of_several_items(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = ramp(64, 64), ramp(64, 64)[::-1]
    assert [item.item_id for item in check_item_ids([Item(one, "x")])] == ["0"]
    assert prepare_item(Item(one, "x"), CONFIG, 8).item_id == "0"
    named = check_item_ids([Item(one, "x"), Item(two, "x"), Item(one, "y"), Item(one, "x", item_id="0")])
    first, second, again, given_ = [item.item_id for item in named]
    assert f"2 items have one image and no item_id: they share its noise and the id {first}; pass" in caplog.text
    assert given_ == "0"
    assert first == again != second  # two prompts for one image share its noise
    assert first is not None and len(first) == 16 and int(first, 16) >= 0
    assert [item.item_id for item in check_item_ids([Item(two, "x"), Item(one, "x")])] == [second, first]
    stack = tmp_path / "a.tif"
    Image.fromarray(one).save(stack, save_all=True, append_images=[Image.fromarray(two)])
    pages = [Item(stack, "x", reading=Reading(frame=frame)) for frame in (1, 2)]
    ids = [item.item_id for item in check_item_ids(pages)]
    assert [text.split("-")[1] for text in ids if text] == ["frame1", "frame2"]


def test_one_id_names_one_image(tmp_path: Path) -> None:
    one, two = ramp(64, 64), ramp(64, 64)[::-1]
    items = [Item(one, "x", item_id="b"), Item(one, "x", item_id="a"), Item(two, "x", item_id="a")]
    with pytest.raises(
        InputError, match=r"items 2 and 3 have the item_id 'a' and different images, .*; pass item_id that"
    ):
        check_item_ids(items)
    assert [item.item_id for item in check_item_ids(items[:2])] == ["b", "a"]
    with pytest.raises(InputError, match="does not exist; pass the path of"):
        check_item_ids([Item(one, "x"), Item(tmp_path / "none.png", "x")])


def test_warnings_name_settings_for_whoever_reads_them(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_item(Item(ramp(40, 40), ""), CONFIG)
    assert all(getattr(record.msg, "told", None) is not None for record in caplog.records)
