"""The errors of data sets.

::

    DataError               a data set cannot be used; says what to do
    ├── MissingData         a file, key, column or split that is not there
    └── OverlapError        two splits share samples; names them
"""


class DataError(ValueError):
    """A data set is missing, damaged, too large or contradicts itself."""


class MissingData(DataError):  # noqa: N818 - reads as a fact: the data is missing
    """A file, a key, a column or a split is not there."""


class OverlapError(DataError):
    """Samples are in two splits that must be disjoint."""
