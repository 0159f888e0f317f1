"""Every command, one after another, in this process: which sockets Python code opened, and what each command said.

    python tests/support/offline.py BUNDLE GOLDEN < /dev/null       in an empty folder; prints one JSON object

What libraries open from other languages shows in what they leave on the disk, and needs a namespace without a network.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

_SOCKETS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg",
            "urllib.Request", "http.client.connect")  # fmt: skip
DEMO = Path(__file__).parents[2] / "pie_engine" / "demo"
opened: list[str] = []


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _SOCKETS:
        opened.append(f"{event} {arguments!r}")
        raise OSError(f"{event} is refused")


def commands(bundle: str, golden: Path) -> list[list[str]]:
    """The smallest use of each command, in an order in which each finds what it needs."""
    checkpoint, image, mask = (str(golden / name) for name in ("checkpoint_ddim", "image.png", "mask.png"))
    short = ["--steps", "1", "--num-inference-steps", "2", "--resolution", "32", "--quiet", "--threads", "1"]
    classifier, clip = (str(DEMO / name) for name in ("severity.json", "clip"))
    patient = ["--image", image, "--mask", mask, "--prompt", "heart", *short]
    return [
        ["help"],
        ["doctor"],
        ["build", "--checkpoint", checkpoint, "--output", "built.pie"],
        ["inspect", "built.pie"],
        ["refit", "built.pie", "--unet", str(golden / "checkpoint_pndm" / "unet"), "--output", "refitted.pie"],
        *(["run", "--engine", bundle, "--backend", name, "--output", name, *patient]
          for name in ("onnxruntime", "openvino", "torch")),
        ["run", "--checkpoint", checkpoint, "--output", "from-checkpoint", *patient],
        ["mask", "--image", image, "--mask", mask, "--output", "mask.png"],
        ["view", "torch", "--no-browser"],
        # Two methods and two seeds, which the studies below measure.
        ["sweep", "--engine", bundle, "--backend", "torch", *patient, "--steps", "3", "--grid", "method=pie,vae",
         "--seeds", "0,1", "--classifier", classifier, "--output", "swept"],
        ["eval", "swept/runs", "--classifier", classifier, "--clip", clip, "--output", "evaluation", "--quiet"],
        ["compare", "swept/runs", "--classifier", classifier, "--output", "comparison", "--quiet"],
        ["align", "swept/runs/method=pie", "--clip", clip, "--output", "alignment", "--quiet"],
        ["converge", "swept/runs/method=pie", "--output", "increments.png"],
        ["ensemble", "swept/runs/method=pie", "--output", "ensemble"],
        ["bench", "--engine", bundle, "--backend", "torch", "--quick", "--device", "cpu", "--resolution", "32",
         "--threads", "1", "--limits-scale", "32", "--quiet"],
        ["demo", "--backend", "torch", "--steps", "1", "--quiet"],
        ["clean"],
    ]  # fmt: skip


def main() -> None:
    sys.addaudithook(refuse)
    bundle, golden = sys.argv[1], Path(sys.argv[2])
    from pie_engine.cli.main import main as pie_engine

    outcomes = []
    for words in commands(bundle, golden):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code: Any = pie_engine(words)
            except SystemExit as end:
                code = end.code or 0
        outcomes.append({"command": " ".join(words), "code": code, "said": said.getvalue()})
    print(json.dumps({"opened": opened, "outcomes": outcomes}))  # noqa: T201


if __name__ == "__main__":
    main()
