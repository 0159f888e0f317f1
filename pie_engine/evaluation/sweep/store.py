"""The folder of a sweep: which of its runs are there already, and whether they are what is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_engine import __version__
from pie_engine.config import METHOD_OPTIONS
from pie_engine.errors import OutputError, argument, mention
from pie_engine.evaluation.runs import find_runs
from pie_engine.evaluation.sweep.runs import KEY
from pie_engine.files import check_folder, write_file, writing
from pie_engine.imaging.item import findings_of
from pie_engine.outputs.frames import STATEMENT

if TYPE_CHECKING:
    from pie_engine.engine import PieEngine
    from pie_engine.evaluation.sweep.design import PlannedRun

MARKER = "sweep.json"
_REMEDY = f"pass another {argument('output')}, or remove it"


def check_output(output: Path) -> None:
    """Refuse a folder that is no sweep's, before any work is done.

    Raises:
        OutputError: it is a file, holds something else than a sweep, or cannot be written.
    """
    if not (output / MARKER).is_file():
        check_folder(output, replaceable=MARKER)


def open_output(output: Path, engine: PieEngine) -> None:
    """Make the folder, or check that its runs are of this model, backend and version.

    Raises:
        OutputError: they are not; and see `check_output`.
    """
    check_output(output)
    backend = engine.backend
    made_with = {
        "version": __version__,
        "model": dict(backend.model.hashes),
        "backend": backend.name,
        "precisions": dict(backend.precisions),
    }
    if not (output / MARKER).is_file():
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        content = {"statement": STATEMENT, "synthetic": True, "what": "runs of a sweep", **made_with}
        write_file(output / MARKER, json.dumps(content, indent=2) + "\n")
        return
    try:
        known = json.loads((output / MARKER).read_text(encoding="utf-8"))
        for name, value in made_with.items():
            if known[name] != value:
                shown = "" if name == "model" else f" {_shown(known[name])}, not {_shown(value)}"
                raise OutputError(f"the runs in {output} are of another {name}{shown}; {_REMEDY}")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise OutputError(f"{output / MARKER} is damaged ({type(error).__name__}); {_REMEDY}") from error


def is_done(run: PlannedRun, output: Path, facts: dict[str, Any]) -> bool:
    """Whether the folder holds this run.

    Args:
        run: with its resolution filled in.
        facts: what provenance says of its inputs.

    Raises:
        OutputError: there is another run in its place. InputError: it is damaged.
    """
    folder = output / run.folder
    if not folder.exists():
        return False
    provenance = find_runs([folder])[0].provenance
    try:
        known = provenance["settings"] | {"prompt": provenance["simulated"]["prompt"], "item_id": provenance["item_id"]}
        # As it was asked for: what was filled in for an option that was left out is no option that was given.
        asked = provenance[KEY]["method"]
        known |= {"method": asked["name"], **{name: asked.get(name) for name in METHOD_OPTIONS}}
        inputs = provenance["input"]
    except (LookupError, TypeError) as error:
        raise OutputError(f"{folder} holds no run of a sweep ({type(error).__name__}); {_REMEDY}") from error
    method = {"method": run.method.name, **{name: getattr(run.method, name) for name in METHOD_OPTIONS}}
    prompt = run.method.healthy_prompt or " + ".join(findings_of(run.item))
    wanted = run.config.to_dict() | method | {"prompt": prompt, "item_id": run.item.item_id}
    for name in sorted(wanted | known):
        if known.get(name) != wanted.get(name):
            change = f"{_shown(known.get(name))}, not {_shown(wanted.get(name))}"
            raise OutputError(f"{folder} was simulated with {mention(name)} {change}; {_REMEDY}")
    for name in sorted(inputs | facts):
        if inputs.get(name) != json.loads(json.dumps(facts.get(name))):
            what = {"image_sha256": "image", "roi": "region of interest", "mask_sha256": "mask"}.get(
                name, f"input ({name})"
            )
            raise OutputError(f"{folder} was simulated with another {what}; {_REMEDY}")
    return True


def _shown(value: Any) -> str:
    if value is None:
        return "the default"
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return repr(value) if isinstance(value, str) else str(value)
