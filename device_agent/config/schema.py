"""What can be set, with its range and its default.

What a key may be is said once, at its field; the reader, the tables in
``docs/agent.md`` and ``packaging/agent.toml`` follow it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal

SOCKET_NAME = "agent.sock"

SwapPolicy = Literal["availability", "memory"]


@dataclass(frozen=True)
class Range:
    """Numbers that are allowed, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Form:
    """Text that is allowed: what people are told to write, and whether they did."""

    kind: str
    matches: Callable[[str], object]


def is_host(text: str) -> bool:
    """Whether one can listen there; names are for others to look up."""
    try:
        ip_address(text)
    except ValueError:
        return text == "localhost"
    return True


MODEL_NAME = Form("name of a model", re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}").fullmatch)
HOST = Form("IP address or localhost", is_host)


@dataclass(frozen=True)
class ListenConfig:
    """Where the API listens; another address than loopback needs a token or mTLS."""

    host: Annotated[str, HOST] = "127.0.0.1"
    port: Annotated[int, Range(0, 65535)] = 8000
    """TCP port; 0: any free one (printed in the line that says ready)."""
    tcp: bool = True
    """Whether to listen on TCP at all."""
    socket: Path | None = None
    """Unix socket; None: ``agent.sock`` in the state directory."""
    token_file: Path | None = None
    """File (0600) whose first line is the token that TCP callers must bear."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    """CA whose certificates callers must show (mTLS)."""


@dataclass(frozen=True)
class LimitsConfig:
    """What one caller, and all callers together, may take."""

    connections: Annotated[int, Range(1, 65536)] = 256
    """Connections served at once; the longest idle one gives way to a new one."""
    reserved_connections: Annotated[int, Range(0, 1024)] = 32
    """Further connections, for health and metrics only."""
    header_bytes: Annotated[int, Range(1024, 1 << 20)] = 32 << 10
    headers: Annotated[int, Range(8, 10_000)] = 128
    header_s: Annotated[float, Range(0.1, 600)] = 5.0
    """From the first byte (or the connect) to the end of the headers, absolute."""
    body_s: Annotated[float, Range(0.1, 3600)] = 30.0
    """From the end of the headers to the end of the body, absolute."""
    response_s: Annotated[float, Range(0.1, 3600)] = 30.0
    """How long a caller may take to read an answer that does not fit its socket."""
    keep_alive_s: Annotated[float, Range(0.1, 3600)] = 75.0
    body_bytes: Annotated[int, Range(1024, 1 << 30)] = 16 << 20
    """Bytes of one body, counted as read and again as decompressed."""
    buffered_bytes: Annotated[int, Range(1024, 1 << 34)] = 20 << 20
    """Bytes of all bodies held at once; over it requests are answered 429."""
    decoding_bytes: Annotated[int, Range(1 << 20, 1 << 34)] = 22_000_000
    """Bytes that decoding one picture may take; over it: 413."""


@dataclass(frozen=True)
class ModelConfig:
    """How one model is served."""

    queue_depth: Annotated[int, Range(1, 65536)] = 64
    """Requests that may wait for the model; over it: 429."""
    deadline_ms: Annotated[float, Range(0.1, 3_600_000)] = 1000.0
    """Requests that could not be answered within it are refused at once."""
    max_rows: Annotated[int, Range(1, 65536)] = 128
    """Rows (first dimension) of one request to a model with a variable batch."""
    max_batch: Annotated[int, Range(1, 65536)] = 1
    """Rows gathered into one run (dynamic batching); 1: off."""
    max_delay_ms: Annotated[float, Range(0, 10_000)] = 2.0
    """How long the first request of a batch waits for others."""
    inline_us: Annotated[float, Range(0, 100_000)] = 50.0
    """Models faster than this on this device run without leaving the event loop."""
    fallback: Annotated[str | None, MODEL_NAME] = None
    """Model that answers while this one's breaker is open."""
    breaker_failures: Annotated[int, Range(1, 1_000_000)] = 5
    """Failures in a row that open the breaker."""
    breaker_open_s: Annotated[float, Range(0.1, 86_400)] = 10.0
    """How long it stays open before one request is let through."""
    swap: SwapPolicy = "availability"
    """availability: old and new in memory at once; memory: the old one leaves first."""


