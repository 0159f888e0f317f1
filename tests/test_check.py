"""`make check`: what it says of what is right, and that it finds what is wrong."""

from __future__ import annotations

from dataclasses import replace

import check
import numpy as np
import pytest
from golden import CASES
from machines import pretend

from pie_engine.demo.assets import DemoDefaults, load_defaults
from pie_engine.errors import BackendError
from pie_engine.outputs import Result


def test_each_check_is_run_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def wrong() -> str:
        raise check.Wrong("7 and not 8")

    def broken() -> str:
        raise BackendError("no engine; build one")

    def fine() -> str:
        return "as it should be"

    assert check.run(iter([("one", wrong), ("two", broken), ("three", fine)])) == 1
    *lines, total, closing = capsys.readouterr().out.splitlines()
    assert lines == [
        "FAILED  one, 0 s: 7 and not 8", "FAILED  two, 0 s: it does not run: no engine; build one",
        "ok      three, 0 s: as it should be",
    ]  # fmt: skip
    assert (total, closing) == ("in 0 s:", "1 passed, 2 failed")
    assert check.run(iter([("three", fine)])) == 0
    assert check.run(iter([])) == 1  # nothing was checked


def test_every_golden_case_and_every_backend_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, torch_cuda=None)
    titles = [title for title, _ in check.checks()]
    assert titles[0] == "the demo's classifier"
    assert [title for title in titles if title.startswith("golden")] == [f"golden values, {name}" for name in CASES]
    assert titles[-2:] == ["a round with torch on CPU", "a round with onnxruntime on CPU"]


def test_golden_values_and_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "latents differ by" in check.check_golden("ddim_unmasked")
    assert check.check_backend("torch", "cpu").startswith("latents differ by")
    run = check.PieEngine.run

    def shifted(*words: object, **options: object) -> Result:
        result = run(*words, **options)  # type: ignore[arg-type]
        object.__setattr__(result, "latents", result.latents + np.float32(0.01))
        return result

    monkeypatch.setattr(check.PieEngine, "run", shifted)
    with pytest.raises(check.Wrong, match=r"latents differ by 1.0e-02 at most \(limit 0.002\)"):
        check.check_golden("ddim_unmasked")
    with pytest.raises(check.Wrong, match=r"latents differ by 1.0e-02 from the reference \(limit 0.0001\)"):
        check.check_backend("torch", "cpu")


def test_a_classifier_that_sees_no_disease(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def __init__(self, path: object):
            pass

        def confidence(self, frames: np.ndarray) -> np.ndarray:
            return np.full(len(frames), 0.1)

    monkeypatch.setattr(check, "Classifier", Blind)

    short = replace(load_defaults().run_config(), steps=1, num_inference_steps=4)
    monkeypatch.setattr(DemoDefaults, "run_config", lambda self: short)
    with pytest.raises(check.Wrong, match=r"0.10 healthy, 0.10 diseased; .* below 0.2 and above 0.8 expected"):
        check.check_classifier()
