"""A domain of the demo: its phantoms, the checkpoint that knows them, a classifier that judges, and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pie_engine.demo import DOMAINS
from pie_engine.demo.assets import (
    CHECKPOINT,
    DOMAIN_CHECKPOINT,
    SEVERITY_JSON,
    DemoDefaults,
    domain_file,
    load_defaults,
)
from pie_engine.demo.cardiothoracic import ratio_or_nan
from pie_engine.demo.data import held_out, split_seed
from pie_engine.demo.domains import fundus, skin
from pie_engine.demo.domains.fundus_measure import measure_lesions
from pie_engine.demo.domains.severity import HEALTHY_UP_TO, SEVERE_FROM, SEVERE_SPAN
from pie_engine.demo.domains.skin_measure import measure_lesion
from pie_engine.demo.phantom import render, roi_mask
from pie_engine.errors import ConfigError, use

LARGEST = 1000  # held-out phantoms of one kind


@dataclass(frozen=True)
class Domain:
    """What the demo needs of a domain. A phantom is what `draw` gives; pictures are uint8 [128, 128, 3].

    Attributes:
        healthy, diseased: what a phantom shows, in words.
        condition: what the classifier's number is the confidence of.
        names: how healthy and diseased phantoms are called; with their numbers they seed the noise.
        classifier: its declaration, as `pie_engine.metrics.classifier` reads it.
        measured: what `measure` finds in pixels alone, in words.
        draw: (number of a phantom, diseased or not, split of `pie_engine.demo.data`) to the phantom; the two of one
            number are one patient.
        roi_mask: uint8 [128, 128] of a phantom, 255 inside the region and 0 outside.
        measure: (picture, region's mask) to one number that rises with the disease: the cardiothoracic ratio, NaN where
            the picture shows no two lungs; or a share of the region from 0 to 1, never NaN.
        structure: float32 [128, 128] in 0 to 1, where features of the patient lie that the disease leaves alone.
            None where the region holds hardly any.
        truth: the phantom's own values, for those who write it to a file.
    """

    name: str
    healthy: str
    diseased: str
    condition: str
    names: tuple[str, str]
    checkpoint: Path
    classifier: Path
    defaults: DemoDefaults
    measured: str
    draw: Callable[[int, bool, str], Any]
    render: Callable[[Any], NDArray[np.uint8]]
    roi_mask: Callable[[Any], NDArray[np.uint8]]
    measure: Callable[[NDArray[np.uint8], NDArray[np.uint8]], float]
    structure: Callable[[Any], NDArray[np.float32]] | None
    truth: Callable[[Any], dict[str, float]]

    def phantom(self, index: int, *, diseased: bool = False, split: str = "test") -> Any:
        """A phantom that no stage of training has seen; those of the "validation" split chose the settings.

        Raises:
            ConfigError: `index` is outside 0 to 999.
        """
        if not 0 <= index < LARGEST:
            raise ConfigError(
                f"patient {index} is outside [0, {LARGEST - 1}]; pass {use('patient', 0)}",
                field="patient", value=index, limit=f"[0, {LARGEST - 1}]",
            )  # fmt: skip
        return self.draw(index, diseased, split)

    def item_id(self, index: int, *, diseased: bool = False, split: str = "test") -> str:
        """What names a held-out phantom, and seeds its noise."""
        return f"{self.names[diseased]}-{index}" if split == "test" else f"{self.names[diseased]}-{split}-{index}"


def load_domain(name: str) -> Domain:
    """One of `pie_engine.demo.DOMAINS`.

    Raises:
        ConfigError: there is no domain of this name.
    """
    makers = {"chest": _chest, "fundus": _fundus, "skin": _skin}
    if name not in makers:
        raise ConfigError(f"domain {name!r} is unknown; pass one of {', '.join(DOMAINS)}")
    return makers[name]()


def _chest() -> Domain:
    return Domain(
        name="chest",
        healthy="a healthy heart",
        diseased="an enlarged heart",
        condition="that the heart is enlarged",
        names=("phantom", "enlarged"),
        checkpoint=CHECKPOINT,
        classifier=SEVERITY_JSON,
        defaults=load_defaults(),
        measured="cardiothoracic ratio",
        draw=lambda index, diseased, split: held_out(index, enlarged=diseased, split=split),
        render=render,
        roi_mask=roi_mask,
        measure=lambda frame, mask: ratio_or_nan(frame),
        structure=None,
        truth=lambda phantom: {"cardiothoracic_ratio": round(phantom.ctr, 6)},
    )


def _fundus() -> Domain:
    return Domain(
        name="fundus",
        healthy="a healthy retina",
        diseased="diabetic retinopathy",
        condition="that there is diabetic retinopathy",
        names=("fundus", "retinopathy"),
        checkpoint=DOMAIN_CHECKPOINT,
        classifier=domain_file("fundus.json"),
        defaults=load_defaults(domain_file("fundus_defaults.json")),
        measured="share of the region with lesions",
        # The mean: in four numbers per 8 x 8 pixels the autoencoder holds vessels and lesions, and tints hardly.
        draw=_draw_severity(fundus.sample, pigment=(204.0, 106.0, 56.0)),
        render=fundus.render,
        roi_mask=fundus.roi_mask,
        measure=measure_lesions,
        structure=fundus.structure,
        truth=_severity,
    )


def _skin() -> Domain:
    return Domain(
        name="skin",
        healthy="a benign naevus",
        diseased="a melanoma",
        condition="that there is a melanoma",
        names=("naevus", "melanoma"),
        checkpoint=DOMAIN_CHECKPOINT,
        classifier=domain_file("skin.json"),
        defaults=load_defaults(domain_file("skin_defaults.json")),
        measured="share of the region that the lesion covers",
        draw=_draw_severity(skin.sample, melanin=0.5, warmth=0.0),  # as with the fundus
        render=skin.render,
        roi_mask=skin.roi_mask,
        measure=measure_lesion,
        structure=skin.structure,
        truth=_severity,
    )


def _draw_severity(sample: Callable[[int, float], Any], **usual: Any) -> Callable[[int, bool, str], Any]:
    """Severities as in training: up to `HEALTHY_UP_TO` or from `SEVERE_FROM`, both of one patient.

    `usual` are parameters that do not vary.
    """

    def draw(index: int, diseased: bool, split: str) -> Any:
        seed = split_seed(split, index)
        # A stream of its own, so that it does not depend on what the anatomy draws.
        share = float(np.random.default_rng([seed, 3]).random())
        severity = SEVERE_FROM + SEVERE_SPAN * share if diseased else HEALTHY_UP_TO * share
        return replace(sample(seed, severity), **usual)

    return draw


def _severity(phantom: Any) -> dict[str, float]:
    return {"severity": round(phantom.severity, 6)}
