"""The theory of a constant edit, run through the engine's own rounds; and what the engine's real rounds do.

A U-Net whose noise prediction is the noise itself plus delta makes every DDIM step exact. With rho = sqrt((1 - abar) /
abar), a step from t to s is x_s / sqrt(abar_s) = x_t / sqrt(abar_t) + (rho_s - rho_t) (eps + delta), and noising is
x_t / sqrt(abar_t) = z + rho_t eps. The steps telescope: a round ends at

    x = sqrt(abar_f) (z + rho_f eps - (rho_t - rho_f) delta)      inside, from the first timestep t to the final alpha f
    x = z0 - rho_l delta                                          outside, for abar_f = 1, from the last timestep l

because the outside is put back to the noised original before every step but the first.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from golden import GOLDEN

from pie_engine import Item, PieEngine, RunConfig, RuntimeConfig
from pie_engine.backends import UNetCall
from pie_engine.bundling import model_info
from pie_engine.checkpoint import Checkpoint
from pie_engine.config import COMPONENTS
from pie_engine.kernels.dispatch import EAGER
from pie_engine.metrics.convergence import Convergence, check_convergence, measure_rounds
from pie_engine.metrics.decay import rounding_floor
from pie_engine.rounds.buffers import Shape
from pie_engine.rounds.loop import Loop
from pie_engine.rounds.noise import item_noise
from pie_engine.rounds.plan import Batch, Plan
from pie_engine.rounds.timeline import Timeline

SIDE, DELTA = 16, 1.0
# The checkpoint's schedule ("scaled_linear"), written out.
ABAR = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
# Eight steps of 125 timesteps, offset by one: the last four of them begin at 376, the last at 1.
FIRST, LAST = 376, 1
MASK = torch.zeros(1, 1, SIDE, SIDE)
MASK[..., :8] = 1


def rho(timestep: int) -> float:
    return math.sqrt((1 - ABAR[timestep]) / ABAR[timestep])


class ExactNoise:
    """A backend whose U-Net predicts the item's noise plus delta, whatever it is given."""

    name, device, stream, capture_obstacle = "fake", torch.device("cpu"), None, ""
    precisions = dict.fromkeys(COMPONENTS, "fp32")

    def __init__(self, checkpoint: Checkpoint, alpha_to_one: bool):
        config = checkpoint.scheduler_config | {"set_alpha_to_one": alpha_to_one}
        self.model = replace(model_info(checkpoint), scheduler_config=config)

    def encode_text(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(ids), 77, 16)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(pixels), 8, SIDE, SIDE)  # z0 = 0

    def decode_latent(self, latent: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(latent), 3, 8 * SIDE, 8 * SIDE)

    def bind_unet(self, batch: int, height: int, width: int) -> Any:
        class Call(UNetCall):
            sample, output = torch.zeros(batch, 4, height, width), torch.zeros(batch, 4, height, width)
            timestep, context = torch.zeros(1), torch.zeros(batch, 77, 16)

            def __call__(self) -> None:
                self.output = item_noise((4, height, width), 0, "0")[None] + DELTA

        return Call()


def run(checkpoint: Checkpoint, config: RunConfig, *, masked: bool = True, alpha_to_one: bool = True) -> np.ndarray:
    """Latents [N, 4, h, w] of the engine's rounds; the original's are 0."""
    plan = Plan(
        ExactNoise(checkpoint, alpha_to_one), Shape(1, (4, SIDE, SIDE), 8, 1 if masked else None), config, EAGER
    )
    with torch.inference_mode():
        loop = Loop(plan, RuntimeConfig(), Timeline())
        loop.load(Batch(torch.zeros(1, 3, 128, 128), MASK if masked else None, ["x"], ["0"]), config)
        return np.stack([result.latents[0].numpy() for result in loop.rounds()])


def judged(latents: np.ndarray, config: RunConfig, *, masked: bool = True) -> Convergence:
    rounds = measure_rounds(latents, np.zeros_like(latents[0]), MASK[0, 0].numpy() if masked else None)
    beta2 = config.beta2 if masked else 1.0
    return check_convergence(rounds, beta1=config.beta1, beta2=beta2, floor=rounding_floor("fp32"))


CONFIG = RunConfig(steps=12, num_inference_steps=8, guidance_scale=1.0, resolution=8 * SIDE)


