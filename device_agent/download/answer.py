"""What the head of an answer says, and what of it is believed."""

import re
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urljoin, urlsplit

import urllib3

from ..contract.codes import Reason
from .rules import InterruptionError, MirrorError

LATER: Final = {408, 425, 429}
REDIRECTS: Final = {301, 302, 303, 307, 308}

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


def skipped_bytes(
    url: str, answer: urllib3.BaseHTTPResponse, offset: int, ranged: bool, length: int
) -> int:
    """Judge the head of an answer.

    Args:
        url: who was asked.
        answer: its head; the body is not read.
        offset: bytes that are here already.
        ranged: whether a range from there on was asked for.
        length: of the whole, in bytes.

    Returns:
        How many bytes of the body are here already: 0, or ``offset`` where it begins
        at the beginning.

    Raises:
        InterruptionError: it may be better later, or without a range.
        MirrorError: this mirror does not have what is wanted.
    """
    status = answer.status
    if status == 416 and ranged:
        raise InterruptionError(
            Reason.DOWNLOAD_REFUSED, f"{url} refuses the range from {offset}: 416",
            no_ranges=True,
        )  # fmt: skip
    if status in LATER or status >= 500:
        raise InterruptionError(
            Reason.DOWNLOAD_UNREACHABLE, f"{url} answers {status}",
            after_s=_retry_after_s(answer),
        )  # fmt: skip
    if status not in (200, 206):
        raise MirrorError(Reason.DOWNLOAD_REFUSED, f"{url} answers {status}")
    coding = answer.headers.get("Content-Encoding", "identity")
    if coding != "identity":
        raise MirrorError(
            Reason.DOWNLOAD_REFUSED,
            f"{url} sends {coding!r:.40}; expected the file as it is",
        )
    if status == 200:
        _check_size(url, answer.headers.get("Content-Length", str(length)), length)
        return offset
    said = answer.headers.get("Content-Range", "none")
    found = _RANGE.fullmatch(said)
    if found is None or int(found[1]) != offset or not ranged:
        raise InterruptionError(
            Reason.DOWNLOAD_REFUSED,
            f"{url} sends another range than from {offset} on: {said!r:.80}",
            no_ranges=True,
        )
    if found[3] != "*":
        _check_size(url, found[3], length)
    return 0


def _check_size(url: str, said: str, length: int) -> None:
    if said == str(length):
        return
    more = said.isdigit() and int(said) > length
    raise MirrorError(
        Reason.DOWNLOAD_TOO_LARGE if more else Reason.DOWNLOAD_REFUSED,
        f"{url} has {said:.20} bytes; expected {length}",
    )


def redirected(url: str, location: str) -> str:
    """Where a redirection leads.

    Raises:
        MirrorError: nowhere, to another scheme, or out of TLS.
    """
    target = urljoin(url, location)
    before, after = urlsplit(url).scheme, urlsplit(target).scheme
    if not location or after not in ("http", "https") or (before, after) == (
        "https", "http",
    ):  # fmt: skip
        raise MirrorError(
            Reason.DOWNLOAD_REFUSED, f"{url} redirects to {location!r:.200}"
        )
    return target


def _retry_after_s(answer: urllib3.BaseHTTPResponse) -> float:
    """How long the server wants us to wait; by its own clock, should it give a date."""
    text = answer.headers.get("Retry-After", "")
    if text.isdigit():
        return float(text[:9])
    try:
        now = parsedate_to_datetime(answer.headers.get("Date", ""))
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):
        return 0.0
