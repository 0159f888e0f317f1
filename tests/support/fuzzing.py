"""How long generated tests look: a bounded, repeatable search in the suite, a long and new one with `make fuzz`."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

# Files are written to one folder per test, again and again.
_QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
# What a long search found is tried first by the next one.
_FOUND = Path(__file__).parents[2] / "build" / "fuzz"


def register() -> None:
    """The profiles of this suite; the one that HYPOTHESIS_PROFILE names holds, else "ci"."""
    settings.register_profile(
        "ci", max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=_QUIET
    )
    settings.register_profile(
        "fuzz",
        max_examples=int(os.environ.get("FUZZ_EXAMPLES", "5000")),
        deadline=None,
        database=DirectoryBasedExampleDatabase(_FOUND),
        suppress_health_check=_QUIET,
    )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
