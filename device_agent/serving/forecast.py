"""What the next run of a model will take, from what the latest took.

The rules it keeps:

1. Runs of about the same rows are smoothed together (1, 2-3, 4-7, 8-15, …): a model
   need not take eight times as long for eight rows.
2. One run counts at most ``_OUTLIER`` times what was expected: a hiccup of ten seconds
   does not change what is thought of a model of two milliseconds.
3. What was long not measured is doubted: no request is refused for ever because of
   runs of which nobody knows whether they would take as long today.

Times are nanoseconds of one monotonic clock.
"""

from dataclasses import dataclass

_SMOOTHING = 0.1
"""Weight of the newest run."""
_OUTLIER = 4.0
_TRUST_RUNS = 10
"""A measured run is believed for as long as this many of its kind would take: so much
of the time a model that is too slow for its callers is not tried again."""
_TRUST_NS_MAX = 30e9


@dataclass(slots=True)
class _Measured:
    row_ns: float
    until_ns: float = 0.0
    """When it is no longer believed."""


class Forecast:
    """Expected times of one model."""

    def __init__(self, row_ns: float) -> None:
        self.row_ns = max(row_ns, 1.0)
        """A run of one row (read on the hot path)."""
        self.mean_ns = self.row_ns
        """A row, whatever the size of the run that it was part of."""
        self._sizes: dict[int, _Measured] = {}

    def expected_ns(self, rows: int) -> float:
        """A run of ``rows`` rows; sizes that were never run: in proportion."""
        if rows <= 1:
            return self.row_ns
        measured = self._sizes.get(rows.bit_length())
        return rows * (measured.row_ns if measured else self.row_ns)

    def ran(self, rows: int, took_ns: int, now_ns: int, *, trial: bool = False) -> None:
        """A run ended at ``now_ns``.

        ``trial``: what was expected was doubted, so this alone is what is known now.
        """
        rows = rows or 1
        row_ns = max(took_ns / rows, 1.0)
        self.mean_ns = _smoothed(self.mean_ns, row_ns)
        measured = self._sizes.get(rows.bit_length())
        known = rows == 1 or measured is not None
        if measured is None:
            measured = self._sizes[rows.bit_length()] = _Measured(self.row_ns)
        old_ns = self.row_ns if rows == 1 else measured.row_ns
        if trial:
            new_ns = row_ns
        elif known:
            new_ns = _smoothed(old_ns, row_ns)
        else:
            new_ns = min(row_ns, _OUTLIER * old_ns)
        measured.row_ns = new_ns
        if rows == 1:
            self.row_ns = new_ns
        trusted_ns = _TRUST_RUNS * min(took_ns, _OUTLIER * old_ns * rows)
        measured.until_ns = now_ns + min(trusted_ns, _TRUST_NS_MAX)

    def ran_one(self, took_ns: int) -> None:
        """A run of one row ended, on the event loop: the same at a third of the cost.

        It is not noted when; what is fast enough for the loop is never refused because
        of what is expected of it.
        """
        row_ns = self.row_ns
        most_ns = _OUTLIER * row_ns
        self.row_ns += _SMOOTHING * (
            (took_ns if took_ns < most_ns else most_ns) - row_ns
        )

    def trusted_ns(self, rows: int, now_ns: int) -> float:
        """For how long what is expected of ``rows`` rows is still believed; 0: not."""
        measured = self._sizes.get((rows or 1).bit_length())
        return max(0.0, measured.until_ns - now_ns) if measured else 0.0


def _smoothed(old: float, new: float) -> float:
    most = _OUTLIER * old
    value = old + _SMOOTHING * ((new if new < most else most) - old)
    return value if value > 1.0 else 1.0
