import re
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, grey_closing, label

from pie_engine.demo.domain import load_domain
from pie_engine.demo.domains.fundus import SIZE, Eye, render, roi_mask, sample, structure
from pie_engine.demo.domains.fundus_measure import find_lesions, measure_lesions
from pie_engine.demo.domains.fundus_reports import corpus, report
from pie_engine.errors import ConfigError, InputError

STAGES = ("mild", "early", "moderate", "severe", "advanced")


def change(eye: Eye, severity: float) -> np.ndarray:
    """How far each pixel is from the healthy one, signed, of the channel that changes most; [128, 128]."""
    difference = render(replace(eye, severity=severity)).astype(int) - render(replace(eye, severity=0.0))
    largest = np.abs(difference).argmax(axis=2)
    return np.take_along_axis(difference, largest[..., None], axis=2)[..., 0]


def test_an_eye_looks_the_same_twice():
    eye = sample(7, 0.6)
    assert eye == sample(7, 0.6)
    picture = render(eye)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, render(eye))
    assert not np.array_equal(picture, render(sample(8, 0.6)))
    with pytest.raises(FrozenInstanceError):
        eye.severity = 0.5


@pytest.mark.parametrize("seed", range(8))
def test_severity_changes_the_inside_of_the_region_only(seed):
    healthy, severe = sample(seed), sample(seed, 1.0)
    assert healthy.severity == 0 and replace(severe, severity=0.0) == healthy
    mask = roi_mask(healthy)
    assert mask.shape == (SIZE, SIZE) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask, roi_mask(severe))
    assert 0.25 < (mask > 0).mean() < 0.5
    changed = change(healthy, 1.0) != 0
    assert changed.sum() > 300
    y, x = np.mgrid[-8:9, -8:9]  # compositing fades over eight pixels: the change keeps clear of them
    assert not binary_dilation(changed, x**2 + y**2 <= 64)[mask == 0].any()


def test_disease_only_grows_and_steadily():
    for seed in range(2):
        steps = [change(sample(seed), severity) for severity in np.linspace(0, 1, 6)]
        assert not steps[0].any()
        for less, more in pairwise(steps):
            assert (np.abs(more) >= np.abs(less) - 1).all()  # rounding
            assert (np.abs(more) > 20).sum() > (np.abs(less) > 20).sum() or not less.any()
        jump = np.abs(change(sample(seed), 0.51) - change(sample(seed), 0.5)).mean()
        assert 0 < jump < 0.05 * np.abs(steps[-1]).mean()


def test_both_kinds_of_lesion_lie_beside_the_vessels():
    for seed in range(6):
        eye = sample(seed, 1.0)
        difference, vessels = change(eye, 1.0), structure(eye) > 0.5
        assert np.abs(difference[binary_dilation(vessels)]).mean() < 1  # grey level: neither over nor touching
        dark, bright = label(difference < -25)[1], label(difference > 25)[1]
        assert dark >= 8 and bright >= 6 and dark + bright <= 25
        assert (binary_dilation(vessels, iterations=10) & (np.abs(difference) > 25)).sum() > 250


@pytest.mark.parametrize("seed", range(4))
def test_structure_is_what_is_darker_in_the_picture(seed):
    eye = sample(seed)
    vessels, inside = structure(eye), roi_mask(eye) > 0
    assert vessels.shape == (SIZE, SIZE) and vessels.dtype == np.float32
    assert vessels.min() == 0 and 0.95 < vessels.max() <= 1
    assert np.array_equal(vessels, structure(replace(eye, severity=1.0)))
    green = render(eye)[..., 1].astype(np.float32)
    thin_and_dark = grey_closing(green, size=(9, 9)) > 1.4 * green  # narrower than nine pixels
    drawn = vessels > 0.5
    assert thin_and_dark[inside & drawn].mean() > 0.9
    assert thin_and_dark[inside & (vessels < 0.05)].mean() < 0.03
    assert 0.08 < drawn[inside].mean() < 0.25  # the region holds a good part of the eye's own


def test_vessels_differ_between_eyes():
    drawn = [structure(replace(sample(seed), left=False)) > 0.5 for seed in range(12)]
    shared = [(a & b).sum() / (a | b).sum() for i, a in enumerate(drawn) for b in drawn[:i]]
    assert np.mean(shared) < 0.3


def test_left_eyes_have_their_disc_on_the_left():
    eyes = [sample(seed) for seed in range(10)]
    for eye in eyes:
        columns = np.argsort(render(eye)[..., 2].ravel())[-30:] % SIZE  # nothing is as pale as the disc
        assert (np.median(columns) < SIZE / 2) == eye.left
    assert {eye.left for eye in eyes} == {True, False}


