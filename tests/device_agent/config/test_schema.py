"""The example file and the documentation are made of the same keys."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from device_agent.config import AgentConfig, LimitsConfig, load_config
from device_agent.config.keys import keys, tables

from .conftest import EXAMPLE, ROOT, SOMEWHERE, read


def test_the_example_changes_nothing():
    assert load_config(EXAMPLE, SOMEWHERE) == AgentConfig(state=Path("/state"))


def test_the_example_holds_every_key_with_its_default():
    found: dict[str, dict[str, Any]] = {name: {} for name in ("", *tables())}
    table = ""
    for line in EXAMPLE.read_text().splitlines():
        if line.startswith("# [models."):
            break
        if line.startswith("["):
            table = line.strip("[]")
        setting = re.fullmatch(r"# (([a-z_]+) = [^#]+)(# not set.*)?", line)
        if setting:
            value = tomllib.loads(setting[1])[setting[2]]
            found[table][setting[2]] = None if setting[3] else value
    assert found == {
        name: {
            key.name: list(key.default) if key.type is tuple else key.default
            for key in keys(table).values()
        }
        for name, table in {"": AgentConfig, **tables()}.items()
    }


def test_the_example_is_valid_when_its_lines_are_taken_in(tmp_path: Path):
    text = re.sub(r"^# (\[models|[a-z_]+ = )", r"\1", EXAMPLE.read_text(), flags=re.M)
    found = read(tmp_path, text)
    assert found.listen.token_file == tmp_path / "token"
    assert found.models["digits"].deadline_ms == 200


@pytest.mark.parametrize("name", ["", *tables()])
def test_the_documentation_has_every_key(name: str):
    text = (ROOT / "docs" / "agent.md").read_text()
    heading = f"### `[{name}]`" if name else "### Above the tables"
    section = text.split(heading, 1)[1].split("\n#", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")[:3]]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    table = {"": AgentConfig, **tables()}[name]
    assert rows == [
        [f"`{key.name}`", key.kind, _default(key.default)]
        for key in keys(table).values()
    ]


def _default(value: Any) -> str:
    if value is None:
        return "not set"
    return f"`{json.dumps(value)}`"


def test_every_default_is_in_its_range():
    for table in (AgentConfig, *tables().values()):
        for key in keys(table).values():
            if key.default is not None and key.type not in (Path, tuple):
                assert key.read(key.default, Path()) == key.default
    assert LimitsConfig().body_bytes <= LimitsConfig().buffered_bytes


def test_it_is_light():
    code = "import sys, device_agent.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"numpy", "pydantic", "asyncio", "http", "logging", "subprocess"}
    assert not set(done.stdout.split()) & heavy
