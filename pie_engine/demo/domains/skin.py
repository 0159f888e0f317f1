"""A procedural dermoscopic picture: one frozen `Lesion` in, one 128 x 128 colour picture out. No patient data.

Coordinates run from -1 (left, top) to 1 (right, bottom) of the picture. A naevus turns into a melanoma as `severity`
rises: it grows, its border loses its symmetry, colours come up one by one. Skin, light and hairs are the patient's own
and stay; the hairs lie above the lesion. What a melanoma shows follows the ABCD rule of dermoscopy: asymmetry, border,
colours (Nachbar et al. 1994, doi:10.1016/S0190-9622(94)70061-3).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter

from pie_engine.errors import ConfigError

SIZE = 128
PIXEL = 2 / SIZE  # in half pictures
ROI_MARGIN = 10  # pixels around the largest lesion: compositing fades over the outer 8
HARMONICS = 7  # of the melanoma's border: finer waves would be lost in latents of an eighth of the picture's size

Array = NDArray[np.floating]
_AXIS = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1).astype(np.float32)
_X, _Y = np.meshgrid(_AXIS, _AXIS)  # each [128, 128]

# Grey levels before exposure. Skin runs through these tones from the fairest; the darkest still shows a hair.
_TONES = np.array([(240, 210, 194), (214, 166, 136), (162, 116, 90)], np.float32)
_NAEVUS = np.array((0.62, 0.47, 0.38), np.float32)  # what pigment leaves of the skin's own colour: an even brown
_MELANOMA = np.array((0.47, 0.35, 0.31), np.float32)  # a darker brown
_RED, _BLUE_GREY, _BLACK = ((164, 82, 74), (100, 109, 126), (54, 45, 48))
_PATCHES = (_RED, _BLUE_GREY, _BLACK, _RED, _BLUE_GREY, _BLACK)  # painted in this order; not all in every patient
_HAIR_DARK, _HAIR_BROWN = np.array([(10, 9, 10), (26, 17, 12)], np.float32)

# Numbers that keep a seed's random streams apart.
_NOISE, _BORDER, _COLOURS, _HAIRS, _TEXTURE = range(1, 6)


@dataclass(frozen=True)
class Lesion:
    """A patient's skin with one lesion. Lengths are in half pictures (1 = 64 pixels), angles in radians."""

    seed: int  # of border, patches, hairs, texture and noise
    severity: float = 0.0  # 0 = benign naevus, 1 = advanced melanoma
    centre: tuple[float, float] = (0.0, 0.0)
    naevus: float = 0.24  # radius at severity 0
    reach: float = 0.48  # mean radius at severity 1
    irregularity: float = 0.14  # root mean square of the border's waves at severity 1, as a fraction of `reach`
    edge: float = 0.045  # half of the border's width
    patches: int = 5  # of other colours at severity 1
    melanin: float = 0.3  # of the skin: 0 = fair, 1 = dark
    hairs: int = 5
    hair_direction: float = 0.0  # the hairs' common one; each differs a little
    hair_width: float = 2.5  # pixels
    hair_brown: float = 0.5  # 0 = black, 1 = dark brown
    mottling: float = 4.0  # blotches of the skin in grey levels
    vignette: float = 0.16  # light lost at 1 from the middle
    gradient: tuple[float, float] = (0.0, 0.0)
    gain: float = 1.0
    warmth: float = 0.0  # of the light: red gains this share, blue loses it
    noise: float = 2.0  # standard deviation in grey levels

    def __post_init__(self) -> None:
        if not 0 <= self.severity <= 1:
            raise ConfigError(f"severity {self.severity} is out of range (0 to 1); pass one inside it")


def sample(seed: int, severity: float = 0.0) -> Lesion:
    """The patient that `seed` names: the same skin, hairs, light and course of disease at any severity."""
    rng = np.random.default_rng(seed)
    u = lambda low, high: float(rng.uniform(low, high))  # noqa: E731
    return Lesion(
        seed=seed,
        severity=severity,
        centre=(u(-0.14, 0.14), u(-0.14, 0.14)),
        naevus=u(0.20, 0.28),
        reach=u(0.44, 0.52),
        irregularity=u(0.11, 0.17),
        edge=u(0.03, 0.06),
        patches=int(rng.integers(4, 7)),
        melanin=u(0.0, 1.0),
        hairs=int(rng.integers(3, 9)),
        hair_direction=u(0.0, 2 * math.pi),
        hair_width=u(2.2, 2.9),
        hair_brown=u(0.0, 1.0),
        mottling=u(2.0, 6.0),
        vignette=u(0.08, 0.24),
        gradient=(u(-0.05, 0.05), u(-0.05, 0.05)),
        gain=u(0.92, 1.04),
        warmth=u(-0.03, 0.03),
        noise=u(1.2, 2.4),
    )


