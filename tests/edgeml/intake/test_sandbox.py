"""The limited subprocess: what ends it, and what is said then."""

import subprocess
import sys

import pytest

from edgeml.errors import MachineLacks, ModelError, one_line
from edgeml.intake import sandbox
from edgeml.intake.sandbox import Limits, limited

TASKS = """
import os, signal, sys, time
from edgeml.errors import MachineLacks, ModelError

def facts(scratch, **arguments):
    print("noise of a library")
    (scratch / "made").write_text("x")
    return {"got": arguments, "home": os.environ.get("HOME"), "path": sys.path[0]}
def refuses(scratch): raise ModelError("no good")
def lacks(scratch): raise MachineLacks("no torch")
def fails(scratch): raise KeyError("odd")
def greedy(scratch): return {"n": len(bytearray(2**33))}
def spins(scratch):
    while True: pass
def sleeps(scratch): time.sleep(60)
def crashes(scratch): os.kill(os.getpid(), signal.SIGSEGV)
def leaves(scratch): os._exit(0)
def writes(scratch): (scratch / "big").write_bytes(bytes(2**22))
def opens(scratch): return {"n": len([open("/dev/null") for _ in range(999)])}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a task of the text above in a real limited subprocess."""
    (tmp_path / "hostiletasks.py").write_text(TASKS)
    start = (
        "import sys; sys.path.append(sys.argv.pop(1));"
        f"sys.path.append({str(tmp_path)!r});"
        "from edgeml.intake import sandbox;"
        "sandbox.TASKS.update({n: 'hostiletasks:' + n for n in "
        "'facts refuses lacks fails greedy spins sleeps crashes leaves writes opens'"
        ".split()}); sandbox.main()"
    )
    monkeypatch.setattr(sandbox, "_START", start)
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def run(task, limits=None, **arguments):
        return limited(task, arguments, scratch, limits or Limits(wall_s=60))

    return run


def test_facts_come_back_and_noise_does_not(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    facts = run("facts", a=1)
    assert facts["got"] == {"a": 1} and facts["home"] is None
    assert (tmp_path / "scratch" / "made").exists()


@pytest.mark.parametrize(
    ("task", "limits", "reason"),
    [
        ("refuses", None, "^no good$"),
        ("fails", None, "KeyError: 'odd'"),
        ("greedy", Limits(memory_bytes=2**30), "more memory than the 1.0 GiB"),
        ("spins", Limits(cpu_s=1), "more than the 1 s of CPU"),
        ("sleeps", Limits(wall_s=1), "more than 1 s, so it was stopped"),
        ("crashes", None, r"crashed \(SIGSEGV\)"),
        ("leaves", None, "without an answer"),
        ("writes", Limits(written_bytes=2**20), "File too large|SIGXFSZ"),
        ("opens", Limits(files=64), "Too many open files"),
    ],
)
def test_every_bad_end_is_a_refusal(run, task, limits, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        run(task, limits)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_the_machines_fault(run):
    with pytest.raises(MachineLacks, match="no torch"):
        run("lacks")


def test_the_tasks_exist():
    code = (
        "import importlib; from edgeml.intake.sandbox import TASKS\n"
        "for t in TASKS.values():\n"
        "    m, _, f = t.partition(':'); getattr(importlib.import_module(m), f)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_line():
    assert one_line("a\n  b\tc") == "a b c"
    assert one_line("x" * 500, 10) == "x" * 9 + "…"
