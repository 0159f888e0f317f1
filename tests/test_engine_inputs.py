"""PieEngine from Python: which arrays, pictures, texts and settings it takes, and how it refuses the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint, LoraSpec
from pie_engine.config import BuildConfig
from pie_engine.errors import ConfigError, InputError, PieError

GOLDEN = Path(__file__).parent / "data" / "golden"
CONFIG = RunConfig(steps=1, num_inference_steps=2, resolution=32)


@pytest.fixture(scope="module")
def engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return PieEngine(TorchBackend(ddim_checkpoint, model_info(ddim_checkpoint)))


@pytest.fixture(scope="module")
def greys() -> np.ndarray:
    return np.asarray(Image.open(GOLDEN / "image.png"))


def test_the_same_picture_in_any_form_is_the_same_run(engine: PieEngine, greys: np.ndarray, tmp_path: Path) -> None:
    colour = np.stack([greys] * 3, axis=-1)
    opened = Image.open(GOLDEN / "image.png")  # not decoded yet
    forms = [
        GOLDEN / "image.png",
        str(GOLDEN / "image.png"),
        opened,
        greys,
        greys[..., None],
        colour,
        np.dstack([colour, np.full(greys.shape, 7, np.uint8)]),  # alpha is dropped
        np.asfortranarray(colour),
        np.flip(np.flip(greys)),  # negative strides
        greys.astype(np.uint16) * 257,
        (greys.astype(np.uint16) * 257).astype(">u2"),
        Image.fromarray(greys.astype(np.uint16) * 257),
    ]
    results = engine.run([Item(form, "heart") for form in forms], CONFIG)
    for result in results:
        assert (result.frames[0] == results[0].frames[0]).all()
    assert results[0].frames.shape == (2, 32, 32, 3)
    assert results[0].provenance["input"]["image_sha256"] == results[1].provenance["input"]["image_sha256"]


WRONG_IMAGES: list[tuple[Any, str]] = [
    (np.zeros((8, 8), np.float32), "dtype float32 is not uint8, uint16 or bool; scale it"),
    (np.zeros((8, 8, 3), np.float64), "dtype float64 is not"),
    (np.zeros((8, 8), np.int64), "dtype int64 is not"),
    (np.zeros((8, 8), np.complex64), "dtype complex64 is not"),
    (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\) is not \[H, W\] or \[H, W, 3\]"),
    (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\) is not"),
    (np.zeros((8, 8, 2), np.uint8), r"shape \(8, 8, 2\) is not"),
    (np.zeros(8, np.uint8), r"shape \(8,\) is not"),
    (np.zeros((0, 8), np.uint8), r"shape \(0, 8\) is not"),
    (np.array(3, np.uint8), r"shape \(\) is not"),
    (None, r"shape \(\) is not"),
    (b"image.png", r"shape \(\) is not"),
    (Image.new("L", (0, 8)), "0 x 8 is empty"),
    (Image.new("F", (8, 8), 0.5), r"values 0.5..0.5, not 8- or 16-bit"),
    (Image.new("I", (8, 8), 70_000), r"values 70000..70000, not 8- or 16-bit"),
    ("nowhere.png", "nowhere.png does not exist"),
]


@pytest.mark.parametrize(("wrong", "line"), WRONG_IMAGES, ids=[line[:24] for _, line in WRONG_IMAGES])
def test_other_images_are_refused(engine: PieEngine, greys: np.ndarray, wrong: Any, line: str) -> None:
    with pytest.raises(InputError, match=f"^image .*{line}"):
        engine.run(Item(wrong, "heart"), CONFIG)
    if wrong is not None:  # no mask
        with pytest.raises(InputError, match=f"^mask .*{line}"):
            engine.run(Item(greys, "heart", wrong), CONFIG)


def test_a_cut_file_that_was_opened(engine: PieEngine, tmp_path: Path) -> None:
    data = (GOLDEN / "image.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"^image cannot be decoded \(image file is truncated"):
        engine.run(Item(Image.open(tmp_path / "cut.png"), "heart"), CONFIG)


def test_masks_as_arrays(engine: PieEngine, greys: np.ndarray) -> None:
    region = np.zeros(greys.shape, bool)
    region[:, 150:] = True
    as_bool, as_bytes = (engine.run(Item(greys, "heart", mask), CONFIG) for mask in (region, region * np.uint8(255)))
    assert as_bool.mask is not None
    assert (as_bool.mask == as_bytes.mask).all()
    assert (as_bool.frames == as_bytes.frames).all()
    assert (as_bool.frames[1] == as_bool.frames[0])[~as_bool.mask].all()
    for mask, line in (
        (~np.ones(greys.shape, bool), r"mask is black \(brightest grey 0"),
        (region.astype(np.uint8), "brightest grey 1, at least 128 needed"),
        (region.T, "does not have the aspect ratio of the image"),
    ):
        with pytest.raises(InputError, match=line):
            engine.run(Item(greys, "heart", mask), CONFIG)


def test_empty_and_mixed_batches(engine: PieEngine, greys: np.ndarray) -> None:
    assert engine.run([], CONFIG) == []
    region = np.ones(greys.shape, bool)
    steps: list[tuple[int, int]] = []
    items = [Item(greys, "a", item_id="0"), Item(greys, "b", region, "1"), Item(greys, "c", item_id="2")]
    results = engine.run(items, CONFIG, on_progress=lambda done, total: steps.append((done, total)))
    assert [result.provenance["item_id"] for result in results] == ["0", "1", "2"]
    assert [result.mask is None for result in results] == [True, False, True]
    assert steps == [(1, 2), (2, 2)]
    # One item that cannot be used stops the batch before anything runs.
    steps.clear()
    with pytest.raises(InputError, match=r"nowhere\.png"):
        engine.run([*items, Item("nowhere.png", "d")], CONFIG, on_progress=lambda *step: steps.append(step))
    assert not steps


@pytest.mark.parametrize("wrong", [None, 3, b"heart", ["heart"]])
def test_texts_that_are_none(engine: PieEngine, greys: np.ndarray, wrong: Any) -> None:
    with pytest.raises(InputError, match=f"prompt of type {type(wrong).__name__} is not text; pass a string"):
        engine.run(Item(greys, wrong), CONFIG)
    if wrong is not None:  # which is an item without an id
        with pytest.raises(InputError, match=f"item_id of type {type(wrong).__name__} is not text; pass a string"):
            engine.run(Item(greys, "heart", item_id=wrong), CONFIG)


def test_resolution_is_checked_against_the_model(engine: PieEngine, greys: np.ndarray) -> None:
    with pytest.raises(ConfigError, match=r"^resolution 40 does not fit this U-Net \(multiple of 16 expected\)"):
        engine.run(Item(greys, "heart"), replace(CONFIG, resolution=40))
    result = engine.run(Item(greys, "heart"), replace(CONFIG, resolution=None))
    assert result.config.resolution == engine.backend.model.default_resolution == result.frames.shape[1]


WRONG_SETTINGS: list[dict[str, Any]] = [
    {"steps": True},
    {"steps": 2.0},
    {"steps": "2"},
    {"strength": None},
    {"strength": float("nan")},
    {"strength": True},
    {"guidance_scale": float("inf")},
    {"beta1": "0.1"},
    {"seed": 1.5},
    {"seed": 2**63},
    {"resolution": 64.0},
    {"semantics": "paper"},
    {"inversion": None},
    {"noise": "blue"},
    {"scheduler": ""},
    {"scheduler": 3},
    {"negative_prompt": None},
]


@pytest.mark.parametrize("wrong", WRONG_SETTINGS, ids=str)
def test_settings_are_checked_when_they_are_made(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        RunConfig(**wrong)


def test_build_settings() -> None:
    with pytest.raises(ConfigError, match="precision 'int8' is unknown"):
        BuildConfig(precision="int8")
    with pytest.raises(ConfigError, match=r"opset 3 is outside \[18, 23\]"):
        BuildConfig(opset=3)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, "neither given"),
        ({"engine": "a", "checkpoint": "b"}, "both given"),
        ({"checkpoint": "a", "backend": "tpu"}, "backend 'tpu' is unknown"),
        ({"checkpoint": "a", "dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"checkpoint": "a", "device": "tpu"}, "device 'tpu' is unknown"),
        ({"checkpoint": "a", "threads": 0}, r"threads 0 is outside \[1, 1000000\]; pass threads=1"),
        ({"checkpoint": "a", "threads": True}, "threads True is not"),
        ({"engine": "a", "lora": [LoraSpec(Path("x"))]}, "LoRA cannot be fused into a bundle"),
        ({"engine": "nowhere"}, "bundle nowhere does not exist"),
        ({"checkpoint": "nowhere"}, "'nowhere' does not exist"),
    ],
)
def test_load_refuses(arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(PieError, match=line):
        PieEngine.load(**arguments)


def test_a_resolution_far_from_the_models_is_warned_of_once(
    engine: PieEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """The golden checkpoint says 64 pixels; half and twice as many are near enough."""
    for resolution in (None, 32, 128):
        engine.resolve_resolution(resolution)
    assert not caplog.text
    for _ in range(2):
        engine.run(Item(GOLDEN / "image.png", "heart"), RunConfig(steps=1, num_inference_steps=2, resolution=144))
    (record,) = caplog.records
    assert record.getMessage().startswith("resolution 144 is far from the 64 that the model was trained at")
