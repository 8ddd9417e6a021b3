"""What the limited subprocess does with a file, in this process: nothing starts.

The tasks are the real ones, with the arguments, facts and refusals that cross the
border as JSON. For tests about what is read. That hostile files are opened in the
subprocess, and what ends it, others test there: ``tests/edgeml/intake/test_sandbox.py``
and, in each module that uses the fixture, the tests without it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgeml.errors import MachineLacks, ModelError
from edgeml.intake import importer, sandbox, weights


def limited(
    task: str,
    arguments: Mapping[str, Any],
    scratch: Path,
    limits: sandbox.Limits | None = None,
) -> dict[str, Any]:
    """As :func:`edgeml.intake.sandbox.limited`, without the limits."""
    order = {"task": task, "arguments": dict(arguments), "scratch": str(scratch)}
    found = sandbox._run(json.loads(json.dumps(order)), limits or sandbox.Limits())
    answer = json.loads(json.dumps(found))
    if "lacks" in answer:
        raise MachineLacks(answer["lacks"])
    if "refused" in answer:
        raise ModelError(answer["refused"])
    return dict(answer["facts"])


@pytest.fixture
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in this process."""
    monkeypatch.setattr(importer, "limited", limited)
    monkeypatch.setattr(weights, "limited", limited)


@pytest.fixture
def read_apart() -> None:
    """Files are read in the limited subprocess, as they are for users."""


HERE = pytest.mark.usefixtures("read_here")
