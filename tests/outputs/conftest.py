"""One progression on the golden checkpoint, which the tests of outputs share."""

from __future__ import annotations

import pytest
from golden import GOLDEN

from pie_engine import Item, PieEngine, Result, RunConfig


@pytest.fixture(scope="session")
def result() -> Result:
    engine = PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu")
    config = RunConfig(steps=2, num_inference_steps=4, resolution=128, leakage=True)
    return engine.run(Item(GOLDEN / "image.png", "the heart lung", GOLDEN / "mask.png", "patient 7"), config)
