"""Recipes with something wrong: name → what is done to a sound one, and what is said.

:func:`sound` writes a project that builds; each entry of :data:`BROKEN` breaks it in
one way.
"""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundles
import numpy as np

from .onnxfiles import evil_pickle

RECIPE = """\
[model]
source = "model.onnx"
name = "linear"
version = "1.0.0"

[data]
calibration = "calibration.npz"
validation = "validation.npz"
inputs = "x"
label = "y"
samples = 16

[metric]
name = "top1"

[quantize]
precisions = ["fp32"]

[build]
targets = ["cpu-x86_64"]
"""


@dataclass(frozen=True)
class Broken:
    """What breaks the project, the exit code, and words of the reason (a pattern)."""

    change: Callable[[Path], object]
    code: int
    reason: str
    lines: int = 1
    """How many mistakes must be told, one a line."""


def sound(folder: Path) -> Path:
    """Write a project that builds; gives the recipe."""
    (folder / "model.onnx").write_bytes(bundles.linear())
    for seed, name in enumerate(("calibration", "validation")):
        arrays(folder, name, **samples(seed))
    path = folder / "recipe.toml"
    path.write_text(RECIPE)
    return path


def samples(seed: int, count: int = 24) -> dict[str, Any]:
    """Inputs [count, 4] and labels of three classes."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((count, 4), dtype=np.float32)
    return {"x": values, "y": np.arange(count) % 3}


def arrays(folder: Path, name: str, **parts: Any) -> None:
    """Write a split."""
    np.savez(folder / f"{name}.npz", **parts)


def _data(name: str = "validation", **parts: Any) -> Callable[[Path], object]:
    """A split whose arrays ``parts`` replaces; None takes one away."""

    def change(folder: Path) -> None:
        whole = {**samples(7), **parts}
        arrays(folder, name, **{k: v for k, v in whole.items() if v is not None})

    return change


def _file(name: str, data: str | bytes) -> Callable[[Path], object]:
    raw = data if isinstance(data, bytes) else data.encode()
    return lambda folder: (folder / name).write_bytes(raw)


def _recipe(pattern: str, to: str, *more: Callable[[Path], object]) -> Any:
    """The recipe with the one place that ``pattern`` finds replaced."""

    def change(folder: Path) -> None:
        text, count = re.subn(pattern, to, RECIPE, flags=re.MULTILINE)
        assert count == 1, f"{pattern!r} is {count} times in the recipe"
        (folder / "recipe.toml").write_text(text)
        for one in more:
            one(folder)

    return change


def _values(spoil: Any) -> Any:
    values = samples(7)["x"]
    values[3, 1] = spoil
    return values


def _overlap(folder: Path) -> None:
    both = samples(0)
    both["x"][5:] += 1
    arrays(folder, "validation", **both)


def _bomb(folder: Path) -> None:
    """16 GiB of zeros, by the header of an array that is a few bytes in the file."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1073741824, 4), }"
    block = header.ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(block).to_bytes(2, "little") + block + bytes(64)
    with zipfile.ZipFile(folder / "calibration.npz", "w") as archive:
        archive.writestr("x.npy", npy)
        archive.writestr("y.npy", npy)


def _truncated(folder: Path) -> None:
    path = folder / "calibration.npz"
    path.write_bytes(path.read_bytes()[:-200])


def _table(text: str) -> Any:
    """The validation split as CSV; the recipe names its columns."""
    split = '{ path = "v.csv", inputs = ["a", "b", "c", "d"], label = "y" }'
    return _recipe('"validation.npz"', split, _file("v.csv", text))


def _code(source: str, name: str = "mine:it") -> Any:
    """The recipe with a metric of its own."""
    return _recipe("top1", name, _file("mine.py", source))


def _factory(source: str, more: str = "inputs = {x = [1, 4]}") -> Any:
    return _recipe(
        'source = "model.onnx"', f'source = "net:make"\n{more}', _file("net.py", source)
    )


_NET = "import torch\ndef make():\n    return torch.nn.Linear(4, 3)\n"


def _weights(folder: Path, shape: tuple[int, ...] = (2, 4)) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.ones(shape, np.float32)}, folder / "w.safetensors")


def _no_recipe(folder: Path) -> None:
    (folder / "recipe.toml").unlink()


def _folder_recipe(folder: Path) -> None:
    _no_recipe(folder)
    (folder / "recipe.toml").mkdir()


