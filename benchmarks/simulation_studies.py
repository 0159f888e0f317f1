"""The studies of `benchmarks/simulation.py`: their commands, and the figures that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pie_engine.demo import DOMAINS, assets
from pie_engine.demo.domain import load_domain
from pie_engine.evaluation.measures import CONFIDENCE, STRUCTURE

WORK = Path("build/simulation")  # in the repository, as all paths here
_DEMO = Path("pie_engine/demo")
# Not the demo's CLIP for similarity: it has learnt findings and no patients (docs/demo-model.md).
_CLIP = ["--clip", str(_DEMO / "clip")]
_DOMAINS = {name: load_domain(name) for name in DOMAINS}
_GRID = ("pie", "one-shot", "walk", "vae", "previous", "control")
_BY = ("--by=strength", "--by=inversion", "--by=beta2")
SSIM = "ssim_inside"
Figures = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Commands, run one after the other, and the figures that are kept of what they write into `WORK`."""

    commands: Sequence[Sequence[str]]
    collect: Callable[[Path], Figures]


def _read(path: Path) -> Figures:
    return json.loads(path.read_text(encoding="utf-8"))


def _judge(domain: str) -> list[str]:
    return ["--classifier", str(_path(_DOMAINS[domain].classifier))]


def _path(file: Path) -> Path:
    """As it is named from the repository."""
    return _DEMO / file.relative_to(Path(assets.__file__).parent)


def _sweep(patients: str, output: str, *words: str, domain: str = "chest", guidance: float | None = None) -> list[str]:
    own = _DOMAINS[domain]
    scale = own.defaults.guidance_scale if guidance is None else guidance
    model = ["--checkpoint", str(_path(own.checkpoint)), "--guidance-scale", f"{scale:g}"]
    return ["pie-engine", "sweep", *model, "--patients", str(WORK / patients / "patients.csv"), *words, *_judge(domain),
            "--output", str(WORK / output)]  # fmt: skip


def _phantoms(count: int, *words: str, output: str = "phantoms") -> list[str]:
    return ["pie-engine", "demo", "--phantoms", str(count), *words, "--output", str(WORK / output)]


def _methods(domain: str) -> Study:
    """Every method on 20 phantoms of a domain, and PIE against each where both have come equally far."""
    chest = domain == "chest"
    phantoms, methods, compare = ("phantoms", "methods", "compare") if chest else (
        f"{domain}-phantoms", f"{domain}-methods", f"{domain}-compare"
    )  # fmt: skip
    defaults = _DOMAINS[domain].defaults
    return Study(
        [
            _phantoms(20, *([] if chest else ["--domain", domain]), output=phantoms),
            _sweep(phantoms, methods, "--grid", f"method={','.join(_GRID)}", *([] if chest else _strength(domain)),
                   "--healthy-prompt", defaults.healthy_prompt, domain=domain),
            _compare(domain, [methods], compare),
        ],
        lambda work: _collect_methods(work / compare),
    )  # fmt: skip


def _settings(domain: str) -> Study:
    """PIE with and without what may cost the patient's own structure: noise, the pull to the input, large steps."""
    phantoms, pie, edits, walk, compare = (
        f"{domain}-{name}" for name in ("phantoms", "settings", "edits", "walk", "settings-compare")
    )
    defaults = _DOMAINS[domain].defaults
    strength, inversion = f"{defaults.strength:g}", ["--grid", "inversion=noise,ddim"]
    pulls = ",".join(f"{beta2:g}" for beta2 in sorted({0.75, defaults.beta2, 1.0}))
    return Study(
        [
            _phantoms(20, "--domain", domain, output=phantoms),
            _sweep(phantoms, pie, "--grid", f"strength=0.1,{strength}", *inversion, "--grid", f"beta2={pulls}",
                   domain=domain),
            _sweep(phantoms, edits, "--grid", "method=one-shot", *inversion, *_strength(domain), domain=domain),
            _sweep(phantoms, walk, "--grid", "method=walk", *_strength(domain), domain=domain),
            _compare(domain, [pie, edits, walk], compare, *_BY),
        ],
        lambda work: _collect_methods(work / compare),
    )  # fmt: skip


# Strengths that were tried for a domain's defaults.
_TRIED = {"fundus": "0.4,0.5,0.6", "skin": "0.5,0.6,0.7"}


