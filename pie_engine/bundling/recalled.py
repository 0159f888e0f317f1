"""Which bundle of the cache a checkpoint's files became, so that gigabytes need not be read to tell."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pie_engine.bundling.components import cache_folder
from pie_engine.bundling.graphs import exporter_sources, exporter_versions, sources_digest
from pie_engine.checkpoint import LoraSpec, spec
from pie_engine.checkpoint.reads import files_read
from pie_engine.config import BuildConfig
from pie_engine.errors import BundleError
from pie_engine.files import locked
from pie_engine.files.records import file_state, is_settled, read_record, write_record
from pie_engine.model.bundle import FORMAT, Bundle, open_bundle

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recalled:
    """A request for a checkpoint's bundle, with the states of its files as they are before any of them is read.

    Attributes:
        record: where the cache keeps what became of it.
        digest: of the states, and of the code and libraries that would read and export them; None: not to be recalled.
    """

    record: Path
    digest: str | None

    @classmethod
    def of(
        cls, base: str | Path | None, unet: str | Path | None, loras: Sequence[LoraSpec], config: BuildConfig
    ) -> Recalled:
        """Args: see `load_checkpoint` and `cached_bundle`."""
        now = time.time_ns()
        try:
            states = {str(file): file_state(file) for file in files_read(base, unet, loras)}
        except OSError:  # gone since it was found; whoever loads it says so
            states = {}
        asked = [
            *(None if path is None else str(Path(path).absolute()) for path in (base, unet)),
            [[str(lora.path.absolute()), lora.scale] for lora in loras],
            config.precision, config.opset, config.check, config.regional,
        ]  # fmt: skip
        record = cache_folder(config) / "checkpoints" / f"{_digest(asked)}.json"
        told = bool(states) and all(is_settled(state, now) for state in states.values()) and config.engines is None
        code = [FORMAT, exporter_versions(), exporter_sources(), sources_digest(Path(spec.__file__).parent)]
        return cls(record, _digest([states, code]) if told else None)

    def find(self) -> tuple[Bundle, dict[str, str]] | None:
        """The bundle, and where its parts came from; None where the files, or the bundle, are not what they were."""
        known = {} if self.digest is None else read_record(self.record)
        if not known or known.get("files") != self.digest:
            return None
        path = self.record.parents[1] / "bundles" / Path(str(known.get("bundle"))).name
        sources = known.get("sources")
        if not path.is_dir() or not isinstance(sources, dict):
            return None
        with locked(path):
            try:
                return open_bundle(path, remembered=True), sources
            except BundleError as error:
                log.warning("%s; the checkpoint is read again", error)
                return None

    def keep(self, bundle: Bundle, sources: dict[str, str]) -> None:
        """Remember what the request came to."""
        if self.digest is not None:
            write_record(self.record, {"files": self.digest, "bundle": bundle.path.name, "sources": sources})


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode(errors="surrogateescape")).hexdigest()[:32]
