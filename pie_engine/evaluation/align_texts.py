"""The texts that runs are compared with, and how similar each run's frames are to each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pie_engine.equality import ByContent
from pie_engine.errors import InputError, argument
from pie_engine.evaluation.runs import Run
from pie_engine.metrics.clip import ClipEncoder, similarity
from pie_engine.metrics.controls import negate, shuffle_words

OWN, OTHER, LINE, SHUFFLED, NEGATED, EMPTY = "own", "other", "line", "shuffled", "negated", "empty"
# Longer than any report; a binary file that is named by mistake is not read into memory.
_MOST_BYTES = 1_000_000


@dataclass(frozen=True, eq=False)
class Line(ByContent):
    """One text's similarity to the frames of one run.

    Attributes:
        role: "own" (the run's prompt), "other" (another run's), "line" (of --prompts), or a control made from the run's
            own prompt: "shuffled" (mean over several orders of its words), "negated", "empty".
        text: the text; for "shuffled" the first of its orders.
        values: [N + 1], the input's first.
    """

    role: str
    text: str
    values: np.ndarray

    @property
    def rise(self) -> float:
        """From the input to the last round."""
        return float(self.values[-1] - self.values[0])


@dataclass(frozen=True)
class Aligned:
    """One run against every text. `lines` begins with its own prompt."""

    run: Run
    prompt: str
    lines: tuple[Line, ...]

    def rise(self, prompt: str) -> float:
        """Of one of the runs' prompts."""
        return next(line.rise for line in self.lines if line.role in (OWN, OTHER) and line.text == prompt)


class Texts:
    """Every text that runs are compared with; each is embedded once.

    Attributes:
        prompts: the runs' own, each once. lines: further texts that are none of them, each once.
    """

    def __init__(self, encoder: ClipEncoder, prompts: Sequence[str], lines: Sequence[str], seed: int):
        self._encoder = encoder
        self.prompts = list(dict.fromkeys(prompts))
        self.lines = [line for line in dict.fromkeys(lines) if line not in self.prompts]
        # Controls that are the prompt itself, as for an empty prompt, say nothing and are left out.
        self._shuffled = {prompt: shuffle_words(prompt, seed) for prompt in self.prompts}
        self._negated = {prompt: negated for prompt in self.prompts if (negated := negate(prompt)) != prompt}
        orders = [order for some in self._shuffled.values() for order in some]
        every = dict.fromkeys([*self.prompts, *self.lines, *orders, *self._negated.values(), ""])
        self._rows = dict(zip(every, encoder.text_features(list(every)), strict=True))

    def compare(self, run: Run) -> Aligned:
        """Raises InputError: frames are missing or damaged."""
        prompt = prompt_of(run)
        found = similarity(self._encoder.features(run.frames()), np.stack(list(self._rows.values())))  # [N + 1, texts]
        column = dict(zip(self._rows, found.T, strict=True))
        others = [other for other in self.prompts if other != prompt]
        lines = [Line(OWN, prompt, column[prompt])]
        lines += [Line(OTHER, text, column[text]) for text in others]
        lines += [Line(LINE, text, column[text]) for text in self.lines]
        if orders := self._shuffled[prompt]:
            lines.append(Line(SHUFFLED, orders[0], np.mean([column[order] for order in orders], axis=0)))
        if prompt in self._negated:
            lines.append(Line(NEGATED, self._negated[prompt], column[self._negated[prompt]]))
        if prompt:
            lines.append(Line(EMPTY, "", column[""]))
        return Aligned(run, prompt, tuple(lines))

    def truncated(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Prompts and lines of which CLIP, or the model that simulated, did not read all.

        Returns:
            "text"; "tokens" it needs of CLIP, begin and end included, and CLIP's "limit"; what was "cut_off_by_clip"
            and "cut_off_by_model" (from provenance), None where nothing was.
        """
        by_model = {prompt_of(run): run.provenance["simulated"].get("prompt_cut_off") for run in runs}
        found = []
        for text in [*self.prompts, *self.lines]:
            tokens, cut = self._encoder.read_length(text)
            if cut or by_model.get(text):
                found.append(
                    {
                        "text": text,
                        "tokens": tokens,
                        "limit": self._encoder.text_length,
                        "cut_off_by_clip": cut or None,
                        "cut_off_by_model": by_model.get(text) or None,
                    }
                )
        return found


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not blank.

    Raises:
        InputError: it cannot be read, is not UTF-8, or holds no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"prompts {path} cannot be read ({type(error).__name__}); pass a UTF-8 text file, one prompt per line"
        ) from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"prompts {path} is longer than {_MOST_BYTES:,} bytes; pass a text file, one prompt per line")
    if not any(lines):
        raise InputError(f"prompts {path} holds no text; write one prompt per line")
    return [line for line in lines if line]


def prompt_of(run: Run) -> str:
    """What the run moved towards. Raises InputError: provenance does not say it, or it changed over the rounds."""
    try:
        prompt = run.provenance["simulated"]["prompt"]
        changes = any("prompt" in rounds for rounds in run.provenance["settings"].get("schedule") or ())
    except (LookupError, TypeError) as error:
        raise InputError(f"{run.name} does not say its prompt; run pie-engine run again") from error
    if changes:
        raise InputError(
            f"the prompt of {run.name} changes over its rounds ({argument('schedule')}); leave that run out"
        )
    if not isinstance(prompt, str):
        raise InputError(f"the prompt of {run.name} is not text; run pie-engine run again")
    return prompt
