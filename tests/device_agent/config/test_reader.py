"""agent.toml and the command line: what is read, and every mistake with its line."""

from dataclasses import replace
from pathlib import Path

import pytest

from device_agent.config import (
    AgentConfig,
    ListenConfig,
    LogConfig,
    ModelConfig,
    Overrides,
    load_config,
)
from device_agent.config.reader import CONFIG_BYTES_MAX
from device_agent.errors import ConfigError

from .conftest import NOTHING, SOMEWHERE, mistakes, read

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
        "drain_s, listen, limits, log, sandbox, update, link, spool, model, models",
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
    ],
)  # fmt: skip
def test_one_mistake_is_one_line(tmp_path: Path, text: str, line: str):
    found = mistakes(tmp_path, text)
    assert len(found) == 1
    assert found[0].startswith(f"agent.toml:{line}")


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
