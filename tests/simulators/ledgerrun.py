"""The ledger's campaign: many devices, a broker and a fleet, all of them killed.

::

    campaign = run(Settings(devices=5, records=200, faults=20, seconds=4), folder)
    assert not campaign.violations

Every device, the ingest and the repeater is a process of its own, forked from this one,
which therefore has no threads. Faults come at random, in a pace that ends when the
devices have made their records; then all are let alone until nothing is pending.

1. ``agent``, ``ingest``, ``broker``: ``kill -9``, then started again; ``wiped``: the
   broker's data are thrown away, too.
2. ``again``: messages that were heard before (records and acknowledgements) are
   published once more.
3. ``clock``: the wall clock of all devices jumps: 1970, a year back, 20 years on.
4. ``loss``: for some seconds 30 % of the broker's packets are dropped (iptables; in a
   network namespace of its own, so as root: :func:`alone`).
"""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import ingest
import ledgerdevice
from brokers import Broker, broker
from faultflows import Campaign, scratch
from ledgerdevice import Life
from linked import identity
from repeater import repeat

from device_agent.contract.messages import Dropped
from device_agent.durable import REAL
from device_agent.spool.rules import Mark, SpoolLimits
from device_agent.spool.spool import FILE
from device_agent.spool.store import Store

WEIGHTS = {
    "agent": 68, "ingest": 10, "broker": 5, "wiped": 2, "again": 9, "clock": 3,
    "loss": 3,
}  # fmt: skip
YEAR_S = 365 * 86_400.0
CLOCKS = (-60 * YEAR_S, -YEAR_S, 86_400.0, 20 * YEAR_S, 0.0)
LOSS = 0.3


@dataclass(frozen=True)
class Settings:
    """How large, and how bad."""

    devices: int
    records: int
    faults: int
    seconds: float
    seed: int = 1
    loss: bool = False
    quiet_s: float = 120.0
    """The longest that the end may take."""
    mutant: str = ""


@dataclass
class Run:
    """What is at work."""

    settings: Settings
    folder: Path
    broker: Broker
    lives: dict[str, Life]
    pids: dict[str, int] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    lossy_until: float = 0.0
    campaign: Campaign = field(default_factory=lambda: Campaign("ledger", 0))

    @property
    def books(self) -> Path:
        return self.folder / "fleet.db"

    @property
    def clock(self) -> Path:
        return self.folder / "clock"


def run(settings: Settings, folder: Path) -> Campaign:
    """The whole campaign, in this network."""
    with broker(folder / "broker", tls=False) as one:
        at_work = Run(settings, folder, one, _lives(settings, folder, one))
        at_work.campaign = Campaign(f"ledger {_size(settings)}", settings.seed)
        at_work.clock.write_text("0")
        try:
            for name in ("ingest", "repeater", *at_work.lives):
                _start(at_work, name)
            _afflict(at_work)
            _let_alone(at_work)
        finally:
            for pid in at_work.pids.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    _audit(at_work)
    return at_work.campaign


def alone(settings: Settings) -> Campaign:
    """The same in a network namespace of its own; root only.

    Returns:
        What the run there printed last.
    """
    here = Path(__file__).resolve()
    done = subprocess.run(
        ["unshare", "--net", sys.executable, str(here), json.dumps(asdict(settings))],
        stdout=subprocess.PIPE, check=True,
        env={**os.environ, "PYTHONPATH": f"{here.parent}:{here.parents[2]}"},
    )  # fmt: skip
    return Campaign(**json.loads(done.stdout.splitlines()[-1]))


def _size(settings: Settings) -> str:
    return f"{settings.devices} x {settings.records}"


def _lives(settings: Settings, folder: Path, one: Broker) -> dict[str, Life]:
    names = [f"dev-{number}" for number in range(settings.devices)]
    one._passwords.update({name: f"password of {name}" for name in names})
    one._publish_passwords()
    found = {}
    for number, name in enumerate(names):
        who = identity(one, name, folder / name / "identity")
        size = 8_000 if number % 5 == 4 else 64 << 20
        found[name] = Life(
            who, settings.records, settings.seconds, size, folder / "clock",
            settings.seed, settings.mutant,
        )  # fmt: skip
    return found


