"""The commands as users run them, in processes of their own; real data, or a skip."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "tests" / "e2e" / "recipes"
SHARED = ROOT.parent / "shared" / "data"


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        return json.loads(self.out)


def edgeml(*arguments: object, cache: Path, cwd: Path = ROOT) -> Done:
    """Run the command with its own user cache."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeml", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def need(name: str) -> Path:
    """The folder of a real data set; skips by name when it is absent."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"../shared/data/{name} is absent")
    return path
