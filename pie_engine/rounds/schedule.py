"""Any deterministic diffusers scheduler -> one table of coefficients.

Every deterministic sampler here is linear in the sample x, the model output e and what it keeps of earlier
steps, K latents h:

    x_next = a x + b e + c . h          h_next = P h + p x + q e

The coefficients are read off the diffusers scheduler itself: it runs once over all k steps in float64 on unit
vectors, and the triangular response is factored into rows. No sampler is written by hand, and the loop that
uses the table holds no host decision, which is what lets one CUDA graph hold a whole round.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_engine.equality import ByContent
from pie_engine.errors import ConfigError, mention, use
from pie_engine.rounds.kept_schedules import kept

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Command-line name -> diffusers class. Any other deterministic scheduler that a checkpoint names works too.
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# A sampler's memory is counted as the rank of its response. Diffusers computes parts of Euler and DPM-Solver++
# in float32 (eps 1.2e-7, a few operations), so anything below this is rounding and not memory.
_RANK_TOLERANCE = 1e-5


@dataclass(frozen=True, eq=False)
class Schedule(ByContent):
    """The k steps of one round as numbers, float64. See the module's equations.

    Shapes: timesteps, input_scale, a, b, signal, noise [k]; c, p, q [k, K]; P [k, K, K].
    `input_scale` multiplies the sample before the U-Net sees it (Euler). `signal` and `noise` are the factors
    of the scheduler's `add_noise` at each timestep: sqrt(abar) and sqrt(1 - abar) for variance-preserving ones.
    """

    name: str
    timesteps: Array
    input_scale: Array
    a: Array
    b: Array
    c: Array
    P: Array
    p: Array
    q: Array
    signal: Array
    noise: Array

    @property
    def steps(self) -> int:
        """k, the number of U-Net evaluations per round."""
        return len(self.timesteps)

    @property
    def history(self) -> int:
        """K, the number of latents that the sampler keeps between steps."""
        return self.c.shape[1]


def make_scheduler(config: Mapping[str, Any], name: str | None = None) -> Any:
    """A diffusers scheduler from a checkpoint's scheduler config, optionally as another class.

    As Stable Diffusion's own pipelines do, a config that does not mention `clip_sample` does not clip (the class
    default of DDIM is to clip, which is for pixel-space models), and `steps_offset` is 1 (early v1 configs say 0).

    Raises:
        ConfigError: unknown name, or a configuration that clips or thresholds.
    """
    import diffusers

    class_name = SCHEDULERS.get(name, name) if name else config.get("_class_name", "PNDMScheduler")
    cls = getattr(diffusers, class_name, None) if class_name.endswith("Scheduler") else None
    if cls is None or not hasattr(cls, "step"):
        raise ConfigError(f"scheduler {name or class_name!r} is unknown; pass one of {', '.join(SCHEDULERS)}")
    settings = {key: value for key, value in config.items() if not key.startswith("_")}
    for switch in ("clip_sample", "thresholding"):
        if settings.get(switch):
            raise ConfigError(
                f"scheduler {class_name} has {switch} on, which is not linear; "
                f"set {switch} to false in scheduler_config.json"
            )
    accepted = inspect.signature(cls.__init__).parameters
    if "clip_sample" in accepted:
        settings["clip_sample"] = False
    if "steps_offset" in accepted:
        settings["steps_offset"] = 1
    if cls.__name__ == "PNDMScheduler" and config.get("_class_name") != "PNDMScheduler":
        settings.setdefault("skip_prk_steps", True)  # Stable Diffusion's PNDM is the multistep part alone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _refusing(class_name):
            return cls.from_config({key: value for key, value in settings.items() if key in accepted})


def prepare_scheduler(scheduler: Any, num_inference_steps: int, denoising_steps: int) -> Any:
    """Set the full schedule and return the last `denoising_steps` of it, as img2img slices by strength.

    The published code slices `timesteps[T - k:]`. A sampler that evaluates twice per step (`order` 2) is sliced
    by its order, so that the slice does not begin in the middle of a step.
    """
    scheduler.set_timesteps(num_inference_steps)
    start = (num_inference_steps - denoising_steps) * getattr(scheduler, "order", 1)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:]


@kept(Schedule, __file__)
def build_schedule(
    config: Mapping[str, Any],
    *,
    name: str | None,
    num_inference_steps: int,
    denoising_steps: int,
    corrector: bool = True,
) -> Schedule:
    """The table for one round.

    Args:
        config: the checkpoint's scheduler_config.json.
        name: another sampler by its command-line name or diffusers class; None keeps the checkpoint's own.
        corrector: whether UniPC's corrector runs. It reads the sample that the mask blend has changed, with weight
            0.14 instead of 1, so the engine's own semantics leave it out when masked.

    Raises:
        ConfigError: the scheduler is unknown, stochastic, clips, or is not linear.
    """
    scheduler = make_scheduler(config, name)
    if not corrector:
        disable_corrector(scheduler, num_inference_steps)
    class_name = type(scheduler).__name__
    # Classes of other model families fail somewhere below, each in its own way.
    with _refusing(class_name):
        timesteps = prepare_scheduler(scheduler, num_inference_steps, denoising_steps)
        train = scheduler.config.num_train_timesteps
        if not hasattr(scheduler, "alphas_cumprod"):
            raise ConfigError(
                f"scheduler {class_name} is not one of Stable Diffusion v1's; pass {use('scheduler', 'ddim')}"
            )
        if timesteps.max() >= train:
            raise ConfigError(
                f"{mention('num_inference_steps')} {num_inference_steps} asks for timestep {int(timesteps.max())} of 0 "
                f"to {train - 1}; pass {use('num_inference_steps', num_inference_steps // 2)}",
                field="num_inference_steps",
                value=num_inference_steps,
            )
        signal, noise = _noise_factors(scheduler, timesteps)
        if (np.diff(np.arctan2(noise, signal)) > 0).any():  # noise over signal, which may be 0
            raise ConfigError(
                f"scheduler {class_name} adds noise instead of removing it; pass {use('scheduler', 'ddim')}"
            )
        return _probe(scheduler, timesteps, signal, noise)


def disable_corrector(scheduler: Any, num_inference_steps: int) -> None:
    """Switch UniPC's corrector off for every step; other schedulers have none and are left alone."""
    if hasattr(scheduler, "disable_corrector"):
        scheduler.disable_corrector = list(range(num_inference_steps + 1))


