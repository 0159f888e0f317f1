"""A run that was interrupted, as a folder: what it holds, and whether the run that is to go on is the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.errors import ConfigError, argument, mention, use
from pie_engine.files import sha256_file
from pie_engine.outputs.write import LATENTS, PROVENANCE
from pie_engine.rounds.resuming import Finished

# What has to be the same for the rounds that are left to be those that an undisturbed run has.
_SAME = ("settings", "method", "item_id", "input", "simulated", "model", "backend", "runtime", "versions")


@dataclass(frozen=True)
class Partial:
    """An interrupted run.

    Attributes:
        folder: where it lies.
        provenance: how its rounds came to be.
        finished: these rounds.
    """

    folder: Path
    provenance: dict[str, Any]
    finished: Finished

    def check(self, now: Mapping[str, Any]) -> None:
        """Refuse to go on otherwise than it began.

        Args:
            now: the provenance of the run that is to go on, as far as it is known.

        Raises:
            ConfigError: a setting, an input, the model or the machine differs; the line names the first.
        """
        for part in _SAME:
            if part not in now:
                continue
            for name, before, after in _differences(self.provenance.get(part), now[part], part):
                raise ConfigError(
                    f"{name} was {json.dumps(before)} in the run that was interrupted in {self.folder} and is "
                    f"{json.dumps(after)} now; go on with what it began with, or run it again without "
                    f"{argument('resume')}"
                )


def read_partial(folder: str | Path) -> Partial | None:
    """The interrupted run in a folder; None where there is none and nothing else either.

    Raises:
        ConfigError: the folder holds a whole result or something else, a file of it was changed, or its rest cannot be
            what an undisturbed run gives.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    anew = f"leave out {argument('resume')} to run it again"
    try:
        provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        partial = provenance.get("partial")
        if partial is None:
            raise ConfigError(f"{folder} holds a whole result, with nothing to resume; {anew}")
        if provenance["method"]["name"] not in ("pie", "control"):
            raise ConfigError(
                f"method {provenance['method']['name']!r} has no rounds that go on from each other; {anew}"
            )
        if provenance["reruns"]:
            rerun = provenance["reruns"][0]
            raise ConfigError(
                f"{rerun['component']} ran in {rerun['to']} from round {rerun['round']} on, since values were not "
                f"finite in {rerun['from']}, and would begin in {rerun['from']} again; pass "
                f"{use('dtype', rerun['to'])} and {anew}"
            )
        if sha256_file(folder / LATENTS) != partial["latents_sha256"]:
            raise ConfigError(f"{folder / LATENTS} is not what the interrupted run wrote (SHA-256); {anew}")
        arrays = load_file(folder / LATENTS)
        seconds = tuple(provenance["seconds"]["rounds"])
        blends = tuple(np.reshape(taken, (-1, 1)) for taken in provenance.get("pace", {}).get("blends", ()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{folder} holds no interrupted run ({type(error).__name__}: {error}); pass "
            f"the {mention('output')} of one, or {anew}"
        ) from error
    return Partial(folder, provenance, Finished(arrays["latents"], arrays["original_latent"], seconds, blends))


def _differences(before: Any, after: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """What differs, by its place; of mappings only what both sides know of, for some of it comes with the run."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in after:
            yield from _differences(before.get(key), after[key], f"{name}.{key}")
    elif name != "versions.python" and json.loads(json.dumps(after)) != before:
        yield name.removeprefix("settings."), before, after
