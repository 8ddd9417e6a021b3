"""Numbers that people write: CSV files, and nested lists of JSON.

Both become arrays without ever asking for more memory than their text is worth.
"""

import csv
import io
import reprlib
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from ..contract.tensors import Array
from ..errors import RequestError, TooLargeError

CSV_BYTES_MAX = 1 << 20
"""Bytes of one CSV file; a line's cells take up to 30 times its length."""
DIMENSIONS_MAX = 16


def read_csv(body: bytes, lines_max: int) -> Array:
    """The numbers of a CSV file, ``[lines, columns]``; a line of names is passed over.

    Separated by commas, semicolons or tabs; with the latter two, numbers may have
    decimal commas. Whole numbers below 2**53 give int64, all others float64.

    Raises:
        RequestError: a cell is no number, or the lines are not equally long.
        TooLargeError: too many bytes or lines.
    """
    if len(body) > CSV_BYTES_MAX:
        raise TooLargeError(f"{len(body)} bytes of CSV; at most {CSV_BYTES_MAX}")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"the CSV is not UTF-8: {error}") from error
    first = text.lstrip().partition("\n")[0]
    delimiter = next((one for one in ";\t" if one in first), ",")
    if delimiter != ",":
        text = text.replace(",", ".")
    rows: list[array[float]] = []
    whole = True
    for line, cells in _lines(text, delimiter):
        if not rows and line == 1 and not all(map(_is_number, cells)):
            continue
        if len(rows) == lines_max:
            raise TooLargeError(f"more than {lines_max} lines of CSV (max_rows)")
        rows.append(_numbers(line, cells, len(rows[0]) if rows else len(cells)))
        whole = whole and all(cell.strip(" +-").isdecimal() for cell in cells)
    if not rows:
        raise RequestError("the CSV has no line of numbers")
    table = np.array(rows)
    return table.astype(np.int64) if whole and abs(table).max() < 2**53 else table


def _lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Lines that are not empty, with their numbers among these."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        yield from enumerate(filter(None, reader), 1)
    except csv.Error as error:
        raise RequestError(f"line {reader.line_num} is not CSV: {error}") from error


def _numbers(line: int, cells: list[str], columns: int) -> "array[float]":
    if len(cells) != columns:
        raise RequestError(f"line {line} has {len(cells)} columns; expected {columns}")
    for column, cell in enumerate(cells, 1):
        if not _is_number(cell):
            raise RequestError(
                f"line {line}, column {column}: expected a number, "
                f"found {reprlib.repr(cell)}"
            )
    return array("d", map(float, cells))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def array_of(value: Any, where: str) -> Array:
    """A number or nested lists of numbers as an array.

    Flattened level by level, for numpy would take as much memory as the longest text
    among the values asks for, times their count.

    Raises:
        RequestError: something else, or lists of unequal lengths.
    """
    shape: list[int] = []
    leaves = [value]
    while type(leaves[0]) is list:
        length = len(leaves[0])
        if not length or len(shape) == DIMENSIONS_MAX:
            raise RequestError(f"{where}: an empty list, or over {DIMENSIONS_MAX} deep")
        if not all(type(row) is list and len(row) == length for row in leaves):
            raise RequestError(f"{where}: the lists of one level are not equally long")
        shape.append(length)
        leaves = list(chain.from_iterable(leaves))
    wrong = next((leaf for leaf in leaves if type(leaf) not in (int, float, bool)), 0)
    if type(wrong) not in (int, float, bool):
        raise RequestError(f"{where}: expected numbers, found {reprlib.repr(wrong)}")
    values = np.array(leaves)
    if values.dtype.kind == "O":  # whole numbers beyond 64 bits
        try:
            values = values.astype(np.float64)
        except OverflowError as error:
            raise RequestError(f"{where}: a number is beyond 64 bits") from error
    return values.reshape(shape)
