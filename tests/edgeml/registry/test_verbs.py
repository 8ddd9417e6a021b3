"""The verbs as a person types them: init, add, publish, verify, rotate, gc."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from registries import release
from typer.testing import CliRunner

from edgeml.cli import app

RUN = CliRunner()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    say(tmp_path, "keys", "init")
    say(tmp_path, "keys", "add", "team", "--model", "linear")
    return tmp_path


def say(place: Path, *words: str, code: int = 0) -> Any:
    """Run a verb on the registry in ``place``; what it says as JSON."""
    where = ["--keys", str(place / "keys")]
    if words[0] == "registry":
        where = [str(place / "registry"), *where]
    else:
        where += ["--registry", str(place / "registry")]
    done = RUN.invoke(
        app, [*words, *where, "--json"], env={"EDGEML_PASSPHRASE": "secret"}
    )
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if code in (0, 1) else done.stderr


def test_from_keys_to_a_sound_registry(place: Path) -> None:
    bundle = place / "linear.edgeml"
    bundle.write_bytes(release("1.0.0", 1))
    said = say(place, "publish", str(bundle))
    assert [one["release_counter"] for one in said["published"]] == [1]
    assert say(place, "registry", "verify")["problems"] == []
    assert [one["path"] for one in say(place, "registry", "list")["releases"]] == [
        "linear/1.0.0/cpu-x86_64.edgeml"
    ]


def test_a_planned_downgrade_is_the_old_model_with_a_higher_counter(
    place: Path,
) -> None:
    bundle = place / "linear.edgeml"
    bundle.write_bytes(release("2.0.0", 7))
    say(place, "publish", str(bundle))
    bundle.write_bytes(release("1.0.0", 1))
    refused = say(place, "publish", str(bundle), code=4)
    assert "--counter next (it becomes 8)" in refused
    said = say(place, "publish", str(bundle), "--counter", "next")
    assert said["published"][0]["release_counter"] == 8
    assert say(place, "registry", "verify")["problems"] == []


def test_keys_are_listed_rotated_and_revoked(place: Path) -> None:
    held = {one["name"]: one["role"] for one in say(place, "keys", "list")}
    assert held == {
        "root-1": "root", "root-2": "root", "root-3": "root", "snapshot": "snapshot",
        "timestamp": "timestamp", "director": "director", "team": "linear",
    }  # fmt: skip
    say(place, "keys", "rotate", "director", "director-2")
    say(place, "keys", "add", "team-2", "--model", "linear")
    say(place, "keys", "revoke", "team")
    say(place, "keys", "threshold", "3", "--role", "root")
    rows = say(place, "keys", "list")
    assert {one["name"] for one in rows} >= {"director-2", "team-2"}
    assert not {one["name"] for one in rows} & {"director", "team"}
    assert {one["threshold"] for one in rows if one["role"] == "root"} == {3}
    assert say(place, "registry", "verify")["problems"] == []


def test_refresh_and_gc(place: Path) -> None:
    assert say(place, "registry", "refresh")["written"] == ["metadata/timestamp.json"]
    before = say(place, "registry", "gc", "--keep", "1", "--dry-run")["removed"]
    assert before == say(place, "registry", "gc", "--keep", "1")["removed"] != []
    assert say(place, "registry", "gc", "--keep", "1")["removed"] == []


def test_an_older_state_is_not_signed_anew(place: Path) -> None:
    """The registry's files are in the wrong hands; the keys are not."""
    shutil.copytree(place / "registry", place / "older")
    bundle = place / "linear.edgeml"
    bundle.write_bytes(release("1.0.0", 1))
    say(place, "publish", str(bundle))
    shutil.rmtree(place / "registry")
    (place / "older").rename(place / "registry")
    for words in (("registry", "refresh"), ("publish", str(bundle))):
        assert "somebody has put an older state there" in say(place, *words, code=4)


def test_a_difference_is_exit_code_1(place: Path) -> None:
    bundle = place / "linear.edgeml"
    bundle.write_bytes(release("1.0.0", 1))
    say(place, "publish", str(bundle))
    (stored,) = (place / "registry/targets").rglob("*.edgeml")
    stored.write_bytes(stored.read_bytes()[:-512])
    assert len(say(place, "registry", "verify", code=1)["problems"]) == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("keys", "init"), 2, "holds a registry already"),
        (("keys", "add", "x"), 2, "give --model NAME, or --role"),
        (("keys", "add", "Bad", "--model", "m"), 2, "is no name for a key"),
        (("keys", "add", "x", "--model", "m", "--uri", "hsm:2", "--public", "no.pem"),
         4, "no.pem cannot be read"),
        (("keys", "add", "x", "--model", "director"), 2, "a role is called so"),
        (("keys", "rotate", "nobody", "x"), 2, "no key 'nobody'"),
        (("keys", "revoke", "team"), 2, "only key of linear"),
        (("keys", "threshold", "4", "--role", "root"), 2, "threshold of 4 with 3 keys"),
        (("publish", "nothing.edgeml"), 4, "nothing.edgeml"),
    ],
)  # fmt: skip
def test_refusals(place: Path, words: tuple[str, ...], code: int, text: str) -> None:
    assert text in say(place, *words, code=code)
