"""What is right key by key and wrong together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.config import Overrides, is_loopback, load_config
from device_agent.errors import ConfigError

from .conftest import SOMEWHERE, mistakes, read


@pytest.mark.parametrize(
    ("text", "line"),
    [
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
def test_one_contradiction_is_one_line(tmp_path: Path, text: str, line: str):
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


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback(host: str):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.evil", ""])
def test_not_loopback(host: str):
    assert not is_loopback(host)


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
