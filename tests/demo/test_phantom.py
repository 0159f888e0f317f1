from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from pie_engine.demo.cardiothoracic import measure_ctr
from pie_engine.demo.data import cohort, healthy_cohort, split_seed
from pie_engine.demo.phantom import CTR_ENLARGED, CTR_HEALTHY, CTR_MAX, SIZE, Patient, render, roi_mask, sample_patient
from pie_engine.errors import ConfigError, InputError


def test_a_patient_looks_the_same_twice():
    patient = sample_patient(7, ctr=0.6, effusion=0.2)
    assert patient == sample_patient(7, ctr=0.6, effusion=0.2)
    picture = render(patient)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert np.array_equal(picture, render(patient))
    assert not np.array_equal(picture, render(sample_patient(8, ctr=0.6, effusion=0.2)))
    with pytest.raises(FrozenInstanceError):
        patient.ctr = 0.5


def test_severity_leaves_the_anatomy_alone():
    healthy = sample_patient(3)
    assert CTR_HEALTHY[0] <= healthy.ctr <= CTR_HEALTHY[1] and not healthy.effusion
    sick = sample_patient(3, ctr=0.62, effusion=0.3)
    assert replace(sick, ctr=healthy.ctr, effusion=0.0) == healthy


@pytest.mark.parametrize("seed", range(12))
def test_the_mask_covers_the_largest_heart(seed):
    patient = sample_patient(seed)
    quiet = replace(patient, noise=0.0)
    changed = np.abs(render(replace(quiet, ctr=CTR_MAX)).astype(int) - render(quiet)).max(axis=2) > 4
    mask = roi_mask(patient)
    assert mask.shape == (SIZE, SIZE) and set(np.unique(mask)) == {0, 255}
    assert changed.any() and not changed[mask == 0].any()
    assert np.array_equal(mask, roi_mask(replace(patient, ctr=CTR_MAX)))
    assert 0.1 < (mask > 0).mean() < 0.6


def test_effusion_whitens_its_own_side():
    patient = sample_patient(5)
    clear = render(patient).astype(int)[..., 0]
    fluid = render(replace(patient, effusion=0.35)).astype(int)[..., 0]
    left, right = np.s_[:, SIZE // 2 + 8 :], np.s_[:, : SIZE // 2 - 8]
    same_side, other = (left, right) if patient.effusion_left else (right, left)
    assert (fluid - clear)[same_side].mean() > 3
    assert abs((fluid - clear)[other].mean()) < 0.5


def test_the_measured_ratio_is_the_true_one():
    rng = np.random.default_rng(0)
    patients = [sample_patient(split_seed("test", i), ctr=float(rng.uniform(0.40, CTR_MAX))) for i in range(80)]
    errors = np.array([measure_ctr(render(p)).ratio - p.ctr for p in patients])
    assert np.abs(errors).mean() < 0.01
    assert np.abs(errors).max() < 0.05


def drawn_chest(heart: int, thorax: int, middle: int = 64) -> np.ndarray:
    """Two dark boxes around a bright one: a chest whose widths are known."""
    picture = np.full((128, 128), 160, np.uint8)
    picture[16:100, middle - thorax // 2 : middle + thorax // 2] = 40
    picture[:, middle - 8 : middle + 8] = 210
    picture[50:100, middle - heart // 2 : middle + heart // 2] = 210
    return picture


@pytest.mark.parametrize(("heart", "thorax", "middle"), [(40, 90, 64), (60, 96, 64), (36, 80, 60)])
def test_measure_on_known_shapes(heart, thorax, middle):
    measured = measure_ctr(drawn_chest(heart, thorax, middle))
    assert measured.thorax == pytest.approx(thorax, abs=1.5)
    assert measured.heart == pytest.approx(heart, abs=1.5)
    assert measured.ratio == pytest.approx(heart / thorax, abs=0.03)


@pytest.mark.parametrize("picture", [np.zeros((128, 128), np.uint8), np.full((128, 128, 3), 255, np.uint8)])
def test_measure_refuses_what_is_no_chest(picture):
    with pytest.raises(InputError, match="frontal chest radiograph"):
        measure_ctr(picture)


def test_measure_refuses_other_types():
    with pytest.raises(InputError, match="float32"):
        measure_ctr(np.zeros((128, 128), np.float32))


@pytest.mark.parametrize("settings", [{"ctr": 0.9}, {"ctr": 0.1}, {"effusion": 0.9}])
def test_impossible_patients_are_refused(settings):
    with pytest.raises(ConfigError, match="out of range"):
        Patient(seed=0, **settings)


def test_splits_share_no_patient_and_cohorts_are_mixed():
    seeds = [{p.seed for p in cohort(split, 50)} for split in ("train", "classifier", "validation", "test")]
    assert len(set.union(*seeds)) == 200
    ratios = np.array([p.ctr for p in cohort("train", 300)])
    assert (ratios < CTR_HEALTHY[1]).mean() > 0.25 and (ratios > CTR_ENLARGED[0]).mean() > 0.25
    assert all(CTR_HEALTHY[0] <= p.ctr <= CTR_HEALTHY[1] and not p.effusion for p in healthy_cohort("test", 20))
    with pytest.raises(ConfigError, match="unknown split"):
        split_seed("holdout", 0)
