"""A procedural fundus photograph: one frozen `Eye` in, one 128 x 128 colour picture out. No patient data.

Coordinates run from -1 (left, top) to 1 (right, bottom) of the picture. The eye's own frame starts at the optic disc:
u towards the temple, v down, so that a left eye is a mirrored right one. A right eye has its disc on the right.
Diabetic retinopathy is one number: with it haemorrhages and hard exudates appear beside the vessels and grow.
The vessels are the eye's own: no severity moves them, and they run over the disease.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pie_engine.demo.domains.fundus_vessels import courses, one_in_each_part
from pie_engine.errors import ConfigError

SIZE = 128
ROI_MARGIN = 10  # pixels around the zone of the disease: compositing fades over the outer 8
HAEMORRHAGES, EXUDATES = 13, 12  # at severity 1

Array = NDArray[np.floating]
_AXIS = ((np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE * 2 - 1).astype(np.float32)
_X, _Y = np.meshgrid(_AXIS, _AXIS)  # each [128, 128]
_PIXEL = 2 / SIZE  # its width, in half pictures

# One stream of random numbers per part: a part that draws more leaves the others alone.
_ANATOMY, _VESSELS, _LESIONS, _TEXTURE, _NOISE = 11, 12, 13, 14, 15

# What is left of the red, green and blue light; blood absorbs green and blue, and a pool of it much of the red too.
_VESSEL = np.array((0.74, 0.42, 0.48), np.float32)
_BLOOD = np.array((0.45, 0.14, 0.20), np.float32)
_EXUDATE = np.array((250, 226, 128), np.float32)  # colours in 0 to 255
_DISC = np.array((250, 212, 142), np.float32)

_GROWTH = 0.16  # of severity, from a lesion's first trace to its full size
_VESSEL_REACH, _LESION_REACH = 3, 6  # pixels: half the window that the widest of each is drawn in


@dataclass(frozen=True)
class Eye:
    """Anatomy, disease and exposure. Lengths are in half pictures (1 = 64 pixels) unless they say pixels."""

    seed: int  # of the vessels' course, the lesions' places, the texture and the noise
    severity: float = 0.0  # of diabetic retinopathy, 0 to 1
    left: bool = False
    tilt: float = 0.0  # of the head, in radians: it turns the picture about the disc
    field: float = 0.95  # radius of what the camera sees
    disc: tuple[float, float] = (0.46, -0.02)  # towards the nose, and down
    disc_radius: float = 0.15
    cup: float = 0.45  # its diameter over the disc's
    macula: tuple[float, float] = (0.58, 0.06)  # from the disc towards the temple, and down
    macula_depth: float = 0.34  # how much green light it takes
    arcades: tuple[float, float] = (0.50, 0.50)  # height of the upper and the lower one
    vein: float = 3.8  # pixels: width of the largest vessels where they leave the disc
    artery: float = 2.9
    pigment: tuple[float, float, float] = (206.0, 104.0, 54.0)  # red, green and blue of the retina
    texture: float = 0.04  # contrast of the choroid
    vignette: float = 0.30
    gradient: tuple[float, float] = (0.0, 0.0)
    noise: float = 2.0  # standard deviation in grey levels

    def __post_init__(self) -> None:
        if not 0 <= self.severity <= 1:
            raise ConfigError(f"severity {self.severity} is out of range (0 to 1); pass one inside it")


def sample(seed: int, severity: float = 0.0) -> Eye:
    """The eye that `seed` names: the same anatomy, exposure and lesion places at any severity."""
    rng = np.random.default_rng([seed, _ANATOMY])
    u = lambda low, high: float(rng.uniform(low, high))  # noqa: E731
    brightness, red = u(0.88, 1.10), u(-10, 10)
    return Eye(
        seed=seed,
        severity=severity,
        left=bool(rng.integers(2)),
        tilt=u(-0.22, 0.22),
        field=u(0.93, 0.98),
        disc=(u(0.38, 0.54), u(-0.08, 0.06)),
        disc_radius=u(0.13, 0.17),
        cup=u(0.35, 0.60),
        macula=(u(0.52, 0.62), u(0.01, 0.10)),
        macula_depth=u(0.26, 0.42),
        arcades=(u(0.42, 0.62), u(0.42, 0.62)),
        vein=u(3.5, 4.0),
        artery=u(2.6, 3.1),
        pigment=(brightness * (204 + red), brightness * u(96, 116), brightness * u(46, 66)),
        texture=u(0.02, 0.05),
        vignette=u(0.20, 0.36),
        gradient=(u(-0.08, 0.08), u(-0.08, 0.08)),
        noise=u(1.2, 2.2),
    )


def render(p: Eye) -> NDArray[np.uint8]:
    """The photograph; RGB, [128, 128, 3], 0 to 255. What no lesion touches is the same to the bit at any severity."""
    vessels = structure(p)
    retina = _retina(p)
    if p.severity > 0:
        blood, exudate = _disease(p, vessels)
        retina *= 1 - blood[..., None] * (1 - _BLOOD)
        retina += exudate[..., None] * (_EXUDATE - retina)
    retina *= 1 - vessels[..., None] * (1 - _VESSEL)
    light = 1 - p.vignette * (_X**2 + _Y**2) + p.gradient[0] * _X + p.gradient[1] * _Y
    grain = p.noise * np.random.default_rng([p.seed, _NOISE]).standard_normal((SIZE, SIZE), np.float32)
    picture = (retina * light[..., None] + grain[..., None]) * _field(p)[..., None]
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def structure(p: Eye) -> NDArray[np.float32]:
    """Where the vessels run, 0 to 1 as strong as they are drawn; the same at any severity; [128, 128]."""
    paths = courses(np.random.default_rng([p.seed, _VESSELS]), p.arcades, p.vein, p.artery)
    centre = _pixels(p, np.concatenate([path for path, _, _ in paths]))
    width = np.concatenate([width for _, width, _ in paths])
    strength = np.concatenate([np.full(len(path), strength) for path, _, strength in paths])
    distance, at = _windows(centre, _VESSEL_REACH)
    cover = strength[:, None] * np.clip(0.5 + width[:, None] / 2 - np.hypot(*distance), 0, 1)
    return _paint(cover, at) * _field(p)


def roi_mask(p: Eye) -> NDArray[np.uint8]:
    """255 where the eye's disease may come, with a margin: macula and arcades; else 0. The same at any severity."""
    return (distance_transform_edt(~_zone(p)) <= ROI_MARGIN).astype(np.uint8) * 255