@pytest.mark.parametrize("severity", [-0.1, 1.01, float("nan")])
def test_impossible_severities_are_refused(severity):
    with pytest.raises(ConfigError, match=r"severity .* is out of range \(0 to 1\)"):
        sample(0, severity)


def test_the_measure_follows_severity():
    rng = np.random.default_rng(0)
    severities = rng.random(24)
    eyes = [sample(4_000_000 + i, float(severity)) for i, severity in enumerate(severities)]
    measured = np.array([measure_lesions(render(eye), roi_mask(eye)) for eye in eyes])
    ranks = [np.argsort(np.argsort(values)) for values in (severities, measured)]
    assert np.corrcoef(ranks)[0, 1] > 0.95


def test_healthy_vessels_macula_and_disc_are_no_lesions():
    shares = [measure_lesions(render(eye), roi_mask(eye)) for eye in map(sample, range(8))]
    assert np.mean(shares) < 0.001


def disc_at(x: float, y: float, radius: float) -> np.ndarray:
    """A filled circle; [128, 128]."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.hypot(columns - x, rows - y) <= radius


def drawn_fundus() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An orange field with a disc, two vessels, and spots whose places are known; picture, dark spots, bright spots."""
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[disc_at(64, 64, 60)] = (200, 100, 50)
    picture[disc_at(100, 64, 10)] = (250, 210, 150)
    picture[40:43, 12:116] = picture[88:91, 12:116] = (150, 45, 25)
    dark = disc_at(40, 52, 4) | disc_at(60, 48, 3) | disc_at(70, 80, 3)
    bright = disc_at(50, 70, 3) | disc_at(58, 72, 3) | disc_at(80, 56, 2)
    picture[dark], picture[bright] = (90, 20, 10), (250, 225, 130)
    return picture, dark, bright


def test_measure_on_known_spots():
    picture, dark, bright = drawn_fundus()
    blood, exudate = find_lesions(picture)
    for measured, true in ((blood, dark), (exudate, bright)):
        assert measured[true].mean() > 0.8
        assert not measured[~binary_dilation(true, iterations=2)].any()
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[32:96, 32:96] = 255
    assert measure_lesions(picture, mask) == pytest.approx((dark | bright).sum() / 64**2, rel=0.25)
    assert measure_lesions((picture * 0.7).astype(np.uint8), mask) == pytest.approx(
        measure_lesions(picture, mask), rel=0.05
    )


def test_measure_of_an_empty_picture_is_nothing():
    assert measure_lesions(np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE), 255, np.uint8)) == 0


def test_measure_refuses_what_it_cannot_read():
    picture, mask = render(sample(0)), np.full((SIZE, SIZE), 255, np.uint8)
    with pytest.raises(InputError, match="float64"):
        measure_lesions(picture / 255, mask)
    with pytest.raises(InputError, match="empty"):
        measure_lesions(picture, mask * 0)
    with pytest.raises(InputError, match="no match"):
        measure_lesions(picture, mask[:64])


@pytest.mark.parametrize(
    ("severity", "stage"),
    [
        (0.0, ()),
        (0.1, ()),
        (0.2, STAGES[:2]),
        (0.35, STAGES[:2]),
        (0.5, STAGES[2:3]),
        (0.8, STAGES[3:]),
        (1, STAGES[3:]),
    ],
)
def test_reports_fit_the_severity(severity, stage):
    rng = np.random.default_rng(0)
    reports = {report(sample(1, severity), rng) for _ in range(60)}
    assert len(reports) >= 4
    for text in reports:
        said = {word for word in STAGES if word in text.lower()}
        assert said <= set(stage) and bool(said) == bool(stage)
        assert bool(re.search(r"\bNo\b", text)) == (not stage)


def test_every_report_names_the_domain_in_words_of_the_corpus():
    words = lambda text: re.findall(r"\w+|[^\w\s]", text)  # noqa: E731
    known = {word for sentence in corpus() for word in words(sentence)}
    rng = np.random.default_rng(1)
    texts = {report(sample(1, severity), rng) for severity in (0.0, 0.3, 0.5, 1.0) for _ in range(200)}
    chosen = load_domain("fundus").defaults
    assert {chosen.prompt, chosen.healthy_prompt} <= texts
    for text in texts:
        assert "fundus" in text.lower() and len(text.split()) <= 24
        assert set(words(text)) <= known
