"""Any document: a configuration that survives, or mistakes that have their lines."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from documents import DOCUMENTS, toml, toml_value
from hypothesis import given
from hypothesis import strategies as st

from device_agent.config import AgentConfig, ModelConfig, Overrides
from device_agent.config.keys import Key, keys, tables
from device_agent.errors import ConfigError

from .conftest import read

# Any valid configuration survives being written and read


@given(document=DOCUMENTS)
def test_any_configuration_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
):
    folder = tmp_path_factory.getbasetemp()
    said = Overrides(state=Path("/state"), socket=Path("/agent.sock"))
    found = asdict(read(folder, toml(document), said))
    for path, value in _leaves(document):
        if path in (("state",), ("listen", "socket")):
            continue
        there: Any = found
        for name in path:
            there = there[name]
        assert there == _resolved(value, keys(_table(path[:-1]))[path[-1]], folder)
    # And what was not set is as it is by default, or as in [model].
    plain = asdict(AgentConfig(state=Path("/state")))
    for name in tables():
        for key, value in plain[name].items():
            if key not in document.get(name, {}) and (name, key) != (
                "listen",
                "socket",
            ):
                assert found[name][key] == value
    for name, own in document["models"].items():
        for key, value in found["models"][name].items():
            assert key in own or value == found["model"][key]


def _leaves(document: dict[str, Any], path: tuple[str, ...] = ()) -> Any:
    for name, item in document.items():
        if isinstance(item, dict):
            yield from _leaves(item, (*path, name))
        else:
            yield (*path, name), item


def _table(path: tuple[str, ...]) -> type:
    if not path:
        return AgentConfig
    return ModelConfig if path[0] == "models" else tables()[path[0]]


def _resolved(value: Any, key: Key, folder: Path) -> Any:
    if key.type is tuple:
        return tuple(folder / item for item in value)
    return folder / value if key.type is Path else value


# Whatever a person writes: a configuration, or mistakes that have their lines


ANYTHING = st.recursive(
    st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", exclude_characters="\x7f"), max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=3,
)
NAMES = st.sampled_from(
    ["", "prot", "Listen", "a b", *(key for table in (AgentConfig, *tables().values())
                                   for key in keys(table))]
)  # fmt: skip
TABLE = st.dictionaries(NAMES, ANYTHING, max_size=4)


@given(
    root=TABLE,
    inner=st.dictionaries(
        st.sampled_from([*tables(), "listn", "models"]), TABLE, max_size=4
    ),
)
def test_nothing_else_comes_of_any_file(
    tmp_path_factory: pytest.TempPathFactory,
    root: dict[str, Any],
    inner: dict[str, dict[str, Any]],
):
    text = "".join(f"{json.dumps(k)} = {toml_value(v)}\n" for k, v in root.items())
    for name, table in inner.items():
        text += f"[{name}]\n"
        text += "".join(
            f"{json.dumps(k)} = {toml_value(v)}\n" for k, v in table.items()
        )
    lines = text.splitlines()
    try:
        read(tmp_path_factory.getbasetemp(), text)
    except ConfigError as error:
        for mistake in str(error).splitlines():
            place = re.match(r"agent.toml:(\d+): (.+?): ", mistake)
            assert place, mistake
            assert 1 <= int(place[1]) <= len(lines)
