"""The command: verbs, exit codes, and what goes to which stream."""

import json
import sys
from pathlib import Path

import bundles
import pytest
from malformed import projects
from typer.testing import CliRunner, Result

from calibration.dataset import DataError
from device_agent.contract.errors import BundleError, MachineError
from edgeml import errors
from edgeml.cli import app
from targets.profile import ProfileError

VERBS = (
    "init", "build", "search", "check", "inspect", "diff", "bench", "unpack", "targets",
    "convert-weights", "publish",
)  # fmt: skip


def edgeml(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "linear.edgeml"
    path.write_bytes(bundles.bundle())
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    done = edgeml(verb, "--help")
    assert done.exit_code == 0
    assert "Usage:" in done.stdout


def test_the_verbs_are_all_listed() -> None:
    help_text = edgeml("--help").stdout
    assert {command.name or command.callback.__name__ for command in
            app.registered_commands if command.callback} == set(VERBS)  # fmt: skip
    assert all(verb in help_text for verb in VERBS)


@pytest.mark.parametrize("wrong", [["compile"], ["build", "--nothing"], ["check"]])
def test_a_wrong_command_line_exits_2(wrong: list[str]) -> None:
    done = edgeml(*wrong)
    assert done.exit_code == 2
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.EdgemlError, 1),
        (errors.UsageError, 2),
        (errors.RecipeError, 2),
        (ProfileError, 2),
        (errors.GateMissed, 3),
        (errors.InputError, 4),
        (errors.ModelError, 4),
        (errors.PassError, 4),
        (errors.BackendError, 4),
        (DataError, 4),
        (BundleError, 4),
        (errors.MachineLacks, 5),
        (MachineError, 5),
    ],
)
def test_each_kind_of_error_is_one_line_and_its_exit_code(
    error: type[Exception], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error("what was\nfound")

    monkeypatch.setattr("targets.profile.load_target", fail)
    done = edgeml("targets", "reference")
    assert done.exit_code == code
    assert done.stdout == ""
    assert "found" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_is_not_dressed_up_as_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("targets.profile.load_target", fail)
    assert isinstance(edgeml("targets", "reference").exception, ZeroDivisionError)


def test_every_mistake_of_a_recipe_has_its_own_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[model]\n[data]\n")
    done = edgeml("build", path, "--out", tmp_path / "build")
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) > 1
    assert all("recipe.toml:" in line for line in done.stderr.splitlines())


def test_json_is_one_document(bundle: Path) -> None:
    for command in (["targets"], ["targets", "reference"], ["inspect", bundle],
                    ["check", bundle], ["diff", bundle, bundle]):  # fmt: skip
        done = edgeml(*command, "--json")
        assert done.exit_code == 0, done.stderr
        json.loads(done.stdout)


def test_quiet_says_nothing_when_all_is_well(bundle: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(bundles.linear())
    for command in (["check", bundle], ["unpack", bundle, tmp_path / "folder"],
                    ["init", model, "--out", tmp_path / "recipe.toml"]):  # fmt: skip
        done = edgeml(*command, "--quiet")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")


def test_a_search_needs_a_recipe_and_sound_limits(tmp_path: Path) -> None:
    done = edgeml("search", tmp_path / "recipe.toml")
    assert done.exit_code == 2
    assert "no recipe at" in done.stderr
    assert edgeml("search", tmp_path / "recipe.toml", "--trials", 0).exit_code == 2


def test_a_search_without_optuna_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    path = projects.sound(tmp_path)
    done = edgeml("search", path, "--out", tmp_path / "build")
    assert done.exit_code == 5
    assert "pip install 'edgeml[search]'" in done.stderr


@pytest.mark.parametrize("verb", ["build", "search"])
def test_a_search_that_finds_nothing_exits_3_and_shows_the_nearest(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    path = projects.sound(tmp_path)
    limits = "[search]\ntrials = 2\n[budget]\nmax_size_bytes = 10\n"
    path.write_text(f"{path.read_text()}\n{limits}")
    done = edgeml(verb, path, "--out", tmp_path / "build")
    assert done.exit_code == 3, done.stderr
    assert "no point of the search holds the budget; nearest is" in done.stdout
    assert "max_size_bytes 10, measured" in done.stdout
    assert "% over" in done.stdout
    assert (tmp_path / "build" / "linear-1.0.0" / "report.html").is_file()


def test_a_recipe_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("mine")
    assert edgeml("init", tmp_path / "model.onnx", "--out", path).exit_code == 2
    assert path.read_text() == "mine"
