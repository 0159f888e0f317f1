"""How long generated tests look: `HYPOTHESIS_PROFILE=fuzz` for an hour's search, else a bounded, repeatable one."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Files are written to one folder per test, again and again.
_QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def register() -> None:
    """The profiles of this suite; the one that HYPOTHESIS_PROFILE names holds, else "ci"."""
    settings.register_profile(
        "ci", max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=_QUIET
    )
    settings.register_profile("fuzz", max_examples=5_000, deadline=None, suppress_health_check=_QUIET)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
