"""Fixtures of the tests of whole builds."""

from pathlib import Path

import pytest
from commands import SHARED


@pytest.fixture
def shared() -> Path:
    return SHARED
