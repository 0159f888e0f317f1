"""The oracle itself, against diffusers' own image-to-image pipeline, which knows nothing of PIE.

One unmasked round in `official` semantics is exactly that pipeline: posterior sample, noise, k guided steps.
The golden cases fix the rest (mask, blends, draw order, re-encoding).
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from golden import GOLDEN
from PIL import Image

from pie_engine.checkpoint import Checkpoint
from pie_engine.config import RunConfig
from pie_engine.imaging import fit, official_latent_mask, open_image
from pie_engine.reference import progress_engine, progress_official
from pie_engine.rounds.schedule import make_scheduler

LONG = "the heart and the lung " * 40


@pytest.mark.parametrize("scheduler", [None, "ddim", "euler", "dpm++", "unipc"])
@pytest.mark.parametrize(
    ("seed", "strength", "guidance", "prompt", "negative"),
    [
        (0, 0.5, 7.5, "the heart lung", ""),
        (9, 0.9, 1.0, "", ""),
        (3, 0.2, 3.0, LONG, "lung"),
        (1, 1.0, 2.0, "Ünïcode ✓", ""),
    ],
)
def test_one_unmasked_round_is_diffusers_img2img(
    pndm_checkpoint: Checkpoint,
    scheduler: str | None,
    seed: int,
    strength: float,
    guidance: float,
    prompt: str,
    negative: str,
) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    logging.getLogger("diffusers").setLevel(logging.CRITICAL)
    c = pndm_checkpoint
    pipeline = StableDiffusionImg2ImgPipeline(
        vae=c.vae,
        text_encoder=c.text_encoder,
        tokenizer=c.tokenizer,
        unet=c.unet,
        scheduler=make_scheduler(c.scheduler_config, scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    image = fit(open_image(GOLDEN / "image.png"), 64)
    expected = pipeline(
        prompt=prompt,
        negative_prompt=negative,
        image=image,
        strength=strength,
        num_inference_steps=10,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images
    config = RunConfig(
        semantics="official",
        steps=1,
        strength=strength,
        num_inference_steps=10,
        guidance_scale=guidance,
        negative_prompt=negative,
        scheduler=scheduler,
        seed=seed,
        resolution=64,
    )
    latent, frame = next(progress_official(c, image, None, prompt, config))
    # The same operations in the same order; only threads may regroup a sum.
    torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-4)
    assert frame.shape == (64, 64, 3)


def test_a_softer_mask_changes_less(pndm_checkpoint: Checkpoint) -> None:
    image = fit(open_image(GOLDEN / "image.png"), 128)
    config = RunConfig(semantics="official", steps=1, num_inference_steps=8, resolution=128, beta1=0.0)
    moved = []
    for grey in (64, 128, 255):
        mask = official_latent_mask(Image.new("L", (128, 128), grey))
        latent, _ = next(progress_official(pndm_checkpoint, image, mask, "lung", config))
        untouched, _ = next(
            progress_official(pndm_checkpoint, image, np.zeros_like(mask), "lung", config)
        )  # with beta1 0, black gives the original's posterior sample
        moved.append((latent - untouched).norm().item())
    assert moved[0] < moved[1] < moved[2]


def test_engine_semantics_carry_latents_and_draw_one_noise(pndm_checkpoint: Checkpoint) -> None:
    """A longer run begins with the shorter one, and another item gets another noise."""
    image = fit(open_image(GOLDEN / "image.png"), 128)
    short, long = (RunConfig(steps=n, num_inference_steps=6, resolution=128) for n in (1, 2))
    one = [z for z, _ in progress_engine(pndm_checkpoint, image, None, "lung", short)]
    two = [z for z, _ in progress_engine(pndm_checkpoint, image, None, "lung", long)]
    other = [z for z, _ in progress_engine(pndm_checkpoint, image, None, "lung", short, "other")]
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[0], other[0])
