"""What ``scripts/tuf-client`` runs: our Registry, Fetcher and Store, nothing else."""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tuf.api.exceptions import DownloadError, RepositoryError  # noqa: E402

from device_agent.durable import REAL  # noqa: E402
from device_agent.errors import AgentError  # noqa: E402
from device_agent.trust.fetch import Fetcher  # noqa: E402
from device_agent.trust.registry import Registry  # noqa: E402
from device_agent.trust.store import Store  # noqa: E402
from device_agent.trust.wire import FetchLimits  # noqa: E402

LIMITS = FetchLimits(delegations=32)
FLOORS = ".floors"


def main() -> int:
    """The command; 0 if all of it succeeded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url")
    parser.add_argument("--target-name")
    parser.add_argument("--target-base-url")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    given = parser.parse_args()
    try:
        if given.command == "init":
            given.metadata_dir.mkdir(parents=True, exist_ok=True)
            (given.metadata_dir / "root.json").write_bytes(given.root.read_bytes())
        else:
            look(given)
    except (AgentError, RepositoryError, DownloadError, OSError, ValueError) as error:
        print(f"tuf-client: {error}", file=sys.stderr)
        return 1
    return 0


def look(given: argparse.Namespace) -> None:
    """Refresh, and download where that was asked for."""
    folder: Path = given.metadata_dir
    floors = folder / FLOORS
    floors.mkdir(exist_ok=True)
    store = Store(floors, floors, REAL)
    url = given.metadata_url.rstrip("/") + "/"
    registry = Registry(
        folder, url, Fetcher([url], LIMITS), root=(folder / "root.json").read_bytes(),
        metadata={}, now=time.time(), limits=LIMITS,
    )  # fmt: skip
    try:
        try:
            registry.refresh()
        finally:
            seen = registry.seen(store.floors)
            if seen is not None:
                learned = store.floors.seen(seen.root, seen.online, seen.versions)
                store.save(learned)
        if given.command == "download":
            download(given, registry)
    finally:
        store.close()


def download(given: argparse.Namespace, registry: Registry) -> None:
    """One target, unless it is there."""
    given.target_dir.mkdir(parents=True, exist_ok=True)
    updater = registry.updater
    updater.target_dir = str(given.target_dir)
    found = updater.get_targetinfo(given.target_name)
    if found is None:
        raise ValueError(f"no target {given.target_name!r}")
    if updater.find_cached_target(found) is None:
        updater.download_target(found, target_base_url=given.target_base_url)


if __name__ == "__main__":
    sys.exit(main())
