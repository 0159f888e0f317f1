"""`pie-engine mask`: a region of interest over its image, its size, and how well it agrees with a ground truth."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine.cli.options import settings_from
from pie_engine.cli.patient import (
    add_patient_options,
    add_region_options,
    add_truth_options,
    reading_from,
    regions_from,
)
from pie_engine.cli.terminal import print_json, print_lines
from pie_engine.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from pie_engine.imaging import Grid, Mask, Roi

# Pixels per latent along one side, in Stable Diffusion v1.x.
_SCALE = 8


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        "mask",
        help="preview a region of interest, and score it against a ground truth",
        description="Draw the region of interest over the image as the model is given it, print its size, and score it "
        "against a ground truth (IoU, Dice, HD95). No model is needed.",
        allow_abbrev=False,
    )
    patient = parser.add_argument_group("patient")
    add_patient_options(patient)
    add_region_options(patient)
    add_truth_options(patient)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--resolution", type=int, default=512, metavar="PIXELS", help="side of the model's square (512)"
    )
    output.add_argument(
        "--output", type=Path, default=Path("overlay.png"), metavar="FILE", help="the picture (overlay.png)"
    )
    output.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    return parser


def main(arguments: argparse.Namespace) -> int:
    from pie_engine.config import RunConfig, check_resolution
    from pie_engine.files import check_file, write_file
    from pie_engine.imaging import Grid, fit, fit_roi, read_image, read_roi

    config = settings_from(arguments, RunConfig)
    check_resolution(arguments.resolution, _SCALE)
    check_file(arguments.output, suffix=".png")
    regions, reading = regions_from(arguments.mask, "mask"), reading_from(arguments)
    keep, truths = regions_from(arguments.keep, "keep"), regions_from(arguments.truth, "truth")
    if regions is None:
        raise ConfigError("no region is given; pass --mask FILE, --mask-box, --mask-ellipse or --mask-polygon")
    image, facts = read_image(arguments.image, reading=reading)
    grid = Grid.of(arguments.image, image, facts, reading)
    roi = read_roi(
        grid, regions, keep=keep or (), dilate=arguments.dilate, shift=arguments.shift,
        components=arguments.mask_components,
    )  # fmt: skip
    truth = None if truths is None else read_roi(grid, truths, kind="truth")
    how = config.fit
    assert config.feather is not None
    mask = fit_roi(roi, arguments.resolution, scale=_SCALE, how=how, feather_width=config.feather)
    measures = _measure(grid, roi, mask, truth, arguments.resolution, how)
    picture = _draw(fit(image, arguments.resolution, how), roi, mask, truth, how, measures)
    write_file(arguments.output, picture)
    measures["overlay"] = str(arguments.output)
    if arguments.json:
        print_json(measures)
    else:
        print_lines(*_report(measures))
    return 0


def _measure(grid: Grid, roi: Roi, mask: Mask, truth: Roi | None, resolution: int, how: str) -> dict[str, Any]:
    from pie_engine.metrics import measure_overlap

    weight = mask.weight[mask.pixels]
    measures: dict[str, Any] = {
        "image": {"width": grid.size[0], "height": grid.size[1], "spacing_mm": grid.spacing},
        "resolution": resolution,
        "fit": how,
        "roi": roi.facts | mask.facts,
        "latent": {
            "size": list(mask.latent.shape[1:]),
            "inside": int((mask.latent >= 0.5).sum()),
            "touched": int((mask.latent > 0).sum()),
        },
        "feather": {"full": float((weight == 1).mean()), "greatest_weight": float(weight.max())},
    }
    if truth is not None:
        fitted, latent = _fit(truth, resolution, how)
        measures["truth"] = {
            **truth.facts,
            "source": measure_overlap(roi.pixels, truth.pixels, grid.spacing).to_dict(),
            "output": measure_overlap(mask.pixels, fitted).to_dict(),
            "latent": {
                name: value
                for name, value in measure_overlap(mask.latent[0] >= 0.5, latent >= 0.5).to_dict().items()
                if name in ("iou", "dice")
            },
        }
    return measures


def _fit(truth: Roi, resolution: int, how: str) -> tuple[np.ndarray, np.ndarray]:
    """The truth at output and at latent resolution; what the crop leaves of it may be nothing."""
    from pie_engine.imaging import fit_grey, latent_mask
    from pie_engine.imaging.regions.roi import HALF

    pixels = fit_grey(truth.drawn, resolution, how) >= HALF
    return pixels, latent_mask(pixels, _SCALE)[0]


def _draw(image: Any, roi: Roi, mask: Mask, truth: Roi | None, how: str, measures: dict[str, Any]) -> bytes:
    """The overlay as a PNG file."""
    import numpy as np

    from pie_engine.imaging import fit_grey
    from pie_engine.imaging.regions.roi import HALF
    from pie_engine.outputs.frames import png_metadata
    from pie_engine.outputs.overlay import draw_overlay

    keep = None
    if roi.keep is not None:
        keep = fit_grey(roi.keep.astype(np.uint8) * 255, image.width, how) >= HALF
    facts = measures["roi"]
    legend = {
        "region": f"may change: {facts['output_share']:.1%}, {facts['components']} component"
        + "s" * (facts["components"] != 1),
        "keep": "kept as it is",
    }
    if truth is not None:
        legend["truth"] = f"ground truth: {_scores(measures['truth']['output'])}"
    picture = draw_overlay(
        np.asarray(image),
        mask.pixels,
        keep=keep,
        truth=None if truth is None else _fit(truth, image.width, how)[0],
        legend=legend,
    )
    data = io.BytesIO()
    picture.save(data, "PNG", pnginfo=png_metadata(simulated=False))
    return data.getvalue()


def _scores(overlap: dict[str, Any]) -> str:
    words = [f"IoU {overlap['iou']:.3f}", f"Dice {overlap['dice']:.3f}"]
    if "hd95_pixels" in overlap:
        distance = overlap["hd95_pixels"]
        words.append("HD95 not defined" if distance is None else f"HD95 {distance:.1f} pixels")
        if overlap["hd95_mm"] is not None:
            words[-1] += f" ({overlap['hd95_mm']:.2f} mm)"
    return ", ".join(words)


def _report(measures: dict[str, Any]) -> list[str]:
    roi, image, latent, side = measures["roi"], measures["image"], measures["latent"], measures["resolution"]
    sizes = ", ".join(map(str, roi["component_pixels"])) + (", ..." if roi["components"] > 20 else "")
    lines = [
        f"region       {roi['pixels']} of {image['width']} x {image['height']} pixels ({roi['share']:.2%})",
        f"components   {roi['components']} of {sizes} pixels",
        f"at {side:<10}{roi['output_pixels']} of {side} x {side} pixels ({roi['output_share']:.2%})"
        + (f"; the crop cuts off {roi['cut_off_pixels']} pixels of the image's" if roi["cut_off_pixels"] else ""),
        f"latents      {latent['inside']} of {latent['size'][1]} x {latent['size'][0]} at least half inside, "
        f"{latent['touched']} touched",
        f"feather      {measures['feather']['full']:.1%} of the region changes fully",
    ]
    if "truth" in measures:
        lines += [
            "against the ground truth",
            f"  source     {_scores(measures['truth']['source'])}",
            f"  at {side:<8}{_scores(measures['truth']['output'])}",
            f"  latents    {_scores(measures['truth']['latent'])}",
        ]
    return [*lines, f"look at {measures['overlay']}"]
