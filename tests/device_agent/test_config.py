"""agent.toml and the command line: what is read, and every mistake with its line."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.config import (
    AgentConfig,
    LimitsConfig,
    ListenConfig,
    LogConfig,
    ModelConfig,
    Overrides,
    default_state,
    is_loopback,
    load_config,
    notify_socket,
)
from device_agent.config.keys import Key, keys, tables
from device_agent.config.lines import key_lines
from device_agent.config.reader import CONFIG_BYTES_MAX
from device_agent.config.schema import Range
from device_agent.errors import ConfigError
from edgeml.recipes.lines import key_lines as oracle_lines

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "packaging" / "agent.toml"
NOTHING = Overrides()
SOMEWHERE = Overrides(state=Path("/state"))


def read(folder: Path, text: str, overrides: Overrides = SOMEWHERE) -> AgentConfig:
    path = folder / "agent.toml"
    path.write_text(text, newline="")
    return load_config(path, overrides)


def mistakes(folder: Path, text: str, overrides: Overrides = SOMEWHERE) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(folder, text, overrides)
    return str(caught.value).splitlines()


# What is read


def test_without_a_file_the_defaults_hold():
    assert load_config(None, SOMEWHERE) == AgentConfig(state=Path("/state"))


def test_an_empty_file_changes_nothing(tmp_path: Path):
    assert read(tmp_path, "") == AgentConfig(state=Path("/state"))


def test_everything_that_is_set_is_read(tmp_path: Path):
    found = read(
        tmp_path,
        """
        state = "state"
        bundles = ["a.edgeml", "/b.edgeml"]
        lanes = 2
        drain_s = 5
        [listen]
        host = "::"
        port = 0
        token_file = "token"
        [log]
        format = "json"
        [model]
        fallback = "small"
        deadline_ms = 250
        [models.digits]
        queue_depth = 3
        swap = "memory"
        [models."a.b"]
        """,
        NOTHING,
    )
    model = ModelConfig(fallback="small", deadline_ms=250.0)
    assert found == AgentConfig(
        state=tmp_path / "state",
        bundles=(tmp_path / "a.edgeml", Path("/b.edgeml")),
        lanes=2,
        drain_s=5.0,
        listen=ListenConfig(host="::", port=0, token_file=tmp_path / "token"),
        log=LogConfig(format="json"),
        model=model,
        models={"digits": replace(model, queue_depth=3, swap="memory"), "a.b": model},
    )
    assert isinstance(found.drain_s, float)


def test_paths_are_relative_to_the_files_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/agent.toml").write_text('state = "s"\n[listen]\nsocket = "../a"\n')
    monkeypatch.chdir(tmp_path)
    found = load_config(Path("etc/agent.toml"), NOTHING)
    assert found.state == tmp_path / "etc/s"
    assert found.socket == tmp_path / "etc/../a"


def test_a_models_settings_are_its_own_over_the_defaults(tmp_path: Path):
    found = read(tmp_path, "[model]\nmax_rows = 7\n[models.m]\nqueue_depth = 1\n")
    assert found.model_config("m") == ModelConfig(max_rows=7, queue_depth=1)
    assert found.model_config("other") == ModelConfig(max_rows=7)


def test_the_fallback_of_all_is_not_its_own(tmp_path: Path):
    text = '[model]\nfallback = "small"\n'
    for listed in ("", "[models.small]\nqueue_depth = 1\n"):
        found = read(tmp_path, text + listed)
        assert found.model_config("small").fallback is None
        assert found.model_config("digits").fallback == "small"


# The command line


def test_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = """
    state = "/one"
    bundles = ["a"]
    [listen]
    port = 1
    tcp = false
    socket = "s"
    [log]
    format = "json"
    """
    said = Overrides(
        state=Path("two"),
        bundles=(Path("b"), Path("/c")),
        listen="localhost:9",
        socket=Path("t"),
        log_format="text",
        log_level="debug",
    )
    assert read(tmp_path, text, said) == AgentConfig(
        state=tmp_path / "two",
        bundles=(tmp_path / "b", Path("/c")),
        listen=ListenConfig(host="localhost", port=9, socket=tmp_path / "t"),
        log=LogConfig(format="text", level="debug"),
    )


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:80", "::1", 80),
        ("localhost:65535", "localhost", 65535),
    ],
)
def test_an_address(text: str, host: str, port: int):
    found = load_config(None, replace(SOMEWHERE, listen=text)).listen
    assert found == ListenConfig(host=host, port=port)


@pytest.mark.parametrize(
    "text",
    [
        "", "8000", ":8000", "localhost", "localhost:", "::1:8000", "[::1]", "[]:1",
        "a b:1", "localhost:-1", "localhost:99999", "localhost:999999", "http://a:1",
        "localhost:\uff18", "256.0.0.1:1", "[localhost]:1", "a\n:1",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str):
    with pytest.raises(ConfigError, match=r"^--listen: expected .*, found "):
        load_config(None, replace(SOMEWHERE, listen=text))


def test_mistakes_of_file_and_command_line_come_together(tmp_path: Path):
    said = replace(SOMEWHERE, listen="8000", log_format="xml", log_level="inof")
    assert mistakes(tmp_path, "lanes = 0\n", said) == [
        "agent.toml:1: lanes: expected whole number from 1 to 64, found 0",
        "--listen: expected HOST:PORT or [IPV6]:PORT, found '8000'",
        """--log-format: expected "text" or "json", found 'xml'""",
        '--log-level: expected "debug" or "info" or "warning" or "error", '
        """found 'inof'; did you mean "info"?""",
    ]


def test_a_bundle_named_twice_is_a_mistake():
    said = replace(SOMEWHERE, bundles=(Path("a"), Path("a")))
    with pytest.raises(ConfigError, match=r"^--bundle: expected different paths"):
        load_config(None, said)


# Mistakes


def test_every_mistake_is_reported_at_once(tmp_path: Path):
    text = '''
bundles = "a.edgeml"
lanes = true
prot = 1
port = 8000
[listen]
prot = 99999
port = 99999
tls_cert = "cert.pem"
host = """
  agent"""
hang_s = 1
[limts]
[limits]
body_s = nan
body_bytes = 64_000_000
[log]
level = "warn"
[models.Big]
queue_depth = 1.5
[models.a]
fallback = "b"
[models.b]
fallback = "a"
'''
    assert mistakes(tmp_path, text) == [
        "agent.toml:2: bundles: expected list of paths, found 'a.edgeml'",
        "agent.toml:3: lanes: expected whole number from 1 to 64, found true",
        "agent.toml:4: prot: unknown key; known: state, bundles, lanes, hang_s, "
        "drain_s, listen, limits, log, sandbox, model, models",
        "agent.toml:5: port: unknown key; it belongs in [listen]",
        "agent.toml:7: [listen] prot: unknown key; did you mean port?",
        "agent.toml:8: [listen] port: expected whole number from 0 to 65535, "
        "found 99999",
        "agent.toml:9: [listen] tls_cert: expected tls_cert with tls_key, "
        "found only one",
        "agent.toml:10: [listen] host: expected IP address or localhost, "
        "found '  agent'",
        "agent.toml:12: [listen] hang_s: unknown key; it belongs above the first table",
        "agent.toml:13: limts: unknown table; did you mean limits?",
        "agent.toml:15: [limits] body_s: expected number from 0.1 to 3600, found nan",
        "agent.toml:16: [limits] body_bytes: expected body_bytes to be at most "
        "buffered_bytes, found 64000000 and 20971520",
        'agent.toml:18: [log] level: expected "debug" or "info" or "warning" or '
        """"error", found 'warn'; did you mean "warning"?""",
        "agent.toml:19: [models.Big]: expected name of a model, found 'Big'",
        "agent.toml:20: [models.Big] queue_depth: expected whole number from 1 to "
        "65536, found 1.5",
        "agent.toml:22: [models.a] fallback: expected an end, found a → b → a",
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("listen = 1", "1: [listen]: expected table, found 1"),
        ("\n[[model]]", "2: [model]: expected table, found [{}]"),
        ("models = []", "1: [models]: expected [models.NAME], found []"),
        ("[models]\ndigits = 1", "2: [models.digits]: expected table, found 1"),
        ('[models."a b"]', """1: [models."a b"]: expected name of a model"""),
        ('state = ""', "1: state: expected path, found ''"),
        ('state = "\\u0000"', "1: state: expected path, found '\\x00'"),
        ('bundles = ["a", 1]', "1: bundles: expected path, found 1"),
        ('bundles = [\n"a",\n"a"]', "1: bundles: expected different paths"),
        ("listen.tcp = 0", "1: [listen] tcp: expected true or false, found 0"),
        ("listen = {tcp = 0}", "1: [listen] tcp: expected true or false, found 0"),
        ('[model]\nswap = "memroy"', '2: [model] swap: expected "availability" or'),
        ('[listen]\nhost = "agent.example"',
         "2: [listen] host: expected IP address or localhost, found 'agent.example'"),
        ("[sandbox]\ncpu_s = 1.0", "2: [sandbox] cpu_s: expected whole number from 1"),
        ("hang_s = inf", "1: hang_s: expected number from 0.1 to 86400, found inf"),
        ("hang_s = 1979-05-27", "1: hang_s: expected number from 0.1 to 86400, found"),
        ("[model]\nmax_batch = 2\nmax_delay_ms = 50\ndeadline_ms = 50",
         "3: [model] max_delay_ms: expected max_delay_ms to be less than deadline_ms"),
        ("[model]\nmax_delay_ms = 50\n[models.m]\nmax_batch = 2\ndeadline_ms = 20",
         "5: [models.m] deadline_ms: expected max_delay_ms to be less than deadline"),
        ('[models.m]\nfallback = "m"',
         "2: [models.m] fallback: expected another model than m itself"),
        ('[model]\nfallback = "s"\n[models.s]\nfallback = "t"',
         "4: [models.s] fallback: expected an end, found s → t → s"),
        ('[listen]\nhost = "0.0.0.0"',
         "2: [listen] host: expected token_file or tls_client_ca (mTLS) with an"),
        ('[listen]\nhost = "10.0.0.1"\ntls_cert = "c"\ntls_key = "k"',
         "2: [listen] host: expected token_file or tls_client_ca (mTLS) with an"),
        ('[listen]\ntls_key = "k"', "2: [listen] tls_key: expected tls_cert with tls_"),
        ('[listen]\ntls_client_ca = "k"',
         "2: [listen] tls_client_ca: expected tls_cert and tls_key with tls_client_ca"),
        ("[listen]\ntcp = false\nport = 1",
         "3: [listen] port: expected tcp = true with this key, found false"),
        ("[limits]\nbuffered_bytes = 2048",
         "2: [limits] buffered_bytes: expected body_bytes to be at most buffered_by"),
        (f'[listen]\nsocket = "/{"s" * 107}"',
         "2: [listen] socket: expected at most 107 bytes in the path of a unix socket"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(tmp_path: Path, text: str, line: str):
    found = mistakes(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(f"agent.toml:{line}")


def test_a_wrong_value_is_not_a_contradiction_as_well(tmp_path: Path):
    found = mistakes(tmp_path, '[listen]\ntls_cert = "c"\ntls_key = 1\n')
    assert found == ["agent.toml:3: [listen] tls_key: expected path, found 1"]


def test_an_address_of_the_command_line_needs_its_token_too(tmp_path: Path):
    said = replace(SOMEWHERE, listen="0.0.0.0:80")
    (found,) = mistakes(tmp_path, "", said)
    assert found.startswith("--listen: expected token_file or tls_client_ca (mTLS)")
    assert read(tmp_path, '[listen]\ntoken_file = "t"\n', said).listen.port == 80


def test_a_state_directory_too_deep_for_its_socket():
    deep = Path("/", "d" * 100)
    with pytest.raises(ConfigError, match=r"^--state: .*107 bytes.*--socket"):
        load_config(None, Overrides(state=deep))
    found = load_config(None, Overrides(state=deep, socket=Path("/run/a.sock")))
    assert found.socket == Path("/run/a.sock")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("lanes = 1\nhang_s =\n", "2: not TOML: Invalid value (column 9)"),
        ('lanes = 1\nstate = "a\n', "2: not TOML: Illegal character"),
        ('lanes = 1\n\nstate = """\na\nb\n', "3: not TOML: Unterminated string"),
        ("bundles = [\n1,\n\n", "1: not TOML: Invalid value"),
        ("lanes = 1\nlanes = 2", "2: not TOML: Cannot overwrite a value"),
        ("[log]\n\n[log]\n", "3: not TOML: Cannot declare ('log',) twice"),
        ("lanes", "1: not TOML: Expected '=' after a key in a key/value pair"),
    ],
)
def test_what_is_not_toml_has_a_line(tmp_path: Path, text: str, line: str):
    (found,) = mistakes(tmp_path, text)
    assert found.startswith(f"agent.toml:{line}")


