"""A child that does part of a build: its errors, its death, its parent's death."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgeml import errors
from edgeml.apart import run_apart
from edgeml.errors import EdgemlError, MachineLacks, PassError
from edgeml.progress import Silent

CODE = """
import ctypes, os, pathlib, signal, sys, time
from edgeml import errors

def says(argument, progress):
    print("to standard output, which must not disturb")
    progress.stage("first"); progress.step(1, 2); progress.result(f"got {argument}")

def leaves(argument, progress):
    pathlib.Path(argument).write_text("done")

def raises(argument, progress):
    progress.stage("raising")
    kind, text = argument
    raise getattr(errors, kind)(text)

def segfaults(argument, progress):
    progress.stage("before"); progress.stage("pass prune: epoch 2 of 3")
    ctypes.string_at(0)

def dies(argument, progress):
    os.kill(os.getpid(), argument)

def refuses(argument, progress):
    from calibration.dataset import OverlapError
    raise OverlapError("3 samples are in both")

def never(argument, progress):
    raise AssertionError("it was not to be called")

def bug(argument, progress):
    progress.stage("buggy")
    print("noise\\n" * 1000, file=sys.stderr)
    raise KeyError("a bug of ours")

def waits(argument, progress):
    pathlib.Path(argument).write_text(str(os.getpid()))
    time.sleep(600)
"""


class Heard:
    """Progress that remembers."""

    def __init__(self):
        self.said = []

    def stage(self, text):
        self.said.append(text)

    def step(self, done, total):
        self.said.append((done, total))

    def result(self, text):
        self.said.append(text)


@pytest.fixture(autouse=True)
def tasks(tmp_path, monkeypatch):
    (tmp_path / "apart_tasks.py").write_text(CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_it_runs_and_says_what_it_does(tmp_path):
    heard = Heard()
    run_apart("apart_tasks:says", {"a": [1]}, heard)
    assert heard.said == ["first", (1, 2), "got {'a': [1]}"]
    run_apart("apart_tasks:leaves", tmp_path / "here", Silent())
    assert (tmp_path / "here").read_text() == "done"


def test_a_large_argument_arrives():
    heard = Heard()
    run_apart("apart_tasks:says", "x" * (1 << 20), heard)
    assert len(heard.said[-1]) > 1 << 20


KINDS = [
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, EdgemlError)
]


@pytest.mark.parametrize("kind", ["RecipeError", "ModelError", "MachineLacks"])
def test_an_error_comes_as_what_it_was(kind):
    assert kind in KINDS
    text = "recipe.toml:3: one → line\nrecipe.toml:4: another"
    with pytest.raises(EdgemlError) as caught:
        run_apart("apart_tasks:raises", (kind, text), Silent())
    assert type(caught.value) is getattr(errors, kind)
    assert str(caught.value) == text


def test_an_error_of_another_package_comes_as_what_it_was():
    from calibration.dataset import OverlapError

    with pytest.raises(OverlapError, match=r"^3 samples are in both$"):
        run_apart("apart_tasks:refuses", None, Silent())


def test_a_child_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(PassError, match="died of exit code 1 while it was at: start"):
        run_apart("apart_tasks:never", "x" * (1 << 20), Silent())


def test_a_segfault_is_an_error_that_names_signal_and_stage():
    with pytest.raises(
        PassError, match=r"died of SIGSEGV while it was at: pass prune: epoch 2 of 3"
    ):
        run_apart("apart_tasks:segfaults", None, Silent())


def test_an_abort_is_named_too():
    with pytest.raises(PassError, match="died of SIGABRT while it was at: starting"):
        run_apart("apart_tasks:dies", signal.SIGABRT.value, Silent())


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
def test_a_kill_from_outside_is_no_fault_of_the_model(name):
    """A search must not hold it against the trial: it is not a PassError."""
    number = signal.Signals[name].value
    with pytest.raises(MachineLacks, match=f"{name} .*starting.*Run the same again"):
        run_apart("apart_tasks:dies", number, Silent())


def test_a_bug_is_told_with_its_place():
    with pytest.raises(PassError, match=r"buggy.*KeyError: 'a bug of ours' \(.*:\d+"):
        run_apart("apart_tasks:bug", None, Silent())


def test_when_the_parent_is_killed_the_child_ends(tmp_path):
    note = tmp_path / "pid"
    code = (
        "import sys; from edgeml.apart import run_apart; "
        "from edgeml.progress import Silent; "
        "run_apart('apart_tasks:waits', sys.argv[1], Silent())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(note)])
    try:
        child = int(_when(lambda: note.exists() and note.read_text()))
        assert _alive(child)
        parent.kill()
        parent.wait()
        _when(lambda: not _alive(child))
    finally:
        parent.kill()


def test_when_the_parent_gives_up_the_child_ends(tmp_path):
    note = tmp_path / "pid"

    class EnoughError(Exception):
        pass

    class Impatient(Silent):
        def stage(self, text):
            raise EnoughError

    with pytest.raises(EnoughError):
        run_apart("apart_tasks:segfaults", None, Impatient())
    assert not note.exists()


def _when(true, within_s=20.0):
    """What ``true`` gives as soon as it is true."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        found = true()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    os.kill(pid, 0)
    return state != "Z"
