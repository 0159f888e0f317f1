"""What the wheel brings along, as pinned requirements: `pip install pie-engine` without extras, as installed here."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement


def closure(root: str) -> dict[str, str]:
    """Name -> version of everything that a package needs here, itself left out."""
    found: dict[str, str] = {}
    queue: list[tuple[str, frozenset[str]]] = [(root, frozenset())]
    seen = set(queue)
    while queue:
        name, extras = queue.pop()
        try:
            package = distribution(name)
        except PackageNotFoundError:
            continue
        if name != root:
            found[re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()] = package.version
        for line in package.requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
                one = (requirement.name, frozenset(requirement.extras))
                if one not in seen:
                    seen.add(one)
                    queue.append(one)
    return dict(sorted(found.items()))


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version.partition('+')[0]}\n" for name, version in closure("pie-engine").items())
