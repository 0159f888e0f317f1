"""The skin phantom, its reports and its measure."""

import re
import warnings
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, binary_opening, distance_transform_edt, grey_closing
from scipy.stats import spearmanr

from pie_engine.demo.domain import load_domain
from pie_engine.demo.domains.skin import SIZE, Lesion, render, roi_mask, sample, structure
from pie_engine.demo.domains.skin_measure import measure_lesion
from pie_engine.demo.domains.skin_reports import corpus, report
from pie_engine.errors import ConfigError, InputError

SKIN, BROWN = (200, 160, 140), (120, 80, 60)
Y, X = np.mgrid[:SIZE, :SIZE]


def changed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference of any channel in grey levels; int [H, W]."""
    return np.abs(one.astype(int) - other).max(axis=2)


def test_a_patient_looks_the_same_twice():
    patient = sample(7, 0.6)
    assert patient == sample(7, 0.6)
    picture = render(patient)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, render(patient))
    assert (changed(picture, render(sample(8, 0.6))) > 10).mean() > 0.2
    with pytest.raises(FrozenInstanceError):
        patient.severity = 0.5


@pytest.mark.parametrize("seed", range(12))
def test_disease_stays_inside_its_region(seed):
    healthy, sick = sample(seed), sample(seed, 1.0)
    assert replace(sick, severity=0.0) == healthy
    mask, before = roi_mask(healthy), render(healthy)
    assert mask.shape == (SIZE, SIZE) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 255}
    assert np.array_equal(mask, roi_mask(sick)) and 0.25 < (mask > 0).mean() < 0.5
    for severity in (0.3, 1.0):
        assert np.array_equal(render(sample(seed, severity))[mask == 0], before[mask == 0])
    touched = changed(render(sick), before) > 0
    assert touched.mean() > 0.1
    assert distance_transform_edt(mask > 0)[touched].min() > 8  # compositing fades over as much


@pytest.mark.parametrize("seed", range(4))
def test_a_lesion_only_grows_and_without_jumps(seed):
    quiet = replace(sample(seed), noise=0.0)
    pictures = [render(replace(quiet, severity=severity)) for severity in (0.0, 0.4, 0.7, 1.0)]
    grown = [changed(picture, pictures[0]) for picture in pictures[1:]]
    assert not ((grown[0] > 12) & (grown[1] <= 3)).any() and not ((grown[1] > 12) & (grown[2] <= 3)).any()
    assert (grown[0] > 12).sum() < (grown[1] > 12).sum() < (grown[2] > 12).sum()
    near = [render(replace(quiet, severity=severity)) for severity in (0.5, 0.502)]
    assert changed(*near).max() <= 4


@pytest.mark.parametrize("severity", [0.0, 1.0])
def test_structure_is_what_looks_like_hair(severity):
    thin, drawn, inside = [], [], []
    for seed in range(12):
        patient = sample(seed, severity)
        grey = render(replace(patient, noise=0.0)).astype(int).mean(axis=2)
        thin.append(grey_closing(grey, (7, 7)) - grey > 20)  # thin and darker than around it
        drawn.append(structure(patient))
        inside.append(roi_mask(patient) > 0)
        assert np.array_equal(drawn[-1], structure(sample(seed)))
    dark, hair, region = np.stack(thin), np.stack(drawn), np.stack(inside)
    assert hair.dtype == np.float32 and hair.min() == 0 and 0.9 < hair.max() <= 1
    assert dark[hair > 0.8].mean() > 0.9
    assert (hair[dark] > 0).mean() > 0.9
    assert min((hair[i] > 0.5)[region[i]].mean() for i in range(len(hair))) > 0.03  # the region holds hair


@pytest.mark.parametrize("seed", range(6))
def test_hairs_lie_above_the_lesion_and_are_two_pixels_wide(seed):
    hair = structure(sample(seed))
    change = changed(render(sample(seed, 1.0)), render(sample(seed)))
    assert change[hair > 0.9].max() < 0.15 * change.max()
    one = structure(Lesion(seed=seed, hairs=1)) > 0.4
    assert binary_opening(one, np.ones((2, 2))).sum() > 0.9 * one.sum()
    assert not binary_erosion(one, np.ones((5, 5))).any()


def test_hairs_differ_between_patients():
    hairs = np.stack([structure(sample(seed)).ravel() for seed in range(20)])
    shared = np.corrcoef(hairs)[np.triu_indices(20, 1)]
    assert abs(shared.mean()) < 0.1 and shared.max() < 0.5


def test_the_measure_follows_the_severity():
    severities = np.random.default_rng(0).permutation(np.linspace(0, 1, 40))
    patients = [sample(4_000_000 + i, float(severity)) for i, severity in enumerate(severities)]
    measures = [measure_lesion(render(patient), roi_mask(patient)) for patient in patients]
    assert spearmanr(severities, measures)[0] > 0.95


def drawn(shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture of flat skin with a brown shape, two hairs above; and a round mask."""
    picture = np.empty((SIZE, SIZE, 3), np.uint8)
    picture[:] = SKIN
    picture[shape] = BROWN
    picture[:, 50:53] = picture[70:72] = 10
    return picture, (np.hypot(X - 64, Y - 64) < 50).astype(np.uint8) * 255


