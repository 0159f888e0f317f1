"""A procedural frontal chest radiograph: one frozen `Patient` in, one 128 x 128 picture out. No patient data.

Coordinates run from -1 (left, top) to 1 (right, bottom) of the picture; the patient's left is the picture's right.
Each structure is a soft-edged region that adds or removes attenuation; a film curve turns attenuation into grey levels.
The cardiothoracic ratio is exact by construction: the heart spans `ctr` times the largest inner width of the thorax.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from pie_engine.errors import ConfigError

SIZE = 128
CTR_HEALTHY = (0.40, 0.48)
CTR_ENLARGED = (0.56, 0.68)
CTR_MAX = CTR_ENLARGED[1]
ROI_MARGIN = 10  # pixels around the largest heart: compositing fades over the outer 8

Array = NDArray[np.floating]
_AXIS = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1).astype(np.float32)
_X, _Y = np.meshgrid(_AXIS, _AXIS)  # each [128, 128]


@dataclass(frozen=True)
class Patient:
    """Anatomy, disease and exposure. Lengths are in half pictures (1 = 64 pixels), angles in radians."""

    seed: int  # of the lung texture and the detector noise
    ctr: float = 0.44  # cardiothoracic ratio
    effusion: float = 0.0  # fluid level as a fraction of the lung's height; 0 = none
    effusion_left: bool = True  # the patient's left
    midline: float = 0.0
    tilt: float = 0.0
    thorax: float = 0.68  # half of the largest inner width
    apex: float = -0.74  # top of the lungs
    dome: float = 0.46  # top of the right hemidiaphragm
    dome_drop: float = 0.04  # the left one is lower by this much
    dome_depth: float = 0.20  # from the dome to the costophrenic angle
    taper: float = 2.2  # how fast the thorax widens below the apex
    wall: float = 0.16  # soft tissue beside the ribs
    left_share: float = 0.63  # part of the heart left of the midline
    heart_top: float = -0.12
    heart_density: float = 0.40
    knob: float = 0.15  # reach of the aortic knob
    rib_gap: float = 0.165
    rib_phase: float = 0.0
    rib_drop: float = 0.30
    rib_contrast: float = 0.09
    clavicle: float = -0.56
    markings: float = 0.035  # contrast of the lung vessels
    gain: float = 1.0
    gamma: float = 1.0
    gradient: tuple[float, float] = (0.0, 0.0)
    noise: float = 2.0  # standard deviation in grey levels

    def __post_init__(self) -> None:
        if not 0.3 <= self.ctr <= CTR_MAX:
            raise ConfigError(f"cardiothoracic ratio {self.ctr} is out of range (0.3 to {CTR_MAX}); pass one inside it")
        if not 0 <= self.effusion <= 0.6:
            raise ConfigError(f"effusion level {self.effusion} is out of range (0 to 0.6); pass one inside it")


def sample_patient(seed: int, ctr: float | None = None, effusion: float = 0.0) -> Patient:
    """The patient that `seed` names: the same anatomy and exposure at any severity. Healthy unless told otherwise."""
    rng = np.random.default_rng(seed)
    u = lambda low, high: float(rng.uniform(low, high))  # noqa: E731
    return Patient(
        seed=seed,
        ctr=u(*CTR_HEALTHY) if ctr is None else (u(*CTR_HEALTHY), ctr)[1],
        effusion=effusion,
        effusion_left=bool(rng.integers(2)),
        midline=u(-0.03, 0.03),
        tilt=u(-0.025, 0.025),
        thorax=u(0.66, 0.78),
        apex=u(-0.82, -0.70),
        dome=u(0.40, 0.52),
        dome_drop=u(0.00, 0.06),
        dome_depth=u(0.16, 0.26),
        taper=u(1.9, 2.6),
        wall=u(0.12, 0.24),
        left_share=u(0.59, 0.66),
        heart_top=u(-0.20, -0.06),
        heart_density=u(0.36, 0.44),
        knob=u(0.12, 0.18),
        rib_gap=u(0.150, 0.180),
        rib_phase=u(0.0, 1.0),
        rib_drop=u(0.22, 0.36),
        rib_contrast=u(0.07, 0.12),
        clavicle=u(-0.62, -0.52),
        markings=u(0.02, 0.05),
        gain=u(0.94, 1.06),
        gamma=u(0.88, 1.14),
        gradient=(u(-0.04, 0.04), u(-0.04, 0.04)),
        noise=u(1.2, 2.4),
    )


def _soft(distance: Array, width: float = 0.018) -> Array:
    """1 where `distance` is well above 0, 0 where well below; [128, 128] in 0 to 1."""
    return 0.5 + 0.5 * np.tanh(distance / width)


def _frame(p: Patient) -> tuple[Array, Array]:
    """Patient coordinates of every pixel: x from the midline (patient's left positive), y down; each [128, 128]."""
    x, y = _X - p.midline, _Y
    return x + p.tilt * y, y - p.tilt * x


def _thorax_half_width(p: Patient, y: Array) -> Array:
    """Inner half width of the rib cage at height y; its largest value is `p.thorax`, reached above the diaphragm."""
    s = np.clip((y - p.apex) / (p.dome - 0.08 - p.apex), 0, None)
    widening = 1 - (1 - np.minimum(s, 1)) ** p.taper
    return p.thorax * np.sqrt(widening) * (1 - 0.10 * np.clip(s - 1, 0, 1) ** 2)


def _diaphragm(p: Patient, x: Array) -> Array:
    """Height of the diaphragm's surface below each point: a dome on either side, falling to the costophrenic angle."""
    t = np.abs(x) / p.thorax
    return p.dome + p.dome_drop * _soft(x, 0.1) + p.dome_depth * np.clip((t - 0.42) / 0.58, 0, 1.2) ** 2.2


def _heart_inside(p: Patient, x: Array, y: Array) -> Array:
    """Signed horizontal distance to the heart's border, positive inside; [128, 128]."""
    width = 2 * p.thorax * p.ctr
    growth = (p.ctr - 0.44) / 0.24  # 0 for a usual heart, 1 for the largest
    left, right = p.left_share * width, (1 - p.left_share) * width
    top = p.heart_top - 0.06 * growth
    widest_left, widest_right = p.dome + p.dome_drop - 0.13, p.dome - 0.19  # both clear of the diaphragm
    return np.where(
        x > 0,
        left * _bulge(y, top, widest_left, 0.32, 0.13 / left) - x,
        right * _bulge(y, top - 0.04, widest_right, 0.34, 0.11 / right) + x,
    ).astype(np.float32)


def _bulge(y: Array, top: float, widest: float, below: float, start: float) -> Array:
    """A border's reach, as a fraction of its largest: `start` at `top`, 1 at `widest`, closing again `below` it."""
    s = np.clip((y - top) / (widest - top), 0, 1)
    rise = start + (1 - start) * np.sin(s * np.pi / 2) ** 1.25
    fall = np.sqrt(np.clip(1 - (np.clip(y - widest, 0, None) / below) ** 2, 0, 1))
    return rise * fall - 2 * np.clip(top - y, 0, 0.5)


def roi_mask(p: Patient) -> NDArray[np.uint8]:
    """255 where the largest heart this patient could have may reach, with a margin, else 0; [128, 128]."""
    largest = _heart_inside(replace(p, ctr=CTR_MAX), *_frame(p)) > 0
    return binary_dilation(largest, iterations=ROI_MARGIN).astype(np.uint8) * 255


def render(p: Patient) -> NDArray[np.uint8]:
    """The radiograph: grey, as three equal channels; [128, 128, 3], 0 (air) to 255 (dense)."""
    rng = np.random.default_rng([p.seed, 1])
    x, y = _frame(p)
    half = _thorax_half_width(p, y)
    lung = _soft(half - np.abs(x), 0.022) * _soft(_diaphragm(p, x) - y, 0.022) * _soft(y - p.apex, 0.03)
    lung *= _soft(np.abs(x) - 0.10 - 0.03 * _soft(y - 0.1, 0.3), 0.03)

    density = _body(p, x, y)
    density += _bones(p, x, y, half, lung)
    air = lung * (0.50 - 0.06 * np.clip((y - p.apex) / 1.2, 0, 1))
    density -= air
    density += p.markings * lung * _markings(p, x, y, rng)
    density += lung * _mediastinum(p, x, y)
    heart = _soft(_heart_inside(p, x, y), 0.030)
    density += heart * (p.heart_density * lung + 0.05 + 0.04 * y)
    if p.effusion:
        density += _effusion(p, x, y, half) * (0.42 * lung * (1 - 0.9 * heart))

    density = gaussian_filter(density, 0.6)
    density = density + p.gradient[0] * _X + p.gradient[1] * _Y
    grey = 255 * np.clip(p.gain * (density - 0.02), 0, 1) ** p.gamma
    grey = 250 * (1 - np.exp(-((grey / 170) ** 1.6)))  # the film's shoulder: dense parts never clip
    grey += rng.normal(0, p.noise, grey.shape)
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _body(p: Patient, x: Array, y: Array) -> Array:
    """Soft tissue: trunk, shoulders, neck, abdomen with a gastric bubble; [128, 128]."""
    outline = p.thorax + p.wall + 0.45 * np.clip(-y - 0.15, 0, 1) + 0.03 * y
    trunk = _soft(outline - np.abs(x), 0.03)
    shoulder = p.clavicle - 0.36 + 0.50 * np.clip(np.abs(x) - 0.25, 0, None) ** 1.8
    neck = _soft(0.20 + 0.3 * np.clip(y + 0.9, 0, 1) ** 2 - np.abs(x), 0.03)
    body = trunk * np.maximum(_soft(y - shoulder, 0.05), neck)
    thickness = 0.58 + 0.08 * np.sqrt(np.clip(1 - (x / 1.1) ** 2, 0, 1)) + 0.05 * y
    abdomen = _soft(y - _diaphragm(p, x), 0.03) * (0.14 + 0.05 * _soft(-x, 0.15))
    bubble = np.exp(-((((x - 0.36) / 0.13) ** 2 + ((y - p.dome - p.dome_drop - 0.22) / 0.07) ** 2) ** 2))
    return (body * (thickness + abdomen - 0.12 * bubble)).astype(np.float32)


def _bones(p: Patient, x: Array, y: Array, half: Array, lung: Array) -> Array:
    """Spine, posterior and anterior ribs, clavicles; [128, 128]."""
    t = np.abs(x) / np.maximum(half, 0.05)
    inside = _soft(1.06 - t, 0.04) * _soft(y - p.apex + 0.04, 0.03)
    visible = inside * (0.35 + 0.65 * lung)
    posterior = y + 0.13 * t - p.rib_drop * t**2.4
    bones = p.rib_contrast * visible * _rib_bars(posterior / p.rib_gap + p.rib_phase, 0.22) * _soft(t - 0.12, 0.06)
    anterior = y - 0.34 * (1 - t)
    bones += (
        0.45
        * p.rib_contrast
        * visible
        * _rib_bars(anterior / (1.12 * p.rib_gap) + 1.7 * p.rib_phase, 0.24)
        * (_soft(t - 0.45, 0.08) * _soft(0.25 - y, 0.1))
    )
    vertebrae = 0.75 + 0.25 * np.cos(2 * np.pi * (y / 0.15 + p.rib_phase))
    bones += 0.13 * _soft(0.085 + 0.02 * y - np.abs(x), 0.02) * vertebrae * _soft(y + 0.95, 0.1)
    arch = p.clavicle - 0.16 * np.sin(np.clip((np.abs(x) - 0.08) / 0.75, 0, 1) * 1.9)
    collar = _soft(0.028 - np.abs(y - arch), 0.014) * _soft(np.abs(x) - 0.08, 0.02) * _soft(0.84 - np.abs(x), 0.03)
    return (bones + 0.13 * collar).astype(np.float32)


def _rib_bars(phase: Array, width: float) -> Array:
    """Bars of one per unit of phase with brighter rims, as cortical bone has; [128, 128] in 0 to 1."""
    d = np.abs(phase - np.rint(phase))
    return _soft(width - d, 0.05) * (0.75 + 0.25 * (d / width) ** 2)


def _mediastinum(p: Patient, x: Array, y: Array) -> Array:
    """Great vessels, aortic knob and hila where they cover the lung; [128, 128]."""
    vessels = 0.30 * _soft(0.13 + 0.02 * np.sign(x) - np.abs(x), 0.03) * _soft(0.1 - y, 0.1)
    knob_y = p.apex + 0.42
    knob = 0.34 * _soft(1 - np.hypot((x - 0.04) / p.knob, (y - knob_y) / 0.10), 0.25)
    hila = 0.15 * np.exp(-(((np.abs(x) - 0.19) / 0.07) ** 2) - ((y - p.heart_top + 0.02 * np.sign(x)) / 0.12) ** 2)
    trachea = -0.07 * _soft(0.035 - np.abs(x), 0.015) * _soft(p.heart_top - 0.08 - y, 0.05)
    return (vessels + knob + hila + trachea).astype(np.float32)


def _markings(p: Patient, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Vessels that fan out from the hila and thin towards the wall; [128, 128], about -1 to 2."""
    dx, dy = np.abs(x) - 0.15, y - p.heart_top
    radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)
    fan = np.zeros_like(x)
    for _ in range(3):
        k, phase, bend = rng.uniform(4, 9), rng.uniform(0, 6.28, 2), rng.uniform(-2, 2)
        fan += np.cos(k * (angle + bend * radius) + np.where(x > 0, phase[0], phase[1])) ** 8
    return (fan * np.exp(-radius / 0.35) + 0.6 * np.exp(-((radius / 0.3) ** 2))).astype(np.float32)


def _effusion(p: Patient, x: Array, y: Array, half: Array) -> Array:
    """Pleural fluid: level in the middle, climbing at the wall (the meniscus); [128, 128] in 0 to 1."""
    side = x if p.effusion_left else -x
    floor = p.dome + p.dome_depth
    level = floor - p.effusion * (floor - p.apex) - 0.16 * np.clip(side / np.maximum(half, 0.05), 0, 1) ** 6
    return _soft(side, 0.03) * _soft(y - level, 0.035)
