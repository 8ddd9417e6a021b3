"""Fetching metadata from a server that may do anything.

The rules it keeps:

1. Lengths, the time for all of it, the wait for the next byte and the rate are bounded;
   bytes are counted as they come, never after.
2. No redirect is followed: a registry is where the device was told it is. No proxy, no
   cookie and no password of the environment is used.
3. Content is taken as it is stored: nothing is decompressed.
4. Mirrors are asked in turn; nothing is believed because of where it came from.
"""

import time
from collections.abc import Callable, Iterator, Sequence

import urllib3
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    SlowRetrievalError,
)
from tuf.ngclient import FetcherInterface

from .wire import FetchLimits

_CHUNK_BYTES = 16 << 10
_TEXT_CHARS_MAX = 200


class Fetcher(FetcherInterface):
    """The network as ngclient sees it."""

    def __init__(
        self,
        urls: Sequence[str],
        limits: FetchLimits,
        ca: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin; the time for everything runs from here.

        Args:
            urls: Mirrors; those of one registry. URLs are asked for as if from the
                first.
            limits: What a server may do.
            ca: File of certificates; None: the system's.
            clock: Seconds, monotonic.
        """
        self._urls = tuple(urls)
        self._limits = limits
        self._clock = clock
        self._deadline = clock() + limits.total_s
        self._pool = urllib3.PoolManager(
            ca_certs=ca, retries=False, headers={"Accept-Encoding": "identity"}
        )

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As ngclient asks for it, without a temporary file.

        Raises:
            DownloadError: no mirror gave it within the limits.
        """
        missing: DownloadError | None = None
        last: DownloadError | None = None
        for mirror in self._of(url):
            try:
                return b"".join(self._limited(mirror, max_length))
            except DownloadHTTPError as error:
                missing = missing or error
            except DownloadError as error:
                last = last or error
        # "not there" is an answer (no newer root); silence is none
        raise missing or last or DownloadError("no registry is configured")

    def _limited(self, url: str, max_length: int) -> Iterator[bytes]:
        count = 0
        for chunk in self._fetch(url):
            count += len(chunk)
            if count > max_length:
                raise DownloadLengthMismatchError(
                    f"{url} has more than {max_length} bytes"
                )
            yield chunk

    def _fetch(self, url: str) -> Iterator[bytes]:
        left = self._left(url)
        wait = min(self._limits.wait_s, left)
        try:
            response = self._pool.request(
                "GET", url, redirect=False, preload_content=False,
                timeout=urllib3.Timeout(connect=wait, read=wait),
            )  # fmt: skip
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as cause:
            raise DownloadError(f"{url}: {_short(cause)}") from cause
        with response:
            if 300 <= response.status < 400:
                raise DownloadError(
                    f"{url} redirects to {_short(response.headers.get('location'))}; "
                    "redirects are not followed: give the registry's own URL"
                )
            if response.status != 200:
                raise DownloadHTTPError(
                    f"{url}: HTTP status {response.status}", response.status
                )
            yield from self._body(url, response)

    def _body(self, url: str, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        begun, count = self._clock(), 0
        while True:
            try:
                chunk = response.read1(_CHUNK_BYTES, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError) as cause:
                raise DownloadError(f"{url}: {_short(cause)}") from cause
            if not chunk:
                return
            yield chunk
            count += len(chunk)
            self._left(url)
            spent = self._clock() - begun
            if spent > self._limits.grace_s:
                rate = count / spent
                if rate < self._limits.bytes_per_s:
                    raise SlowRetrievalError(f"{url} comes with {rate:.0f} bytes/s")

    def _left(self, url: str) -> float:
        left = self._deadline - self._clock()
        if left <= 0:
            raise SlowRetrievalError(
                f"{url}: {self._limits.total_s:.0f} s for all metadata are over"
            )
        return left

    def _of(self, url: str) -> Iterator[str]:
        first = self._urls[0]
        for mirror in self._urls:
            yield mirror + url.removeprefix(first) if url.startswith(first) else url


def _short(what: object) -> str:
    return " ".join(str(what).split())[:_TEXT_CHARS_MAX]