@pytest.mark.parametrize("beta2", [0.3, 0.5, 0.75, 0.95, 1.0])
def test_increments_shrink_like_beta2(ddim_checkpoint: Checkpoint, beta2: float) -> None:
    config = replace(CONFIG, beta2=beta2)
    latents = run(ddim_checkpoint, config)
    edit = rho(FIRST) * DELTA
    n = np.arange(1, 13)
    total = n if beta2 == 1 else beta2 * (1 - beta2**n) / (1 - beta2)
    assert np.allclose(latents[:, :, :, :8], -edit * total[:, None, None, None], rtol=1e-4, atol=1e-5)
    found = judged(latents, config)
    assert np.allclose(found.rounds.increments, edit * beta2**n, rtol=1e-3, atol=2e-6)
    assert found.inside is not None
    assert found.inside.agrees
    assert found.inside.edit == pytest.approx(edit, rel=1e-4)
    assert found.inside.measured == pytest.approx(total[-1], rel=1e-4)
    assert found.trend.decay is not None
    assert found.trend.decay.rate == pytest.approx(beta2, rel=1e-3)
    assert found.trend.verdict == ("does not converge" if beta2 == 1 else "converges")


@pytest.mark.parametrize("beta1", [0.01, 0.3])
def test_outside_nothing_adds_up_where_the_background_is_put_back(ddim_checkpoint: Checkpoint, beta1: float) -> None:
    config = replace(CONFIG, beta1=beta1)
    latents = run(ddim_checkpoint, config)
    assert np.allclose(latents[:, :, :, 8:], -beta1 * rho(LAST) * DELTA, rtol=1e-3, atol=1e-6)
    outside = judged(latents, config).outside
    assert outside is not None
    assert outside.measured == pytest.approx(beta1, rel=1e-3)  # not beta1 / (1 - beta1), its limit
    assert outside.limit == pytest.approx(beta1 / (1 - beta1))
    assert outside.agrees == (beta1 == 0.01)


def test_outside_beta1_holds_in_rounds_of_a_single_step(ddim_checkpoint: Checkpoint) -> None:
    """Then there is no step before which the background could be put back."""
    config = replace(CONFIG, beta1=0.3, strength=0.125)
    latents = run(ddim_checkpoint, config)
    n = np.arange(1, 13)
    expected = -rho(LAST) * DELTA * 0.3 * (1 - 0.3**n) / 0.7
    assert np.allclose(latents[:, :, :, 8:], expected[:, None, None, None], rtol=1e-3, atol=1e-6)
    outside = judged(latents, config).outside
    assert outside is not None
    assert outside.agrees
    assert outside.measured == pytest.approx(0.3 / 0.7, rel=1e-3)


@pytest.mark.parametrize("masked", [True, False])
def test_the_papers_decay_is_that_of_the_final_alpha(ddim_checkpoint: Checkpoint, masked: bool) -> None:
    """Stable Diffusion's final alpha is not 1: each round scales the latent by sqrt(abar_0), 0.99957. Without a mask
    that is all that decays, 0.4 % in ten rounds; with one the rate is beta2 sqrt(abar_0)."""
    config = replace(CONFIG, beta2=0.75, steps=6)
    latents = run(ddim_checkpoint, config, masked=masked, alpha_to_one=False)
    found = judged(latents, config, masked=masked)
    assert found.trend.decay is not None
    assert math.sqrt(ABAR[0]) == pytest.approx(0.999575, abs=1e-6)
    expected = math.sqrt(ABAR[0]) * (0.75 if masked else 1)
    assert found.trend.decay.rate == pytest.approx(expected, rel=3e-5)  # of which 1 - sqrt(abar_0) is fourteen times
    assert math.sqrt(ABAR[0]) ** 10 == pytest.approx(0.996, abs=5e-4)


REAL: dict[str, dict[str, Any]] = {
    "shared": {},
    "inversion": {"inversion": "ddim"},
    "fresh": {"noise": "fresh"},
}


@pytest.fixture(scope="module")
def golden_engine() -> PieEngine:
    return PieEngine.load(checkpoint=GOLDEN / "checkpoint_ddim", backend="torch", device="cpu")


@pytest.mark.parametrize("setting", REAL)
def test_real_rounds(golden_engine: PieEngine, setting: str) -> None:
    """A random U-Net: with one noise for all rounds they converge, with another in each they do not."""
    config = RunConfig(steps=20, num_inference_steps=6, guidance_scale=1.0, resolution=128, **REAL[setting])
    result = golden_engine.run(Item(GOLDEN / "image.png", "the heart lung", GOLDEN / "mask.png"), config)
    assert result.mask is not None
    mask = result.mask.reshape(16, 8, 16, 8).mean((1, 3))
    rounds = measure_rounds(result.latents, result.original_latent, mask)
    found = check_convergence(rounds, beta1=config.beta1, beta2=config.beta2, floor=rounding_floor("fp32"))
    assert found.trend.verdict == ("does not converge" if setting == "fresh" else "converges")
    # Where provenance has it too, it is the same number.
    assert result.change.displacement_outside == pytest.approx(rounds.outside, rel=1e-5)
