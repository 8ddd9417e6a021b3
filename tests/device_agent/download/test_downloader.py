"""A download goes on where it was cut off, takes nothing on trust, and ends."""

import hashlib
import os
import random
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from webserver import Fault, WebServer, serving

from device_agent.contract.codes import Reason
from device_agent.download.downloader import Downloader, pool
from device_agent.download.rules import PART, DownloadLimits, Evidence, Wanted
from device_agent.durable import REAL, Disk, File
from device_agent.errors import StorageError, UpdateError

SIZE = 50_000
CONTENT = random.Random(7).randbytes(SIZE)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
QUICK = DownloadLimits(
    pause_s=(0.0, 0.0), read_s=2.0, connect_s=2.0, spare_bytes=0, sync_bytes=8192,
    chunk_bytes=4096,
)  # fmt: skip
NAME = "bundle.edgeml"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "download"
    made.mkdir()
    return made


class Waits:
    """Waiting that takes no time and is remembered."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def __call__(self, cancelled: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        return cancelled.is_set()


def wanted(*servers: WebServer | str) -> Wanted:
    urls = [one if isinstance(one, str) else f"{one.url}/{NAME}" for one in servers]
    return Wanted(DIGEST, SIZE, tuple(urls))


def fetch(
    folder: Path, want: Wanted, limits: DownloadLimits = QUICK, disk: Disk = REAL
) -> Evidence:
    """Get it and look at what is there."""
    downloader = Downloader(folder, disk, limits, pool(), wait=Waits())
    path, evidence = downloader.fetch(want, threading.Event())
    assert path == folder / f"{want.digest}{PART}"
    assert path.read_bytes() == CONTENT
    return evidence


def refusal(folder: Path, want: Wanted, limits: DownloadLimits = QUICK) -> UpdateError:
    with pytest.raises(UpdateError) as caught:
        fetch(folder, want, limits)
    return caught.value


def test_it_comes_whole(folder: Path, site: Path) -> None:
    with serving(site) as server:
        evidence = fetch(folder, wanted(server))
    assert evidence == Evidence(answers=1, received_bytes=SIZE)


@pytest.mark.parametrize("reset", [True, False])
def test_twenty_cuts_and_nothing_comes_twice(
    folder: Path, site: Path, reset: bool
) -> None:
    cuts = [Fault(cut_after=SIZE // 21, reset=reset)] * 20
    with serving(site, cuts) as server:
        evidence = fetch(folder, wanted(server))
        assert server.sent_bytes == SIZE
        offsets = [one.range for one in server.requests]
    assert offsets == [None, *(f"bytes={SIZE // 21 * n}-" for n in range(1, 21))]
    assert evidence.received_bytes == SIZE
    assert evidence.failures == 20
    assert evidence.discarded_bytes == 0


def test_another_process_goes_on_where_the_last_one_ended(
    folder: Path, site: Path
) -> None:
    part = folder / f"{DIGEST}{PART}"
    part.write_bytes(CONTENT[:30_001])
    with serving(site) as server:
        evidence = fetch(folder, wanted(server))
        assert server.requests[0].range == "bytes=30001-"
    assert evidence.found_bytes == 30_001
    assert evidence.received_bytes == SIZE - 30_001
    with serving(site) as server:
        assert fetch(folder, wanted(server)).answers == 0, "it is there"
        assert server.requests == []


@pytest.mark.parametrize("torn", [b"\0" * 4096, b"x" * (SIZE - 100), CONTENT + b"x"])
def test_what_was_torn_by_a_power_cut_is_noticed(
    folder: Path, site: Path, torn: bytes
) -> None:
    part = folder / f"{DIGEST}{PART}"
    part.write_bytes(torn)
    with serving(site) as server:
        evidence = fetch(folder, wanted(server))
    assert evidence.received_bytes <= 2 * SIZE
    part.write_bytes(CONTENT[:-1] + b"!")
    with serving(site) as server:
        assert fetch(folder, wanted(server)).discarded_bytes == SIZE


def test_a_server_without_ranges_sends_again_what_is_skipped(
    folder: Path, site: Path
) -> None:
    faults = [
        Fault(cut_after=20_000),
        Fault(no_range=True, cut_after=30_000),
        Fault(no_range=True),
    ]
    with serving(site, faults) as server:
        evidence = fetch(folder, wanted(server))
        assert [one.range for one in server.requests] == [None, "bytes=20000-", None]
    assert evidence.skipped_bytes == 50_000
    assert evidence.discarded_bytes == 0


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=416),
        Fault(shift=7),
        Fault(headers={"Content-Range": "bytes 0-1/many"}),
        Fault(headers={"Content-Range": ""}),
    ],
    ids=["416", "shifted", "malformed", "none"],
)
def test_a_wrong_range_is_not_taken(folder: Path, site: Path, fault: Fault) -> None:
    with serving(site, [Fault(cut_after=20_000), fault]) as server:
        evidence = fetch(folder, wanted(server))
        assert [one.range for one in server.requests] == [None, "bytes=20000-", None]
    assert evidence.skipped_bytes == 20_000


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 204, 304])
def test_4xx_is_the_end_at_once(folder: Path, site: Path, status: int) -> None:
    with serving(site, [Fault(status=status)]) as server:
        error = refusal(folder, wanted(server))
        assert len(server.requests) == 1
    assert error.reason is Reason.DOWNLOAD_REFUSED
    assert str(status) in error.text


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_later_means_later(folder: Path, site: Path, status: int) -> None:
    with serving(site, [Fault(status=status)] * 3) as server:
        assert fetch(folder, wanted(server)).failures == 3


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "99999999999999999999"}, 900.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "soon"}, 0.0),
        (
            {
                "Date": "Thu, 01 Jan 1970 00:00:10 GMT",
                "Retry-After": "Thu, 01 Jan 1970 00:00:52 GMT",
            },
            42.0,
        ),
    ],
)
def test_a_server_says_when(
    folder: Path, site: Path, headers: dict[str, str], seconds: float
) -> None:
    waits = Waits()
    with serving(site, [Fault(status=503, headers=headers)]) as server:
        Downloader(folder, REAL, QUICK, pool(), wait=waits).fetch(
            wanted(server), threading.Event()
        )
    # send_response has its own Date: of two, the first is read as a list and no date
    assert waits.waits[0] in (seconds, 0.0 if "Date" in headers else seconds)


def test_pauses_grow_have_full_jitter_a_cap_and_an_end(
    folder: Path, site: Path
) -> None:
    waits, jitter = Waits(), iter([0.5, 1.0, 1.0, 0.0, 1.0, 1.0])
    limits = DownloadLimits(pause_s=(1.0, 10.0), failures_max=6, spare_bytes=0)
    with serving(site, [Fault(status=500)] * 99) as server:
        downloader = Downloader(
            folder, REAL, limits, pool(), wait=waits, jitter=lambda: next(jitter)
        )
        with pytest.raises(UpdateError) as caught:
            downloader.fetch(wanted(server), threading.Event())
        assert len(server.requests) == 7
    assert waits.waits == [0.5, 2.0, 4.0, 0.0, 10.0, 10.0]
    assert caught.value.reason is Reason.DOWNLOAD_UNREACHABLE
    assert caught.value.evidence["failures"] == 7


def test_progress_starts_the_pauses_anew_a_trickle_does_not(
    folder: Path, site: Path
) -> None:
    with serving(site, [Fault(cut_after=5_000)] * 9) as server:
        evidence = fetch(folder, wanted(server), DownloadLimits(
            pause_s=(0.0, 0.0), failures_max=1, spare_bytes=0,
        ))  # fmt: skip
        assert evidence.failures == 9
    (folder / f"{DIGEST}{PART}").unlink()
    with serving(site, [Fault(cut_after=10)] * 99) as server:
        error = refusal(folder, wanted(server))
        assert len(server.requests) == 11
    assert error.reason is Reason.DOWNLOAD_UNREACHABLE


def test_nobody_there(folder: Path, site: Path) -> None:
    server = WebServer(site)
    server.stop()
    assert refusal(folder, wanted(server)).reason is Reason.DOWNLOAD_UNREACHABLE


def test_the_server_comes_back(folder: Path, site: Path) -> None:
    with serving(site, [Fault(cut_after=20_000)]) as server:

        def wait(cancelled: threading.Event, seconds: float) -> bool:
            if server._server is None:
                server.start()
            else:
                server.stop()
            return False

        downloader = Downloader(folder, REAL, QUICK, pool(), wait=wait)
        path, evidence = downloader.fetch(wanted(server), threading.Event())
        assert path.read_bytes() == CONTENT
        assert server.sent_bytes == SIZE
    assert evidence.failures == 2


@pytest.mark.parametrize(
    "fault",
    [Fault(endless=True), Fault(headers={"Content-Length": str(SIZE + 1)})],
    ids=["endless", "longer"],
)
def test_more_than_was_wanted_is_never_taken(
    folder: Path, site: Path, fault: Fault
) -> None:
    with serving(site, [fault]) as server:
        error = refusal(folder, wanted(server))
    assert error.reason is Reason.DOWNLOAD_TOO_LARGE
    [part] = folder.iterdir()
    assert part.stat().st_size == 0


def test_no_length_is_no_harm(folder: Path, site: Path) -> None:
    with serving(site, [Fault(chunked=True)]) as server:
        assert fetch(folder, wanted(server)).received_bytes == SIZE


def test_wrong_content_is_left_after_one_answer_and_mixed_after_two(
    folder: Path, site: Path
) -> None:
    with serving(site, [Fault(flip=9)] * 9) as server:
        error = refusal(folder, wanted(server))
        assert len(server.requests) == 1
    assert error.reason is Reason.DOWNLOAD_DIGEST
    assert DIGEST in error.text
    faults = [Fault(flip=9, cut_after=20_000), Fault(flip=40_000)]
    with serving(site, faults * 9) as server:
        assert refusal(folder, wanted(server)).reason is Reason.DOWNLOAD_DIGEST
        assert len(server.requests) == 4
    with serving(site, faults) as server:
        assert fetch(folder, wanted(server)).discarded_bytes == SIZE


def test_another_mirror_helps_and_the_part_is_common(folder: Path, site: Path) -> None:
    with (
        serving(site, [Fault(status=404)]) as gone,
        serving(site, [Fault(cut_after=20_000), Fault(status=500)]) as weak,
        serving(site) as good,
    ):
        evidence = fetch(folder, wanted(gone, weak, good))
        assert len(gone.requests) == 1
        assert [one.range for one in good.requests] == ["bytes=20000-"]
    assert evidence.received_bytes == SIZE


def test_redirections_are_followed_a_little_and_never_out_of_http(
    folder: Path, site: Path
) -> None:
    (site / "other").write_bytes(CONTENT)
    with serving(site, [Fault(status=302, headers={"Location": "/other"})]) as server:
        fetch(folder, wanted(server))
    (folder / f"{DIGEST}{PART}").unlink()
    for place in (f"/{NAME}", "file:///etc/passwd", "", "ftp://127.0.0.1/x"):
        fault = Fault(status=307, headers={"Location": place})
        with serving(site, [fault] * 9) as server:
            error = refusal(folder, wanted(server))
            assert len(server.requests) <= 4
        assert error.reason is Reason.DOWNLOAD_REFUSED
        assert "redirects" in error.text


@pytest.mark.parametrize("url", ["", "not a url", "http://[", "gopher://x/y"])
def test_what_is_no_url_is_refused(folder: Path, url: str) -> None:
    assert refusal(folder, wanted(url)).reason in (
        Reason.DOWNLOAD_REFUSED, Reason.DOWNLOAD_UNREACHABLE,
    )  # fmt: skip


def test_no_mirror_is_no_download(folder: Path) -> None:
    assert refusal(folder, Wanted(DIGEST, SIZE, ())).reason is Reason.DOWNLOAD_REFUSED


def test_compressed_is_not_the_file(folder: Path, site: Path) -> None:
    with serving(site, [Fault(headers={"Content-Encoding": "gzip"})]) as server:
        assert refusal(folder, wanted(server)).reason is Reason.DOWNLOAD_REFUSED


def test_silence_is_slow(folder: Path, site: Path) -> None:
    limits = DownloadLimits(
        read_s=0.05, pause_s=(0.0, 0.0), failures_max=1, spare_bytes=0
    )
    with serving(site, [Fault(drip=(100, 0.5))] * 9) as server:
        error = refusal(folder, wanted(server), limits)
    assert error.reason is Reason.DOWNLOAD_SLOW


class Clock:
    """Time that passes with every look at it."""

    def __init__(self, step_s: float) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_a_trickle_is_slow_and_what_came_is_kept(folder: Path, site: Path) -> None:
    limits = DownloadLimits(
        slow_bytes_s=1000.0, slow_s=10.0, pause_s=(0.0, 0.0), failures_max=0,
        spare_bytes=0, chunk_bytes=1000,
    )  # fmt: skip
    with serving(site) as server:
        downloader = Downloader(
            folder, REAL, limits, pool(), clock=Clock(2.0), wait=Waits()
        )
        with pytest.raises(UpdateError) as caught:
            downloader.fetch(wanted(server), threading.Event())
    assert caught.value.reason is Reason.DOWNLOAD_SLOW
    kept = (folder / f"{DIGEST}{PART}").stat().st_size
    assert 0 < kept <= 5_000
    assert f"{kept} bytes came in 10 s" in caught.value.text


def test_our_own_pace_is_kept_and_is_no_slowness(folder: Path, site: Path) -> None:
    limits = DownloadLimits(
        rate_bytes_s=400.0, slow_bytes_s=10_000.0, slow_s=1.0, spare_bytes=0,
        pause_s=(0.0, 0.0),
    )  # fmt: skip
    now = [0.0]

    def wait(cancelled: threading.Event, seconds: float) -> bool:
        now[0] += seconds
        return False

    with serving(site) as server:
        Downloader(folder, REAL, limits, pool(), clock=lambda: now[0], wait=wait).fetch(
            wanted(server), threading.Event()
        )
    assert now[0] == pytest.approx(SIZE / 400.0)


def test_cancelled_it_ends_and_keeps_what_came(folder: Path, site: Path) -> None:
    cancelled = threading.Event()
    downloader = Downloader(folder, REAL, QUICK, pool(), wait=Waits())

    def progress(size: int) -> None:
        if size >= 20_000:
            cancelled.set()

    with serving(site) as server:
        with pytest.raises(UpdateError) as caught:
            downloader.fetch(wanted(server), cancelled, progress)
        assert caught.value.reason is Reason.CANCELLED
        kept = (folder / f"{DIGEST}{PART}").stat().st_size
        assert 20_000 <= kept < SIZE
        assert fetch(folder, wanted(server)).found_bytes == kept


Space = namedtuple("Space", "f_bavail f_frsize")


def test_room_is_looked_for_before_the_first_byte(
    folder: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: Space(10, 4096))
    with serving(site) as server:
        error = refusal(folder, wanted(server))
        assert error.reason is Reason.NO_SPACE
        assert "40960 bytes free" in error.text
        assert server.requests == []
        (folder / f"{DIGEST}{PART}").write_bytes(CONTENT[: SIZE - 40_960])
        fetch(folder, wanted(server))


class Failing(Disk):
    """Fails at the n-th effect of a kind."""

    def __init__(self, effect: str, reason: Reason, after: int) -> None:
        self.effect, self.reason, self.after = effect, reason, after

    def _point(self, effect: str) -> None:
        if effect == self.effect:
            self.after -= 1
            if self.after < 0:
                raise StorageError(self.reason, f"{effect}: as asked")

    def write(self, file: File, data: bytes, offset: int) -> None:
        self._point("write")
        super().write(file, data, offset)

    def sync(self, file: File) -> None:
        self._point("sync")
        super().sync(file)


@pytest.mark.parametrize("effect", ["write", "sync"])
@pytest.mark.parametrize("reason", [Reason.NO_SPACE, Reason.STORAGE])
def test_a_part_that_the_disk_failed_is_given_up(
    folder: Path, site: Path, effect: str, reason: Reason
) -> None:
    disk = Failing(effect, reason, after=2)
    with serving(site) as server:
        downloader = Downloader(folder, disk, QUICK, pool(), wait=Waits())
        with pytest.raises(UpdateError) as caught:
            downloader.fetch(wanted(server), threading.Event())
    assert caught.value.reason is reason
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    made = iter(range(1_000_000))
    yield lambda: tmp_path_factory.mktemp(f"run{next(made)}")


FAULTS = st.builds(
    Fault,
    status=st.sampled_from((None, None, None, 500, 503, 408)),
    cut_after=st.none() | st.integers(0, SIZE),
    no_range=st.booleans(),
    shift=st.sampled_from((0, 0, 1)),
    flip=st.none() | st.none() | st.integers(0, SIZE - 1),
    chunked=st.booleans(),
)


@settings(
    max_examples=30, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(faults=st.lists(FAULTS, max_size=8), found=st.integers(0, SIZE))
def test_whatever_happens_it_is_right_or_refused(
    common: Callable[..., Path], faults: list[Fault], found: int
) -> None:
    site, folder = common(), common()
    (site / NAME).write_bytes(CONTENT)
    (folder / f"{DIGEST}{PART}").write_bytes(CONTENT[:found])
    with serving(site, faults) as server:
        try:
            fetch(folder, wanted(server))
        except UpdateError as error:
            assert error.reason is Reason.DOWNLOAD_DIGEST
            assert any(one.flip is not None for one in faults)