@pytest.mark.parametrize(("a", "b"), [(16, 16), (30, 30), (32, 16), (36, 24)])
def test_measure_on_ellipses(a, b):
    picture, mask = drawn(((X - 62) / a) ** 2 + ((Y - 66) / b) ** 2 < 1)
    assert measure_lesion(picture, mask) == pytest.approx(a * b / 50**2, rel=0.03)


def test_hairs_alone_are_no_lesion():
    assert measure_lesion(*drawn(np.zeros((SIZE, SIZE), bool))) == 0


def test_a_picture_without_light_or_without_anything_in_it_shows_no_lesion():
    mask = drawn(X < 0)[1]
    noise = np.random.default_rng(0).integers(0, 5, (SIZE, SIZE, 3), np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for level in (0, 1, 7, 8, 9, 64, 128, 200, 255):
            assert measure_lesion(np.full((SIZE, SIZE, 3), level, np.uint8), mask) == 0, level
        assert measure_lesion(noise, mask) == 0


def test_impossible_values_are_refused():
    for severity in (-0.01, 1.01, float("nan")):
        with pytest.raises(ConfigError, match=r"severity .* is out of range \(0 to 1\)"):
            sample(0, severity)
    picture, mask = drawn(X < 0)
    for wrong, region, words in (
        (picture.astype(np.float32), mask, "float32"),
        (picture[..., 0], mask, "RGB"),
        (picture, mask[:64], "picture's size"),
        (picture, mask * 0, "0%"),
        (picture, np.full_like(mask, 255), "100%"),
    ):
        with pytest.raises(InputError, match=words):
            measure_lesion(wrong, region)


def test_reports_fit_the_severity():
    rng = np.random.default_rng(0)
    allowed = {0.05: r"naevus|No melanoma", 0.28: r"naevus|atypia", 0.55: "melanoma", 0.9: "melanoma.*large"}
    for severity, words in allowed.items():
        texts = {report(sample(1, severity), rng) for _ in range(200)}
        assert len(texts) >= 4
        for text in texts:
            assert text.startswith("Dermoscopy. ") and len(text.split()) <= 24
            assert re.search(words, text, re.IGNORECASE), text
        affirmed = [re.sub("no melanoma", "", text, flags=re.IGNORECASE) for text in texts]
        assert any("melanoma" in text.lower() for text in affirmed) == (severity > 0.4)
    chosen = load_domain("skin").defaults
    assert chosen.prompt in {report(sample(2, 1.0), rng) for _ in range(400)}
    assert chosen.healthy_prompt in {report(sample(2), rng) for _ in range(400)}


def test_the_corpus_knows_every_word():
    rng = np.random.default_rng(1)
    known = set(re.findall(r"[a-z]+|\S", " ".join(corpus()).lower()))
    for severity in rng.random(300):
        text = report(sample(3, float(severity)), rng)
        assert set(re.findall(r"[a-z]+|\S", text.lower())) <= known, text
