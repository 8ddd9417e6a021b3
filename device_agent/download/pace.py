"""How fast a download is, and how fast it may be."""

from collections.abc import Callable

from .rules import DownloadLimits


class Pace:
    """Whether the other side keeps up, and whether we should wait."""

    def __init__(self, limits: DownloadLimits, clock: Callable[[], float]) -> None:
        self._limits, self._clock = limits, clock
        self._began = self._window = clock()
        self._bytes = self._window_bytes = 0
        rate = limits.rate_bytes_s
        self._least = limits.slow_bytes_s
        if rate is not None:
            self._least = min(self._least, rate / 4)

    def took(self, size: int) -> tuple[str, float]:
        """After some bytes: why it is too slow, or "", and how long to wait."""
        now = self._clock()
        self._bytes += size
        self._window_bytes += size
        spent_s = now - self._window
        if spent_s >= self._limits.slow_s:
            if self._window_bytes < self._least * spent_s:
                return (
                    f"{self._window_bytes} bytes came in {spent_s:.0f} s; expected at "
                    f"least {self._least:g} a second"
                ), 0.0
            self._window, self._window_bytes = now, 0
        rate = self._limits.rate_bytes_s
        if rate is None:
            return "", 0.0
        return "", self._bytes / rate - (now - self._began)
