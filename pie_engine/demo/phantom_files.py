"""Held-out phantoms as files: pictures, regions of interest and the table that the studies read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pie_engine import __version__
from pie_engine.demo.assets import load_defaults
from pie_engine.demo.domain import LARGEST, load_domain
from pie_engine.errors import ConfigError, argument, mention, use
from pie_engine.files import new_folder

MARKER, TABLE = "phantoms.json", "patients.csv"
COLUMNS = ("item_id", "image", "prompt", "mask")
# Where every finding that the chest's checkpoint knows may show: left, top, right, bottom in pixels.
CHEST = (8, 12, 120, 116)
_STATEMENT = "Procedural {} phantom, drawn by a program. No patient. Research use only, not for diagnosis."


def findings() -> dict[str, str]:
    """What the chest's checkpoint can be asked for, by a short name."""
    defaults = load_defaults()
    return {
        "heart": defaults.prompt,
        "normal": defaults.healthy_prompt,
        "left": "Normal heart size. Large left pleural effusion.",
        "right": "Normal heart size. Large right pleural effusion.",
    }


def write_phantoms(
    output: str | Path,
    count: int,
    *,
    domain: str = "chest",
    diseased: bool = False,
    each_finding: bool = False,
    validation: bool = False,
) -> dict[str, Any]:
    """Write the first `count` held-out phantoms into the folder `output`, whole or not at all.

    `images/ID.png` and `masks/ID.png` (128 x 128, 8 bits), `patients.csv` with the columns item_id, image, prompt and
    mask (paths relative to it; the prompt is the demo's disease, for diseased phantoms its healthy one), and
    `phantoms.json` with the true values (cardiothoracic ratio, or severity from 0 to 1). But for the chest there
    is `structures/ID.png` too: the vessels or hairs, which the disease leaves alone.

    Args:
        output: earlier phantoms in it are replaced; a folder that holds anything else is refused.
        domain: one of `pie_engine.demo.DOMAINS`.
        diseased: the same patients with the disease.
        each_finding: a line for every chest and each of `findings`, all with one region, the chest, so that lines of
            a phantom differ in the prompt alone (and in the id, which seeds the noise).
        validation: other patients, of the split that settings are chosen on; training has seen neither.

    Returns:
        Paths by name: "output", "patients", "truth".

    Raises:
        ConfigError: `count` is outside 1 to 1000, there is no such domain, or findings are asked of another than the
            chest. OutputError: the folder cannot be written.
    """
    if not 1 <= count <= LARGEST:
        raise ConfigError(
            f"{mention('count')} {count} is outside [1, {LARGEST}]; pass {use('count', 20)}",
            field="count", value=count, limit=f"[1, {LARGEST}]",
        )  # fmt: skip
    if each_finding and domain != "chest":
        raise ConfigError(
            f"{argument('each_finding')} is for {use('domain', 'chest')} alone: {domain} has one finding; leave "
            f"{argument('each_finding')} out",
            field="each_finding", value=True,
        )  # fmt: skip
    chosen = load_domain(domain)
    split = "validation" if validation else "test"
    output, statement = Path(output), _STATEMENT.format(domain)
    info = _metadata(statement)
    prompt = chosen.defaults.healthy_prompt if diseased else chosen.defaults.prompt
    with new_folder(output, replaceable=MARKER) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        if chosen.structure:
            (folder / "structures").mkdir()
        rows: list[tuple[str, ...]] = []
        truth, files = [], [TABLE, MARKER]
        for index in range(count):
            phantom = chosen.phantom(index, diseased=diseased, split=split)
            name = chosen.item_id(index, diseased=diseased, split=split)
            image, mask = f"images/{name}.png", f"masks/{name}.png"
            picture, region = chosen.render(phantom), chosen.roi_mask(phantom)
            grey = domain == "chest"
            Image.fromarray(picture[..., 0] if grey else picture).save(folder / image, pnginfo=info)
            if chosen.structure:
                files.append(f"structures/{name}.png")
                levels = np.rint(255 * chosen.structure(phantom)).astype(np.uint8)
                Image.fromarray(levels).save(folder / files[-1], pnginfo=info)
            if each_finding:
                region = np.zeros_like(region)
                region[CHEST[1] : CHEST[3], CHEST[0] : CHEST[2]] = 255
            Image.fromarray(region).save(folder / mask, pnginfo=info)
            if each_finding:
                rows += [(f"{name}-{short}", image, text, mask) for short, text in findings().items()]
            else:
                rows.append((name, image, prompt, mask))
            truth.append({"item_id": name, "seed": phantom.seed, **chosen.truth(phantom)})
        with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        facts = {
            "statement": statement,
            "version": __version__,
            "domain": domain,
            "split": split,
            "phantoms": truth,
            "files": sorted({*files, *(path for row in rows for path in (row[1], row[3]))}),
        }
        (folder / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return {"output": str(output), "patients": str(output / TABLE), "truth": str(output / MARKER)}


def _metadata(statement: str) -> PngInfo:
    info = PngInfo()
    for key, value in (("Software", "pie-engine"), ("Synthetic", "true"), ("Description", statement)):
        info.add_text(key, value)
    return info
