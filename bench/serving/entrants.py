"""Who is measured: how each is installed, started and asked.

Each is asked the way its users would ask, with access logs off where it has them.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import wire
from .models import Model
from .wire import Ask

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
OURS, RAW, BARE = "ours", "raw asyncio", "bare session"
WORKERS, IN_PROCESS = "MLServer", "MLServer in-process"
LITSERVE, BENTOML = "LitServe", "BentoML"
FASTAPI, FASTAPI_RAW = "FastAPI pydantic", "FastAPI raw body"


@dataclass(frozen=True)
class Site:
    """What a server is started with."""

    model: Model
    python: Path
    port: int
    folder: Path
    """For files of this server; kept between its starts."""

    @property
    def socket(self) -> Path:
        """The unix socket, for those that have one."""
        return self.folder / "s"


@dataclass(frozen=True)
class Entrant:
    """One server; ``asks`` by the name of the encoding."""

    name: str
    command: Callable[[Site], Sequence[str | Path]]
    asks: Mapping[str, Ask]
    unix: bool = False
    requirements: tuple[str, ...] = ()
    """Installed into a virtual environment; empty: the project's own is used."""
    environment: Callable[[Site], Mapping[str, str]] = field(default=lambda site: {})
    key: str = ""
    """Its name on the command line and that of its virtual environment."""


def environment(entrant: Entrant, site: Site) -> dict[str, str]:
    """The variables a server runs with: those of a shell, one thread, no telemetry."""
    kept = {
        key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ
    }
    return {
        **kept, "PYTHONPATH": str(BENCH), "ORT_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **entrant.environment(site),
    }  # fmt: skip


def ours(site: Site) -> Sequence[str | Path]:
    """The agent as it is installed on a device."""
    return [
        site.python, "-m", "device_agent", "run", "--bundle", site.model.bundle,
        "--listen", f"127.0.0.1:{site.port}", "--socket", site.socket,
        "--state", site.folder / "state",
    ]  # fmt: skip


def raw(site: Site) -> Sequence[str | Path]:
    """Inline for the small model, one FIFO thread for the other."""
    place = "inline" if site.model.name == "mlp" else "lane"
    return [
        site.python, BENCH / "serving" / "raw.py", site.model.artifact, str(site.port),
        site.socket, place,
    ]  # fmt: skip


def fastapi(site: Site) -> Sequence[str | Path]:
    """Under uvicorn, on a port and a socket."""
    return [
        site.python, "-m", "serving.peer_fastapi", site.model.artifact, str(site.port),
        site.socket,
    ]  # fmt: skip


def litserve(site: Site) -> Sequence[str | Path]:
    """One worker, as by default."""
    return [
        site.python, "-m", "serving.peer_litserve", site.model.artifact, str(site.port)
    ]  # fmt: skip


def bentoml(site: Site) -> Sequence[str | Path]:
    """One worker, as by default."""
    return [
        site.python, "-m", "bentoml", "serve", "serving.peer_bentoml:Service",
        "--host", "127.0.0.1", "--port", str(site.port),
    ]  # fmt: skip


def mlserver(workers: int | None) -> Callable[[Site], Sequence[str | Path]]:
    """``mlserver start`` on a folder with the two settings files."""

    def command(site: Site) -> Sequence[str | Path]:
        settings = {
            "host": "127.0.0.1", "http_port": site.port, "debug": False,
            "grpc_port": wire.free_port(), "metrics_port": wire.free_port(),
            **({} if workers is None else {"parallel_workers": workers}),
        }  # fmt: skip
        model = {
            "name": site.model.name, "implementation": "serving.peer_mlserver.Runtime",
            "parameters": {"uri": str(site.model.artifact), "version": "1"},
        }  # fmt: skip
        Path(site.folder, "settings.json").write_text(json.dumps(settings))
        Path(site.folder, "model-settings.json").write_text(json.dumps(model))
        return [site.python.with_name("mlserver"), "start", "."]

    return command


MLSERVER = ("mlserver==1.7.1", "uvloop<0.22")
"""Its workers do not start with uvloop 0.22 or later (no current event loop)."""
OIP = Ask("/v2/models/{model}/infer", wire.oip_json, wire.read_oip)
OIP_BINARY = Ask("/v2/models/{model}/infer", wire.oip_binary, wire.read_oip)
LISTED = Ask("/predict", wire.listed("input"), wire.read_listed("output"))

ENTRANTS = (
    Entrant(OURS, ours, {"JSON": OIP, "binary": OIP_BINARY}, unix=True),
    Entrant(RAW, raw, {"JSON": OIP, "binary": OIP_BINARY}, unix=True),
    Entrant(
        FASTAPI_RAW, fastapi, {
            "JSON": Ask("/raw", wire.listed("input"), wire.read_listed("output")),
            "binary": Ask("/binary", wire.plain_bytes, wire.read_bytes),
        },
        unix=True, key="fastapi",
        requirements=("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "orjson"),
    ),
    Entrant(
        FASTAPI, fastapi, {"JSON": LISTED}, unix=True, key="fastapi",
        requirements=("fastapi==0.165.0", "uvicorn[standard]==0.54.0", "orjson"),
    ),
    Entrant(
        IN_PROCESS, mlserver(0), {"JSON": OIP}, key="mlserver",
        requirements=MLSERVER,
    ),
    Entrant(
        WORKERS, mlserver(None), {"JSON": OIP}, key="mlserver",
        requirements=MLSERVER,
    ),
    Entrant(
        LITSERVE, litserve, {"JSON": LISTED}, key="litserve",
        requirements=("litserve==0.2.19",),
    ),
    Entrant(
        BENTOML, bentoml,
        {"JSON": Ask("/predict", wire.listed("input"), wire.read_listed(None))},
        key="bentoml", requirements=("bentoml==1.4.39",),
        environment=lambda site: {
            "BENCH_MODEL": str(site.model.artifact), "BENTOML_DO_NOT_TRACK": "True",
            "BENTOML_HOME": str(site.folder),
        },
    ),
)  # fmt: skip
PEERS = tuple(dict.fromkeys(one.key for one in ENTRANTS if one.key))
"""Names for the command line."""


def chosen(peers: Sequence[str]) -> list[Entrant]:
    """Ours, the limit and the named peers, in the order of the table."""
    return [one for one in ENTRANTS if not one.key or one.key in peers]


def own_python() -> Path:
    """The project's."""
    return Path(sys.executable)
