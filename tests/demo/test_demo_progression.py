"""What PIE claims, shown by the shipped demo on a few held-out phantoms; `evaluate.py` does it on twenty."""

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from pie_engine import PieEngine, RunConfig
from pie_engine.demo import evaluate
from pie_engine.demo.assets import CHECKPOINT, SEVERITY_JSON, load_defaults
from pie_engine.demo.data import healthy_cohort
from pie_engine.metrics.classifier import Classifier


@pytest.fixture(scope="module")
def engine():
    return PieEngine.load(checkpoint=CHECKPOINT, backend="torch")


def test_the_heart_grows_and_nothing_else_changes(engine):
    defaults = load_defaults()
    config = RunConfig(steps=5, guidance_scale=defaults.guidance_scale, resolution=defaults.resolution)
    progression, results = evaluate.run_progression(
        engine, healthy_cohort("test", 3), defaults.prompt, config, Classifier(SEVERITY_JSON)
    )
    assert progression.confidence[0] < 0.2 and progression.confidence[-1] > 0.6
    assert progression.ctr[-1] - progression.ctr[0] > 0.06
    assert progression.increment_inside[-1] < progression.increment_inside[0]
    assert progression.leakage_after == [0.0] * 5
    for result in results:
        outside = ~result.mask
        assert np.array_equal(result.frames[-1][outside], result.frames[0][outside])


def test_checks_compare_with_the_thresholds():
    lists = {"leakage_before": [0.1], "leakage_latent": [0.1], "leakage_after": [0.0], "unmeasured_frames": 0}
    good = evaluate.Progression("sick", [0.1, 0.5, 0.9], [0.44, 0.5, 0.55], [0.3, 0.2], **lists)
    calm = evaluate.Progression("", [0.1, 0.1, 0.1], [0.44, 0.44, 0.44], [0.3, 0.2], **lists)
    assert all(one.passed for one in evaluate.check(good, [calm]))
    failed = [one.claim for one in evaluate.check(calm, [good]) if not one.passed]
    assert len(failed) == 3
