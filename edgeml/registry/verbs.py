"""``edgeml publish`` and ``edgeml registry``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..terminal import Json, Quiet, spoken, tell
from .keyverbs import KEYS, Folders, Secret, SecretFile, TakeOver, Where

app = typer.Typer(
    name="registry",
    no_args_is_help=True,
    help="Where releases are published: static files that devices fetch.",
)

Url = Annotated[str, typer.Argument(help="The registry: a folder or URL.")]
Root = Annotated[
    Path | None, typer.Option(help="The trusted root, instead of that of --keys.")
]
Bundles = Annotated[list[Path], typer.Argument(help=".edgeml files.")]


@spoken
def publish(
    bundles: Bundles,
    registry: Where,
    counter: Annotated[
        str | None,
        typer.Option(help="Release counter to give them: a number, or next."),
    ] = None,
    channel: Annotated[str, typer.Option(help="For whom it is.")] = "stable",
    keys: Folders = None,
    passphrase: Secret = None,
    passphrase_file: SecretFile = None,
    take_over: TakeOver = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish bundles: sign for them, and upload them."""
    from .counting import counted
    from .publish import publish as put
    from .session import begin

    session = begin(registry, keys or [KEYS], passphrase, passphrase_file)
    change = session.change()
    ready = [counted(change, path, counter) for path in bundles]
    published = put(change, session.storage, ready, channel)
    written = session.commit(change, take_over)
    facts = {"published": [one.facts() for one in published], "written": written}
    if as_json or not quiet:
        tell(
            facts, as_json,
            lambda: [
                f"{one.path}  counter {one.counter}  sha256 {one.digest}"
                for one in published
            ],
        )  # fmt: skip


@app.command()
@spoken
def verify(
    url: Url, root: Root = None, keys: Folders = None, as_json: Json = False,
    quiet: Quiet = False,
) -> int:  # fmt: skip
    """Read everything: signatures, versions, expiry, every bundle; exit 1 if wrong."""
    from ..errors import DIFFERENT
    from .verify import verify as look

    found = look(*_opened(url, root, keys))
    if as_json or not quiet:
        tell(found.facts(), as_json, lambda: _lines(found))
    for line in found.problems:
        typer.echo(f"edgeml: {line}", err=True)
    return DIFFERENT if found.problems else 0


@app.command("list")
@spoken
def list_(
    url: Url, root: Root = None, keys: Folders = None, as_json: Json = False
) -> None:
    """Releases and metadata, as they are signed; bundles are not read."""
    from .verify import listing

    found = listing(*_opened(url, root, keys))
    tell(found.facts(), as_json, lambda: _lines(found))


@app.command()
@spoken
def refresh(
    url: Url,
    rebuild: Annotated[
        bool, typer.Option(help="Believe no snapshot and no timestamp.")
    ] = False,
    keys: Folders = None,
    passphrase: Secret = None,
    passphrase_file: SecretFile = None,
    take_over: TakeOver = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Sign the timestamp again (daily, by cron), and the snapshot when it is due."""
    from .housekeeping import due
    from .session import begin

    session = begin(url, keys or [KEYS], passphrase, passphrase_file)
    written = session.commit(
        due(session.change(rebuild), session.now, rebuild), take_over
    )
    if as_json or not quiet:
        tell({"written": written}, as_json, lambda: [f"wrote {one}" for one in written])


@app.command()
@spoken
def gc(
    url: Url,
    keep: Annotated[
        int, typer.Option(min=1, help="Versions of each role to keep.")
    ] = 3,
    dry_run: Annotated[bool, typer.Option(help="Say it, remove nothing.")] = False,
    root: Root = None,
    keys: Folders = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove metadata and bundles that nothing lists any more."""
    from .housekeeping import collect

    place, anchor, _ = _opened(url, root, keys)
    found = collect(place, anchor, keep, remove=not dry_run)
    size = sum(one["size_bytes"] for one in found)
    word = "would remove" if dry_run else "removed"
    if as_json or not quiet:
        tell(
            {"removed": found, "size_bytes": size, "dry_run": dry_run}, as_json,
            lambda: [f"{word} {one['path']}" for one in found]
            + [f"{word} {len(found)} files, {size} bytes"],
        )  # fmt: skip


def _opened(url: str, root: Path | None, keys: list[Path] | None) -> Any:
    from datetime import UTC, datetime

    from ..errors import UsageError
    from .ceremony import anchor_of
    from .storage import storage

    if root is not None and not root.is_file():
        raise UsageError(f"no trusted root at {root}")
    anchor = root.read_bytes() if root is not None else anchor_of(keys or [KEYS])
    return storage(url), anchor, datetime.now(UTC)


def _lines(found: Any) -> list[str]:
    roles = [
        f"{one['role']:<24} v{one['version']:<6} until {one['expires']}"
        for one in found.roles
    ]
    releases = [
        f"{one['path']:<44} counter {one['release_counter']:<6} {one['digest'][:16]}  "
        f"{one['size_bytes']} bytes"
        for one in found.releases
    ]
    return [*roles, *releases, f"{len(found.problems)} problems"]