DATA = {
    "no samples": Broken(
        _data(x=np.zeros((0, 4), np.float32), y=np.zeros(0)), 4, "empty|no samples"
    ),
    "no samples to calibrate": Broken(
        _data("calibration", x=np.zeros((0, 4), np.float32), y=np.zeros(0)), 4,
        "calibration.npz.*(empty|no samples)",
    ),
    "wrong width": Broken(
        _data(x=np.ones((24, 5), np.float32)), 4, r"sample validation\[0\].*x.*5"
    ),
    "wrong rank": Broken(
        _data(x=np.ones((24, 2, 2), np.float32)), 4, r"sample validation\[0\].*2, 2"
    ),
    "NaN": Broken(_data(x=_values(np.nan)), 4, r"validation\[3\] holds NaN"),
    "infinity": Broken(
        _data("calibration", x=_values(-np.inf)), 4, r"calibration.*infinity"
    ),
    "text for numbers": Broken(
        _data(x=np.array([["a"] * 4] * 24)), 4, "dtype.*expected numbers"
    ),
    "pickled objects": Broken(
        _data(x=np.array([{}] * 24, object)), 4, "pickle|object"
    ),
    "missing key": Broken(
        _data(x=None, pixels=np.ones((24, 4))), 4, "no key 'x'; it has pixels, y"
    ),
    "no labels": Broken(_data(y=None), 4, "no key 'y'; it has x"),
    "fewer labels": Broken(
        _data(y=np.arange(20) % 3), 4, "numbers of samples differ.*24.*20"
    ),
    "labels of text": Broken(
        _data(y=np.array(["cat"] * 24)), 4, "label"
    ),
    "labels beyond the classes": Broken(
        _data(y=np.arange(24)), 4, "label.*(3|class)"
    ),
    "same samples in both splits": Broken(
        _overlap, 4, "5 validation samples are calibration samples too"
    ),
    "array of 16 GiB": Broken(_bomb, 4, "x.*bytes.*at most|too large|cut off"),
    "truncated npz": Broken(_truncated, 4, "cannot be read as npz"),
    "npz that is none": Broken(_file("calibration.npz", "x,y\n"), 4, "as npz"),
    "data of unknown kind": Broken(
        _recipe("calibration.npz", "c.sav", _file("c.sav", "?")), 4, "found '.sav'"
    ),
    "data that is not there": Broken(
        _recipe("calibration.npz", "c.npz"), 2, ":7: data.calibration: .*does not exist"
    ),
    "ragged table": Broken(
        _table("a,b,c,d,y\n1,2,3,4,0\n1,2,3\n"), 4, "v.csv.*(line|row)"
    ),
    "word in a table": Broken(
        _table("a,b,c,d,y\n1,2,3,4,0\n1,2,many,4,1\n"), 4, "v.csv: column 'c'"
    ),
    "missing column": Broken(_table("a,b,c,y\n1,2,3,0\n"), 4, "v.csv.*'d'"),
}  # fmt: skip

RECIPES = {
    "no recipe": Broken(_no_recipe, 2, "no recipe at .*edgeml init"),
    "folder as recipe": Broken(_folder_recipe, 2, "recipe"),
    "empty recipe": Broken(
        _file("recipe.toml", ""), 2, ":1: recipe: 'model' is missing", 4
    ),
    "binary recipe": Broken(_file("recipe.toml", b"\xff\xfe\0"), 2, "not UTF-8"),
    "syntax": Broken(_recipe(r"^\[data\]$", "[data"), 2, r"toml:6: not TOML"),
    "unknown key": Broken(
        _recipe("^samples", "sampels"), 2, r":11: data.sampels: .*samples"
    ),
    "missing table": Broken(
        _recipe(r'\[metric\]\nname = "top1"\n', ""), 2,
        ":1: recipe: 'metric' is missing",
    ),
    "wrong type": Broken(_recipe("= 16", '= "many"'), 2, ":11: data.samples: .*number"),
    "unknown target": Broken(
        _recipe("cpu-x86_64", "cpu-z80"), 2, ":20: build.targets.*cpu-z80"
    ),
    "unknown metric": Broken(_recipe("top1", "top2"), 2, ":14: metric.name: .*top1"),
    "unknown pass": Broken(
        _recipe(r"\[build\]", '[[pass]]\nverb = "bless"\n\n[build]'), 2,
        ":20: pass.*expected .*export; got 'bless'",
    ),
    "pass that trains on nothing": Broken(
        _recipe(r"\[build\]", '[[pass]]\nverb = "prune"\n\n[build]'), 2,
        "prune trains, and there is no .data. train",
    ),
    "judged by what was calibrated on": Broken(
        _recipe("validation.npz", "calibration.npz"), 2, "data.validation: the same"
    ),
    "model that is not there": Broken(
        _recipe("model.onnx", "modle.onnx"), 2, ":2: model.source: .*does not exist"
    ),
    "name that is a path": Broken(
        _recipe('name = "linear"', 'name = "../linear"'), 2, ":3: model.name"
    ),
    "five mistakes": Broken(
        _recipe(
            r'(?s)version = "1.0.0"(.*)samples = 16(.*)top1(.*)fp32(.*)cpu-x86_64',
            r'version = 1\1samples = 0\2\3fp31\4cpu-z80',
        ), 2, "model.version", 5,
    ),
}  # fmt: skip

