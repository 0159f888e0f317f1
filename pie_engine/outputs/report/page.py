"""The page itself: template, style and script of this folder, filled with one progression."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from pie_engine import __version__
from pie_engine.outputs.colours import DIVERGING
from pie_engine.outputs.differences import COMPARED_WITH, differences, luminance, scale_of
from pie_engine.outputs.frames import STATEMENT
from pie_engine.outputs.provenance import say_regional, say_stopped
from pie_engine.outputs.report.charts import Series, line_plot
from pie_engine.outputs.report.tables import measures_table, provenance_rows, schedule_table, settings_rows
from pie_engine.outputs.report.templates import read_asset, render


@dataclass(frozen=True)
class Shown:
    """One frame of the page: its round (0 is the input) and its PNG file's bytes, which are embedded as they are."""

    number: int
    png: bytes


def build_page(shown: Sequence[Shown], mask: bytes | None, provenance: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        shown: at least two frames of one size, the first of them the input.
        mask: PNG file of the region of interest, white = may change.
        provenance: as in provenance.json.
    """
    frames = np.stack([_pixels(frame.png) for frame in shown])  # [N + 1, H, W, 3]
    box = provenance["visible_mark"]["box"] if "visible_mark" in provenance else None
    style, script = read_asset("style.css"), read_asset("script.js")
    height, width = frames.shape[1:3]
    rounds = provenance["simulated"].get("rounds", [])
    groups, last = _measures(provenance), int(provenance["settings"]["steps"])
    return render(
        "template.html",
        policy=_policy(style, script),
        version=__version__,
        statement=STATEMENT,
        # Files of this package, which hold nothing of a run.
        style=Markup(style),  # nosec B704
        script=Markup(script),  # nosec B704
        summary=_summary(provenance, frames.shape[1:3]),
        warnings=_warnings(provenance, mask is not None),
        colours=[(index / (len(DIVERGING) - 1), f"rgb{colour}") for index, colour in enumerate(DIVERGING)],
        plots=[line_plot(title, unit, lines, last, top) for title, unit, lines, top in groups],
        measures=measures_table([(title, unit, lines) for title, unit, lines, _ in groups], last),
        spaced_note=_spaced_note(shown, provenance),
        frames=[_frame(frame, provenance) for frame in shown],
        width=width,
        height=height,
        mask=None if mask is None else _data_uri(mask),
        schedule=schedule_table(rounds) if rounds else None,
        settings=settings_rows(provenance),
        provenance=provenance_rows(provenance),
        data={
            "width": width,
            "height": height,
            "rounds": [frame.number for frame in shown],
            "limits": _limits(frames, box),
            "colours": DIVERGING,
            "markBox": box,
        },
    )


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that lets this page load nothing, and run nothing but its own script."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _limits(frames: np.ndarray, box: Sequence[int] | None) -> dict[str, int]:
    """What the colour bar ends at, against the input and against the frame before; a visible mark is left out."""
    grey = luminance(frames)
    if box is not None:
        left, top, right, bottom = box
        grey[:, top:bottom, left:right] = 0
    return {against: scale_of(differences(grey, against)).limit for against in COMPARED_WITH}


def _summary(provenance: Mapping[str, Any], size: tuple[int, ...]) -> list[tuple[str, str, str]]:
    """Class, name and text of what the page begins with."""
    simulated, settings = provenance["simulated"], provenance["settings"]
    share = simulated.get("roi_share")
    return [
        ("prompt", "Towards", _towards(simulated)),
        *_method(provenance),
        ("", "Item", provenance["item_id"]),
        ("", "Rounds", str(settings["steps"])),
        ("", "Size", f"{size[1]} x {size[0]} pixels"),
        *_findings(simulated),
        ("", "Region of interest", "none, all may change" if share is None else f"{share:.1%} of the image"),
        ("", "Guidance", _span(provenance, "guidance_scale")),
        ("", "Strength", _span(provenance, "strength")),
        ("", "Seed", str(settings["seed"])),
    ]


def _method(provenance: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A row that names a baseline, so that nobody takes its frames for a progression's."""
    name = provenance.get("method", {}).get("name", "pie")
    return [] if name == "pie" else [("", "Method", f"{name} (a baseline, not PIE)")]


def _towards(simulated: Mapping[str, Any]) -> str:
    """The prompt; with a schedule the prompts in their order."""
    prompts = [simulated["prompt"]]
    if "rounds" in simulated:
        prompts = [prompt for prompt, _ in groupby(one["prompt"] for one in simulated["rounds"])]
    return " \u2192 ".join(prompt or "(an empty prompt)" for prompt in prompts)


def _findings(simulated: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """One row for each of several findings, with its regions and what they have of the image."""
    rows = []
    for number, finding in enumerate(simulated.get("findings", []), 1):
        regions = f"region{'s' * (len(finding['regions']) > 1)} {', '.join(map(str, finding['regions']))}"
        name = f"Finding {number}: {regions}, {finding['share']:.1%} of the image"
        rows.append(("", name, finding["prompt"] or "(an empty prompt)"))
    return rows


def _span(provenance: Mapping[str, Any], name: str) -> str:
    """A setting, or with a schedule the least and the greatest that a round had."""
    values = [one[name] for one in provenance["simulated"].get("rounds", [provenance["settings"]])]
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}, see Settings"


def _warnings(provenance: Mapping[str, Any], masked: bool) -> list[str]:
    found = []
    simulated = provenance["simulated"]
    cuts = dict.fromkeys(one.get("prompt_cut_off") for one in simulated.get("rounds", [simulated]))
    found += [f"The model read no more than 77 tokens of the prompt. It did not see: {cut}" for cut in cuts if cut]
    if partial := provenance.get("partial"):
        found.append(f"The run was interrupted after round {partial['rounds']} of {partial['of']}.")
    if stopped := provenance.get("stopped"):
        said = say_stopped(stopped, provenance["settings"]["steps"])
        found.append(f"{said[0].upper()}{said[1:]}.")
    if said := say_regional(provenance.get("regional", {"used": False}), provenance["settings"]["steps"]):
        found.append(f"{said[0].upper()}{said[1:]}.")
    if masked and not provenance["settings"]["composite"]:
        found.append("Frames are shown as decoded: they differ from the input also outside the region of interest.")
    if provenance.get("visible_mark"):
        found.append(
            "A visible mark is drawn into the simulated frames: there they differ from the input also outside the "
            "region of interest. Figures and difference maps leave it out."
        )
    return found


def _spaced_note(shown: Sequence[Shown], provenance: Mapping[str, Any]) -> str:
    partial = provenance.get("partial")
    count = 1 + (provenance["settings"]["steps"] if partial is None else partial["rounds"])
    if len(shown) == count:
        return ""
    return f"{len(shown)} of {count} frames, at even distances; “the frame before” is the one shown before."


def _frame(frame: Shown, provenance: Mapping[str, Any]) -> dict[str, Any]:
    name = "Input" if frame.number == 0 else f"Simulated, round {frame.number}"
    values = [series[frame.number] for series in provenance.get("confidence", {}).values()]
    label = name + ("".join(f", {value:.2f}" for value in values) if len(values) == 1 else "")
    return {"name": name, "label": label, "input": frame.number == 0, "uri": _data_uri(frame.png)}


def _measures(provenance: Mapping[str, Any]) -> list[tuple[str, str, list[Series], float | None]]:
    """Title, unit, lines and end of the upward axis of each plot for which there are values."""
    change = provenance["change"]
    where = "whole image" if provenance["simulated"].get("roi_share") is None else "inside the region"
    confidence = [Series(name, values, 0) for name, values in provenance.get("confidence", {}).items()]
    similarity = [Series(name, values, 0) for name, values in provenance.get("similarity", {}).items()]
    step = [Series(where, change["increment_inside"])]
    latent = [(where, "displacement_inside"), ("outside, before compositing", "displacement_outside")]
    grey = [
        (where, "frame_inside"),
        ("outside, as written", "frame_outside"),
        ("outside, before compositing", "decoded_outside"),
    ]
    plots = [
        ("Classifier's confidence", "confidence, 0 to 1", confidence, 1.0),
        ("Similarity to the input", "1 is equal", similarity, 1.0),
        ("Step size of each round", "latent units, RMS", step, None),
        ("Distance from the input", "latent units, RMS", _series(change, latent), None),
        ("Change from the input", "mean absolute grey levels", _series(change, grey), None),
    ]
    return [plot for plot in plots if plot[2]]


def _series(change: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> list[Series]:
    return [Series(name, change[key]) for name, key in names if change.get(key)]
