"""Does pie-engine compute here what it should? Under two minutes, with what the demo needs and nothing else.

    make check

The demo's classifier on phantoms and on a progression, the golden values of the published implementation, and one round
of the demo's checkpoint on every backend that is found, against the eager reference. `make test` asks everything else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from golden import CASES, golden_case
from PIL import Image

from pie_engine import Item, PieEngine
from pie_engine.checkpoint import load_checkpoint
from pie_engine.demo.assets import CHECKPOINT, load_defaults
from pie_engine.demo.domain import load_domain
from pie_engine.errors import PieError
from pie_engine.imaging import fit, prepare_mask, to_image
from pie_engine.machine.doctor import diagnose
from pie_engine.metrics.classifier import Classifier
from pie_engine.reference import progress_engine

PHANTOMS = 8
LATENTS, FRAMES = 2e-3, 3  # what the golden cases state
PRECISE = 1e-4  # what README.md promises of fp32
SLOW = ("tensorrt", "tensorrt-rtx")  # engines are compiled first


class Wrong(Exception):
    """What was computed, and what it should have been."""


def check_classifier() -> str:
    """It tells held-out healthy phantoms from diseased ones, and sees the disease come in a progression."""
    domain, defaults = load_domain("chest"), load_defaults()
    classifier = Classifier(domain.classifier)

    def mean(diseased: bool) -> float:
        pictures = [domain.render(domain.phantom(n, diseased=diseased)) for n in range(PHANTOMS)]
        return float(np.mean(classifier.confidence(np.stack([np.asarray(to_image(p)) for p in pictures]))))

    healthy, diseased = mean(False), mean(True)
    phantom = domain.phantom(0)
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend="torch", device="cpu")
    item = Item(domain.render(phantom), defaults.prompt, domain.roi_mask(phantom), item_id=domain.item_id(0))
    first, *_, last = classifier.confidence(engine.run(item, defaults.run_config()).frames)
    said = f"{healthy:.2f} healthy, {diseased:.2f} diseased; a progression rises from {first:.2f} to {last:.2f}"
    if max(healthy, first) >= 0.2 or min(diseased, last) <= 0.8:
        raise Wrong(f"{said}; below 0.2 and above 0.8 expected")
    return said


def check_golden(name: str) -> str:
    """The engine gives what the published implementation gave."""
    case = golden_case(name)
    engine = PieEngine.load(checkpoint=case.checkpoint, backend="torch", device="cpu")
    result = engine.run(Item(case.image, case.prompt, case.mask), case.config)
    latents = float(np.abs(result.latents - case.latents).max())
    frames = max(
        int(np.abs(frame.astype(int) - np.asarray(Image.open(case.frames / f"{index:03d}.png").convert("RGB"))).max())
        for index, frame in enumerate(result.frames)
    )
    said = f"latents differ by {latents:.1e} at most (limit {LATENTS:g}), frames by {frames} of 255 (limit {FRAMES})"
    if not (latents < LATENTS and frames <= FRAMES):
        raise Wrong(said)
    return said


def check_backend(name: str, device: str) -> str:
    """One round is the eager reference's."""
    domain, defaults = load_domain("chest"), load_defaults()
    phantom = domain.phantom(0)
    config = replace(defaults.run_config(), steps=1, num_inference_steps=20)
    picture, mask = to_image(domain.render(phantom)), to_image(domain.roi_mask(phantom))
    latent_mask = prepare_mask(mask, picture.size, defaults.resolution, official=False).latent
    fitted = fit(picture, defaults.resolution)
    ((expected, _),) = progress_engine(load_checkpoint(CHECKPOINT), fitted, latent_mask, defaults.prompt, config)
    engine = PieEngine.load(checkpoint=CHECKPOINT, backend=name, device=device, dtype="fp32")
    result = engine.run(Item(picture, defaults.prompt, mask), config)
    difference = float(np.abs(result.latents[-1] - expected[0].numpy()).max())
    said = f"latents differ by {difference:.1e} from the reference (limit {PRECISE:g})"
    step = result.provenance["runtime"]
    said += f"; step: {step['fused_step']}" + (f" ({step['fused_step_note']})" if step["fused_step_note"] else "")
    if not difference < PRECISE:
        raise Wrong(said)
    return said


def backends() -> Iterator[tuple[str, str, str]]:
    """(name, backend, device) of each that runs here; compiled engines are left to `make gpu-check`."""
    for status in diagnose()["backends"]:
        name, _, where = status["name"].partition(" on ")
        if status["runs"] and name not in SLOW:
            yield status["name"], name, "cuda" if where == "GPU" else "cpu"


def checks() -> Iterator[tuple[str, Callable[[], str]]]:
    yield "the demo's classifier", check_classifier
    for name in CASES:
        yield f"golden values, {name}", lambda name=name: check_golden(name)
    for title, backend, device in backends():
        yield f"a round with {title}", lambda backend=backend, device=device: check_backend(backend, device)


def run(todo: Iterator[tuple[str, Callable[[], str]]]) -> int:
    """0: all passed; 1: one did not. One that fails does not keep the next from running."""
    start, passed, failed = time.monotonic(), 0, 0
    for title, check in todo:
        began = time.monotonic()
        try:
            said, good = check(), True
        except Wrong as error:
            said, good = str(error), False
        except PieError as error:
            said, good = f"it does not run: {error}", False
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok    ' if good else 'FAILED'}  {title}, {time.monotonic() - began:.0f} s: {said}", flush=True)
    print(f"in {time.monotonic() - start:.0f} s:\n{passed} passed, {failed} failed")
    return int(failed > 0 or passed == 0)


if __name__ == "__main__":
    torch.set_num_threads(1)  # tiny tensors gain nothing from more, and lose much on a busy machine
    sys.exit(run(checks()))
