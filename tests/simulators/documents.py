"""Any configuration that an agent.toml may hold, and its text."""

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from device_agent.config import AgentConfig, ModelConfig
from device_agent.config.keys import Key, keys, tables
from device_agent.config.schema import Range


def value_of(key: Key) -> st.SearchStrategy[Any]:
    if key.words:
        return st.sampled_from(key.words)
    if isinstance(key.limit, Range):
        low, high = key.limit.low, key.limit.high
        return (
            st.integers(int(low), int(high))
            if key.type is int
            else st.floats(low, high) | st.integers(-(-low // 1), int(high))
        )
    if key.name == "host":
        return st.sampled_from(["127.0.0.1", "::1", "localhost"])
    paths = st.text(
        st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12
    ).filter(str.strip)
    kinds = {
        bool: st.booleans(),
        str: st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,9}", fullmatch=True),
        Path: paths,
        tuple: st.lists(paths, max_size=3, unique_by=lambda text: Path("/", text)),
    }
    return kinds[key.type]


def values_of(table: type) -> st.SearchStrategy[dict[str, Any]]:
    known = keys(table)
    return st.fixed_dictionaries(
        {}, optional={name: value_of(key) for name, key in known.items()}
    ).map(_without_contradictions)


def _without_contradictions(table: dict[str, Any]) -> dict[str, Any]:
    if table.get("tcp") is False:
        table = {name: table[name] for name in ("tcp", "socket") if name in table}
    if {"tls_cert", "tls_key"} - table.keys():
        table = {name: item for name, item in table.items() if name[:4] != "tls_"}
    if table.get("body_bytes", 16 << 20) > table.get("buffered_bytes", 20 << 20):
        table = {name: item for name, item in table.items() if "_bytes" not in name}
    # The tables of models are laid over [model], so every pair of these must do.
    if table.get("max_delay_ms", 0) >= 1000:
        table = {name: item for name, item in table.items() if name != "max_delay_ms"}
    if table.get("deadline_ms", 1000) < 1000:
        table = {name: item for name, item in table.items() if name != "deadline_ms"}
    return {name: item for name, item in table.items() if name != "fallback"}


DOCUMENTS = st.builds(
    lambda root, inner, models: {**root, **inner, "models": models},
    values_of(AgentConfig),
    st.fixed_dictionaries(
        {}, optional={name: values_of(table) for name, table in tables().items()}
    ),
    st.dictionaries(
        st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,9}", fullmatch=True),
        values_of(ModelConfig),
        max_size=3,
    ),
)


def toml(document: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """A small writer: values first, then tables; only the types of agent.toml."""
    lines = [f"[{'.'.join(map(json.dumps, path))}]"] if path else []
    inner = {name: item for name, item in document.items() if isinstance(item, dict)}
    for name, item in document.items():
        if name not in inner:
            lines.append(f"{name} = {toml_value(item)}")
    return (
        "\n".join(lines)
        + "\n"
        + "".join(toml(item, (*path, name)) for name, item in inner.items())
    )


def toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",\n".join(map(toml_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
