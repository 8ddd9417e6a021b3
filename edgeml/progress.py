"""What a person sees while something takes more than two seconds.

On a terminal a live line (rich); elsewhere one plain line per event on standard
error, so that logs stay readable and standard output stays clean for ``--json``.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Where a build says what it is doing and what that gave."""

    def stage(self, text: str) -> None:
        """Something has begun."""

    def step(self, done: int, total: int) -> None:
        """So much of what has begun is done."""

    def result(self, text: str) -> None:
        """Something was found out; stays on the screen."""


class Silent:
    """Says nothing (``--quiet``, tests)."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def step(self, done: int, total: int) -> None:
        """Say nothing."""

    def result(self, text: str) -> None:
        """Say nothing."""


class Plain:
    """One line per event on standard error."""

    def stage(self, text: str) -> None:
        """Print what has begun."""
        print(f"… {text}", file=sys.stderr, flush=True)

    def step(self, done: int, total: int) -> None:
        """A log has no use for every step."""

    def result(self, text: str) -> None:
        """Print what was found out."""
        print(f"  {text}", file=sys.stderr, flush=True)


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    """The progress that fits the place: silent, plain lines, or a live line."""
    if quiet:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Plain()
    else:
        with _live() as progress:
            yield progress


@contextmanager
def _live() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24),
        TimeElapsedColumn(),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        class Live:
            def stage(self, text: str) -> None:
                bar.reset(task, description=text, total=None)

            def step(self, done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            def result(self, text: str) -> None:
                console.print(f"  {text}", highlight=False, markup=False)

        yield Live()
