"""What an agent costs that does nothing but belong to a fleet.

Run it with ``scripts/bench agent``. What is measured and how: docs/bench-agent.md. The
rules:

1. The agent is started as on a device, with its defaults: an int8 model, TLS with a
   certificate to a real mosquitto, a fleet that stores records and acknowledges them.
   Nobody asks it anything.
2. Bytes are the kernel's own counters of the agent's socket, headers included. The time
   is a multiple of the longest interval at which the agent does something, so that a
   day is that many times as much.
3. Exit code 1 when a promise is missed, with the figure; 0 otherwise.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving.models import made
from serving.tables import Table, markdown, printed, written
from serving.verdicts import Verdict

from device_agent.config import LinkConfig
from device_agent.contract import machine
from device_agent.durable import REAL
from device_agent.identity import FOLDER, write_identity
from device_agent.spool.rules import SpoolLimits
from device_agent.spool.spool import Spool

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "simulators"))

import agents  # noqa: E402
from brokers import broker  # noqa: E402
from fleets import Fleet, fleet  # noqa: E402
from linked import identity  # noqa: E402

PLACE = ROOT / "build" / "bench"
DEVICE = "bench-1"
DAY_S = 86_400
WINDOW_S = LinkConfig().window_s
SETTLE_S = 20.0
HEADERS = 52
"""Of a TCP segment over IPv4, with the time stamps that Linux puts in each."""
NETWORK_BYTES = 2e6
CPU_SHARE = 0.01
RSS_BYTES = 130e6
DISK_BYTES = 50e6
"""A day. 8 GB of flash that can be written 1,000 times over last for centuries."""
BURST_WEAR_BYTES = 1 << 10
BURST = 5_000


@dataclass(frozen=True)
class Counters:
    """What the kernel has counted of the agent so far."""

    payload_bytes: int
    segments: int
    cpu_s: float
    written_bytes: int
    wakes: int
    """How often one of its threads had slept and went on."""

    @property
    def network_bytes(self) -> int:
        """On the wire, both ways, without the frames of what carries IP."""
        return self.payload_bytes + HEADERS * self.segments


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(prog="scripts/bench agent")
    parser.add_argument(
        "--windows", type=int, default=2,
        help=f"how long: so many times {WINDOW_S:g} s (default 2)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="write the result there, too")
    given = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="agent-", dir=PLACE) as name:
        folder = Path(name)
        burst = burst_wear(folder / "burst")
        before, after, rss_bytes, records, seconds = idle(folder, given.windows)
    verdicts = judged(before, after, rss_bytes, seconds, burst)
    shown = [table(before, after, records, seconds)]
    remarks = [
        f"{machine.name()}; {seconds:.0f} s without requests, {records} records; "
        f"{(after.wakes - before.wakes) / seconds:.1f} wakes of threads a second",
    ]
    printed(shown)
    print(*remarks, "", *verdicts, sep="\n")
    if given.out:
        written(markdown(shown, verdicts, remarks), given.out)
    return 1 if any(one.missed for one in verdicts) else 0


def idle(folder: Path, windows: int) -> tuple[Counters, Counters, int, int, float]:
    """Counters before and after, memory at the end, records stored, seconds."""
    model = made("image", folder)
    state = folder / "state"
    with broker(folder / "broker") as there, fleet(there) as heard:
        who = identity(there, DEVICE, state / FOLDER)
        (who.folder / "identity.json").write_bytes(write_identity(who.document))
        with agents.agent([model.bundle], args=["--state", str(state)]) as agent:
            pid, port = agent.process.pid, there.port
            until(lambda: bool(heard.said(DEVICE, "birth")))
            time.sleep(SETTLE_S)
            stored, began = len(heard.stored(DEVICE)), time.monotonic()
            before = counters(pid, port)
            time.sleep(windows * WINDOW_S)
            after, seconds = counters(pid, port), time.monotonic() - began
            assert_in_order(heard)
            records = len(heard.stored(DEVICE)) - stored
            return before, after, agent.rss_bytes(tree=True), records, seconds


def assert_in_order(heard: Fleet) -> None:
    """One session, nothing lost: what was measured is what should be."""
    assert len(heard.said(DEVICE, "birth")) == 1, "the session broke"
    assert not heard.ledgers[DEVICE].missing()


def burst_wear(folder: Path) -> float:
    """Bytes written a record where many come together and are acknowledged."""
    folder.mkdir(parents=True)
    spool = Spool(folder, REAL, SpoolLimits(), lambda: "epoch")
    before = written_bytes(os.getpid())
    for number in range(BURST):
        spool.add("event", {"event": "something happened", "number": number}, 0.0)
        if number % 50 == 0:
            time.sleep(0.02)
    spool.flush()
    while (batch := spool.pending()) is not None:
        spool.acknowledge(batch.epoch, batch.records[-1].seq)
    found = (written_bytes(os.getpid()) - before) / BURST
    spool.close()
    return found


def counters(pid: int, port: int) -> Counters:
    """What has been counted so far."""
    sockets = subprocess.run(
        ["ss", "-tinHp", "state", "established", f"( dport = :{port} )"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    payload_bytes, segments = parse_ss(sockets, pid)
    tasks = Path(f"/proc/{pid}/task").iterdir()
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return Counters(
        payload_bytes, segments,
        cpu_s=sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK"),
        written_bytes=written_bytes(pid),
        wakes=sum(parse_wakes((task / "status").read_text()) for task in tasks),
    )  # fmt: skip


def parse_ss(text: str, pid: int) -> tuple[int, int]:
    """Bytes of payload and segments, both ways, of a process's one socket.

    Raises:
        ValueError: it has none there, or several.
    """
    blocks = [block for block in re.split(r"\n(?=\S)", text) if f"pid={pid}," in block]
    if len(blocks) != 1:
        raise ValueError(f"expected one connection of {pid}, found {len(blocks)}")
    found = dict(re.findall(r"\b(\w+):(\d+)", blocks[0]))
    both = (("bytes_sent", "bytes_received"), ("segs_out", "segs_in"))
    payload, segments = (sum(int(found.get(key, 0)) for key in keys) for keys in both)
    return payload, segments


def parse_wakes(status: str) -> int:
    """How often a thread has gone to sleep by itself, so far."""
    (count,) = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
    return int(count)


def written_bytes(pid: int) -> int:
    """What a process has given to the disk."""
    text = Path(f"/proc/{pid}/io").read_text()
    return int(text.split("\nwrite_bytes:")[1].split()[0])


def until(true: Callable[[], bool], wait_s: float = 60.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + wait_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {wait_s:g} s")
        time.sleep(0.05)


def judged(
    before: Counters, after: Counters, rss_bytes: int, seconds: float, burst: float
) -> list[Verdict]:  # fmt: skip
    """What was found, against what is promised."""
    network = (after.network_bytes - before.network_bytes) * DAY_S / seconds
    cpu = (after.cpu_s - before.cpu_s) / seconds
    disk = (after.written_bytes - before.written_bytes) * DAY_S / seconds
    return [
        Verdict("network a day", network / 1e6, NETWORK_BYTES / 1e6, "MB"),
        Verdict("CPU, share of one core", 100 * cpu, 100 * CPU_SHARE, "%"),
        Verdict("memory (RSS)", rss_bytes / 1e6, RSS_BYTES / 1e6, "MB"),
        Verdict("written to the disk a day", disk / 1e6, DISK_BYTES / 1e6, "MB"),
        Verdict(
            "written to the disk for one record of many", burst / 1024,
            BURST_WEAR_BYTES / 1024, "KiB", note="50 at a time, batches acknowledged",
        ),
    ]  # fmt: skip


def table(before: Counters, after: Counters, records: int, seconds: float) -> Table:
    """The figures behind the verdicts."""
    rows = (
        ("figure", "measured", "a day"),
        *(
            (name, f"{now - then:,}", f"{(now - then) * DAY_S / seconds:,.0f}")
            for name, now, then in (
                ("payload of TCP, bytes", after.payload_bytes, before.payload_bytes),
                ("segments of TCP", after.segments, before.segments),
                ("bytes with headers", after.network_bytes, before.network_bytes),
                ("written to the disk, bytes", after.written_bytes,
                 before.written_bytes),
            )
        ),
        ("records", f"{records}", f"{records * DAY_S / seconds:,.0f}"),
        (
            "written for one record that comes alone, bytes",
            f"{(after.written_bytes - before.written_bytes) // max(records, 1):,}", "",
        ),
        ("CPU, s", f"{after.cpu_s - before.cpu_s:.2f}",
         f"{(after.cpu_s - before.cpu_s) * DAY_S / seconds:,.0f}"),
    )  # fmt: skip
    return Table("An agent that nobody asks", rows)


if __name__ == "__main__":
    sys.exit(main())
