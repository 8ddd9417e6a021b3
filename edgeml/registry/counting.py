"""Release counters at publishing time.

A planned downgrade is the old model published again with a higher counter: the counter
is in the bundle, so the bundle becomes another one, with the same content.
"""

from pathlib import Path

from device_agent.contract.bundle import Bundle, read_bundle

from ..bundling.bundle import opened, renumbered
from ..errors import UsageError
from .change import Change
from .publish import counters, raw_of


def counted(change: Change, path: Path, counter: str | None) -> tuple[Bundle, bytes]:
    """The bundle of a file, with the release counter that was asked for.

    Args:
        change: Knows what is published.
        path: The file.
        counter: None: as it is; ``next``: one above what is published; a number.

    Raises:
        InputError: it is no bundle, or nobody may sign for its model.
        UsageError: the counter is no number.
    """
    bundle = opened(path)
    if counter is None:
        return bundle, raw_of(path)
    if counter != "next" and not counter.isdecimal():
        raise UsageError(f"--counter {counter}: expected a whole number, or next")
    manifest = bundle.manifest
    published = counters(change.targets_of(manifest.name))
    number = (
        published.get(manifest.target, 0) + 1 if counter == "next" else int(counter)
    )
    raw = renumbered(bundle, number)
    return read_bundle(raw), raw
