"""The coefficient table against the diffusers scheduler that it was read from, over whole trajectories."""

from __future__ import annotations

import pytest
import torch

from pie_engine.errors import ConfigError
from pie_engine.rounds.schedule import (
    SCHEDULERS,
    Schedule,
    build_inversion,
    build_schedule,
    disable_corrector,
    make_inversion_scheduler,
    make_scheduler,
    prepare_scheduler,
)

SD_V1 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
# (T, k, prediction type); one slice is enough for the other parametrisation.
SLICES = [(T, k, "epsilon") for T, k in ((50, 25), (50, 50), (50, 15), (50, 1), (20, 19), (7, 3))]
SLICES.append((50, 25, "v_prediction"))
# Not in the command line's list, but deterministic, and so they work: a second-order and two multistep samplers.
OTHERS = ["HeunDiscreteScheduler", "LMSDiscreteScheduler", "DEISMultistepScheduler"]


class Trajectory:
    """A table stepped in float64 with any model that is a function of the sample."""

    def __init__(self, schedule: Schedule, start: torch.Tensor):
        self.schedule, self.x = schedule, start
        self.history = torch.zeros(schedule.history, *start.shape, dtype=torch.float64)

    def step(self, i: int, e: torch.Tensor) -> None:
        s, h = self.schedule, self.history
        x = s.a[i] * self.x + s.b[i] * e + torch.einsum("k,k...->...", torch.from_numpy(s.c[i]), h)
        kept = torch.einsum("jk,k...->j...", torch.from_numpy(s.P[i]), h)
        p, q = (torch.from_numpy(column[i]).reshape(-1, 1, 1, 1, 1) for column in (s.p, s.q))
        self.history = kept + p * self.x + q * e
        self.x = x


