"""Held-out phantoms as files: pictures, regions of interest and the table that the studies read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine import __version__
from pie_engine.demo.assets import load_defaults
from pie_engine.demo.data import SPLITS
from pie_engine.errors import ConfigError
from pie_engine.files import new_folder

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

    from pie_engine.demo.phantom import Patient

MARKER, TABLE = "phantoms.json", "patients.csv"
LARGEST = 1000  # phantoms of one kind, as in `pie-engine demo --patient`
COLUMNS = ("id", "image", "prompt", "mask")
# Where every finding that the checkpoint knows may show: left, top, right, bottom in pixels.
CHEST = (8, 12, 120, 116)
_STATEMENT = "Procedural chest phantom, drawn by a program. No patient. Research use only, not for diagnosis."


def held_out(index: int, *, enlarged: bool = False) -> Patient:
    """One phantom that no stage of training has seen, healthy or with an enlarged heart.

    The two of one number share anatomy, exposure and detector noise, and differ in the cardiothoracic ratio alone:
    uniform in 0.40 to 0.48, or in 0.56 to 0.68.

    Raises:
        ConfigError: `index` is outside 0 to 999.
    """
    from pie_engine.demo.phantom import CTR_ENLARGED, sample_patient

    if not 0 <= index < LARGEST:
        raise ConfigError(f"patient {index} is outside [0, {LARGEST - 1}]; pass --patient 0")
    seed = SPLITS["test"] + index
    # A stream of its own, so that the anatomy is the healthy one's.
    return sample_patient(seed, float(np.random.default_rng([seed, 3]).uniform(*CTR_ENLARGED)) if enlarged else None)


def item_id(index: int, *, enlarged: bool = False) -> str:
    """What names a held-out phantom, and seeds its noise."""
    return f"{'enlarged' if enlarged else 'phantom'}-{index}"


def findings() -> dict[str, str]:
    """What the checkpoint can be asked for, by a short name."""
    defaults = load_defaults()
    return {
        "heart": defaults.prompt,
        "normal": defaults.healthy_prompt,
        "left": "Normal heart size. Large left pleural effusion.",
        "right": "Normal heart size. Large right pleural effusion.",
    }


def write_phantoms(
    output: str | Path, count: int, *, enlarged: bool = False, each_finding: bool = False
) -> dict[str, Any]:
    """Write the first `count` held-out phantoms into the folder `output`, whole or not at all.

    `images/ID.png` and `masks/ID.png` (128 x 128, 8 bits), `patients.csv` with the columns id, image, prompt and mask
    (paths relative to it; the prompt is the demo's disease, for enlarged hearts its healthy one), and `phantoms.json`
    with the true cardiothoracic ratios.

    Args:
        output: earlier phantoms in it are replaced; a folder that holds anything else is refused.
        enlarged: the same anatomies with an enlarged heart.
        each_finding: a line for every phantom and each of `findings`, all with one region, the chest, so that lines of
            a phantom differ in the prompt alone (and in the id, which seeds the noise).

    Returns:
        Paths by name: "output", "patients", "truth".

    Raises:
        ConfigError: `count` is outside 1 to 1000. OutputError: the folder cannot be written.
    """
    from PIL import Image

    from pie_engine.demo.data import render_grey
    from pie_engine.demo.phantom import SIZE, roi_mask

    if not 1 <= count <= LARGEST:
        raise ConfigError(f"phantoms {count} is outside [1, {LARGEST}]; pass --phantoms 20")
    output, defaults, info = Path(output), load_defaults(), _metadata()
    prompt = defaults.healthy_prompt if enlarged else defaults.prompt
    with new_folder(output, replaceable=MARKER) as folder:
        (folder / "images").mkdir()
        (folder / "masks").mkdir()
        rows: list[tuple[str, ...]] = []
        truth = []
        for index in range(count):
            phantom, name = held_out(index, enlarged=enlarged), item_id(index, enlarged=enlarged)
            image, mask = f"images/{name}.png", f"masks/{name}.png"
            Image.fromarray(render_grey(phantom)).save(folder / image, pnginfo=info)
            region = roi_mask(phantom)
            if each_finding:
                region = np.zeros((SIZE, SIZE), np.uint8)
                region[CHEST[1] : CHEST[3], CHEST[0] : CHEST[2]] = 255
            Image.fromarray(region).save(folder / mask, pnginfo=info)
            if each_finding:
                rows += [(f"{name}-{short}", image, text, mask) for short, text in findings().items()]
            else:
                rows.append((name, image, prompt, mask))
            truth.append({"id": name, "seed": phantom.seed, "cardiothoracic_ratio": round(phantom.ctr, 6)})
        with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
        facts = {
            "statement": _STATEMENT,
            "version": __version__,
            "split": "test",
            "phantoms": truth,
            "files": sorted({TABLE, MARKER, *(path for row in rows for path in (row[1], row[3]))}),
        }
        (folder / MARKER).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return {"output": str(output), "patients": str(output / TABLE), "truth": str(output / MARKER)}


def _metadata() -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in (("Software", "pie-engine"), ("Synthetic", "true"), ("Description", _STATEMENT)):
        info.add_text(key, value)
    return info
