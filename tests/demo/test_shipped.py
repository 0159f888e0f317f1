"""The shipped files: their sizes, that they load like any user's, and that the classifier judges true phantoms."""

import json
import re

import numpy as np
import pytest

from pie_engine.demo.assets import CHECKPOINT, SEVERITY_JSON, SEVERITY_ONNX, TRAINING_JSON, domain_file, load_defaults
from pie_engine.demo.data import cohort, render_all
from pie_engine.demo.phantom import CTR_ENLARGED, CTR_HEALTHY
from pie_engine.errors import CheckpointError

MEGABYTE = 1_000_000


def test_the_checkpoint_is_small_half_precision_and_safe():
    from safetensors import safe_open

    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12 * MEGABYTE
    assert {path.suffix for path in files} == {".json", ".txt", ".safetensors"}
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 3
    for path in weights:
        with safe_open(path, framework="np") as tensors:
            for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                tensor = tensors.get_tensor(key)
                assert tensor.dtype == np.float16 and np.isfinite(tensor).all(), key
    assert SEVERITY_ONNX.stat().st_size < MEGABYTE


def test_no_file_names_a_place_on_the_machine_that_made_it():
    for path in [*CHECKPOINT.rglob("*.json"), SEVERITY_JSON, TRAINING_JSON]:
        assert not re.search(r'"/\w', path.read_text(encoding="utf-8")), path.name


def test_the_autoencoder_keeps_the_picture():
    import torch
    from diffusers import AutoencoderKL

    from pie_engine.demo.training.vae import psnr, reconstruct

    vae = AutoencoderKL.from_pretrained(CHECKPOINT / "vae", torch_dtype=torch.float32).eval()
    grey = render_all(cohort("test", 16))
    assert psnr(grey, reconstruct(vae, grey)) >= 33


def test_the_pipeline_loads_and_its_parts_agree():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(CHECKPOINT, safety_checker=None, feature_extractor=None)
    assert pipe.scheduler.config.steps_offset == 1 and not pipe.scheduler.config.set_alpha_to_one
    assert pipe.text_encoder.config.vocab_size == len(pipe.tokenizer)
    assert pipe.text_encoder.config.eos_token_id == pipe.tokenizer.eos_token_id
    assert pipe.unet.config.sample_size * 8 == load_defaults().resolution


def test_the_classifier_tells_true_phantoms_apart():
    pytest.importorskip("onnxruntime")
    from pie_engine.demo.training.classifier import auc
    from pie_engine.metrics.classifier import Classifier

    patients = [p for p in cohort("test", 250) if not CTR_HEALTHY[1] <= p.ctr <= CTR_ENLARGED[0]]
    enlarged = np.array([p.ctr > CTR_ENLARGED[0] for p in patients])
    scores = Classifier(SEVERITY_JSON).confidence(np.repeat(render_all(patients)[..., None], 3, axis=3))
    assert auc(scores, enlarged) > 0.95
    assert scores[enlarged].mean() > 0.9 and scores[~enlarged].mean() < 0.1


@pytest.mark.parametrize("file", [SEVERITY_ONNX, domain_file("fundus.onnx"), domain_file("skin.onnx")])
def test_classifiers_do_not_name_the_machine_that_exported_them(file):
    assert b"stack_trace" not in file.read_bytes() and b"/site-packages/" not in file.read_bytes()


def test_damaged_defaults_are_refused(tmp_path):
    path = tmp_path / "demo.json"
    path.write_text(json.dumps({"prompt": "x"}))
    with pytest.raises(CheckpointError, match=r"demo\.json"):
        load_defaults(path)


def test_training_is_on_record():
    record = json.loads(TRAINING_JSON.read_text(encoding="utf-8"))
    assert set(record["stages"]) == {"vae", "unet", "classifier", "clip"}
    assert record["stages"]["vae"]["parameters"] <= 300_000
    assert record["hardware"]["cpu"] and record["hardware"]["torch"]