def random(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("masked", "corrector"), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize(("total", "kept", "prediction"), SLICES)
@pytest.mark.parametrize("name", [*SCHEDULERS, *OTHERS])
def test_table_is_the_scheduler(
    name: str, total: int, kept: int, prediction: str, masked: bool, corrector: bool
) -> None:
    config = SD_V1 | {"prediction_type": prediction}
    schedule = build_schedule(config, name=name, num_inference_steps=total, denoising_steps=kept, corrector=corrector)
    scheduler = make_scheduler(config, name)
    if not corrector:
        disable_corrector(scheduler, total)
    timesteps = prepare_scheduler(scheduler, total, kept)
    z0, eps = random(1), random(2)
    m = torch.rand(2, 1, 5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    twin = make_scheduler(config, name)  # without a begin index, add_noise looks its timesteps up
    twin.set_timesteps(total)
    expected = twin.add_noise(z0, eps, timesteps[:1])
    table = Trajectory(schedule, schedule.signal[0] * z0 + schedule.noise[0] * eps)
    assert len(timesteps) == schedule.steps
    for i, t in enumerate(timesteps):
        if masked and i:
            expected = m * expected + (1 - m) * twin.add_noise(z0, eps, t[None])
            table.x = m * table.x + (1 - m) * (schedule.signal[i] * z0 + schedule.noise[i] * eps)
        assert torch.allclose(scheduler.scale_model_input(expected, t), schedule.input_scale[i] * expected)
        # One model output for both, a nonlinear function of the sample: only the table can make them part.
        e = torch.sin(1.7 * expected) + 0.1 * random(10 + i)
        expected = scheduler.step(e, t, expected).prev_sample.double()
        table.step(i, e)
        assert (table.x - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("name", SCHEDULERS)
def test_background_factors_are_add_noise(name: str) -> None:
    schedule = build_schedule(SD_V1, name=name, num_inference_steps=50, denoising_steps=25, corrector=False)
    scheduler = make_scheduler(SD_V1, name)
    scheduler.set_timesteps(50)  # no begin index: add_noise looks its timesteps up
    timesteps = scheduler.timesteps[-schedule.steps :]
    z0, eps = random(1)[:1], random(2)[:1]
    for i, t in enumerate(timesteps):
        noised = scheduler.add_noise(z0, eps, t[None])
        torch.testing.assert_close(schedule.signal[i] * z0 + schedule.noise[i] * eps, noised, rtol=1e-6, atol=1e-6)


def test_kept_latents_are_as_few_as_the_sampler_allows() -> None:
    kept = {
        name: build_schedule(SD_V1, name=name, num_inference_steps=50, denoising_steps=25, corrector=False).history
        for name in SCHEDULERS
    }
    assert kept == {"ddim": 0, "pndm": 3, "euler": 0, "dpm++": 1, "unipc": 1}


def test_published_slice_of_pndm() -> None:
    """26 evaluations for T = 50, gamma = 0.5; the second one starts again from the sample of the first."""
    schedule = build_schedule(SD_V1, name=None, num_inference_steps=50, denoising_steps=25)
    assert schedule.steps == 26
    assert schedule.timesteps[:3].tolist() == [501, 481, 461]
    assert schedule.a[1] == 0.0


def test_ddim_inverse_is_the_scheduler() -> None:
    schedule = build_inversion(SD_V1, 481, 50, 25)
    inverse = make_inversion_scheduler(SD_V1, 481, 50, 25)
    assert schedule.timesteps.tolist() == list(range(1, 482, 20))
    expected = random(1)
    table = Trajectory(schedule, expected)
    for i, t in enumerate(inverse.timesteps):
        e = torch.sin(1.7 * expected)
        expected = inverse.step(e, t, expected).prev_sample
        table.step(i, e)
    assert (table.x - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max().item())


def test_inversion_undoes_denoising_of_a_constant_model() -> None:
    """With a noise prediction that does not depend on the sample, DDIM run up and down comes back."""
    up = build_inversion(SD_V1, 481, 50, 25)
    down = build_schedule(SD_V1, name="ddim", num_inference_steps=50, denoising_steps=25)
    z, e = random(1), random(2)
    rising = Trajectory(up, z)
    for i in range(up.steps):
        rising.step(i, e)
    falling = Trajectory(down, rising.x)
    for i in range(down.steps):
        falling.step(i, e)
    torch.testing.assert_close(falling.x, z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("EulerAncestralDiscreteScheduler", {}, "EulerAncestralDiscreteScheduler is stochastic"),
        ("DDPMScheduler", {}, "DDPMScheduler is stochastic"),
        ("dpm++", {"algorithm_type": "sde-dpmsolver++"}, "DPMSolverMultistepScheduler is stochastic"),
        ("ddim", {"clip_sample": True}, "DDIMScheduler has clip_sample on"),
        ("dpm++", {"thresholding": True}, "DPMSolverMultistepScheduler has thresholding on"),
        ("karras", {}, "scheduler 'karras' is unknown; pass one of ddim, pndm, euler, dpm++, unipc"),
        ("UNet2DConditionModel", {}, "is unknown"),
        ("FlowMatchEulerDiscreteScheduler", {}, "FlowMatchEulerDiscreteScheduler"),
        ("EDMEulerScheduler", {}, "EDMEulerScheduler is not one of Stable Diffusion v1's"),
        ("DDIMInverseScheduler", {}, "DDIMInverseScheduler"),
        ("DPMSolverMultistepInverseScheduler", {}, "DPMSolverMultistepInverseScheduler"),
        ("CogVideoXDPMScheduler", {}, "CogVideoXDPMScheduler"),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "values that are not finite"),
    ],
)
def test_refused_by_name(name: str, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        build_schedule(SD_V1 | change, name=name, num_inference_steps=50, denoising_steps=50)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_probing_leaves_the_random_stream_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_schedule(SD_V1, name="ddim", num_inference_steps=10, denoising_steps=5)
    assert torch.equal(torch.rand(1), expected)


def test_a_full_schedule_of_every_timestep_is_refused_by_name() -> None:
    """Stable Diffusion's offset of 1 asks for timestep 1000 of 0 to 999."""
    with pytest.raises(ConfigError, match="num_inference_steps 1000 asks for timestep 1000 of 0 to 999"):
        build_schedule(SD_V1, name="ddim", num_inference_steps=1000, denoising_steps=1000)