def make_inversion_scheduler(config: Mapping[str, Any], start: float, num_inference_steps: int, steps: int) -> Any:
    """DDIM inversion (Song et al. 2021, eq. 14 run backwards) that ends at timestep `start` after `steps` steps."""
    scheduler = make_scheduler({**config, "clip_sample": False}, "DDIMInverseScheduler")
    scheduler.set_timesteps(num_inference_steps)
    # Its own grid begins at the schedule's offset; shifted so that it ends where denoising begins, whatever
    # spacing the sampler uses. For SD v1's DDIM ("leading", offset 1) the shift is zero.
    stride = scheduler.config.num_train_timesteps // num_inference_steps
    end = round(start)
    scheduler.timesteps = torch.arange(end - stride * (steps - 1), end + 1, stride).clamp_min(0)
    return scheduler


@kept(Schedule, __file__)
def build_inversion(config: Mapping[str, Any], start: float, num_inference_steps: int, steps: int) -> Schedule:
    """The table of DDIM inversion from a clean latent up to timestep `start`, in `steps` steps.

    `steps` is the number of distinct timesteps of the denoising schedule, so that both walk the same grid.

    `signal` and `noise` hold sqrt(abar) and sqrt(1 - abar) of the timestep that each step arrives at.
    """
    scheduler = make_inversion_scheduler(config, start, num_inference_steps, steps)
    abar = scheduler.alphas_cumprod.double()[scheduler.timesteps].numpy()
    return _probe(scheduler, scheduler.timesteps, np.sqrt(abar), np.sqrt(1 - abar))


def _noise_factors(scheduler: Any, timesteps: Any) -> tuple[Array, Array]:
    one, zero = (torch.full((1, 1, 1, 1), value, dtype=torch.float64) for value in (1.0, 0.0))
    signal, noise = np.empty(len(timesteps)), np.empty(len(timesteps))
    # With a begin index set, sigma-based schedulers noise to that index whatever timestep they are given.
    begin = getattr(scheduler, "begin_index", None)
    for i, t in enumerate(timesteps):
        if begin is not None:
            scheduler.set_begin_index(begin + i)
        signal[i] = scheduler.add_noise(one, zero, t[None]).item()
        noise[i] = scheduler.add_noise(zero, one, t[None]).item()
    if begin is not None:
        scheduler.set_begin_index(begin)
    return signal, noise


