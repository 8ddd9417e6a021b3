"""What is right key by key and wrong together; no I/O."""

import os
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path

from .schema import AgentConfig, LimitsConfig, ListenConfig, ModelConfig

SOCKET_PATH_BYTES_MAX = 107
"""What the kernel takes as the path of a unix socket, without its NUL."""

Contradiction = tuple[tuple[str, ...], str]
"""The keys of one table that cannot be so together, and why not."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def of_agent(config: AgentConfig) -> Iterator[Contradiction]:
    """Contradictions above the tables."""
    if config.listen.socket is None:
        for text in _too_long(config.socket):
            yield ("state",), f"{text}; name one with --socket"


def of_listen(listen: ListenConfig, given: Collection[str]) -> Iterator[Contradiction]:
    """Contradictions in ``[listen]``; ``given`` are the keys that someone wrote."""
    for text in _too_long(listen.socket) if listen.socket else ():
        yield ("socket",), text
    if not listen.tcp:
        for key in given:
            if key not in ("tcp", "socket"):
                yield (key, "tcp"), "expected tcp = true with this key, found false"
        return
    if (listen.tls_cert is None) != (listen.tls_key is None):
        yield ("tls_cert", "tls_key"), "expected tls_cert with tls_key, found only one"
    if listen.tls_client_ca and not (listen.tls_cert or listen.tls_key):
        yield (
            ("tls_client_ca", "tls_cert", "tls_key"),
            "expected tls_cert and tls_key with tls_client_ca, found neither",
        )
    if not (is_loopback(listen.host) or listen.token_file or listen.tls_client_ca):
        yield (
            ("host", "token_file", "tls_client_ca"),
            "expected token_file or tls_client_ca (mTLS) with an address that others "
            f"can reach, found neither with {listen.host}",
        )


def of_limits(limits: LimitsConfig) -> Iterator[Contradiction]:
    """Contradictions in ``[limits]``."""
    if limits.body_bytes > limits.buffered_bytes:
        yield (
            ("body_bytes", "buffered_bytes"),
            "expected body_bytes to be at most buffered_bytes, found "
            f"{limits.body_bytes} and {limits.buffered_bytes}",
        )


def of_model(model: ModelConfig) -> Iterator[Contradiction]:
    """Contradictions in ``[model]`` or a ``[models.NAME]``."""
    if model.max_batch > 1 and model.max_delay_ms >= model.deadline_ms:
        yield (
            ("max_delay_ms", "deadline_ms", "max_batch"),
            "expected max_delay_ms to be less than deadline_ms, found "
            f"{model.max_delay_ms:g} and {model.deadline_ms:g}",
        )


def rings(config: AgentConfig) -> Iterator[tuple[str, ...]]:
    """Models that fall back on each other in a ring; each ring once."""
    done: set[str] = set()
    for name in config.models:
        chain: list[str] = []
        link: str | None = name
        while link is not None and link not in done and link not in chain:
            chain.append(link)
            link = config.model_config(link).fallback
        if link in chain:
            yield tuple(chain[chain.index(link) :])
        done.update(chain)


def _too_long(path: Path) -> Iterator[str]:
    size = len(os.fsencode(path))
    if size > SOCKET_PATH_BYTES_MAX:
        yield (
            f"expected at most {SOCKET_PATH_BYTES_MAX} bytes in the path of a unix "
            f"socket, found {size}: {path}"
        )