def _field(p: Eye) -> NDArray[np.float32]:
    """1 where the camera sees the eye, 0 outside; [128, 128]."""
    return np.clip(0.5 + (p.field - np.hypot(_X, _Y)) / (1.5 * _PIXEL), 0, 1).astype(np.float32)


def _disc(p: Eye) -> tuple[float, float]:
    """Middle of the optic disc in the picture: x, y."""
    return (-p.disc[0] if p.left else p.disc[0]), p.disc[1]


def _frame(p: Eye) -> tuple[Array, Array]:
    """The eye's own coordinates of every pixel, u and v from the disc; each [128, 128]."""
    x, y = _disc(p)
    u, v = (_X - x if p.left else x - _X), _Y - y
    cos, sin = np.float32(np.cos(p.tilt)), np.float32(np.sin(p.tilt))
    return cos * u + sin * v, cos * v - sin * u


def _pixels(p: Eye, path: Array) -> Array:
    """From points in the eye's own frame to pixels, column and row; [N, 2] each."""
    x, y = _disc(p)
    cos, sin = np.cos(p.tilt), np.sin(p.tilt)
    u, v = cos * path[:, 0] - sin * path[:, 1], sin * path[:, 0] + cos * path[:, 1]
    return (np.stack([x + u if p.left else x - u, y + v], axis=1) + 1) / _PIXEL - 0.5


def _zone(p: Eye) -> NDArray[np.bool_]:
    """Where lesions may lie, whole: an ellipse around the macula that reaches over the arcades; [128, 128]."""
    u, v = _frame(p)
    ellipse = ((u - p.macula[0]) / 0.53) ** 2 + ((v - p.macula[1]) / 0.60) ** 2 < 1
    return ellipse & (np.hypot(u, v) > p.disc_radius + 3 * _PIXEL) & (np.hypot(_X, _Y) < p.field - 4 * _PIXEL)


def _retina(p: Eye) -> NDArray[np.float32]:
    """Choroid, macula and optic disc under even light, without vessels; float32 [128, 128, 3], about 0 to 255."""
    rng = np.random.default_rng([p.seed, _TEXTURE])
    u, v = _frame(p)
    coarse, fine = (
        _standardised(base @ rng.standard_normal((base.shape[1],) * 2, np.float32) @ base.T) for base in _BUMPS
    )
    choroid = 1 + p.texture * (coarse + 0.4 * fine)
    retina = np.array(p.pigment, np.float32) * choroid[..., None]
    pit = np.exp(-((u - p.macula[0]) ** 2 + (v - p.macula[1]) ** 2) / (2 * 0.12**2))
    retina *= 1 - p.macula_depth * pit[..., None] * np.array((0.6, 1.0, 0.9), np.float32)
    edge = np.hypot(u, 0.92 * v)  # the disc is a little taller than wide
    disc = 0.95 * np.clip(0.5 + (p.disc_radius - edge) / 0.05, 0, 1)
    retina += disc[..., None] * (_DISC - retina)
    cup = np.clip(0.5 + (p.cup * p.disc_radius - np.hypot(u - 0.01, v)) / 0.05, 0, 1)
    retina += cup[..., None] * np.array((4, 26, 50), np.float32)
    return retina.astype(np.float32)


def _standardised(field: Array) -> Array:
    return (field - field.mean()) / field.std()


def _bumps(count: int) -> NDArray[np.float32]:
    """`count` overlapping bumps along the picture's side: weights of smooth noise; [128, count]."""
    centre = np.linspace(-1, 1, count, dtype=np.float32)
    return np.exp(-0.5 * ((_AXIS[:, None] - centre) * (count - 1) / 2) ** 2)


