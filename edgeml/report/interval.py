"""How sure a change in a share is, when both models saw the same samples.

The float model and the artifact answer the same samples, so only those on which
exactly one of them is right say anything: ``gained`` and ``lost``.
"""

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Change:
    """A change of a share and its 95 % interval, both in shares (0.01 = a point)."""

    value: float
    low: float
    high: float
    method: str

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_change(gained: int, lost: int, samples: int) -> Change:
    """Change of a share of right answers between two models on the same samples.

    Half a sample is added to each of the four cells, which keeps the interval
    honest for few or no discordant samples.

    Args:
        gained: Samples that only the new model gets right.
        lost: Samples that only the old model gets right.
        samples: All samples.

    Raises:
        ValueError: counts are negative or exceed ``samples``, or no sample is there.

    References:
        Agresti and Min, "Simple improved confidence intervals for comparing matched
        proportions", Statistics in Medicine 24 (2005).
    """
    if samples < 1 or min(gained, lost) < 0 or gained + lost > samples:
        raise ValueError(
            f"expected 0 <= gained + lost <= samples, found {gained}, {lost}, {samples}"
        )
    total = samples + 2
    middle = (gained - lost) / total
    discordant = gained + lost + 1
    spread = Z_95 * math.sqrt(discordant - (gained - lost) ** 2 / total) / total
    return Change(
        value=(gained - lost) / samples,
        low=max(-1.0, middle - spread),
        high=min(1.0, middle + spread),
        method=f"paired samples, {lost} lost and {gained} gained (Agresti-Min)",
    )


def bounded_change(before: int, after: int, flipped: int, samples: int) -> Change:
    """The widest interval that ``flipped`` changed answers allow.

    Used where it is known how many answers changed but not which became right.

    Args:
        before: Right answers of the old model.
        after: Right answers of the new one.
        flipped: Answers that changed.
        samples: All samples.
    """
    difference = after - before
    # Discordant samples have the parity of the difference and are flips.
    both = max(0, min(flipped, samples) - abs(difference)) // 2
    gained, lost = both + max(difference, 0), both + max(-difference, 0)
    if gained + lost > samples:
        gained, lost = max(difference, 0), max(-difference, 0)
    change = paired_change(gained, lost, samples)
    method = f"paired samples, at most {flipped} discordant (Agresti-Min)"
    return Change(change.value, change.low, change.high, method)


def wilson(right: int, samples: int) -> tuple[float, float]:
    """95 % interval of one share.

    References:
        Wilson, "Probable inference, the law of succession, and statistical
        inference", JASA 22 (1927).
    """
    share, z2 = right / samples, Z_95**2
    middle = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    inner = share * (1 - share) / samples + z2 / (4 * samples**2)
    spread = Z_95 * math.sqrt(inner) / (1 + z2 / samples)
    return max(0.0, middle - spread), min(1.0, middle + spread)
