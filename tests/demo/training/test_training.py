"""Every stage runs on tiny data, is seeded, and writes what the next one reads."""

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from pie_engine.demo.training.chest import Training, train
from pie_engine.demo.training.classifier import ClassifierTraining
from pie_engine.demo.training.clip import ClipTraining
from pie_engine.demo.training.unet import UnetTraining
from pie_engine.demo.training.vae import VaeTraining
from pie_engine.errors import ConfigError

TINY = Training(
    vae_patients=8,
    unet_patients=8,
    classifier_patients=8,
    validation_patients=12,
    vae=VaeTraining(steps=12, batch=2, channels=(8, 8, 8, 8)),
    unet=UnetTraining(steps=3, batch=4, channels=(16, 32), text_width=16, heads=2, reading_steps=4),
    classifier=ClassifierTraining(steps=4, batch=4),
    clip_patients=8,
    clip_reconstructed=4,
    zero_shot_patients=8,
    clip=ClipTraining(steps=3, batch=4, width=16, layers=1, heads=2, text_width=16, text_layers=1),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    return output, train(output, TINY)


def test_training_is_reproducible(trained, tmp_path):
    _, first = trained
    second = train(tmp_path, TINY)
    for stage in ("vae", "unet", "classifier", "clip"):
        losses = [record["stages"][stage] for record in (first, second)]
        key = "mse" if stage == "vae" else "loss"
        np.testing.assert_allclose(losses[0][key], losses[1][key], rtol=1e-4)


def test_a_finished_stage_is_kept(trained):
    output, first = trained
    again = train(output, TINY)
    assert again == first  # the seconds that each took among it
    assert json.loads((output / "training.json").read_text()) == first


def test_another_configuration_does_not_go_on_with_these_stages(trained):
    output, first = trained
    with pytest.raises(ConfigError, match=r"unet\.steps is 1, but the training in .* began with 3; pass the same"):
        train(output, replace(TINY, unet=replace(TINY.unet, steps=1)))
    assert json.loads((output / "training.json").read_text()) == first


def test_the_folder_loads_as_a_stable_diffusion_pipeline(trained):
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    output, _ = trained
    pipe = StableDiffusionPipeline.from_pretrained(output / "checkpoint", safety_checker=None, feature_extractor=None)
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.text_encoder.config.eos_token_id == pipe.tokenizer.eos_token_id
    assert pipe.text_encoder.config.vocab_size == len(pipe.tokenizer)
    assert pipe.unet.config.cross_attention_dim == pipe.text_encoder.config.hidden_size
