"""Regions joined, grown, cut and fitted: against the rules written out pixel by pixel."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine.config import RunConfig
from pie_engine.errors import ConfigError, InputError
from pie_engine.imaging import (
    Box,
    Ellipse,
    Grid,
    Polygon,
    Region,
    Roi,
    as_regions,
    fit,
    fit_roi,
    prepare_mask,
    read_roi,
)
from pie_engine.imaging.item import Item, prepare_item
from pie_engine.imaging.regions.roi import component_sizes, grow, move

SIZE = (60, 50)


def roi(*regions: Any, size: tuple[int, int] = SIZE, keep: Any = None, **rest: Any) -> Roi:
    return read_roi(Grid(size), as_regions(list(regions)), keep=as_regions(keep), **rest)


def test_union_and_keep() -> None:
    hole = np.zeros(SIZE[::-1], np.uint8)
    hole[20:25] = 255
    found = roi(Box(10, 10, 30, 30), Ellipse(40, 25, 8, 8), keep=[hole, Box(0, 0, 60, 12)])
    expected = Box(10, 10, 30, 30).draw(SIZE) | Ellipse(40, 25, 8, 8).draw(SIZE)
    expected[20:25] = expected[:12] = False
    assert (found.pixels == expected).all()
    assert found.keep is not None
    assert found.keep.sum() == 5 * 60 + 12 * 60
    assert found.facts["pixels"] == expected.sum()
    assert found.facts["share"] == expected.mean()
    assert [part["kind"] for part in found.facts["regions"]] == ["box", "ellipse"]
    assert found.facts["regions"][0] == {"kind": "box", "numbers": [10, 10, 30, 30], "pixels": 400}
    assert [part["kind"] for part in found.facts["keep"]] == ["picture", "box"]
    assert len(found.facts["keep"][0]["sha256"]) == 64


@pytest.mark.parametrize("radius", [1, 3, 7, -1, -2, -4])
def test_dilation_by_brute_force(radius: int) -> None:
    pixels = Box(0, 8, 14, 22).draw((40, 30)) | Ellipse(28, 15, 7, 9).draw((40, 30))
    grown, places = grow(pixels, radius), np.argwhere(pixels if radius > 0 else ~pixels)
    for y in range(30):
        for x in range(40):
            near = (((places - (y, x)) ** 2).sum(axis=1) <= radius**2).any()
            assert grown[y, x] == (near if radius > 0 else pixels[y, x] and not near)


def test_erosion_spares_the_border_and_can_take_all() -> None:
    shrunk = roi(Box(0, 0, 20, 50), dilate=-3).pixels
    assert shrunk[:, :17].all()
    assert not shrunk[:, 17:].any()
    with pytest.raises(InputError, match=r"empty after 10 pixels are taken off its edge \(it had 100 pixels\)"):
        roi(Box(20, 20, 30, 30), dilate=-10)
    for wrong in (1.5, True, "3"):
        with pytest.raises(ConfigError, match="dilate"):
            roi(Box(20, 20, 30, 30), dilate=wrong)


@pytest.mark.parametrize(("dx", "dy"), [(7, 0), (0, 4), (-3, 2), (6, -9), (-20, -20), (59, 49), (60, 0), (0, -70)])
def test_moving_by_brute_force(dx: int, dy: int) -> None:
    """Right and down are positive; what comes in is outside, what leaves is lost."""
    pixels = Box(10, 10, 30, 30).draw(SIZE) | Box(0, 40, 60, 50).draw(SIZE)
    expected = np.zeros_like(pixels)
    for y, x in np.argwhere(pixels):
        if 0 <= y + dy < SIZE[1] and 0 <= x + dx < SIZE[0]:
            expected[y + dy, x + dx] = True
    assert (move(pixels, dx, dy) == expected).all()


def test_a_region_is_moved_then_grown_and_keep_stays(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = roi(Box(0, 20, 10, 30), keep=Box(0, 0, 60, 22), shift=(5, 3), dilate=-2)
    # From x 0..10, y 20..30 to x 5..15, y 23..33; its left edge is an edge now, and is eroded.
    assert (found.pixels == Box(7, 25, 13, 31).draw(SIZE)).all()
    assert (found.facts["shift"], found.facts["dilate"]) == ([5, 3], -2)
    assert not caplog.messages
    betas = roi(Region(Box(10, 10, 20, 20), 0.9), Region(Box(30, 10, 40, 20), 0.2), shift=(0, 5))
    assert betas.owner is not None
    assert [betas.betas[betas.owner[y, x]] for y, x in ((22, 15), (22, 35))] == [0.9, 0.2]
    with caplog.at_level(logging.WARNING):
        assert roi(Box(50, 0, 60, 10), shift=(6, 0)).facts["pixels"] == 40
    assert caplog.messages == ["shift=(6, 0) takes 60 of the 100 pixels of the mask out of the image"]
    with pytest.raises(InputError, match=r"mask leaves the image by shift=\(-20, 0\) \(all 100 pixels\)"):
        roi(Box(0, 20, 10, 30), shift=(-20, 0))
    for wrong in ((1.5, 0), (0, True), (1,), (0, 20_000)):
        with pytest.raises(ConfigError, match="shift"):
            roi(Box(0, 20, 10, 30), shift=wrong)


def test_what_is_kept_is_cut_out_last() -> None:
    found = roi(Box(20, 20, 30, 30), keep=Box(30, 0, 60, 50), dilate=5)
    assert not found.pixels[:, 30:].any()
    assert found.pixels[25, 15:30].all()
    with pytest.raises(InputError, match="keep mask covers all 100 pixels of the mask, so that nothing may change"):
        roi(Box(20, 20, 30, 30), keep=Box(0, 0, 60, 50))


def test_components(caplog: pytest.LogCaptureFixture) -> None:
    diagonal = np.zeros((50, 60), bool)
    diagonal[10:20, 10:20] = diagonal[20:30, 20:30] = True  # they touch at a corner
    assert component_sizes(diagonal) == [200]
    boxes = [Box(0, 0, 5, 5), Box(20, 20, 50, 40), Box(0, 40, 2, 41)]
    with caplog.at_level(logging.WARNING):
        found = roi(*boxes)
    assert found.facts["component_pixels"] == [600, 25, 2]
    assert found.facts["components"] == 3
    assert not caplog.text  # 2 of 627 pixels are not below 0.1 %
    with pytest.raises(InputError, match=r"mask has 3 components of 600, 25, 2 pixels \(at most 1 expected\)"):
        roi(*boxes, components=1)
    assert roi(*boxes, components=3).facts["components"] == 3
    speck = np.zeros((200, 200), np.uint8)
    speck[:100] = speck[150, 30:33] = speck[190, 190] = 255
    with caplog.at_level(logging.WARNING):
        roi(speck, size=(200, 200))
    assert "mask has 2 components of 1 to 3 pixels, below 0.1 % of its 20004" in caplog.text


def test_an_empty_and_a_full_one(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"mask is black \(brightest grey 100, at least 128 needed\)"):
        roi(Box(1, 1, 9, 9), np.full((50, 60), 100, np.uint8))
    with pytest.raises(InputError, match=r"keep mask is black \(brightest grey 0"):
        roi(Box(1, 1, 9, 9), keep=np.zeros((50, 60), bool))
    with caplog.at_level(logging.WARNING):
        roi(np.ones((50, 60), bool))
    assert "covers all of the image: nothing is held to the patient's anatomy" in caplog.text
    with pytest.raises(InputError, match=r"mask of 50 x 60 does not have the aspect ratio of the image, 60 x 50"):
        roi(np.ones((60, 50), bool))


WAYS = [("crop", (300, 261)), ("crop", (97, 205)), ("pad", (301, 190)), ("stretch", (123, 310)), ("crop", (33, 40))]


@pytest.mark.parametrize(("how", "size"), WAYS)
@pytest.mark.parametrize("resolution", [64, 128])
def test_the_mask_follows_the_image_exactly(how: str, size: tuple[int, int], resolution: int) -> None:
    """The regions drawn into the image as white: where it is white after fitting, there the mask is, to the pixel."""
    width, height = size
    corners = [(0.3 * width, 0.2 * height), (0.81 * width, 0.33 * height), (0.44 * width, 0.9 * height)]
    shapes = (Polygon(corners), Box(0.1 * width, 0.6 * height, 0.3 * width, 0.7 * height))
    marker = sum(shape.draw(size).astype(int) for shape in shapes) > 0
    image = Image.fromarray((marker * 255).astype(np.uint8)).convert("RGB")
    mask = fit_roi(roi(*shapes, size=size), resolution, how=how)
    expected = np.asarray(fit(image, resolution, how))[..., 0] >= 128
    assert (mask.pixels == expected).all()
    assert mask.source is not None
    assert (mask.source == marker).all()
    assert (mask.weight[~expected] == 0).all()


def test_one_picture_is_what_it_was_before_there_were_regions() -> None:
    """Its soft edge is fitted as it is, and divided at half only then."""
    soft = Image.new("L", (60, 50))
    soft.paste(255, (10, 10, 40, 40))
    soft = soft.resize((37, 31), Image.Resampling.BICUBIC)
    alone = fit_roi(roi(np.asarray(soft)), 32)
    before = np.asarray(fit(soft.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR), 32).convert("L")) >= 128
    assert (alone.pixels == before).all()
    prepared = prepare_mask(soft, SIZE, 32, official=False)
    assert (prepared.pixels == before).all()
    assert (prepared.latent == alone.latent).all()


def test_what_the_crop_cuts_off(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        mask = fit_roi(roi(Box(30, 10, 80, 30), size=(100, 40)), 32)
    # The middle 40 of 100 columns stay, 30 to 70.
    assert mask.facts["cut_off_pixels"] == 200
    assert "fit='crop' cuts off 20 % of the mask (200 of 1000 pixels)" in caplog.text
    with pytest.raises(InputError, match=r"outside the square that fit='crop' takes \(all 100 pixels\)"):
        fit_roi(roi(Box(0, 0, 10, 10), size=(100, 40)), 32)
    caplog.clear()
    assert fit_roi(roi(Box(0, 0, 10, 10), size=(100, 40)), 32, how="pad").facts["cut_off_pixels"] == 0
    assert not caplog.text
    with pytest.raises(InputError, match=r"black at 16 x 16 \(brightest grey \d+, at least 128 needed; 4 pixels"):
        fit_roi(roi(Box(400, 400, 402, 402), size=(800, 800)), 16)


def averaged(values: np.ndarray, scale: int) -> np.ndarray:
    """The mean of each block, in plain Python."""
    side = len(values) // scale
    out = np.zeros((1, side, side))
    for row in range(side):
        for column in range(side):
            total = 0.0
            for y in range(scale):
                for x in range(scale):
                    total += values[row * scale + y, column * scale + x]
            out[0, row, column] = total / scale**2
    return out


def test_betas_where_regions_overlap() -> None:
    first, second, third = Box(4, 4, 30, 30), Box(20, 10, 50, 40), Box(0, 50, 13, 61)
    mask = fit_roi(roi(Region(first, 0.9), Region(second, 0.3), third, size=(64, 64)), 64, beta2=0.6, feather_width=0)
    beta = np.zeros((64, 64))
    for shape, value in ((first, 0.9), (second, 0.3), (third, 0.6)):  # the later one holds
        beta[shape.draw((64, 64))] = value
    assert mask.beta_map is not None
    assert np.abs(mask.beta_map - averaged(beta, 8)).max() < 1e-7
    assert (mask.latent == averaged(beta > 0, 8)).all()
    assert mask.beta_map.dtype == mask.latent.dtype == np.float32
    assert (mask.weight == mask.pixels).all()


def test_one_beta_is_the_runs_bit_for_bit() -> None:
    shape = Ellipse(30.2, 28.7, 17.1, 20.3)
    run = fit_roi(roi(shape, size=(64, 64)), 64, beta2=0.7)
    own = fit_roi(roi(Region(shape, 0.7), size=(64, 64)), 64, beta2=0.1)
    twice = fit_roi(roi(Region(shape, 0.7), shape, size=(64, 64)), 64, beta2=0.7)
    assert run.beta_map is not None
    assert (run.beta_map == np.float32(0.7) * run.latent).all()
    for other in (own, twice):
        assert other.beta_map is not None
        assert (other.beta_map == run.beta_map).all()


def test_betas_at_a_soft_common_edge() -> None:
    """A pixel that two regions share belongs to the one that most of it is in; no pixel of the union is lost."""
    left, right = Region(Box(0, 0, 33, 100), 0.9), Region(Box(33, 0, 100, 100), 0.2)
    mask = fit_roi(roi(left, right, size=(100, 100)), 16, scale=1, beta2=0.5)
    assert mask.pixels.all()
    assert mask.beta_map is not None
    # A pixel is 6.25 columns wide: 33 lies in the sixth, 28 % of the way.
    assert mask.beta_map[0, 7].tolist() == pytest.approx([0.9] * 5 + [0.2] * 11)


def test_equal_shares_go_to_the_later_region() -> None:
    """32 columns on 16: the eighth pixel is half of each."""
    left, right = Region(Box(0, 0, 15, 32), 0.9), Region(Box(15, 0, 32, 32), 0.2)
    below = Region(Box(20, 0, 22, 32), 0.9)  # what is drawn over it has no part in the order
    for regions, middle in (((left, right), 0.2), ((right, left), 0.9), ((below, right, left), 0.9)):
        mask = fit_roi(roi(*regions, size=(32, 32)), 16, scale=1)
        assert mask.beta_map is not None
        assert mask.beta_map[0, 8].tolist() == pytest.approx([0.9] * 7 + [middle] + [0.2] * 8)


def test_dilation_takes_the_nearest_beta() -> None:
    found = roi(Region(Box(10, 10, 20, 20), 0.9), Region(Box(40, 10, 50, 20), 0.2), dilate=8)
    mask = fit_roi(found, 64, scale=1, how="stretch", beta2=0.5)
    assert mask.beta_map is not None
    seen = mask.beta_map[0, 64 * 15 // 50]
    assert seen[round(64 * 5 / 60)] == pytest.approx(0.9)
    assert seen[round(64 * 25 / 60)] == pytest.approx(0.9)
    assert seen[round(64 * 35 / 60)] == pytest.approx(0.2)
    assert seen[round(64 * 30 / 60)] == 0


def test_items_and_official_semantics() -> None:
    image = np.arange(50 * 60, dtype=np.uint16).reshape(50, 60)
    run, official = RunConfig(resolution=32), RunConfig(resolution=32, semantics="official")
    assert prepare_item(Item(image, "x"), run, 8).mask is None
    assert prepare_item(Item(image, "x", []), run, 8).mask is None
    box = Box(10, 10, 40, 40)
    picture = box.draw(SIZE).astype(np.uint8) * 255
    drawn, read = (prepare_item(Item(image, "x", mask), official, 8).mask for mask in (box, picture))
    assert drawn is not None
    assert read is not None
    assert (drawn.latent == read.latent).all()
    assert drawn.latent.shape == (4, 4, 4)
    assert drawn.source is None
    facts = prepare_item(Item(image, "x", [box, Region(picture, 0.5)], dilate=2), run, 8).facts
    assert facts["mask_sha256"] is None
    assert facts["roi"]["dilate"] == 2
    assert facts["roi"]["regions"][1]["beta"] == 0.5
    assert facts["roi"]["output_pixels"] > 0
    for item, line in (
        (Item(image, "x", [box, box]), "a mask of 2 regions is not what the published code computes"),
        (Item(image, "x", Region(box, 0.5)), "a region with its own beta is not what the published code computes"),
        (Item(image, "x", box, keep=box), "keep is not what the published code computes; pass semantics='engine'"),
        (Item(image, "x", box, shift=(1, 0)), "shift is not what the published code computes"),
        (Item(image, "x", box, dilate=-1), "dilate is not what the published code computes"),
        (Item(image, "x", box, components=2), "components is not what"),
        (Item(image, "x", shift=(0, 1)), r"shift belongs to a mask, and none is given"),
        (Item(image, "x", dilate=1), r"dilate belongs to a mask, and none is given; .*mask=Box\(0, 0, 60, 50\)"),
        (Item(image, "x", keep=box), "keep belongs to a mask, and none is given"),
    ):
        with pytest.raises(ConfigError, match=line):
            prepare_item(item, official, 8)
    with pytest.raises(ConfigError, match=r"feather 8 is not what the published code computes \(0\)"):
        RunConfig(semantics="official", feather=8)
    for wrong in (-1, 257, 1.5):
        with pytest.raises(ConfigError, match="feather"):
            RunConfig(feather=wrong)


def test_a_feather_that_leaves_less_than_half_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    item = Item(image, "x", Box(44, 44, 84, 84))  # 40 pixels across, of which the feather of 8 leaves 24
    prepare_item(item, RunConfig(resolution=128), 8)
    line = "feather 8 leaves 36 % of the mask at full weight (576 of 1600 pixels at 128 x 128, at least half expected)"
    assert f"{line}; pass feather=2" in caplog.text
    caplog.clear()
    for config in (RunConfig(resolution=128, feather=2), RunConfig(resolution=128, composite=False)):
        prepare_item(item, config, 8)
    prepare_item(replace(item, mask=Box(20, 20, 108, 108)), RunConfig(resolution=128), 8)
    assert not caplog.text
