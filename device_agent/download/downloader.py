"""Getting one bundle from its mirrors."""

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError, TimeoutError

from ..contract.codes import Reason
from ..durable import Disk, remove
from ..errors import StorageError, UpdateError
from ..log import event
from .answer import REDIRECTS, redirected, skipped_bytes
from .pace import Pace
from .part import Part
from .rules import (
    MISMATCHES_MAX,
    PART,
    DownloadLimits,
    Evidence,
    InterruptionError,
    MirrorError,
    Wanted,
)

_LOG = logging.getLogger("edgeml.download")


class Downloader:
    """Fetches bundles into one folder, one at a time."""

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        limits: DownloadLimits,
        http: urllib3.PoolManager,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is done yet.

        Args:
            folder: where parts lie; it exists.
            disk: the seam.
            limits: what it may take.
            http: whom it trusts is the pool's business (:func:`pool`).
            clock: seconds that never go back.
            wait: for an event, at most so long; whether it is set.
            jitter: a number in [0, 1).
        """
        self._folder, self._disk, self._limits, self._http = folder, disk, limits, http
        self._clock, self._wait, self._jitter = clock, wait, jitter

    def fetch(
        self,
        wanted: Wanted,
        cancelled: threading.Event,
        progress: Callable[[int], None] = lambda size: None,
    ) -> tuple[Path, Evidence]:
        """Get it; blocks, so to be called in a thread.

        Args:
            wanted: what.
            cancelled: ends it within ``read_s``; what arrived is kept.
            progress: called with the bytes that are there.

        Returns:
            The part: whole, durable and of the right digest.

        Raises:
            UpdateError: it was not to be had; ``evidence`` says how it went.
        """
        evidence = Evidence()
        try:
            path = self._folder / f"{wanted.digest}{PART}"
            part = Part(self._disk, path, self._limits)
            try:
                evidence.found_bytes = part.size
                if part.size > wanted.length:
                    part.restart()
                self._check_room(wanted.length - part.size)
                run = Run(self, wanted, part, evidence, cancelled, progress)
                run.to_the_end()
                part.finish()
            finally:
                part.close()
        except StorageError as error:
            # a part that the disk failed is not to be trusted; on a full disk it is
            # in the way of others
            self._discard(path)
            raise UpdateError(error.reason, str(error), asdict(evidence)) from error
        except UpdateError as error:
            error.evidence.update(asdict(evidence))
            raise
        return path, evidence

    def tidy(self, keep: str | None = None) -> None:
        """Remove the parts of all digests but one.

        Raises:
            StorageError: one cannot be removed.
        """
        for path in sorted(self._folder.glob(f"*{PART}")):
            if path.stem != keep:
                remove(self._disk, path)

    def _check_room(self, more: int) -> None:
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        if free < more + self._limits.spare_bytes:
            raise UpdateError(
                Reason.NO_SPACE,
                f"{self._folder} has {free} bytes free; expected {more} for the bundle "
                f"and {self._limits.spare_bytes} to spare: make room",
            )

    def _discard(self, path: Path) -> None:
        try:
            remove(self._disk, path)
        except StorageError as error:
            event(_LOG, logging.ERROR, "part cannot be removed", error=str(error))


class Run:
    """One download: the mirrors that are left, and what was seen of each."""

    def __init__(
        self,
        downloader: Downloader,
        wanted: Wanted,
        part: Part,
        evidence: Evidence,
        cancelled: threading.Event,
        progress: Callable[[int], None],
    ) -> None:
        self._of, self._limits = downloader, downloader._limits
        self._wanted, self._part, self._evidence = wanted, part, evidence
        self._cancelled, self._progress = cancelled, progress
        self._mirrors = list(wanted.urls)
        self._no_ranges: set[str] = set()
        self._mismatches = 0
        self._failures = 0
        self._refused: MirrorError | None = None

    def to_the_end(self) -> None:
        """Until the part is whole and right."""
        while not self._whole():
            if not self._mirrors:
                raise self._given_up()
            url = self._mirrors[0]
            before = self._part.size
            try:
                self._ask(url)
                if self._part.size == self._wanted.length:
                    self._judge(url, alone=before == 0)
            except MirrorError as error:
                self._refused = error
                self._mirrors.remove(url)
                event(
                    _LOG, logging.WARNING, "mirror refused", url=url, error=str(error)
                )
            except InterruptionError as error:
                self._interrupted(error, self._part.size - before)

    def _whole(self) -> bool:
        self._check_cancelled()
        full = self._part.size == self._wanted.length
        if full and self._part.digest != self._wanted.digest:
            # it was there before: torn by a power cut, or the disk's doing
            self._restart("what was on the disk is not what was written")
            return False
        return full

    def _judge(self, url: str, alone: bool) -> None:
        """The last byte is there: is it what was wanted?"""
        if self._part.digest == self._wanted.digest:
            return
        found = self._part.digest
        self._restart(f"digest is {found}")
        self._mismatches += 1
        if alone or self._mismatches >= MISMATCHES_MAX:
            raise MirrorError(
                Reason.DOWNLOAD_DIGEST,
                f"{url} has digest {found}; expected {self._wanted.digest}",
            )

    def _restart(self, why: str) -> None:
        event(
            _LOG, logging.WARNING, "download restarts", digest=self._wanted.digest,
            discarded_bytes=self._part.size, reason=why,
        )  # fmt: skip
        self._evidence.discarded_bytes += self._part.size
        self._part.restart()

    def _interrupted(self, error: InterruptionError, gained: int) -> None:
        self._part.sync()
        self._evidence.failures += 1
        left = self._wanted.length - self._part.size + gained
        if gained >= min(self._limits.progress_bytes, left):
            self._failures = 0
        self._failures += 1
        if self._failures > self._limits.failures_max:
            raise UpdateError(error.reason, str(error))
        self._mirrors.append(self._mirrors.pop(0))
        least, most = self._limits.pause_s
        pause_s = self._of._jitter() * min(most, least * 2 ** (self._failures - 1))
        pause_s = max(pause_s, min(error.after_s, self._limits.retry_after_s))
        event(
            _LOG, logging.INFO, "download interrupted", error=str(error),
            size_bytes=self._part.size, pause_s=round(pause_s, 3),
        )  # fmt: skip
        self._of._wait(self._cancelled, pause_s)

    def _given_up(self) -> UpdateError:
        if self._refused is None:
            return UpdateError(Reason.DOWNLOAD_REFUSED, "no mirror was named")
        return UpdateError(self._refused.reason, str(self._refused))

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise UpdateError(Reason.CANCELLED, "the download was cancelled")

    def _ask(self, url: str) -> None:
        """One answer of one mirror, as far as it goes."""
        offset = self._part.size
        headers = {"Accept-Encoding": "identity"}
        if offset and url not in self._no_ranges:
            headers["Range"] = f"bytes={offset}-"
        at = url
        for _ in range(self._limits.redirects_max + 1):
            answer = self._open(at, headers)
            try:
                if answer.status not in REDIRECTS:
                    self._receive(answer, self._begin(url, answer, offset, headers))
                    return
                at = redirected(at, answer.headers.get("Location", ""))
            finally:
                answer.close()
        raise MirrorError(
            Reason.DOWNLOAD_REFUSED,
            f"{url} redirects more than {self._limits.redirects_max} times",
        )

    def _open(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        limits = self._limits
        timeout = urllib3.Timeout(connect=limits.connect_s, read=limits.read_s)
        try:
            return self._of._http.request(
                "GET", url, headers=headers, timeout=timeout, preload_content=False,
                decode_content=False, redirect=False, retries=False,
            )  # fmt: skip
        except LocationParseError as cause:
            raise MirrorError(
                Reason.DOWNLOAD_REFUSED, f"{url!r:.200} is not a URL: {cause}"
            ) from cause
        except HTTPError as cause:
            raise InterruptionError(
                Reason.DOWNLOAD_UNREACHABLE, f"{url}: {cause}"
            ) from cause

    def _begin(
        self,
        url: str,
        answer: urllib3.BaseHTTPResponse,
        offset: int,
        headers: dict[str, str],
    ) -> int:
        ranged = "Range" in headers
        length = self._wanted.length
        try:
            skip = skipped_bytes(url, answer, offset, ranged, length)
        except InterruptionError as error:
            if error.no_ranges:
                self._no_ranges.add(url)
            raise
        if skip:
            self._no_ranges.add(url)
            event(
                _LOG, logging.WARNING, "server has no ranges", url=url,
                skipped_bytes=skip,
            )  # fmt: skip
        return skip

    def _receive(self, answer: urllib3.BaseHTTPResponse, skip: int) -> None:
        """Take the body, at our pace, until it ends or is too slow."""
        pace = Pace(self._limits, self._of._clock)
        self._evidence.answers += 1
        while self._part.size < self._wanted.length:
            self._check_cancelled()
            data = self._read(answer)
            self._evidence.received_bytes += len(data)
            skipped, data = data[:skip], data[skip:]
            skip -= len(skipped)
            self._evidence.skipped_bytes += len(skipped)
            if len(data) > self._wanted.length - self._part.size:
                raise MirrorError(
                    Reason.DOWNLOAD_TOO_LARGE,
                    f"more came than the {self._wanted.length} bytes that were wanted",
                )
            if data:
                self._part.append(data)
                self._progress(self._part.size)
            too_slow, ahead_s = pace.took(len(data) + len(skipped))
            if too_slow:
                raise InterruptionError(Reason.DOWNLOAD_SLOW, too_slow)
            if ahead_s > 0:
                self._of._wait(self._cancelled, ahead_s)
        if self._more(answer):
            self._restart("the server has more than was wanted")
            raise MirrorError(
                Reason.DOWNLOAD_TOO_LARGE,
                f"more came than the {self._wanted.length} bytes that were wanted",
            )

    def _more(self, answer: urllib3.BaseHTTPResponse) -> bool:
        """Whether the body of an answer without a length goes on."""
        if "Content-Length" in answer.headers:
            return False
        try:
            return bool(answer.read1(1))
        except (HTTPError, OSError):  # it ended badly, but all of it is here
            return False

    def _read(self, answer: urllib3.BaseHTTPResponse) -> bytes:
        """What has come, at most a chunk."""
        size = self._limits.chunk_bytes
        rate = self._limits.rate_bytes_s
        if rate is not None:
            size = max(1, min(size, int(rate / 4)))
        try:
            data: bytes = answer.read1(size)
        except TimeoutError as cause:
            raise InterruptionError(
                Reason.DOWNLOAD_SLOW, f"nothing came for {self._limits.read_s:g} s"
            ) from cause
        except (HTTPError, OSError) as cause:
            raise InterruptionError(
                Reason.DOWNLOAD_UNREACHABLE, f"the connection broke: {cause}"
            ) from cause
        if not data:
            raise InterruptionError(
                Reason.DOWNLOAD_UNREACHABLE,
                f"it ended after {self._part.size} of {self._wanted.length} bytes",
            )
        return data


def pool(ca: Path | None = None) -> urllib3.PoolManager:
    """Connections to registries, with certificates that are verified.

    Args:
        ca: certificates to trust; None: those of the system.
    """
    return urllib3.PoolManager(
        num_pools=4, maxsize=1, cert_reqs="CERT_REQUIRED",
        ca_certs=None if ca is None else str(ca),
    )  # fmt: skip