@dataclass(frozen=True)
class LogConfig:
    """What is logged and how."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "info"


@dataclass(frozen=True)
class SandboxConfig:
    """What a new artifact may use while it is tried in a process of its own."""

    memory_bytes: Annotated[int, Range(256 << 20, 1 << 40)] = 4 << 30
    """Address space of the probe."""
    cpu_s: Annotated[int, Range(1, 86_400)] = 60
    wall_s: Annotated[float, Range(1, 86_400)] = 60.0


@dataclass(frozen=True)
class UpdateConfig:
    """How a new model is got and tried; the fleet may set what begins with trial."""

    trial_inferences: Annotated[int, Range(1, 1_000_000_000)] = 100
    """Requests that a candidate answers on trial before it is committed."""
    trial_s: Annotated[float, Range(1, 604_800)] = 300.0
    """After so long without anything bad it is committed without them, too."""
    trial_least_s: Annotated[float, Range(0, 604_800)] = 10.0
    """However many it answers, it is not committed sooner."""
    recheck_s: Annotated[float, Range(0.1, 3600)] = 5.0
    """On trial it is asked golden vectors again so often."""
    hang_s: Annotated[float, Range(0.1, 3600)] = 30.0
    """A candidate that does not answer them for so long hangs."""
    failure_share: Annotated[float, Range(0, 1)] = 0.05
    """Share of its requests that may fail on trial."""
    growth_bytes: Annotated[int, Range(1 << 20, 1 << 40)] = 256 << 20
    """What the agent may grow by while a candidate is on trial."""
    gate_latency: bool = True
    """Whether the latency limit of a bundle holds on this device."""
    max_starts: Annotated[int, Range(1, 100)] = 3
    """Starts of the agent, orderly stops apart, that a candidate on trial may see."""
    download_s: Annotated[float, Range(1, 2_592_000)] = 86_400.0
    """How long a download may take in all."""
    probe_s: Annotated[float, Range(1, 86_400)] = 3600.0
    """How long the sandbox, and asking once more whether it is wanted, may take."""
    rate_bytes_s: Annotated[int, Range(0, 1 << 40)] = 0
    """Bandwidth that downloads keep to; 0: what there is."""


@dataclass(frozen=True)
class LinkConfig:
    """How an enrolled device talks with its fleet."""

    keep_alive_s: Annotated[int, Range(5, 1200)] = 60
    """The broker hears of it at least so often; half of a cut connection is noticed
    after twice that."""
    session_s: Annotated[int, Range(3600, 31_536_000)] = 86_400
    """How long the broker keeps messages for it while it is away."""
    will_s: Annotated[int, Range(1, 3600)] = 45
    """After so long without it the broker says that it is offline."""
    reconnect_max_s: Annotated[float, Range(1, 86_400)] = 600.0
    """The longest wait before an attempt to connect."""
    birth_spread_s: Annotated[float, Range(0, 3600)] = 10.0
    """Devices that were lost together say within so long that they are back."""
    ack_s: Annotated[float, Range(1, 3600)] = 15.0
    """How long the fleet may take to say that it has stored what was sent."""
    ack_max_s: Annotated[float, Range(1, 86_400)] = 3600.0
    """While it does not, a batch is sent again at the latest after so long."""
    batches: Annotated[int, Range(1, 64)] = 4
    """Batches that are sent before the fleet has stored the first of them."""
    batch_bytes: Annotated[int, Range(4096, 128 << 10)] = 64 << 10
    """Records of one batch, before they are compressed."""
    linger_s: Annotated[float, Range(0, 3600)] = 1.0
    """How long a new record waits for others."""
    window_s: Annotated[float, Range(1, 86_400)] = 300.0
    """Over how long requests are counted for one record."""


@dataclass(frozen=True)
class SpoolConfig:
    """What is kept for the fleet while it cannot be reached."""

    bytes_max: Annotated[int, Range(1 << 20, 1 << 40)] = 64 << 20
    """Of all records on the disk; the least important go first."""
    age_s: Annotated[float, Range(60, 315_360_000)] = 1_209_600.0
    """Of a record, counted while the agent runs."""


@dataclass(frozen=True)
class AgentConfig:
    """The whole configuration."""

    state: Path
    bundles: tuple[Path, ...] = ()
    lanes: Annotated[int, Range(1, 64)] = 1
    """Inference threads."""
    hang_s: Annotated[float, Range(0.1, 86_400)] = 30.0
    """An inference that takes longer is given up and its model's breaker opens."""
    drain_s: Annotated[float, Range(0, 3600)] = 30.0
    """How long a stop or an unload waits for requests under way."""
    listen: ListenConfig = ListenConfig()
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    sandbox: SandboxConfig = SandboxConfig()
    update: UpdateConfig = UpdateConfig()
    link: LinkConfig = LinkConfig()
    spool: SpoolConfig = SpoolConfig()
    model: ModelConfig = ModelConfig()
    """Defaults for every model."""
    models: dict[str, ModelConfig] = field(default_factory=dict)
    """By model name, the defaults filled in."""

    def model_config(self, name: str) -> ModelConfig:
        """How the model of that name is served; nobody falls back on itself."""
        found = self.models.get(name, self.model)
        return replace(found, fallback=None) if found.fallback == name else found

    @property
    def socket(self) -> Path:
        """The unix socket, its default filled in."""
        return self.listen.socket or self.state / SOCKET_NAME


@dataclass(frozen=True)
class Overrides:
    """What the command line says; None: nothing. It wins over the file.

    Relative paths are relative to the working directory. ``bundles`` replaces the
    file's list where it is not empty; ``listen`` (``HOST:PORT``, IPv6 in brackets)
    also turns TCP on.
    """

    state: Path | None = None
    bundles: tuple[Path, ...] = ()
    listen: str | None = None
    socket: Path | None = None
    log_format: str | None = None
    log_level: str | None = None
