"""Where the grades of the reports begin, of both domains alike."""

import numpy as np
import pytest

from pie_engine.demo.domain import load_domain
from pie_engine.demo.domains.severity import HEALTHY_UP_TO, LIMITS, SEVERE_FROM, grades

NAMES = ("none", "mild", "moderate", "severe")


def test_grades_overlap_only_around_their_limits():
    for severity in np.linspace(0, 1, 101):
        names = grades(float(severity), NAMES)
        assert NAMES[int(np.searchsorted(LIMITS, severity, side="right"))] in names and len(names) <= 2
        assert len(names) == 1 or min(abs(severity - limit) for limit in LIMITS) < 0.04
    assert [grades(severity, NAMES) for severity in (0.0, 0.3, 0.5, 1.0)] == [(name,) for name in NAMES]
    assert grades(0.14, NAMES) == NAMES[:2]
    assert grades(0.69, NAMES) == NAMES[2:]
    assert grades(0.175, NAMES, (0.02, 0.03, 0.03)) == ("mild",)


@pytest.mark.parametrize("name", ["fundus", "skin"])
def test_held_out_phantoms_keep_to_the_limits_of_the_training(name):
    domain = load_domain(name)
    for index in range(20):
        assert domain.truth(domain.phantom(index))["severity"] <= HEALTHY_UP_TO
        assert SEVERE_FROM <= domain.truth(domain.phantom(index, diseased=True))["severity"] <= 1
