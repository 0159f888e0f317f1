"""The engine called as diffusers' pipelines are: what it takes, what it gives, and that it is the same run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN
from PIL import Image

import pie_engine
from pie_engine import Item, PieEngine, RunConfig
from pie_engine.backends.torch_backend import TorchBackend
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint, LoraSpec
from pie_engine.errors import ConfigError, InputError
from pie_engine.model.bundle import Bundle

IMAGE, MASK, PROMPT = GOLDEN / "image.png", GOLDEN / "mask.png", "the heart lung"
SHORT: dict[str, Any] = {"steps": 2, "num_inference_steps": 4, "resolution": 64, "seed": 3}


@pytest.fixture(scope="module")
def engine(ddim_checkpoint: Checkpoint) -> PieEngine:
    return PieEngine(TorchBackend(copy.deepcopy(ddim_checkpoint), model_info(ddim_checkpoint)))


def test_it_is_the_same_run(engine: PieEngine) -> None:
    expected = engine.run(Item(IMAGE, PROMPT, MASK), RunConfig(**SHORT))
    told: list[tuple[int, int]] = []
    got = engine(
        prompt=PROMPT, image=str(IMAGE), mask_image=Image.open(MASK), output_type="np",
        callback_on_step_end=lambda own, step, total, _: told.append((step, total)), **SHORT,
    )  # fmt: skip
    assert np.array_equal(got.frames[0], expected.frames)
    assert np.array_equal(got.latents[0], expected.latents)
    assert got.provenance[0]["settings"] == expected.provenance["settings"]
    assert told == [(n, 4) for n in range(1, 5)]


def test_forms_of_pictures_and_of_frames(engine: PieEngine) -> None:
    array = np.asarray(Image.open(IMAGE).convert("RGB"))
    forms = [array, torch.from_numpy(array).permute(2, 0, 1) / 255, torch.from_numpy(array), Image.fromarray(array)]
    generator = torch.Generator().manual_seed(3)
    short = {**SHORT, "seed": None, "steps": None}
    got = engine([PROMPT] * 4, forms, mask_image=MASK, num_rounds=1, generator=generator, **short)
    assert [len(frames) for frames in got.frames] == [2] * 4
    inputs = {frames[0].tobytes() for frames in got.frames}
    assert len(inputs) == 1 and isinstance(got.frames[0][0], Image.Image)
    # Items have noises of their own.
    assert len({frames[1].tobytes() for frames in got.frames}) == 4
    tensor = engine(PROMPT, array, output_type="pt", **SHORT).frames[0]
    assert tensor.shape == (3, 3, 64, 64) and tensor.min() >= 0 and tensor.max() <= 1


def test_saved(engine: PieEngine, tmp_path: Path) -> None:
    engine(PROMPT, [IMAGE, IMAGE], **SHORT).save(tmp_path / "two")
    assert (tmp_path / "two" / "001" / "provenance.json").is_file()
    engine(PROMPT, IMAGE, **SHORT).save(tmp_path / "one")
    assert (tmp_path / "one" / "provenance.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"num_rounds": 2}, "steps and num_rounds say the same; pass one of them"),
        ({"generator": torch.Generator()}, "seed and generator say the same"),
        ({"output_type": "gif"}, "output_type 'gif' is unknown; pass one of pil, np, pt"),
        ({"prompt": ["a", "b"]}, "prompt has 2 entries for 1 images"),
        ({"mask_image": [MASK, MASK]}, "mask_image has 2 entries for 1 images"),
        ({"guidance": 3}, "RunConfig has no setting 'guidance'; did you mean guidance_scale?"),
        ({"strength": 2}, r"strength 2 is outside \(0, 1\]; pass strength=0.5"),
        ({"image": torch.full((3, 8, 8), 2.0)}, r"image tensor holds values from 2 to 2; scale it to \[0, 1\]"),
    ],
)
def test_refused(engine: PieEngine, words: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        engine(**{"prompt": PROMPT, "image": IMAGE, **SHORT, **words})


def test_from_pretrained(bundle: Bundle) -> None:
    from_bundle = PieEngine.from_pretrained(bundle.path, device="cpu")
    assert from_bundle.backend.name in ("onnxruntime", "openvino")
    own = PieEngine.from_pretrained(
        GOLDEN / "checkpoint_ddim", backend="torch", device="cpu", torch_dtype=torch.float32
    )
    assert own.backend.precisions["unet"] == "fp32"
    with pytest.raises(ConfigError, match=r"torch_dtype torch\.float64 is unknown; pass torch_dtype=torch\.float16"):
        PieEngine.from_pretrained(GOLDEN / "checkpoint_ddim", torch_dtype=torch.float64)


def test_lora_in_any_form(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    spec = LoraSpec(file, 0.5)
    assert [LoraSpec.of(one) for one in (spec, file, f"{file}:0.5")] == [spec, LoraSpec(file), spec]


def test_the_face_of_the_package(engine: PieEngine) -> None:
    assert {"PieEngine", "LoraSpec", "MethodConfig", "Result"} <= set(dir(pie_engine))
    result = engine.run(Item(IMAGE, PROMPT), RunConfig(**SHORT))
    assert repr(result) == "Result(2 rounds of 64 x 64 towards 'the heart lung', item '0')"
    assert result._repr_html_().startswith('<figure><img src="data:image/png;base64,')