def _start(of: Run, name: str) -> None:
    one = of.broker
    password = (one.folder / "fleet.password").read_text()
    access = (one.host, one.fleet_port, "edgeml_fleet", password)
    if name == "ingest":
        early = of.settings.mutant == "ack before commit"
        work: Callable[[], None] = lambda: ingest.serve(*access, of.books, early)  # noqa: E731
    elif name == "repeater":
        work = lambda: repeat(*access, of.settings.seed)  # noqa: E731
    else:
        work = lambda: ledgerdevice.live(of.lives[name])  # noqa: E731
    of.pids[name] = _forked(work, of.folder / "log")


def _forked(work: Callable[[], None], log: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()
        code = 0
    finally:
        if code:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        os._exit(code)


def _kill(of: Run, name: str) -> None:
    pid = of.pids.pop(name)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _afflict(of: Run) -> None:
    settings, draw = of.settings, random.Random(of.settings.seed)
    weights = {k: v for k, v in WEIGHTS.items() if settings.loss or k != "loss"}
    kinds = draw.choices(list(weights), list(weights.values()), k=settings.faults)
    began = time.monotonic()
    for number, kind in enumerate(kinds):
        due = began + settings.seconds * number / settings.faults
        time.sleep(max(0.0, due - time.monotonic()))
        _reap(of)
        _lossy(of, time.monotonic() < of.lossy_until)
        _strike(of, kind, draw)
        of.counts[kind] += 1
    _lossy(of, False)
    of.campaign.points = settings.devices * settings.records
    of.campaign.faults = sum(of.counts.values())


def _strike(of: Run, kind: str, draw: random.Random) -> None:
    if kind == "agent":
        # one that is at work; those that have ended are woken to have nothing to do
        name = draw.choice(sorted(of.pids.keys() & of.lives.keys() or of.lives))
        if name in of.pids:
            _kill(of, name)
        _start(of, name)
    elif kind == "ingest":
        _kill(of, "ingest")
        time.sleep(draw.random())
        _start(of, "ingest")
    elif kind in ("broker", "wiped"):
        of.broker.kill()
        time.sleep(draw.random())
        if kind == "wiped":
            of.broker.wipe()
        of.broker.start()
    elif kind == "again":
        os.kill(of.pids["repeater"], signal.SIGUSR1)
    elif kind == "clock":
        fresh = of.clock.with_suffix(".new")
        fresh.write_text(str(draw.choice(CLOCKS)))
        fresh.rename(of.clock)
    else:
        of.lossy_until = time.monotonic() + 4.0


def _lossy(of: Run, wanted: bool) -> None:
    """Drop packets to and from the broker, or no longer."""
    if not of.settings.loss or wanted == (of.counts["lossy"] == 1):
        return
    of.counts["lossy"] = int(wanted)
    for ports in ("--dport", "--sport"):
        subprocess.run(
            ["iptables", "-A" if wanted else "-D", "INPUT", "-i", "lo", "-p", "tcp",
             ports, str(of.broker.port), "-m", "statistic", "--mode", "random",
             "--probability", str(LOSS), "-j", "DROP"],
            check=True,
        )  # fmt: skip
    if not wanted:
        del of.counts["lossy"]


def _reap(of: Run) -> None:
    """Who has ended, and whether it may have."""
    for name, pid in list(of.pids.items()):
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            continue
        del of.pids[name]
        code = os.waitstatus_to_exitcode(status)
        if name in of.lives and code == 0:
            of.ended.add(name)
            continue
        log = (of.folder / "log").read_text()[-1500:]
        of.campaign.found(name, [f"it ended with {code}: {log}"])
        _start(of, name)


def _let_alone(of: Run) -> None:
    """Until every device has made all and the fleet has all of it."""
    until = time.monotonic() + of.settings.quiet_s
    while of.pids.keys() & of.lives.keys() and time.monotonic() < until:
        _reap(of)
        time.sleep(0.05)
    left = of.pids.keys() & of.lives.keys()
    if left:
        of.campaign.found(
            "the end", [f"{len(left)} devices have not ended: {sorted(left)[:5]}"]
        )


def _audit(of: Run) -> None:
    """produced = stored, pending and declared dropped, each in one of them."""
    totals: Counter[str] = Counter()
    with closing(sqlite3.connect(of.books)) as connection:
        for name, life in of.lives.items():
            for epoch, upto in ledgerdevice.made(life.journal).items():
                _audit_epoch(of, connection, name, epoch, upto, totals)
        strange = connection.execute(
            "SELECT count(*) FROM records WHERE json_extract(body, '$.n') != seq"
        ).fetchone()[0]
        conflicts = connection.execute("SELECT count(*) FROM conflicts").fetchone()[0]
        again = connection.execute("SELECT sum(value) FROM figures").fetchone()[0]
    if strange or conflicts:
        of.campaign.found(
            "the books", [f"{strange} under a wrong number, {conflicts} twice"]
        )
    counts = {k: v for k, v in sorted(of.counts.items()) if v}
    of.campaign.name += f" ({dict(totals)}, came again {again or 0}, {counts})"


def _audit_epoch(
    of: Run, connection: sqlite3.Connection, name: str, epoch: str, upto: int,
    totals: Counter[str],
) -> None:  # fmt: skip
    rows = connection.execute(
        "SELECT seq FROM records WHERE device = ? AND epoch = ?", (name, epoch)
    )
    stored = {seq for (seq,) in rows}
    said = {
        seq
        for first, last in connection.execute(
            "SELECT first, last FROM dropped WHERE device = ? AND epoch = ?",
            (name, epoch),
        )
        for seq in range(first, last + 1)
    }
    pending, buried = _left(of.lives[name], epoch)
    produced = set(range(1, upto + 1))
    dropped = (said | buried) - stored
    lost = produced - stored - pending - dropped
    if lost:
        of.campaign.found(f"{name} {epoch}", [f"lost {len(lost)}: {sorted(lost)[:9]}"])
    if pending & buried:
        of.campaign.found(f"{name} {epoch}", ["pending and dropped at once"])
    totals["produced"] += len(produced)
    totals["stored"] += len(stored & produced)
    totals["pending"] += len((pending & produced) - stored)
    totals["dropped"] += len(dropped & produced)


def _left(life: Life, epoch: str) -> tuple[set[int], set[int]]:
    """What the device still has of an epoch: pending numbers, and given up ones."""
    store = Store(life.state / FILE, REAL, SpoolLimits(), lambda: "audit")
    pending: set[int] = set()
    buried: set[int] = set()
    after: Mark | None = None
    while (batch := store.pending(after, 1 << 20)) is not None:
        after = Mark(batch.epoch, batch.records[-1].seq)
        if batch.epoch != epoch:
            continue
        for one in batch.records:
            if one.kind == "dropped":
                gone = Dropped.model_validate(one.body)
                buried |= set(range(gone.first, gone.last + 1))
            else:
                pending.add(one.seq)
    store.close()
    return pending, buried


@contextmanager
def room() -> Iterator[Path]:
    """A folder for a campaign, in memory: it is no campaign about the disk."""
    with scratch() as folder:
        yield folder


def main() -> None:
    """In a namespace of its own: the settings as JSON in, the campaign as JSON out."""
    settings = Settings(**json.loads(sys.argv[1]))
    ip = shutil.which("ip") or "/sbin/ip"
    subprocess.run([ip, "link", "set", "lo", "up"], check=True)
    with room() as folder:
        campaign = run(settings, folder)
    sys.stdout.write(json.dumps(asdict(campaign)) + "\n")


if __name__ == "__main__":
    main()
