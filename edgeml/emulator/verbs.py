"""``edgeml emulator``: what there is of it in the cache, and agents that run in it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..terminal import Json, Quiet, spoken, tell

app = typer.Typer(
    name="emulator",
    no_args_is_help=True,
    help="Systems of other architectures, to check bundles on.",
)


def _store() -> Any:
    from ..cache import user_cache
    from .store import Store

    return Store(user_cache() / "emulator")


@app.command()
@spoken
def setup(
    target: Annotated[
        list[str] | None, typer.Option(help="For this target only (repeatable).")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fetch and unpack what emulation needs; later checks need no network."""
    from device_agent.contract import machine
    from targets.profile import load_target

    store = _store()
    arches = {load_target(name).arch for name in target or ()} or set(store.lock.guests)

    def said(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    store.qemu(said)
    for arch in sorted(arches - {machine.arch()}):
        store.guest(arch, said)
    _tell_kept(store.kept(), as_json, quiet)


@app.command("list")
@spoken
def list_(as_json: Json = False) -> None:
    """Say what is in the cache, and how large it is."""
    _tell_kept(_store().kept(), as_json, quiet=False)


@app.command()
@spoken
def clean(
    everything: Annotated[
        bool, typer.Option("--all", help="Also what this version uses.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove what older versions left in the cache, or all."""
    _tell_kept(_store().clean(everything=everything), as_json, quiet, "removed")


def _tell_kept(
    kept: Sequence[Any], as_json: bool, quiet: bool, word: str = "kept"
) -> None:
    facts = {
        word: [
            {
                "name": one.name, "path": str(one.path), "current": one.current,
                "size_bytes": one.size_bytes,
            }
            for one in kept
        ],
        "size_bytes": sum(one.size_bytes for one in kept),
    }  # fmt: skip

    def lines() -> list[str]:
        return [
            f"{one.size_bytes / 2**20:>7.1f} MiB  {one.path}"
            + ("" if one.current else "  (of another version)")
            for one in kept
        ] + [f"{facts['size_bytes'] / 2**20:>7.1f} MiB  {word} in all"]

    if as_json or not quiet:
        tell(facts, as_json, lines)


@app.command()
@spoken
def run(
    bundle: Annotated[Path, typer.Argument(help="A .edgeml file.", show_default=False)],
    target: Annotated[
        str | None, typer.Option(help="The target; a name or a .toml file.")
    ] = None,
    cpu: Annotated[
        str | None, typer.Option(help="Another processor, as QEMU calls it.")
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT; the guest uses this host's network.")
    ] = "127.0.0.1:8000",
    quiet: Quiet = False,
) -> int:
    """Serve a bundle by the real agent, emulated on its target, until Ctrl-C."""
    from device_agent.contract import machine
    from targets.profile import load_target

    from ..bundling.bundle import opened
    from ..errors import UsageError
    from .check import RUN_S, plan
    from .serving import serve

    def said(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    known = opened(bundle)
    name = target or known.manifest.target
    emulation = plan(known, load_target(name), cpu, None, RUN_S)
    if emulation is None or (known.manifest.isa.arch == machine.arch() and not cpu):
        raise UsageError(
            f"the bundle is for this machine's own {machine.arch()}: edgeml-agent run "
            f"--bundle {bundle} serves it; --cpu emulates another processor"
        )
    return serve(bundle, emulation, listen, _store(), said, typer.echo)
