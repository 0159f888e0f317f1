"""CLIP-I on a tiny random checkpoint, against the embeddings computed by hand from transformers' own parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import SHORT, SIDE, TOKENS, by_hand, save_clip, tokens_by_hand

from pie_engine.errors import CheckpointError, InputError
from pie_engine.metrics.clip import ClipEncoder, clip_i, similarity


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Folder, model and transformers' own processor over PIL."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, *save_clip(folder)


def pictures(count: int, height: int = 40, width: int = 64) -> np.ndarray:
    n, y, x, c = np.mgrid[:count, :height, :width, :3]
    return (128 + 60 * np.sin(x / (5 + n) + c) + 50 * np.cos(y / (4 + n))).round().astype(np.uint8)


@pytest.mark.parametrize("size", [(40, 64), (64, 41), (24, 24), (20, 20)])
def test_against_transformers(clip: Any, size: tuple[int, int]) -> None:
    folder, model, processor = clip
    images = pictures(5, *size)
    encoder = ClipEncoder(folder)
    rows = by_hand(model, processor, images)
    assert rows.shape == (5, 12)
    np.testing.assert_allclose(encoder.features(images, batch=2), rows, atol=1e-5)
    expected = [float(row @ rows[0] / np.sqrt((row @ row) * (rows[0] @ rows[0]))) for row in rows.astype(float)]
    found = clip_i(images, encoder)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert max(found[1:]) < 0.9999


def test_texts_against_the_models_own_logits(clip: Any) -> None:
    """transformers' whole forward pass, whose logits are the cosines times the learned scale."""
    folder, model, processor = clip
    texts = ["Severe cardiomegaly.", "The heart is not enlarged.", "", "No normal lungs"]
    images = pictures(3)
    pixels = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        logits = model(input_ids=tokens_by_hand(folder, texts), pixel_values=pixels).logits_per_image
        expected = (logits / model.logit_scale.exp()).numpy()
    encoder = ClipEncoder(folder)
    found = similarity(encoder.features(images), encoder.text_features(texts, batch=3))
    assert found.shape == (3, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(expected, axis=1).min() > 0.01  # the texts do differ


def test_a_long_text_is_cut_and_says_so(clip: Any) -> None:
    encoder = ClipEncoder(clip[0])
    assert encoder.text_length == TOKENS
    whole = "the heart is not enlarged . " * 2  # 12 tokens, and begin and end
    assert encoder.read_length(whole) == (14, "enlarged .")
    assert encoder.read_length("heart") == (3, "")
    same, other = encoder.text_features([whole + "cardiomegaly", whole]), encoder.text_features(["cardiomegaly"])
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)
    assert np.abs(same[0] - other[0]).max() > 0.01
    with pytest.raises(InputError, match="no text is given to embed; pass at least 1"):
        encoder.text_features([])


def test_texts_need_both_halves_and_a_tokenizer_that_fits(clip: Any, tmp_path: Path) -> None:
    folder = clip[0]
    config = json.loads((folder / "config.json").read_text())
    half = shutil.copytree(folder, tmp_path / "half")
    vision = {**config["vision_config"], "projection_dim": config["projection_dim"], "model_type": "clip_vision_model"}
    (half / "config.json").write_text(json.dumps(vision))
    with pytest.raises(CheckpointError, match="holds the image half alone; pass one of type 'clip', which reads texts"):
        ClipEncoder(half).text_features(["heart"])
    bare = shutil.copytree(folder, tmp_path / "bare")
    for file in (*bare.glob("tokenizer.json"), bare / "vocab.json"):
        file.unlink()
    assert ClipEncoder(bare).features(pictures(1)).shape == (1, 12)  # pictures need none
    with pytest.raises(CheckpointError, match=r"vocab\.json is missing"):
        ClipEncoder(bare).text_features(["heart"])


def test_the_image_half_alone_and_the_old_forms_of_sizes(clip: Any, tmp_path: Path) -> None:
    from transformers import CLIPVisionModelWithProjection

    folder, model, processor = clip
    config = model.config.vision_config
    config.projection_dim = model.config.projection_dim
    half = CLIPVisionModelWithProjection(config)
    half.vision_model.load_state_dict(model.vision_model.state_dict())
    half.visual_projection.load_state_dict(model.visual_projection.state_dict())
    half.half().save_pretrained(tmp_path)  # stored in fp16, run in fp32
    old = json.loads((folder / "preprocessor_config.json").read_text()) | {"size": SHORT, "crop_size": SIDE}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    found = ClipEncoder(tmp_path).features(pictures(2))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand(model, processor, pictures(2)), atol=5e-3)


def test_refusals(clip: Any, tmp_path: Path) -> None:
    folder = clip[0]
    config = json.loads((folder / "config.json").read_text())
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    del preprocessor["image_mean"]
    for name, text, line in (
        ("config.json", None, r"holds no config\.json; pass the folder of a CLIP checkpoint"),
        ("config.json", "{", "cannot be read"),
        ("config.json", json.dumps({**config, "model_type": "bert"}), "holds a model of type 'bert'"),
        ("preprocessor_config.json", None, r"holds no preprocessor_config\.json"),
        ("preprocessor_config.json", json.dumps(preprocessor), "is not one of CLIP's.*image_mean"),
        ("model.safetensors", "none", "cannot be loaded"),
        ("model.safetensors", None, "cannot be loaded"),
    ):
        copy = Path(shutil.copytree(folder, tmp_path / "copy", dirs_exist_ok=True))
        if text is None:
            (copy / name).unlink()
        else:
            (copy / name).write_text(text)
        with pytest.raises(CheckpointError, match=line) as caught:
            ClipEncoder(copy)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="is not a folder; pass the folder of a CLIP checkpoint"):
        ClipEncoder(tmp_path / "nowhere")
    other = {**json.loads((folder / "preprocessor_config.json").read_text()), "crop_size": 15}
    (shutil.copytree(folder, tmp_path / "crop") / "preprocessor_config.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match="makes pictures of 15 x 15 and the CLIP model takes 20 x 20"):
        ClipEncoder(tmp_path / "crop").features(pictures(1))
    with pytest.raises(InputError, match="expected uint8"):
        ClipEncoder(folder).features(pictures(1)[0])