def roi_mask(p: Lesion) -> NDArray[np.uint8]:
    """255 where this patient's melanoma may come, with a margin, else 0; [128, 128]. The same at any severity."""
    worst = _coverage(replace(p, severity=1.0), *_polar(p)) > 0
    return (distance_transform_edt(~worst) <= ROI_MARGIN).astype(np.uint8) * 255


def structure(p: Lesion) -> NDArray[np.float32]:
    """How much of each pixel a hair covers; [128, 128], 0 to 1. The same at any severity."""
    rng = np.random.default_rng([p.seed, _HAIRS])
    bare = np.ones_like(_X)
    # Spread over the picture, so that hairs do not bundle and most cross the lesion.
    offsets = ((rng.permutation(p.hairs) + rng.uniform(0.1, 0.9, p.hairs)) / p.hairs * 2 - 1) * 0.68
    for offset in offsets:
        bare *= 1 - _hair(p, float(offset), rng)
    return (1 - bare).astype(np.float32)


def render(p: Lesion) -> NDArray[np.uint8]:
    """The dermoscopic picture, RGB; [128, 128, 3]. Outside `roi_mask` it does not depend on the severity."""
    rng = np.random.default_rng([p.seed, _TEXTURE])
    skin = _skin(p, rng)
    radius, angle = _polar(p)
    coverage = _coverage(p, radius, angle)[..., None]
    picture = skin + coverage * (_pigment(p, skin, radius, angle, rng) - skin)

    hair = structure(p)[..., None]
    picture += hair * (_HAIR_DARK + p.hair_brown * (_HAIR_BROWN - _HAIR_DARK) - picture)
    light = p.gain * (1 - p.vignette * (_X**2 + _Y**2) + p.gradient[0] * _X + p.gradient[1] * _Y)
    picture *= light[..., None] * np.array((1 + p.warmth, 1, 1 - p.warmth), np.float32)
    noise = np.random.default_rng([p.seed, _NOISE]).standard_normal((SIZE, SIZE, 3), np.float32)
    return np.clip(np.rint(picture + p.noise * noise), 0, 255).astype(np.uint8)


def _smoothstep(t: Array) -> Array:
    """0 at and below 0, 1 at and above 1, smooth between: unlike tanh it ends, so nothing leaks out of the region."""
    t = np.clip(t, 0, 1)
    return t * t * (3 - 2 * t)


def _polar(p: Lesion) -> tuple[Array, Array]:
    """Distance and angle of every pixel from the naevus's centre; each [128, 128]."""
    dx, dy = _X - p.centre[0], _Y - p.centre[1]
    return np.hypot(dx, dy), np.arctan2(dy, dx)


def _coverage(p: Lesion, radius: Array, angle: Array) -> Array:
    """How much of each pixel the lesion covers; [128, 128], 0 to 1, rising with the severity everywhere."""
    return _smoothstep((_border(p, angle) - radius) / (2 * p.edge) + 0.5)


def _border(p: Lesion, angle: Array) -> Array:
    """The lesion's radius in each direction: from a round naevus, straight out to the melanoma; shaped like `angle`."""
    rng = np.random.default_rng([p.seed, _BORDER])
    waves = rng.uniform(0.4, 1.0, HARMONICS) / np.arange(1, HARMONICS + 1) ** 0.6
    waves *= math.sqrt(2) * p.irregularity / np.linalg.norm(waves)  # a cosine's mean square is one half
    phases = rng.uniform(0, 2 * math.pi, HARMONICS + 1)
    naevus = p.naevus * (1 + 0.04 * np.cos(2 * angle + float(phases[-1])))
    melanoma = np.ones_like(angle)
    for k in range(HARMONICS):
        melanoma += float(waves[k]) * np.cos((k + 1) * angle + float(phases[k]))
    return naevus + p.severity * np.maximum(p.reach * melanoma - naevus, 0.03)


