"""Texts to compare a prompt with: its words in another order, and its opposite."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter

import numpy as np

ORDERS = 8
_BETWEEN = re.compile(r"(?<=[.;!?])\s+")
_VERB = re.compile(r"\b(is|are|was|were|has|have)\b", re.IGNORECASE)
_NO = re.compile(r"^no\s+", re.IGNORECASE)


def shuffle_words(prompt: str, seed: int = 0, count: int = ORDERS) -> list[str]:
    """The prompt's words, split at spaces, in up to `count` other orders: all different, none the prompt's own.

    Returns:
        None of them where the words have no other order.
    """
    words = prompt.split()
    repeats = Counter(words).values()
    others = math.factorial(len(words)) // math.prod(math.factorial(repeat) for repeat in repeats) - 1
    # Seeded by the text too, so that a prompt's orders do not depend on which other prompts there are.
    key = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    rng = np.random.default_rng([seed, key])
    unchanged, found = " ".join(words), dict[str, None]()
    while len(found) < min(count, others):
        order = " ".join(words[index] for index in rng.permutation(len(words)))
        if order != unchanged:
            found[order] = None
    return list(found)


def negate(prompt: str) -> str:
    """English: the opposite of each sentence of a report.

    A sentence that begins with "no" loses it; one with "is", "are", "was", "were", "has" or "have" has "not" after the
    first of them; any other has "No" before it. "Cardiomegaly. The heart is enlarged." becomes "No cardiomegaly. The
    heart is not enlarged." It is grammar alone: "not mildly enlarged" may be read as severely so. Findings joined by
    " + ", as provenance has those of a run with several, are each negated.
    """
    return " + ".join(
        " ".join(_negate(sentence) for sentence in _BETWEEN.split(finding.strip()) if sentence)
        for finding in prompt.split(" + ")
    )


def _negate(sentence: str) -> str:
    if _NO.match(sentence):
        rest = _NO.sub("", sentence)
        return rest[:1].upper() + rest[1:]
    if _VERB.search(sentence):
        return _VERB.sub(lambda found: f"{found[0]} not", sentence, count=1)
    first = sentence[0] if sentence[1:2].isupper() else sentence[0].lower()  # an abbreviation stays as it is
    return f"No {first}{sentence[1:]}"
