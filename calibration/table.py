"""Data sets in tables (CSV, Parquet): one sample per row.

The rules it keeps:

1. A list of columns becomes one float32 vector per row, in the order of the list.
2. A label keeps its type: whole number, float or text.
3. A row with a missing or non-finite number is refused by its number, never filled in.
4. A CSV whose rows have one field more than its header has row names first (R writes
   that); they are left out.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import rows
from .errors import DataError, MissingData
from .sample import Array, Dataset, DataSource, checked

SUFFIXES = (".csv", ".txt", ".tsv", ".parquet")
DELIMITERS = ",;\t"
TABLE_BYTES_MAX = 2 << 30
"""Bytes of one file."""
HEADER_CHARS_MAX = 1 << 20


def read(path: Path, source: DataSource) -> Dataset:
    """The rows of a table as samples.

    Raises:
        DataError: not a table, a column is missing, has no numbers or has gaps.
    """
    columns = read_columns(path)
    wanted = _inputs(source, columns, path.name)
    needed = {name for part in wanted.values() for name in part}
    needed |= {*source.slices, *((source.label,) if source.label else ())}
    missing = sorted(needed - columns.keys())
    if missing:
        raise MissingData(
            f"{path.name} has no column {', '.join(map(repr, missing))}; "
            f"it has {', '.join(columns)}"
        )
    values = {
        key: np.stack([_numbers(columns, name, path.name) for name in part], axis=1)
        for key, part in wanted.items()
    }
    labels = _whole(columns, source.label, path.name) if source.label else None
    slices = {name: _whole(columns, name, path.name) for name in source.slices}
    return checked(
        rows(path.stem, values, labels, slices, path.name),
        path.name,
        limit=source.limit,
    )


def read_columns(path: Path) -> dict[str, list[Any]]:
    """Column name → its values, None where there is none; row names left out.

    Raises:
        DataError: unreadable, too large, no rows, or a column name twice.
    """
    import pyarrow as pa

    size = path.stat().st_size
    if size > TABLE_BYTES_MAX:
        raise DataError(
            f"{path.name} has {size} bytes; at most {TABLE_BYTES_MAX} allowed: "
            "split it, or give samples with a module:function"
        )
    try:
        found = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError, csv.Error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path.name} cannot be read as a table: {reason}") from error
    names = found.column_names
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path.name}: two columns are called {twice!r}")
    if found.num_rows == 0:
        raise DataError(f"{path.name}: no rows; expected at least one")
    return {name: found.column(name).to_pylist() for name in names}


def _parquet(path: Path) -> Any:
    from pyarrow import parquet

    return parquet.read_table(path)


def _csv(path: Path) -> Any:
    from pyarrow import csv as arrow

    with path.open(encoding="utf-8-sig", newline="") as stream:
        first = stream.readline(HEADER_CHARS_MAX)
        delimiter = max(DELIMITERS, key=first.count)
        stream.seek(0)
        lines = csv.reader(stream, delimiter=delimiter)
        header, row = next(lines, []), next(lines, [])
    if not header:
        raise DataError(f"{path.name} is empty; expected a line of column names")
    named_rows = len(row) == len(header) + 1
    names = ["", *header] if named_rows else header
    found = arrow.read_csv(
        path,
        read_options=arrow.ReadOptions(
            column_names=names, skip_rows=1, use_threads=False
        ),
        parse_options=arrow.ParseOptions(delimiter=delimiter),
        convert_options=arrow.ConvertOptions(strings_can_be_null=True),
    )
    return found.select(range(1, len(names))) if named_rows else found


def _inputs(
    source: DataSource, columns: Mapping[str, list[Any]], name: str
) -> dict[str, list[str]]:
    inputs = source.inputs
    if inputs is None:
        inputs = [
            column
            for column, values in columns.items()
            if column not in {*source.slices, source.label}
            and all(isinstance(value, int | float | None) for value in values)
        ]
        if not inputs:
            raise MissingData(
                f"{name}: no column of numbers besides label and slices; "
                f"it has {', '.join(columns)}: name the inputs"
            )
    named = inputs if isinstance(inputs, dict) else {"": inputs}
    return {
        key: [part] if isinstance(part, str) else list(part)
        for key, part in named.items()
    }


def _numbers(columns: Mapping[str, list[Any]], name: str, table: str) -> Array:
    values = _whole(columns, name, table)
    bad = next((v for v in values if not _is_number(v)), None)
    if bad is not None:
        raise DataError(
            f"{table}: column {name!r} holds {bad!r}; an input is numbers: encode it, "
            "or leave the column out of inputs"
        )
    return np.asarray(values, np.float32)


def _is_number(value: Any) -> bool:
    """Whether a cell could be one: a column with one word in it is read as words."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _whole(columns: Mapping[str, list[Any]], name: str, table: str) -> list[Any]:
    """A column without gaps."""
    values = columns[name]
    if None in values:
        raise DataError(
            f"{table}: row {values.index(None)} (from 0) has no value in column "
            f"{name!r}; fill it in or leave the row out"
        )
    return values
