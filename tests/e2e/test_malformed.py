"""Whatever is wrong with what a user gives: a documented code, one line, no traces.

Through the real command: most cases in this process, for speed, and one of each kind
in a process of its own.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bundles
import pytest
from commands import ROOT
from malformed import bundlefiles, onnxfiles, projects
from typer.testing import CliRunner
from unlimited import HERE, read_apart, read_here  # noqa: F401

from edgeml.cli import app

LINE_CHARS_MAX = 600
MODELS = (
    "empty", "truncated", "folder", "html", "lfs", "pickle as onnx", "old pickle",
    "pth", "zip as onnx", "torchscript", "pt2", "any zip", "tflite as onnx",
    "huge constant", "custom operator", "unknown operator", "variable shape", "cycle",
    "external parent", "external absolute", "external missing", "external link",
    "external pipe", "external in a branch",
)  # fmt: skip
"""What the reader refuses is tested in ``tests/edgeml``; here the main cases."""


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary folder of everything that runs; nothing may stay in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:  # the user's own code of this case
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    assert not list(folder.iterdir()), "a temporary folder was left behind"


def here(*arguments: object) -> Done:
    """The command in this process."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def apart(*arguments: object) -> Done:
    """The command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "edgeml", *map(str, arguments)],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def holds(done: Done, code: int, reason: str, work: Path, lines: int = 1) -> None:
    """The rules that every refusal keeps."""
    assert done.code == code, done.err + done.out
    assert len(done.err.splitlines()) == lines, done.err
    assert re.search(reason, done.err, re.IGNORECASE), done.err
    assert max(map(len, done.err.splitlines())) <= LINE_CHARS_MAX
    assert "Traceback" not in done.err + done.out
    left = [path.name for path in work.rglob("*") if path.name.endswith(".part")]
    left += [path.name for path in work.glob("build/linear-1.0.0/*")]
    assert not left
    assert not list(work.rglob("OWNED")), "a pickle was loaded"


def build(folder: Path, run: object = here) -> Done:
    return run("build", folder / "recipe.toml", "--quiet", "--out", folder / "build")


def broken(name: str, folder: Path) -> projects.Broken:
    """A sound project, then broken."""
    projects.sound(folder)
    case = projects.BROKEN[name]
    case.change(folder)
    return case


def with_model(name: str, folder: Path) -> tuple[Path, str]:
    """A sound project with a malformed model file, and the reason to expect."""
    recipe = projects.sound(folder)
    (folder / "model.onnx").unlink()
    case = onnxfiles.MALFORMED[name]
    path = case.write(folder)
    source = path.relative_to(folder).as_posix()
    recipe.write_text(projects.RECIPE.replace("model.onnx", source))
    return recipe, case.reason


def test_the_sound_project_builds(tmp_path: Path, scratch: Path) -> None:
    projects.sound(tmp_path)
    done = build(tmp_path)
    assert (done.code, done.err) == (0, "")
    assert list(tmp_path.glob("build/linear-1.0.0/cpu-x86_64.edgeml"))


@HERE  # its model is sound
@pytest.mark.parametrize("name", projects.BROKEN)
def test_projects(name: str, tmp_path: Path, scratch: Path) -> None:
    case = broken(name, tmp_path)
    done = build(tmp_path)
    holds(done, case.code, case.reason, tmp_path, case.lines)
    if case.code == 2 and (tmp_path / "recipe.toml").is_file():
        place = re.escape(str(tmp_path / "recipe.toml")) + r":\d+: "
        assert all(re.match(place, line) for line in done.err.splitlines())


@pytest.mark.parametrize("name", MODELS)
def test_models(
    name: str, tmp_path: Path, scratch: Path, request: pytest.FixtureRequest
) -> None:
    # only the limits end this one; the others are refused wherever they are read
    request.getfixturevalue("read_apart" if name == "huge constant" else "read_here")
    _, reason = with_model(name, tmp_path)
    holds(build(tmp_path), 4, reason, tmp_path)


@pytest.mark.parametrize("name", bundlefiles.MALFORMED)
def test_bundles(name: str, tmp_path: Path, scratch: Path) -> None:
    case = bundlefiles.MALFORMED[name]
    path = tmp_path / "it.edgeml"
    path.write_bytes(case.make())
    holds(here("unpack", path, tmp_path / "out"), 4, case.reason, tmp_path)
    assert not (tmp_path / "out").exists()
    holds(here("inspect", path), 4, f"it.edgeml: .*({case.reason})", tmp_path)


@pytest.mark.parametrize("verb", ["check", "inspect", "bench", "unpack", "diff"])
@pytest.mark.parametrize("what", ["absent", "folder", "truncated", "link"])
def test_every_verb_about_bundles(
    verb: str, what: str, tmp_path: Path, scratch: Path
) -> None:
    path, good = tmp_path / "it.edgeml", tmp_path / "good.edgeml"
    good.write_bytes(bundles.bundle())
    if what == "folder":
        path.mkdir()
    elif what == "truncated":
        path.write_bytes(bundles.bundle()[:-1])
    elif what == "link":
        path.symlink_to(tmp_path / "nowhere")
    more = {"unpack": [tmp_path / "out"], "diff": [good]}.get(verb, [])
    # the device's program writes past the runner: seen in a process of its own
    run = apart if verb == "check" else here
    holds(run(verb, path, *more), 4, "it.edgeml", tmp_path)


APART_PROJECTS = ("NaN", "array of 16 GiB", "five mistakes", "folder as recipe",
                  "metric that raises", "factory that exits")  # fmt: skip
APART_MODELS = ("pickle as onnx", "huge constant", "external link", "custom operator")
APART_BUNDLES = ("climbing path", "pickle", "unlisted member")


@pytest.mark.long
@pytest.mark.parametrize("name", APART_PROJECTS)
def test_projects_in_a_process(name: str, tmp_path: Path, scratch: Path) -> None:
    case = broken(name, tmp_path)
    holds(build(tmp_path, apart), case.code, case.reason, tmp_path, case.lines)


@pytest.mark.parametrize("name", APART_MODELS)
def test_models_in_a_process(name: str, tmp_path: Path, scratch: Path) -> None:
    _, reason = with_model(name, tmp_path)
    holds(build(tmp_path, apart), 4, reason, tmp_path)


@pytest.mark.parametrize("name", APART_BUNDLES)
def test_bundles_in_a_process(name: str, tmp_path: Path, scratch: Path) -> None:
    case = bundlefiles.MALFORMED[name]
    path = tmp_path / "it.edgeml"
    path.write_bytes(case.make())
    holds(apart("check", path), 4, case.reason, tmp_path)


@pytest.mark.parametrize("name", ["out", "cache", "release"])
def test_a_file_where_a_folder_must_be_written(
    name: str, tmp_path: Path, scratch: Path
) -> None:
    projects.sound(tmp_path)
    where = {"out": "build", "cache": "build/.cache", "release": "build/linear-1.0.0"}
    path = tmp_path / where[name]
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    done = build(tmp_path)
    path.unlink()
    holds(done, 2, "cannot be written.*not a folder", tmp_path)


@pytest.mark.parametrize(
    "name", ["truncated", "custom operator", "pth", "external link"]
)
@pytest.mark.parametrize("verb", ["init", "bench", "inspect"])
def test_other_verbs_about_models(
    verb: str, name: str, tmp_path: Path, scratch: Path
) -> None:
    path = onnxfiles.MALFORMED[name].write(tmp_path)
    if verb == "inspect" and name in ("custom operator", "external link"):
        assert here(verb, path).code == 0, "only its graph is read"
        return
    more = ["--out", tmp_path / "r.toml"] if verb == "init" else []
    done = here(verb, path, *more)
    holds(done, 4, f"{path.name}", tmp_path)
    assert not (tmp_path / "r.toml").exists()


def test_a_recipe_that_init_may_not_replace(tmp_path: Path, scratch: Path) -> None:
    recipe = projects.sound(tmp_path)
    done = here("init", tmp_path / "model.onnx", "--out", recipe)
    holds(done, 2, "recipe.toml exists", tmp_path)
    assert recipe.read_text() == projects.RECIPE


@pytest.mark.parametrize(
    ("name", "read"),
    [("old pickle", "read_here"), ("pth", "read_apart"), ("noise", "read_here")],
)
def test_weights_to_convert(
    name: str, read: str, tmp_path: Path, scratch: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    request.getfixturevalue(read)
    path = onnxfiles.MALFORMED[name].write(tmp_path)
    out = tmp_path / "w.safetensors"
    done = here("convert-weights", path, out)
    holds(done, 4, path.name, tmp_path)
    assert not out.exists()


def test_folders_to_unpack_into(tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "it.edgeml"
    path.write_bytes(bundles.bundle())
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        done = here("unpack", path, tmp_path / place)
        holds(done, 4, "file", tmp_path)
    (tmp_path / "full").mkdir()
    shutil.copy(path, tmp_path / "full")
    done = here("unpack", path, tmp_path / "full")
    holds(done, 4, "is there already", tmp_path)