_BUMPS = (_bumps(8), _bumps(16))  # cells of 18 and of 9 pixels


def _windows(centre: Array, reach: int) -> tuple[tuple[Array, Array], NDArray[np.integer]]:
    """Square windows of `reach` pixels to each side around points in pixels, [N, 2]: offsets (columns, rows) of each
    pixel from its point, and its index in the flat picture that `_paint` paints; each [N, (2 * reach + 1)**2]."""
    corner = np.rint(centre)
    step = np.arange(-reach, reach + 1, dtype=np.int32)
    columns, rows = (grid.ravel() for grid in np.meshgrid(step, step))
    start = corner.astype(np.int32)
    x, y = start[:, :1] + columns, start[:, 1:] + rows
    inside = (x >= 0) & (x < SIZE) & (y >= 0) & (y < SIZE)
    rest = (corner - centre).astype(np.float32)
    return (rest[:, :1] + columns, rest[:, 1:] + rows), np.where(inside, y * SIZE + x, SIZE * SIZE)


def _paint(cover: Array, at: NDArray[np.integer]) -> NDArray[np.float32]:
    """The largest cover of every pixel; float32 [128, 128]. The pixel after the last takes what lies outside."""
    canvas = np.zeros(SIZE * SIZE + 1, np.float32)
    seen = cover > 0
    np.maximum.at(canvas, at[seen], cover[seen].astype(np.float32))
    return canvas[:-1].reshape(SIZE, SIZE)


def _disease(p: Eye, vessels: Array) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cover of haemorrhages and of exudates at the eye's severity; each [128, 128] in 0 to 1."""
    rng = np.random.default_rng([p.seed, _LESIONS])
    count = HAEMORRHAGES + EXUDATES
    bright = np.arange(count) >= HAEMORRHAGES
    full = np.where(bright, rng.uniform(1.6, 3.0, count), rng.uniform(1.8, 3.8, count))  # radii in pixels
    stretch, angle = rng.uniform(1.0, 1.3, count), rng.uniform(0, np.pi, count)
    # Microaneurysms come first; exudates join them in the mild stage. Evenly: each step of severity adds.
    order = np.concatenate(
        [one_in_each_part(rng, HAEMORRHAGES, 0.10, 0.84), one_in_each_part(rng, EXUDATES, 0.22, 0.84)]
    )
    place, placed = _places(p, rng, vessels, full * stretch, bright)
    size = np.sqrt(np.clip((p.severity - order) / _GROWTH, 0, 1))
    radius = full * size
    offset, at = _windows(place, _LESION_REACH)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    long, short = offset[0] * cos + offset[1] * sin, offset[1] * cos - offset[0] * sin
    distance = np.hypot(long / stretch[:, None], short)
    cover = np.clip(0.5 + (radius[:, None] - distance) / 1.2, 0, 1) * np.minimum(2 * size, 1)[:, None]
    cover *= (placed & (size > 0))[:, None]
    blood, exudate = (0.94 * _paint(cover[kind], at[kind]) for kind in (~bright, bright))
    return blood, exudate


def _places(
    p: Eye, rng: np.random.Generator, vessels: Array, radius: Array, bright: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """Where lesions of `radius` pixels [N] lie, beside vessels and clear of them and of each other: pixels [N, 2],
    and whether there was room [N]."""
    zone = _zone(p)
    top, left = (np.flatnonzero(zone.any(axis=axis))[0] - 1 for axis in (1, 0))
    bottom, right = (np.flatnonzero(zone.any(axis=axis))[-1] + 2 for axis in (1, 0))
    box = np.s_[top:bottom, left:right]  # the zone and one pixel around it: distances are quicker in there
    to_vessel = distance_transform_edt(vessels[box] < 0.25)
    to_border = distance_transform_edt(zone[box])
    rows, columns = np.nonzero(zone[box] & (to_vessel > 2))
    pick = rng.choice(len(rows), 600)
    vessel, border = to_vessel[rows[pick], columns[pick]], to_border[rows[pick], columns[pick]]
    spots = np.stack([left + columns[pick], top + rows[pick]], axis=1) + rng.uniform(-0.5, 0.5, (len(pick), 2))
    clusters = spots[rng.choice(np.flatnonzero(vessel < 10), 3)]
    place, placed = np.zeros((len(radius), 2)), np.zeros(len(radius), bool)
    room = np.full(len(spots), np.inf)  # pixels to the nearest lesion's border
    for i in rng.permutation(len(radius)):
        cost = 0.8 * np.abs(vessel - radius[i] - 2.5) + rng.uniform(0, 6, len(spots))
        if bright[i]:
            cost += np.hypot(*(spots - clusters[i % len(clusters)]).T)
        free = (vessel > radius[i] + 1.5) & (border > radius[i] + 1) & (room > radius[i] + 1.5)
        if free.any():
            best = np.argmin(np.where(free, cost, np.inf))
            place[i], placed[i] = spots[best], True
            room = np.minimum(room, np.hypot(*(spots - spots[best]).T) - radius[i])
    return place, placed
