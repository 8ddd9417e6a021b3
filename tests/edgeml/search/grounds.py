"""A real ground for searches: the small digits network, with chosen timings."""

import atexit
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copyfile, rmtree
from tempfile import mkdtemp

from digits import recipe, write
from timings import Timings

from edgeml.cache import Cache
from edgeml.pipeline import Place
from edgeml.progress import Silent
from edgeml.recipes.recipe import read_recipe
from edgeml.search.ground import Ground
from edgeml.search.judge import Judge, base_of
from edgeml.search.space import Point
from edgeml.search.variation import varied
from targets.profile import load_target

TARGET = "cpu-x86_64"
QUICK = '[quantize]\nquantizers = ["ort"]\nmethods = ["minmax"]\n'
FP32 = Point(None, None, "fp32")
INT8 = Point(None, None, "int8", "minmax", 32)


def written(folder: Path, extra: str = "", *targets: str) -> Path:
    """A recipe for digits; its folder holds data and model."""
    for path in _project().iterdir():
        copyfile(path, folder / path.name)
    return recipe(folder, *(targets or (TARGET,)), extra=QUICK + extra)


@cache
def _home() -> Path:
    """A folder that is there as long as the tests are."""
    folder = Path(mkdtemp(prefix="edgeml."))
    atexit.register(rmtree, folder)
    return folder


@cache
def _project() -> Path:
    """Data and model, made once."""
    folder = _home() / "project"
    write(folder, channels=8)
    return folder


def place(folder: Path, timings: Timings | None = None) -> Place:
    out = folder / "build"
    return Place(out, Cache(out / ".cache"), timings or Timings())


def ground(path: Path, timings: Timings | None = None) -> Ground:
    """A ground whose artifacts are made once for all tests."""
    where = place(path.parent, timings)
    where = replace(where, cache=Cache(_home() / "cache"))
    return Ground(path, where, Silent(), TARGET, False)


def judge(path: Path, timings: Timings | None = None) -> Judge:
    """A judge, its base being the recipe's own network."""
    on, recipe = ground(path, timings), read_recipe(path)
    target = load_target(TARGET)
    return Judge(on, recipe, target, base_of(on.stage(varied(recipe, FP32), target)))