CODE = {
    "metric that raises": Broken(
        _code("def it(o, l, r):\n    raise KeyError('a\\nb')\n"), 4,
        "metric mine:it raised KeyError",
    ),
    "metric that gives NaN": Broken(
        _code("def it(o, l, r):\n    return float('nan')\n"), 4, "mine:it gave nan"
    ),
    "metric that gives no number": Broken(
        _code("def it(o, l, r):\n    return 'good'\n"), 4, "mine:it raised ValueError"
    ),
    "metric that is not there": Broken(
        _code("def other(): ...\n"), 4, "mine:it raised AttributeError"
    ),
    "metric that does not compile": Broken(
        _code("def it(:\n"), 4, "mine:it raised SyntaxError"
    ),
    "data function that raises": Broken(
        _recipe(
            '"calibration.npz"', '"mine:samples"',
            _file("mine.py", "def samples(*a, **k):\n    raise OSError('disk')\n"),
        ), 4, "mine:samples.*OSError.*disk",
    ),
    "factory that is not there": Broken(
        _factory("x = 1\n"), 4, "net:make raised AttributeError"
    ),
    "factory without its module": Broken(
        _recipe('"model.onnx"', '"nowhere:make"'), 4, "raised ModuleNotFoundError"
    ),
    "factory that raises": Broken(
        _factory("def make():\n    raise ValueError('a\\n b')\n"), 4,
        "net:make raised ValueError: a b",
    ),
    "factory that exits": Broken(
        _factory("def make():\n    raise SystemExit(0)\n"), 4, "raised SystemExit"
    ),
    "factory of something else": Broken(
        _factory("def make():\n    return 3\n"), 4, "gave a int"
    ),
    "factory without input shapes": Broken(
        _factory(_NET, ""), 4, r"inputs = \{x = \[1"
    ),
    "factory with wrong input shapes": Broken(
        _factory(_NET, "inputs = {x = [1, 9]}"), 4, r"x \[1, 9\]"
    ),
    "weights that do not fit": Broken(
        lambda folder: (
            _weights(folder),
            _factory(_NET, 'weights = "w.safetensors"\ninputs = {x = [1, 4]}')(folder),
        ), 4, r"missing: bias; of another shape: weight \[2, 4\] instead of \[3, 4\]",
    ),
    "pickle for weights": Broken(
        lambda folder: (
            evil_pickle("w.pth")(folder),
            _factory(_NET, 'weights = "w.pth"\ninputs = {x = [1, 4]}')(folder),
        ), 4, "w.pth is a Python pickle; expected safetensors.*convert-weights",
    ),
    "input that the model has not": Broken(
        _recipe('"model.onnx"', '"model.onnx"\ninputs = {z = [1, 4]}'), 4,
        "pins 'z', which is no input of the model; it has x",
    ),
    "output that the model has not": Broken(
        _recipe('"top1"', '"top1"\noutput = "scores"'), 4, "scores.*y"
    ),
    "slice that the data has not": Broken(
        _recipe('"top1"', '"top1"\nslices = ["speaker"]'), 4, "no key 'speaker'"
    ),
    "steps for another input": Broken(
        _recipe(
            r"\[metric\]",
            '[preprocess]\ninput = "z"\nsteps = [{scale = 2.0}]\n\n[metric]',
        ), 4, "'z' is not an input",
    ),
    "steps that do not fit": Broken(
        _recipe(r"\[metric\]", "[preprocess]\nsteps = [{resize = [9, 9]}]\n\n[metric]"),
        4, r"sample calibration\[\d+\]",
    ),
}  # fmt: skip

BROKEN: dict[str, Broken] = {**DATA, **RECIPES, **CODE}
