"""``edgeml keys``: who signs what, as commands that a person can follow."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ..terminal import Json, Quiet, spoken, tell

app = typer.Typer(
    name="keys",
    no_args_is_help=True,
    help="Keys: who signs what a device believes (docs/trust.md).",
)

Folders = Annotated[
    list[Path] | None, typer.Option("--keys", help="Key folder (repeatable).")
]
Where = Annotated[
    str, typer.Option("--registry", help="Folder or URL (s3://…, memory://…).")
]
Secret = Annotated[
    str | None,
    typer.Option("--passphrase", envvar="EDGEML_PASSPHRASE", hidden=True),
]
SecretFile = Annotated[
    Path | None,
    typer.Option(envvar="EDGEML_PASSPHRASE_FILE", help="One line, for all keys."),
]
Name = Annotated[str, typer.Argument(help="Name of the key (NAME.json).")]
RoleOption = Annotated[
    str | None, typer.Option("--role", help="root, snapshot, timestamp or director.")
]
ModelOption = Annotated[
    str | None, typer.Option("--model", help="The model whose team has the key.")
]
Threshold = Annotated[
    int | None, typer.Option(min=1, help="Signatures that are needed from now on.")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Another publisher was cut off.")
]
Uri = Annotated[
    str | None, typer.Option(help="The private half is there (hsm:, awskms: …).")
]
Public = Annotated[
    Path | None, typer.Option(help="With --uri: the public half, PEM.")
]  # fmt: skip
KEYS = Path("keys")


@app.command("init")
@spoken
def init_(
    registry: Where,
    keys: Folders = None,
    roots: Annotated[int, typer.Option(min=1, help="Root keys.")] = 3,
    threshold: Annotated[int, typer.Option(min=1, help="Of them to sign.")] = 2,
    passphrase: Secret = None,
    passphrase_file: SecretFile = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make the keys of a new registry, and the registry."""
    from . import ceremony
    from .session import begin

    folders = keys or [KEYS]
    folders[0].mkdir(mode=0o700, parents=True, exist_ok=True)
    session = begin(registry, folders, passphrase, passphrase_file)
    written = ceremony.begin(
        session.ring, session.storage, session.now, roots=roots, threshold=threshold
    )
    held = {one.name: one.key.keyid for one in session.ring.entries}
    root = str(folders[0] / ceremony.ANCHOR)
    said = {
        "registry": session.storage.url, "written": written, "root": root, "keys": held,
    }  # fmt: skip
    if as_json or not quiet:
        tell(
            said, as_json,
            lambda: [
                *(f"key   {name:<12} {keyid}" for name, keyid in held.items()),
                f"root  {root} (devices get this one)",
                "next: take the root-* keys offline (docs/trust.md); "
                "edgeml keys add NAME --model MODEL",
            ],
        )  # fmt: skip


