"""Even pace by severity: the displacements to reach, moved so that what a measure sees rises in equal parts.

One pass of rounds that are even in displacement says how severe each displacement looks. The second pass, whose frames
are the run's, then aims at the displacements whose severities lie evenly between the input's and the end's.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_engine.errors import ConfigError, InputError, mention, use

if TYPE_CHECKING:
    from pie_engine.config import RunConfig
    from pie_engine.metrics.severity import Severity, SeverityMeasure
    from pie_engine.rounds.equations import OnStep
    from pie_engine.rounds.finishing import Frames
    from pie_engine.rounds.loop import Loop

log = logging.getLogger(__name__)
# A severity that falls back by more than this share of its whole rise does not rise along the run.
_FALLS = 0.1


def choose_severity(config: RunConfig, given: SeverityMeasure | None = None) -> Severity | None:
    """What is to rise evenly instead of the displacement: what is given, or the classifier that the settings name.

    Raises:
        ConfigError: a severity for a pace that has none, `until` without one, or the classifier cannot be used.
        CheckpointError, BackendError: see `Classifier`.
    """
    if given is not None and config.pace == "constant":
        raise ConfigError(f"severity sets the pace, and pace is {config.pace!r}; pass {use('pace', 'even')} with it")
    if given is None and config.severity is None:
        if config.until is not None:
            raise ConfigError(
                f"{mention('until')} is a classifier's confidence, and none sets the pace; "
                f"pass {use('pace', 'even:CLASSIFIER')}"
            )
        return None
    from pie_engine.metrics.classifier import Classifier  # SciPy, which other runs do without
    from pie_engine.metrics.severity import Severity

    return Severity.of(given or Classifier(config.severity or ""))


def run_severity_pass(
    loop: Loop, config: RunConfig, aims: np.ndarray, items: Sequence[Frames], severity: Severity, on_step: OnStep
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Run all rounds of a batch whose pilot has been run, and make it aim at evenly rising severities.

    Args:
        aims: the displacements that rise evenly, [N, R, B] (`pie_engine.rounds.pace.targets`).
        items: as they are before the first round.
        on_step: called after each U-Net evaluation.

    Returns:
        The displacements to reach instead, [N, R, B], and what provenance says of each item's severity.

    Raises:
        InputError: an item is as severe as `until` asks for before its first round.
        BackendError: values are not finite. ConfigError, CheckpointError: see `Classifier.confidence`.
    """
    seen = [[item.frames[0]] for item in items]
    for result in loop.rounds(on_step):
        for pictures, item, decoded in zip(seen, items, result.frames.numpy(), strict=True):
            pictures.append(item.finish(decoded[None])[0])
    moved, facts = aims.copy(), []
    for i, (pictures, item) in enumerate(zip(seen, items, strict=True)):
        values = np.asarray(severity.measure(np.stack(pictures)), np.float64)
        when, why = when_reached(severity.scale(values), _until(config, severity, values, item.item.item_id))
        if when is None:
            log.warning(
                "item %s: %s %s along the run; its frames are even in displacement instead",
                item.item.item_id, severity.name, why,
            )  # fmt: skip
        else:
            if why:
                log.warning("item %s: %s %s; the last frame is the run's end", item.item.item_id, severity.name, why)
            moved[:, :, i] = at_times(aims[:, :, i], when)
        facts.append({
            "name": severity.name, **severity.facts, "followed": when is not None,
            "of_even_displacement": [round(float(value), 6) for value in values],
        })  # fmt: skip
    loop.plan.pace(moved)
    loop.plan.buffers.x.copy_(loop.plan.original_latent)
    return moved, facts


def when_reached(curve: np.ndarray, until: float | None) -> tuple[np.ndarray | None, str]:
    """When a run has come n/N of the way in severity, as numbers of its rounds between 0 and N; straight between them.

    Args:
        curve: [N + 1], the severity after rounds 0 (the input) to N.
        until: the severity of the last frame; None for the run's own.

    Returns:
        [N], not falling; None for a curve that does not rise (or fall) along the run; and what there is to say.
    """
    count = len(curve) - 1
    rise = (curve - curve[0]) * (-1.0 if curve[-1] < curve[0] else 1.0)
    end = float(rise[-1])
    highest = np.maximum.accumulate(rise)
    if end <= 0 or float((highest - rise).max()) > _FALLS * end:
        return None, "does not rise"
    aim, said = end, ""
    if until is not None:
        asked = abs(until - curve[0])
        aim, said = min(asked, end), "does not come so far" if asked > end else ""
    # Nowhere level, so that there is one time for every severity; a tie is the earliest of its times but at the end.
    climbing = np.minimum(highest, end) + np.linspace(0, 1e-9 * end, count + 1)
    shares = np.arange(1, count + 1) / count
    when = np.interp(shares * aim, climbing, np.arange(count + 1.0))
    if aim == end:
        when[-1] = count
    return when, said


def at_times(aims: np.ndarray, when: np.ndarray) -> np.ndarray:
    """Displacements [N, R] after rounds 1 to N, taken at times between them, [N, R]."""
    times, path = np.arange(len(aims) + 1.0), np.concatenate([np.zeros_like(aims[:1]), aims])
    return np.stack([np.interp(when, times, path[:, finding]) for finding in range(aims.shape[1])], axis=1)


def _until(config: RunConfig, severity: Severity, values: np.ndarray, item_id: str) -> float | None:
    """The last frame's severity, scaled; refused where the input has it already."""
    if config.until is None:
        return None
    first, last = float(values[0]), float(values[-1])
    if (config.until - first) * (last - first) <= 0:
        raise InputError(
            f"item {item_id} begins at {severity.name} {first:.3g} and moves to {last:.3g}, away from "
            f"{mention('until')} {config.until:g}; pass {use('until', f'{(first + last) / 2:.2g}')}"
        )
    return float(severity.scale(np.array([config.until]))[0])
