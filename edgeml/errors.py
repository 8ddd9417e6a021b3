"""The errors of the build host, and the exit code of each.

::

    EdgemlError            1
    ├── UsageError         2  the command line asks for something that is not there
    ├── RecipeError        2  mistakes in a recipe, all of them, each with its line
    ├── InputError         4  a model, data or bundle is refused
    │   └── ModelError     4  … with operator, node and reason where they are known
    ├── GateMissed         3  a limit of the budget, or a check, was missed
    ├── PassError          4  a pass failed; says what ran before it
    ├── BackendError       4  a backend or quantizer failed on this model
    └── MachineLacks       5  a package, tool or instruction set is not here
"""

from typing import ClassVar

DONE, DIFFERENT, USAGE, GATE, REFUSED, LACKS = range(6)


class EdgemlError(Exception):
    """Root of everything that ``edgeml`` raises on purpose."""

    exit_code: ClassVar[int] = DIFFERENT


class UsageError(EdgemlError):
    """The command line names something that does not exist or does not fit."""

    exit_code = USAGE


class RecipeError(EdgemlError):
    """A recipe cannot be used; the text lists every mistake with its line."""

    exit_code = USAGE


class InputError(EdgemlError):
    """A model, a data set or a bundle is refused."""

    exit_code = REFUSED


class ModelError(InputError):
    """A model is refused; names operator, node and reason where they are known."""


class GateMissed(EdgemlError):  # noqa: N818 - reads as a fact, like the gate it names
    """A limit was missed; the text names limit, value and the guilty part."""

    exit_code = GATE


class PassError(EdgemlError):
    """A pass failed; the text names it and the passes that ran before."""

    exit_code = REFUSED


class BackendError(EdgemlError):
    """A backend or a quantizer could not make an artifact of this model."""

    exit_code = REFUSED


class MachineLacks(EdgemlError):  # noqa: N818 - reads as a fact: the machine lacks it
    """The machine lacks a package, a tool or a feature; the text names the way out."""

    exit_code = LACKS


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error, ours or a tool's, as one line of at most ``limit``."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= limit else line[: limit - 1] + "…"