def _skin(p: Lesion, rng: np.random.Generator) -> Array:
    """Bare skin under even light: tone, blotches, furrows; float32 [128, 128, 3] in grey levels."""
    tone = np.array([np.interp(2 * p.melanin, range(3), channel) for channel in _TONES.T], np.float32)
    blotches = p.mottling * _field(rng, 8.0)
    grain = 2.0 * _field(rng, 1.1)
    # Blood shows in green and blue first, grain in all alike.
    return tone + blotches[..., None] * np.array((0.4, 1.0, 0.9), np.float32) + grain[..., None]


def _pigment(p: Lesion, skin: Array, radius: Array, angle: Array, rng: np.random.Generator) -> Array:
    """The lesion's colours, as if it covered everything; float32 [128, 128, 3] in grey levels."""
    left = _NAEVUS + p.severity * (_MELANOMA - _NAEVUS)
    uneven = 1 + (0.04 + 0.08 * p.severity) * _field(rng, 2.5)
    colour = skin * left * uneven[..., None]
    draw = np.random.default_rng([p.seed, _COLOURS])
    # One patch per sector, so that the colours lie apart; later onsets are for later patches.
    turn, sectors = draw.uniform(0, 2 * math.pi), draw.permutation(len(_PATCHES))
    onsets = 0.15 + 0.45 * draw.permutation(len(_PATCHES)) / len(_PATCHES)
    for i, paint in enumerate(_PATCHES):
        direction = float(turn + (sectors[i] + draw.uniform(-0.3, 0.3)) * 2 * math.pi / len(_PATCHES))
        out, size, squeeze, tilt, phase = map(
            float, draw.uniform((0.3, 0.30, 0.7, 0, 0), (0.62, 0.46, 1.4, math.pi, 2 * math.pi))
        )
        if i >= p.patches:
            continue
        strength = 0.85 * float(_smoothstep(np.array((p.severity - onsets[i]) / 0.4)))
        if not strength:
            continue
        blob = _blob(p, (out * p.reach, direction), size * p.reach, squeeze, (tilt, phase))
        colour = colour + strength * (blob * uneven)[..., None] * (np.array(paint, np.float32) - colour)
    return colour


def _blob(p: Lesion, place: tuple[float, float], size: float, squeeze: float, turns: tuple[float, float]) -> Array:
    """A soft patch at (distance, direction) from the centre: an ellipse with three waves; [128, 128], 0 to 1."""
    dx = _X - (p.centre[0] + place[0] * math.cos(place[1]))
    dy = _Y - (p.centre[1] + place[0] * math.sin(place[1]))
    cos, sin = math.cos(turns[0]), math.sin(turns[0])
    a, b = (cos * dx + sin * dy) * squeeze, (cos * dy - sin * dx) / squeeze
    reach = size * (1 + 0.2 * np.cos(3 * np.arctan2(b, a) + turns[1]))
    return _smoothstep((reach - np.hypot(a, b)) / (0.6 * size) + 0.3)


def _hair(p: Lesion, offset: float, rng: np.random.Generator) -> Array:
    """One curved strand that passes the middle of the picture at `offset`; [128, 128], 0 to 1."""
    direction = p.hair_direction + rng.normal(0, 0.45)
    bend = float(rng.choice((-1, 1)) * rng.uniform(0.06, 0.30))
    sway = rng.uniform(-0.12, 0.12)
    width = p.hair_width * rng.uniform(0.95, 1.05)
    tip = rng.uniform(0.3, 0.9) if rng.random() < 0.3 else 2.0  # most run out of the picture
    cos, sin = math.cos(direction), math.sin(direction)
    along, across = _X * cos + _Y * sin, _Y * cos - _X * sin
    path = ((sway * along + bend) * along) * along + (offset - 0.3 * bend)
    slope = (3 * sway * along + 2 * bend) * along
    distance = np.abs(across - path) / (PIXEL * np.sqrt(1 + slope * slope))  # in pixels, of first order
    return 0.94 * np.clip(width / 2 + 0.5 - distance, 0, 1) * _smoothstep((tip - along) / 0.15)


def _field(rng: np.random.Generator, sigma: float) -> Array:
    """Smooth noise of mean about 0 and standard deviation about 1; float32 [128, 128], `sigma` in pixels."""
    smooth = gaussian_filter(rng.standard_normal((SIZE, SIZE), np.float32), sigma, mode="wrap", truncate=3)
    return smooth * np.float32(2 * math.sqrt(math.pi) * sigma)  # what a Gaussian leaves of white noise's deviation
