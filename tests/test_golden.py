"""What the published implementation computed, reproduced by the reference and by every backend of a processor.

Tolerances are those that the golden cases state: latents 2e-3, frames 3 grey levels anywhere and 0.05 on average.
"""

from __future__ import annotations

import numpy as np
import pytest
from golden import CASES, GOLDEN, Case, golden_case
from machines import needs_openvino
from PIL import Image

from pie_engine import Item, PieEngine
from pie_engine.checkpoint import load_checkpoint
from pie_engine.imaging import fit, open_image, prepare_mask
from pie_engine.model.bundle import Bundle
from pie_engine.reference import progress_official


def check(case: Case, frames: np.ndarray, latents: np.ndarray) -> None:
    assert latents.shape == case.latents.shape
    assert np.abs(latents - case.latents).max() < 2e-3
    for index, frame in enumerate(frames):
        with Image.open(case.frames / f"{index:03d}.png") as expected:
            difference = np.abs(frame.astype(int) - np.asarray(expected.convert("RGB")).astype(int))
        assert difference.max() <= (0 if index == 0 else 3)
        assert difference.mean() <= 0.05


@pytest.mark.parametrize("name", CASES)
def test_reference(name: str) -> None:
    case = golden_case(name)
    image, mask = open_image(case.image), None
    if case.mask is not None:
        mask = prepare_mask(open_image(case.mask), image.size, 128, official=True).latent
    fitted = fit(image, 128)
    rounds = list(progress_official(load_checkpoint(case.checkpoint), fitted, mask, case.prompt, case.config))
    frames = np.stack([np.asarray(fitted), *(frame for _, frame in rounds)])
    check(case, frames, np.concatenate([z.numpy() for z, _ in rounds]))


@pytest.mark.parametrize("name", CASES)
def test_torch_engine(name: str) -> None:
    case = golden_case(name)
    engine = PieEngine.load(checkpoint=case.checkpoint, backend="torch", device="cpu")
    result = engine.run(Item(case.image, case.prompt, case.mask), case.config)
    check(case, result.frames, result.latents)


@pytest.mark.parametrize("backend", ["onnxruntime", needs_openvino("openvino")])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["checkpoint"] == "checkpoint_ddim"])
def test_engine_over_a_bundle(name: str, backend: str, bundle: Bundle) -> None:
    case = golden_case(name)
    result = PieEngine.load(bundle.path, backend=backend, threads=1).run(
        Item(case.image, case.prompt, case.mask), case.config
    )
    check(case, result.frames, result.latents)


def test_a_batch_gives_every_item_the_published_result() -> None:
    """The published code crashes on batches; each item must still draw what it would draw alone."""
    case = golden_case("pndm_masked")
    engine = PieEngine.load(checkpoint=case.checkpoint, backend="torch", device="cpu")
    item = Item(case.image, case.prompt, case.mask)
    other = Item(GOLDEN / "expected" / "ddim_masked" / "003.png", "lung", GOLDEN / "mask.png")
    for result in engine.run([item, other, item], case.config)[::2]:
        check(case, result.frames, result.latents)