def _tuning(domain: str) -> Study:
    """Settings, over phantoms that nothing else is measured on. What does not edit is there for `compare` alone."""
    own, commands = _DOMAINS[domain].defaults, []
    for name, strengths, diseased, guidance in (
        ("tuning", _TRIED[domain], [], own.guidance_scale),
        ("tuning-back", f"{own.strength:g}", ["--diseased"], own.regression_guidance_scale),
    ):
        phantoms, runs, still = (f"{domain}-{name}-{what}" for what in ("phantoms", "runs", "input"))
        grid = (f"strength={strengths}", "inversion=noise,ddim", "beta2=0.75,0.9")
        words = [word for axis in grid for word in ("--grid", axis)]
        commands += [
            _phantoms(8, "--validation", *diseased, "--domain", domain, output=phantoms),
            _sweep(phantoms, runs, *words, domain=domain, guidance=guidance),
            _sweep(phantoms, still, "--grid", "method=previous", domain=domain, guidance=guidance),
            _compare(domain, [runs, still], f"{domain}-{name}", *_BY, phantoms=phantoms),
        ]
    return Study(
        commands,
        lambda work: {way: _collect_methods(work / f"{domain}-{way}")["methods"] for way in ("tuning", "tuning-back")},
    )


def _strength(domain: str) -> list[str]:
    return ["--strength", f"{_DOMAINS[domain].defaults.strength:g}"]


def _compare(domain: str, runs: Sequence[str], output: str, *words: str, phantoms: str = "") -> list[str]:
    maps = WORK / (phantoms or f"{domain}-phantoms") / "structures"
    structures = [] if domain == "chest" else ["--structures", str(maps)]
    return ["pie-engine", "compare", *(str(WORK / name) for name in runs), *_judge(domain), *structures, *words,
            "--output", str(WORK / output)]  # fmt: skip


def confidence_of(measures: Figures) -> str:
    """The classifier's measure; these studies have one."""
    return next(name for name in measures if name.startswith(CONFIDENCE))


def _collect_methods(folder: Path) -> Figures:
    found = _read(folder / "summary.json")
    for row in found["matched"]:
        del row["by_patient"]
    for own in found["methods"].values():
        shown = [name for name in own["final"] if name.startswith(CONFIDENCE) or name in (SSIM, STRUCTURE)]
        shown.append("change_inside")
        own["final"] = {name: own["final"][name] for name in (*shown, "decoded_leakage")}
        own["rounds"] = {name: own["rounds"][name] for name in shown}
    return {name: found[name] for name in ("methods", "matched", "interval", "models")}


def _collect_sweep(name: str) -> Callable[[Path], Figures]:
    def collect(work: Path) -> Figures:
        found = _read(work / name / "summary.json")
        for cell in found["cells"]:
            kept = (confidence_of(cell["final"]), SSIM, "decoded_leakage")
            cell["final"] = {measure: cell["final"][measure] for measure in kept}
            del cell["by_round"]
        return {key: found[key] for key in ("grid", "patients", "stable", "verdict", "cells", "similarity", "interval")}

    return collect


def _collect_regression(work: Path) -> Figures:
    return _read(work / "regression" / "regression.json")


def _collect_align(work: Path) -> Figures:
    found = _read(work / "align" / "summary.json")
    return {name: found[name] for name in ("runs", "patients", "prompts", "test", "rises", "matrix", "interval")}


STUDIES = {
    **{"methods" if name == "chest" else f"methods-{name}": _methods(name) for name in DOMAINS},
    **{f"settings-{name}": _settings(name) for name in DOMAINS[1:]},
    **{f"tuning-{name}": _tuning(name) for name in DOMAINS[1:]},
    "strength": Study([_phantoms(10, output="ten"), _sweep("ten", "strength", "--recipe", "strength")],
                      _collect_sweep("strength")),
    "mask": Study([_phantoms(20), _sweep("phantoms", "mask", "--recipe", "mask")], _collect_sweep("mask")),
    "regression": Study(
        [["python", "-m", "pie_engine.demo.regression", "--patients", "10", "--output", str(WORK / "regression")]],
        _collect_regression,
    ),
    "align": Study(
        [
            _phantoms(10, "--findings", output="findings"),
            _sweep("findings", "prompts", "--recipe", "healthy"),
            ["pie-engine", "align", str(WORK / "prompts"), *_CLIP, "--output", str(WORK / "align")],
        ],
        _collect_align,
    ),
}  # fmt: skip