def test_files_that_cannot_be_read(tmp_path: Path):
    path = tmp_path / "agent.toml"
    with pytest.raises(ConfigError, match=r"agent.toml: cannot be read: No such file"):
        load_config(path, SOMEWHERE)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, SOMEWHERE)
    path.write_bytes(b"# \n\xff\n")
    with pytest.raises(ConfigError, match=r"^agent.toml:2: expected UTF-8$"):
        load_config(path, SOMEWHERE)
    path.write_bytes(b"#" * (CONFIG_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match=r"^agent.toml: expected at most 65536 bytes"):
        load_config(path, SOMEWHERE)
    path.write_bytes(b"lanes = " + b"[" * 60_000)
    with pytest.raises(ConfigError, match=r"^agent.toml: not TOML: nested too deeply$"):
        load_config(path, SOMEWHERE)


# The environment


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME", "NOTIFY_SOCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    return monkeypatch


def test_where_state_is_kept(bare: pytest.MonkeyPatch):
    ours = Path("/home/somebody/.local/state/edgeml-agent")
    assert default_state() == ours
    bare.setenv("XDG_STATE_HOME", "relative")
    assert default_state() == ours
    bare.setenv("XDG_STATE_HOME", "/xdg")
    assert default_state() == Path("/xdg/edgeml-agent")
    bare.setenv("STATE_DIRECTORY", "/var/lib/edgeml-agent:/var/lib/other")
    assert default_state() == Path("/var/lib/edgeml-agent")
    assert load_config(None, NOTHING).state == Path("/var/lib/edgeml-agent")


def test_without_a_home_state_must_be_given(bare: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("no home")

    bare.setattr(Path, "home", homeless)
    said = Overrides(log_format="xml")
    with pytest.raises(ConfigError, match=r"--log-format.*\nstate: .*--state DIR"):
        load_config(None, said)
    assert load_config(None, SOMEWHERE).state == Path("/state")


def test_the_notify_socket(bare: pytest.MonkeyPatch):
    assert notify_socket() is None
    for good in ("/run/systemd/notify", "@abstract"):
        bare.setenv("NOTIFY_SOCKET", good)
        assert notify_socket() == good
    for other in ("", "vsock:2:1234"):
        bare.setenv("NOTIFY_SOCKET", other)
        assert notify_socket() is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil", ""])
def test_not_loopback(host: str):
    assert not is_loopback(host)


def test_it_is_light():
    code = "import sys, device_agent.config; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"numpy", "pydantic", "asyncio", "http", "logging", "subprocess"}
    assert not set(done.stdout.split()) & heavy


# Any valid configuration survives being written and read


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
            lines.append(f"{name} = {_toml_value(item)}")
    return (
        "\n".join(lines)
        + "\n"
        + "".join(toml(item, (*path, name)) for name, item in inner.items())
    )


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",\n".join(map(_toml_value, value)) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


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


@given(document=DOCUMENTS)
def test_lines_are_those_of_the_build_hosts_reader(document: dict[str, Any]):
    text = toml(document)
    expected = {
        path: line
        for path, line in oracle_lines(text).items()
        if all(isinstance(part, str) for part in path)
    }
    assert key_lines(text) == {(): 1, **expected}


def test_lines_of_a_document_with_everything():
    text = """\
# a comment with [brackets] and "quotes
title = "x # not a comment"
[a.b]
k = [
  1, # one
  {x = 1},
]
text = \"\"\"
[not.a.table]
k = 1 \\\""" still \"\"\"\"
'quoted.key' . c = '''
= ] }'''
[a]
"q\\u0041".z = {}\r
[[c]]
d = 1
"""
    tomllib.loads(text)
    assert key_lines(text) == {
        (): 1, ("title",): 2, ("a",): 13, ("a", "b"): 3, ("a", "b", "k"): 4,
        ("a", "b", "text"): 8, ("a", "b", "quoted.key"): 11,
        ("a", "b", "quoted.key", "c"): 11, ("a", "qA"): 14, ("a", "qA", "z"): 14,
        ("c",): 15, ("c", "d"): 16,
    }  # fmt: skip


# Fallbacks, followed by hand


MODELS = st.sampled_from("abcde")


@given(
    default=st.none() | MODELS,
    own=st.dictionaries(MODELS, st.none() | MODELS, max_size=5),
)
def test_fallbacks_end_or_are_a_mistake(
    tmp_path_factory: pytest.TempPathFactory, default: str | None, own: dict[str, Any]
):
    def follow(name: str | None) -> str | None:
        found = name and (own.get(name) or default)
        return None if found == name else found

    endless = any(name == fallback for name, fallback in own.items())
    for name in "abcde":
        link: str | None = name
        for _ in "abcde":
            link = follow(link)
        endless = endless or link is not None

    text = f'[model]\nfallback = "{default}"\n' if default else ""
    for name, fallback in own.items():
        text += f"[models.{name}]\n"
        text += f'fallback = "{fallback}"\n' if fallback else ""
    folder = tmp_path_factory.getbasetemp()
    if endless:
        assert all("fallback: expected" in line for line in mistakes(folder, text))
    else:
        read(folder, text)


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
    text = "".join(f"{json.dumps(k)} = {_toml_value(v)}\n" for k, v in root.items())
    for name, table in inner.items():
        text += f"[{name}]\n"
        text += "".join(
            f"{json.dumps(k)} = {_toml_value(v)}\n" for k, v in table.items()
        )
    lines = text.splitlines()
    try:
        read(tmp_path_factory.getbasetemp(), text)
    except ConfigError as error:
        for mistake in str(error).splitlines():
            place = re.match(r"agent.toml:(\d+): (.+?): ", mistake)
            assert place, mistake
            assert 1 <= int(place[1]) <= len(lines)


# The example file and the documentation are made of the same keys


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
