"""How a verb speaks: facts on standard output, errors as one line, an exit code."""

import json
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, ParamSpec

import typer

from .errors import LACKS, REFUSED, USAGE, EdgemlError, RecipeError

P = ParamSpec("P")
Json = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


def spoken(verb: Callable[P, int | None]) -> Callable[P, None]:
    """A verb whose errors are one line on standard error, results as the exit code."""

    @wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = verb(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo(
                "edgeml: interrupted; the same command goes on from here", err=True
            )
            raise typer.Exit(130) from None
        except (
            Exception
        ) as error:  # the seam: what we know becomes a line, the rest is a bug
            code = _exit_code(error)
            if code is None:
                raise
            for line in _lines_of(error):
                typer.echo(line, err=True)
        raise typer.Exit(code or 0)

    return run


def _exit_code(error: Exception) -> int | None:
    """The exit code of an error that we raise on purpose; None for a bug."""
    from calibration.dataset import DataError
    from device_agent.contract.errors import DeviceError, MachineError
    from targets.profile import ProfileError

    if isinstance(error, EdgemlError):
        return error.exit_code
    if isinstance(error, ProfileError):
        return USAGE
    if isinstance(error, MachineError):
        return LACKS
    if isinstance(error, (DataError, DeviceError)):
        return REFUSED
    return None


def _lines_of(error: Exception) -> list[str]:
    """A mistake in a recipe or a profile has a line of its own, with its place."""
    from targets.profile import ProfileError

    if isinstance(error, (RecipeError, ProfileError)):
        return str(error).splitlines()
    return [f"edgeml: {' '.join(str(error).split())}"]


def tell(facts: Any, as_json: bool, lines: Callable[[], list[str]]) -> None:
    """Facts on standard output: as JSON for programs, as lines for people."""
    if as_json:
        typer.echo(json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False))
    else:
        for line in lines():
            typer.echo(line)