def _probe(scheduler: Any, timesteps: Any, signal: Array, noise: Array) -> Schedule:
    import copy

    k = len(timesteps)
    unit = torch.eye(2 * k, dtype=torch.float64)

    def run(scale: float, seed: int) -> tuple[Array, Array]:
        sampler = copy.deepcopy(scheduler)  # schedulers are stateful
        rows, input_scale = np.empty((k, 2 * k)), np.empty(k)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.default_generator.manual_seed(seed)  # the one that is forked; torch.manual_seed resets GPUs too
            for i, t in enumerate(timesteps):
                # Step i's sample is unit vector i and its model output unit vector k + i, one per batch item.
                sample, output = (scale * unit[:, j].reshape(-1, 1, 1, 1) for j in (i, k + i))
                input_scale[i] = (sampler.scale_model_input(sample, t)[i] / scale).item()
                rows[i] = sampler.step(output, t, sample).prev_sample.double().flatten().numpy() / scale
        return rows, input_scale

    name = type(scheduler).__name__
    response, input_scale = run(1.0, seed=0)
    if not np.isfinite(response).all():
        raise ConfigError(f"scheduler {name} gives values that are not finite here; pass {use('scheduler', 'ddim')}")
    if not np.array_equal(response, run(1.0, seed=1)[0]):
        raise ConfigError(f"scheduler {name} is stochastic with this configuration; pass {use('scheduler', 'ddim')}")
    scaled, _ = run(64.0, seed=0)  # a power of two: exact in any float, so only clipping can show
    if not np.allclose(response, scaled, rtol=1e-5, atol=1e-5 * np.abs(response).max()):
        raise ConfigError(
            f"scheduler {name} clips or is not linear with this configuration; pass {use('scheduler', 'ddim')}"
        )
    a, b = response[np.arange(k), np.arange(k)], response[np.arange(k), k + np.arange(k)]
    c, P, p, q = _realize(response)
    steps = timesteps.double().numpy() if timesteps.is_floating_point() else timesteps.numpy().astype(np.float64)
    return Schedule(name, steps, input_scale, a, b, c, P, p, q, signal, noise)


def _realize(response: Array) -> tuple[Array, Array, Array, Array]:
    """Factor the response [k, 2k] into a time-varying state space with the fewest kept latents.

    What step i + 1 and later still need of steps 0..i is the block H = response[i + 1:, inputs of 0..i]. Its row
    space, of rank K, is the memory: h = R inputs, with R a basis of it. R is an interpolative one: K columns of
    R are unit vectors, so for PNDM the kept latents are past model outputs and not mixtures of them.
    """
    from scipy.linalg import qr

    k = len(response)
    scale = np.abs(response).max()
    bases: list[Array] = []  # bases[i]: [K_i, 2k], what is kept after step i
    for i in range(k):
        past = np.r_[np.arange(i + 1), k + np.arange(i + 1)]
        basis = np.zeros((0, 2 * k))
        block = response[i + 1 :, past]
        if block.size and np.abs(block).max() > _RANK_TOLERANCE * scale:
            _, r, pivot = qr(block, mode="economic", pivoting=True)
            rank = int((np.abs(np.diag(r)) > _RANK_TOLERANCE * abs(r[0, 0])).sum())
            basis = np.zeros((rank, 2 * k))
            order = np.argsort(past[pivot[:rank]])  # steps in order, for readable tables
            rows = np.linalg.solve(r[:rank, :rank], r[:rank])
            basis[:, past[pivot]] = rows
            basis = basis[order]
        bases.append(basis)
    width = max((len(basis) for basis in bases), default=0)
    c, p, q, P = np.zeros((k, width)), np.zeros((k, width)), np.zeros((k, width)), np.zeros((k, width, width))
    for i in range(k):
        kept = len(bases[i])
        p[i, :kept], q[i, :kept] = bases[i][:, i], bases[i][:, k + i]
        if i and len(bases[i - 1]):
            before = len(bases[i - 1])
            past = np.r_[np.arange(i), k + np.arange(i)]
            inverse = np.linalg.pinv(bases[i - 1][:, past])
            c[i, :before] = response[i, past] @ inverse
            P[i, :kept, :before] = bases[i][:, past] @ inverse
    return c, P, p, q


@contextlib.contextmanager
def _refusing(class_name: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"scheduler {class_name} cannot run this configuration ({reason}); pass {use('scheduler', 'ddim')}"
        ) from error
