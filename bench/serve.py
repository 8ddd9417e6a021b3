"""Our agent beside the servers that people use, and beside the least one can do.

Run it with ``scripts/bench serve``. What is measured and how: docs/bench-serve.md.
The rules:

1. Everybody serves the same two artifacts with the same session options, in the same
   run, in turn.
2. The primary figure is CPU time per request of all processes of a server: it repeats
   on a busy machine, where latency and rate do not.
3. Exit code 1 when a promise is missed, with the figure; 0 otherwise.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from serving.contest import Contest, installed, plan
from serving.entrants import OURS, PEERS, ROOT, chosen
from serving.load import LoadError, compiled
from serving.models import ARTIFACTS, made
from serving.processes import busy_s, own_s
from serving.results import Results
from serving.tables import markdown, printed, remarks, tables, written
from serving.verdicts import verdicts

from device_agent.contract import machine

PLACE = ROOT / "build" / "bench"


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/bench serve")
    parser.add_argument(
        "--quick", action="store_true", help="about two minutes: TCP, 8 and 32 clients"
    )
    parser.add_argument(
        "--peers", metavar="NAMES", default=",".join(PEERS),
        help=f"of {','.join(PEERS)}; 'none' for our agent and the limits only",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help="(5; 3 with --quick)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write the result as Markdown, after the mark in FILE if it has one",
    )  # fmt: skip
    given = parser.parse_args()
    given.peers = [] if given.peers == "none" else given.peers.split(",")
    unknown = set(given.peers) - set(PEERS)
    if unknown:
        parser.error(f"--peers: no {sorted(unknown)}; there are {', '.join(PEERS)}")
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds counts from 1")
    return given


def measured(given: argparse.Namespace, results: Results) -> tuple[int, ...]:
    """Run everything; the numbers of clients that were measured."""
    entrants = chosen(given.peers)
    schedule = plan(given.quick, given.rounds, compiled(PLACE))
    pythons = installed(entrants, PLACE / "venvs", results)
    results.versions[OURS] = f"onnxruntime {metadata.version('onnxruntime')}"
    with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
        for name in ARTIFACTS:
            model = made(name, Path(folder, "models"))
            Contest(model, schedule, results, Path(folder)).run(entrants, pythons)
    return tuple(schedule.clients)


def main() -> int:
    """Measure; print the tables and the verdicts; 1 when a promise is missed."""
    given = arguments()
    results, begun = Results(), time.monotonic()
    others = busy_s() - own_s()
    try:
        clients = measured(given, results)
    except LoadError as error:
        print(f"scripts/bench serve: {error}", file=sys.stderr)
        return 2
    made_tables, judged = tables(results, clients), verdicts(results)
    printed(made_tables)
    seconds = time.monotonic() - begun
    others = max(busy_s() - own_s() - others, 0) / seconds
    told = [
        *remarks(results),
        f"{machine.name()}; {seconds / 60:.1f} minutes; other programs took "
        f"{others:.2f} of its {machine.cores()} cores meanwhile",
    ]
    print(*told, "", *judged, "", sep="\n")
    if given.out:
        written(markdown(made_tables, judged, told), given.out)
    record = PLACE / "serve.json"
    content = {
        "machine": machine.name(), "quick": given.quick, "seconds": round(seconds),
        "verdicts": [str(one) for one in judged], **results.as_json(),
    }  # fmt: skip
    record.write_text(json.dumps(content, indent=1) + "\n")
    print(f"every round: {record.relative_to(ROOT)}")
    return 1 if any(one.missed for one in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
