"""Known holes in the pinned requirements of a file, by pip-audit: `python tests/support/known_holes.py FILE`.

Exits with 1 where there is one. What could not be looked up is said: an index that knows none of the packages, or none
that can be reached, is no clean bill.
"""

from __future__ import annotations

import json
import subprocess
import sys

# What pip-audit says where its list cannot be fetched, in lower case.
_UNREACHABLE = ("connectionerror", "serviceerror", "connect", "timed out", "resolve")


def audit(requirements: str) -> tuple[int, list[str]]:
    """An exit code, and what to say."""
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--no-deps", "--disable-pip"]
    command += ["--format", "json", "--requirement", requirements]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.splitlines() or ["it said nothing"])[-1]
        if any(word in done.stderr.lower() for word in _UNREACHABLE):
            return 0, [f"pip-audit skipped, its list cannot be fetched: {last}"]
        return done.returncode or 1, [f"pip-audit failed: {last}"]
    unknown = [one for one in packages if "skip_reason" in one]
    known = [one for one in packages if "skip_reason" not in one]
    if not known:
        return 0, [f"pip-audit skipped, the index that it asked knows none of the {len(packages)} packages"]
    found = [
        f"{one['name']} {one['version']}: {hole['id']}, mended in {', '.join(hole['fix_versions']) or 'no version yet'}"
        for one in known
        for hole in one["vulns"]
    ]
    said = [f"{len(known)} packages looked up, {len(found)} known holes", *found]
    if unknown:
        said.append(f"not looked up: {', '.join(one['name'] for one in unknown)}")
    return int(bool(found)), said


if __name__ == "__main__":
    code, lines = audit(sys.argv[1])
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.exit(code)
