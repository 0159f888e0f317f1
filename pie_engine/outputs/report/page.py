"""The page itself: template, style and script of this folder, filled with one progression."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import groupby
from string import Template
from typing import Any

import numpy as np

from pie_engine import __version__
from pie_engine.outputs.colours import DIVERGING
from pie_engine.outputs.differences import REFERENCES, differences, luminance, scale_of
from pie_engine.outputs.frames import STATEMENT
from pie_engine.outputs.report.charts import Series, line_plot
from pie_engine.outputs.report.tables import figures_table, provenance_table, settings_table


@dataclass(frozen=True)
class Shown:
    """One frame of the page: its round (0 is the input) and its PNG file's bytes, which are embedded as they are."""

    number: int
    png: bytes


def build_page(shown: Sequence[Shown], mask: bytes | None, provenance: Mapping[str, Any]) -> str:
    """The whole page as text.

    Args:
        shown: at least two frames of one size, the first of them the input.
        mask: PNG file of the region of interest, white = may change.
        provenance: as in provenance.json.
    """
    frames = np.stack([_pixels(frame.png) for frame in shown])  # [N + 1, H, W, 3]
    box = provenance["visible_mark"]["box"] if "visible_mark" in provenance else None
    style, script = _asset("style.css"), _asset("script.js")
    colour_bar = "".join(
        f'<stop offset="{index / (len(DIVERGING) - 1):.4f}" stop-color="rgb{colour}"/>'
        for index, colour in enumerate(DIVERGING)
    )
    plots, figures = _measures(provenance)
    return Template(_asset("template.html")).substitute(
        policy=_policy(style, script),
        version=escape(__version__),
        statement=escape(STATEMENT),
        style=style,
        script=script,
        summary=_summary(provenance, frames.shape[1:3]),
        warnings=_warnings(provenance, mask is not None),
        colour_bar='<svg viewBox="0 0 100 4" preserveAspectRatio="none" role="img" aria-label="Colour bar">'
        f'<linearGradient id="bar">{colour_bar}</linearGradient><rect width="100" height="4" fill="url(#bar)"/></svg>',
        last=len(shown) - 1,
        no_roi="" if mask else " hidden",
        plots=plots,
        figures=figures,
        spaced_note=_spaced_note(shown, provenance),
        frames="\n".join(_frame(index, frame, frames.shape[1:3], provenance) for index, frame in enumerate(shown)),
        roi_image=""
        if mask is None
        else "<p>Region of interest: white may change.</p>"
        f'<img class="roi" id="roi" alt="Region of interest" src="{_data_uri(mask)}">',
        settings=settings_table(provenance),
        provenance=provenance_table(provenance),
        data=_json(
            {
                "width": frames.shape[2],
                "height": frames.shape[1],
                "rounds": [frame.number for frame in shown],
                "limits": _limits(frames, box),
                "colours": DIVERGING,
                "markBox": box,
            }
        ),
    )


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """A Content-Security-Policy that lets this page load nothing, and run nothing but its own script."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _pixels(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _limits(frames: np.ndarray, box: Sequence[int] | None) -> dict[str, int]:
    """What the colour bar ends at, against the input and against the frame before; a visible mark is left out."""
    grey = luminance(frames)
    if box is not None:
        left, top, right, bottom = box
        grey[:, top:bottom, left:right] = 0
    return {against: scale_of(differences(grey, against)).limit for against in REFERENCES}


def _summary(provenance: Mapping[str, Any], size: tuple[int, ...]) -> str:
    simulated, settings = provenance["simulated"], provenance["settings"]
    share = simulated.get("roi_share")
    rows = [
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
    cells = (
        f"<div{f' class={kind!r}' if kind else ''}><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for kind, name, text in rows
    )
    return f'<dl class="summary">{"".join(cells)}</dl>'


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
    for number, own in enumerate(simulated.get("findings", []), 1):
        regions = f"region{'s' * (len(own['regions']) > 1)} {', '.join(map(str, own['regions']))}"
        name = f"Finding {number}: {regions}, {own['share']:.1%} of the image"
        rows.append(("", name, own["prompt"] or "(an empty prompt)"))
    return rows


def _span(provenance: Mapping[str, Any], name: str) -> str:
    """A setting, or with a schedule the least and the greatest that a round had."""
    values = [one[name] for one in provenance["simulated"].get("rounds", [provenance["settings"]])]
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}, see Settings"


def _warnings(provenance: Mapping[str, Any], masked: bool) -> str:
    found = []
    simulated = provenance["simulated"]
    cuts = dict.fromkeys(one.get("prompt_cut_off") for one in simulated.get("rounds", [simulated]))
    found += [f"The model read no more than 77 tokens of the prompt. It did not see: {cut}" for cut in cuts if cut]
    if partial := provenance.get("partial"):
        found.append(f"The run was interrupted after round {partial['rounds']} of {partial['of']}.")
    if masked and not provenance["settings"]["composite"]:
        found.append("Frames are shown as decoded: they differ from the input also outside the region of interest.")
    if provenance.get("visible_mark"):
        found.append(
            "A visible mark is drawn into the simulated frames: there they differ from the input also outside the "
            "region of interest. Figures and difference maps leave it out."
        )
    return "".join(f'<p class="warning">{escape(text)}</p>' for text in found)


def _spaced_note(shown: Sequence[Shown], provenance: Mapping[str, Any]) -> str:
    partial = provenance.get("partial")
    count = 1 + (provenance["settings"]["steps"] if partial is None else partial["rounds"])
    if len(shown) == count:
        return ""
    return f"<p>{len(shown)} of {count} frames, at even distances; “the frame before” is the one shown before.</p>"


def _frame(index: int, frame: Shown, size: tuple[int, ...], provenance: Mapping[str, Any]) -> str:
    name = "Input" if frame.number == 0 else f"Simulated, round {frame.number}"
    values = [series[frame.number] for series in provenance.get("confidence", {}).values()]
    label = name + ("".join(f", {value:.2f}" for value in values) if len(values) == 1 else "")
    return (
        f'<li><button type="button" class="thumb{" input" if frame.number == 0 else ""}">'
        f'<img id="frame-{index}" width="{size[1]}" height="{size[0]}" alt="{escape(name)}" '
        f'src="{_data_uri(frame.png)}">{escape(label)}</button></li>'
    )


def _measures(provenance: Mapping[str, Any]) -> tuple[str, str]:
    """Plots, and the table of the numbers in them."""
    change, rounds = provenance["change"], int(provenance["settings"]["steps"])
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
    plots = [plot for plot in plots if plot[2]]
    drawn = "\n".join(line_plot(title, unit, lines, rounds, top) for title, unit, lines, top in plots)
    return drawn, figures_table([(title, unit, lines) for title, unit, lines, _ in plots], rounds)


def _series(change: Mapping[str, Any], names: Sequence[tuple[str, str]]) -> list[Series]:
    return [Series(name, change[key]) for name, key in names if change.get(key)]