@app.command()
@spoken
def add(
    name: Name,
    registry: Where,
    role: RoleOption = None,
    model: ModelOption = None,
    threshold: Threshold = None,
    uri: Uri = None,
    public: Public = None,
    keys: Folders = None,
    passphrase: Secret = None,
    passphrase_file: SecretFile = None,
    take_over: TakeOver = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a key sign for a role or a model, too; it is made if there is none."""
    from . import ceremony
    from .session import begin

    session = begin(registry, keys or [KEYS], passphrase, passphrase_file)
    change = session.change()
    whom = _whom(role, model)
    key = _key(session.ring, name, uri, public)
    ceremony.add(change, whom, key, threshold)
    written = session.commit(change, take_over)
    _tell(f"{name} signs for {whom}", written, as_json, quiet)


@app.command()
@spoken
def rotate(
    name: Name,
    new: Annotated[str, typer.Argument(help="Name of the key in its place.")],
    registry: Where,
    uri: Uri = None,
    public: Public = None,
    rebuild: Annotated[
        bool,
        typer.Option(
            help="The old key was stolen: believe no snapshot and no timestamp."
        ),
    ] = False,
    keys: Folders = None,
    passphrase: Secret = None,
    passphrase_file: SecretFile = None,
    take_over: TakeOver = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a new key in the place of one, wherever it signs."""
    from ..errors import UsageError
    from . import ceremony
    from .session import begin

    session = begin(registry, keys or [KEYS], passphrase, passphrase_file)
    change = session.change(rebuild)
    old = session.ring.entry(name).key
    where = ceremony.holds(change, old)
    if not where:
        raise UsageError(f"key {name} signs for nothing in {session.storage.url}")
    key = _key(session.ring, new, uri, public)
    for whom in where:
        ceremony.replace(change, whom, old, key)
    if rebuild:
        change.touch("snapshot")
    written = session.commit(change, take_over)
    _tell(f"{new} signs for {', '.join(where)}, not {name}", written, as_json, quiet)


@app.command()
@spoken
def revoke(
    name: Name,
    registry: Where,
    role: RoleOption = None,
    model: ModelOption = None,
    threshold: Threshold = None,
    keys: Folders = None,
    passphrase: Secret = None,
    passphrase_file: SecretFile = None,
    take_over: TakeOver = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Take a key away: from one role or model, or from all that it signs for."""
    from ..errors import UsageError
    from . import ceremony
    from .session import begin

    session = begin(registry, keys or [KEYS], passphrase, passphrase_file)
    change = session.change()
    key = session.ring.entry(name).key
    where = ceremony.holds(change, key)
    if role or model:
        where = (_whom(role, model),)
    if not where:
        raise UsageError(f"key {name} signs for nothing in {session.storage.url}")
    for whom in where:
        ceremony.revoke(change, whom, key, threshold)
    written = session.commit(change, take_over)
    _tell(f"{name} signs for {', '.join(where)} no more", written, as_json, quiet)


@app.command()
@spoken
def threshold(
    count: Annotated[int, typer.Argument(min=1, help="Signatures that are needed.")],
    registry: Where,
    role: RoleOption = None,
    model: ModelOption = None,
    keys: Folders = None,
    passphrase: Secret = None,
    passphrase_file: SecretFile = None,
    take_over: TakeOver = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Change how many keys of a role or a model have to sign."""
    from .session import begin

    session = begin(registry, keys or [KEYS], passphrase, passphrase_file)
    change = session.change()
    whom = _whom(role, model)
    change.assign(whom, change.holders(whom)[0], count)
    written = session.commit(change, take_over)
    _tell(f"{whom} needs {count} signatures", written, as_json, quiet)


@app.command("list")
@spoken
def list_(registry: Where, keys: Folders = None, as_json: Json = False) -> None:
    """Who signs for what, and which of the keys are here."""
    from .session import begin

    session = begin(registry, keys or [KEYS], "", None)
    change = session.change()
    rows: list[dict[str, Any]] = []
    for whom in change.names():
        held, needed = change.holders(whom)
        for key in held:
            here = session.ring.of(key.keyid)
            rows.append({
                "role": whom, "threshold": needed, "keyid": key.keyid,
                "scheme": key.scheme, "name": here.name if here else None,
                "uri": here.uri if here else None,
            })  # fmt: skip
    tell(
        rows, as_json,
        lambda: [
            f"{row['role']:<16} {row['threshold']} needed  {row['keyid'][:16]}  "
            f"{row['name'] or '(not here)'}"
            for row in rows
        ],
    )  # fmt: skip


def _whom(role: str | None, model: str | None) -> str:
    from ..errors import UsageError

    roles = ("root", "snapshot", "timestamp", "director")
    if (role is None) == (model is None) or (role and role not in roles):
        raise UsageError(f"give --model NAME, or --role, one of: {', '.join(roles)}")
    if model in (*roles, "targets"):
        raise UsageError(f"no model can be called {model}: a role is called so")
    return role or str(model)


def _key(ring: Any, name: str, uri: str | None, public: Path | None) -> Any:
    """The key of that name; made, or brought, where there is none."""
    from ..errors import UsageError
    from .publish import raw_of

    if (uri is None) != (public is None):
        raise UsageError("--uri and --public go together")
    if uri is not None and public is not None:
        return ring.bring(name, uri, raw_of(public)).key
    if name in {one.name for one in ring.entries}:
        return ring.entry(name).key
    return ring.make(name).key


def _tell(what: str, written: list[str], as_json: bool, quiet: bool) -> None:
    facts = {"done": what, "written": written}
    if as_json or not quiet:
        tell(facts, as_json, lambda: [what, *(f"  wrote {one}" for one in written)])
