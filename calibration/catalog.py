"""Data sets that edgeml describes: ``set:NAME/SPLIT`` in ``calibration/sets``.

Each TOML file has ``description``, ``source``, ``licence`` and one table per split.
A split has a ``location`` (relative to the TOML file, or ``module:function``) with
``inputs``, ``label``, ``slices`` and ``limit`` as in a recipe, and for a function
``files``: argument → path. What the recipe itself says of a split goes first.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import DataError, MissingData
from .sample import DataSource

PREFIX = "set:"
FOLDER = Path(__file__).parent / "sets"
ABOUT = ("description", "source", "licence")
KEYS = frozenset({"location", "inputs", "label", "slices", "limit", "files"})


def names() -> tuple[str, ...]:
    """The data sets there are."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def describe(name: str) -> dict[str, Any]:
    """What the TOML file of a data set says.

    Raises:
        MissingData: there is no such data set.
        DataError: the file is not as this module says.
    """
    if name not in names():
        raise MissingData(f"no data set {name!r}; known: {', '.join(names())}")
    path = FOLDER / f"{name}.toml"
    try:
        value = tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{path.name}: not TOML: {error}") from error
    missing = [key for key in (*ABOUT, "splits") if not value.get(key)]
    if missing:
        raise DataError(f"{path.name}: {', '.join(missing)} missing")
    for split, table in value["splits"].items():
        unknown = sorted(table.keys() - KEYS)
        if unknown or "location" not in table:
            raise DataError(
                f"{path.name}, split {split}: expected location and any of "
                f"{', '.join(sorted(KEYS))}; unknown: {', '.join(unknown) or 'none'}"
            )
    return value


def resolve(source: DataSource) -> tuple[DataSource, Path, dict[str, Path]]:
    """The split's own source, its folder, and files for its function.

    Raises:
        MissingData: no such set or split, or its files are not on this machine.
    """
    found = re.fullmatch(r"([\w.-]+)/([\w.-]+)", source.location.removeprefix(PREFIX))
    if not found:
        raise DataError(f"{source.location}: expected set:NAME/SPLIT")
    splits = describe(found[1])["splits"]
    if found[2] not in splits:
        raise MissingData(
            f"data set {found[1]!r} has no split {found[2]!r}; "
            f"it has {', '.join(splits)}"
        )
    table: Mapping[str, Any] = splits[found[2]]
    files = {key: FOLDER / path for key, path in table.get("files", {}).items()}
    is_code = ":" in table["location"]
    for path in files.values() if is_code else [FOLDER / table["location"]]:
        if not path.exists():
            raise MissingData(
                f"{source.location} needs {path.name}, which is not at "
                f"{'/'.join(path.parts[-4:])} beside the checkout; fetch it from "
                f"{describe(found[1])['source']}"
            )
    own = DataSource(
        location=table["location"],
        inputs=source.inputs or table.get("inputs"),
        label=source.label or table.get("label"),
        slices=source.slices or tuple(table.get("slices", ())),
        limit=source.limit or table.get("limit"),
    )
    return own, FOLDER, files
