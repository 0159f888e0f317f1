"""What a severity from 0 to 1 means, for fundus and skin alike: whom phantoms are drawn from, which words fit them."""

HEALTHY_UP_TO, SEVERE_FROM = 0.12, 0.72  # of phantoms that count as healthy, as severe
SEVERE_SPAN = 0.28  # up to 1; not calculated, as 1 - 0.72 is another float

LIMITS = (0.15, 0.40, 0.70)  # where the reports' second, third and fourth grade start: mild, moderate, severe
OVERLAP = 0.03  # this close to a limit, readers differ


def grades(
    severity: float, names: tuple[str, ...], overlaps: tuple[float, ...] = (OVERLAP, OVERLAP, OVERLAP)
) -> tuple[str, ...]:
    """Which of four names, from healthy to severe, fit a severity: two next to a limit.

    Args:
        overlaps: how far from each of the three limits both names fit.
    """
    limits = list(zip(LIMITS, overlaps, strict=True))
    first = sum(severity >= limit + overlap for limit, overlap in limits)
    last = sum(severity >= limit - overlap for limit, overlap in limits)
    return names[first : last + 1]
