"""The command line of the device: one verb per command.

``VERBS`` is the table: a verb adds its arguments, and its code is imported when it is
run, so that ``--help`` answers at once. Run as ``edgeml-agent``, as
``python -m device_agent`` or, from a copy of the folder, as ``python device_agent``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a folder: what Python put in the path is the folder itself
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

USAGE, LACKS = 2, 5


@dataclass(frozen=True)
class Verb:
    """A command: one line of help, its arguments, and what runs it."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit code: 0 done, 2 usage, 3 a gate was missed, 4 input refused, 5 the
        machine lacks something.
    """
    parser = argparse.ArgumentParser(
        prog="edgeml-agent", description="The program on the device."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    words = sys.argv[1:] if argv is None else argv
    for name, verb in VERBS.items():
        one = verbs.add_parser(name, help=verb.help, description=verb.help)
        if name in words:  # the others' arguments need not be imported
            verb.arguments(one)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse has said why
        return USAGE if end.code else 0
    return VERBS[arguments.verb].run(arguments)


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing when ok")
    parser.add_argument(
        "--machine-features", metavar="LIST",
        help="CPU features to go by, comma-separated, in place of those found",
    )  # fmt: skip
    parser.add_argument(
        "--gate-latency", action="store_true",
        help="hold the latency limit here too, though it was measured elsewhere",
    )  # fmt: skip
    parser.add_argument(
        "--any-arch", action="store_true",
        help="look past another architecture than this machine's: a build host does, "
        "a device does not",
    )  # fmt: skip
    parser.add_argument(
        "--emulated", action="store_true",
        help="this machine is an emulator: its time and memory say nothing of a device",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=_positive, default=100, help="timed runs (default 100)"
    )


def _check(arguments: argparse.Namespace) -> int:
    from device_agent.check import EMULATED, CheckOptions, check
    from device_agent.runtimes.probe import ProbeLimits

    features = arguments.machine_features
    report = check(
        arguments.bundle,
        CheckOptions(
            features=None if features is None else frozenset(features.split(",")),
            gate_latency=arguments.gate_latency,
            any_arch=arguments.any_arch,
            emulated=arguments.emulated,
            runs=arguments.runs,
            probe_limits=EMULATED if arguments.emulated else ProbeLimits(),
        ),
    )
    if arguments.json:
        sys.stdout.write(json.dumps(report.document(), indent=2) + "\n")
    elif report.ok and not arguments.quiet:
        sys.stdout.write(_lines(report))
    if report.failure is not None:
        why = " ".join(report.failure.reason.split())
        sys.stderr.write(f"{report.file}: {report.failure.step}: {why}\n")
    return report.exit_code


def _run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="agent.toml; none is read unasked"
    )
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE", nargs="+", action="extend", default=[],
        help="serve these bundles",
    )  # fmt: skip
    parser.add_argument(
        "--listen", metavar="HOST:PORT",
        help="TCP address (default 127.0.0.1:8000); another than loopback needs a "
        "token or mTLS",
    )  # fmt: skip
    parser.add_argument(
        "--socket", type=Path, metavar="PATH",
        help="unix socket (default: agent.sock in the state directory)",
    )  # fmt: skip
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="what the agent remembers"
    )
    parser.add_argument("--log-format", choices=("text", "json"))
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))


def _run(arguments: argparse.Namespace) -> int:
    from device_agent.config import Overrides, load_config
    from device_agent.errors import (
        ConfigError,
        IdentityError,
        LockedError,
        StorageError,
    )

    overrides = Overrides(
        state=arguments.state,
        bundles=tuple(arguments.bundle),
        listen=arguments.listen,
        socket=arguments.socket,
        log_format=arguments.log_format,
        log_level=arguments.log_level,
    )
    try:
        config = load_config(arguments.config, overrides)
        from device_agent.agent import run

        return run(config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    except (LockedError, StorageError, IdentityError) as error:
        sys.stderr.write(f"{error}\n")
        return LACKS


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    from device_agent.status import arguments

    arguments(parser)


def _status(arguments: argparse.Namespace) -> int:
    from device_agent.status import run

    return run(arguments)


def _enroll_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--server",
        required=True,
        metavar="URL",
        help="the fleet's: https://HOST[:PORT]",
    )
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", metavar="T", help="one-time token of the fleet")
    token.add_argument(
        "--token-file", type=Path, metavar="FILE",
        help="file whose first line is the token; other users cannot see it then",
    )  # fmt: skip
    parser.add_argument(
        "--ca", type=Path, metavar="FILE",
        help="CA of the server (PEM), if it is not one that this system knows",
    )  # fmt: skip
    parser.add_argument("--state", type=Path, metavar="DIR", help="state directory")
    parser.add_argument(
        "--again", action="store_true",
        help="this device is enrolled already: replace what it is",
    )  # fmt: skip


def _enroll(arguments: argparse.Namespace) -> int:
    from device_agent.enroll import run

    return run(arguments)


def _lines(report: Any) -> str:
    if report.latency_limit_ms is None:
        gated = "no limit is stated"
    elif report.latency_gated:
        gated = f"at most {report.latency_limit_ms:g} ms"
    else:
        gated = "not gated: the limit is another machine's"
    latency = "not measured"
    if report.latency_p50_ms is not None:
        latency = (
            f"p50 {report.latency_p50_ms:.3f} ms, p99 {report.latency_p99_ms:.3f} ms "
            f"({gated})"
        )
    return (
        f"{report.name} {report.version} for {report.target}: ok\n"
        f"  sha256   {report.sha256}\n"
        f"  machine  {report.machine}\n"
        f"{_FOREIGN.format(report.arch) if report.foreign else ''}"
        f"  runtime  {report.runtime} {report.runtime_version}\n"
        f"  golden   {report.golden_vectors} vectors right, "
        f"max |diff| {report.max_abs_diff:.3g}\n"
        f"  latency  {latency}\n"
        f"  memory   {report.peak_memory_bytes / 2**20:.1f} MiB at its peak\n"
        f"  load     {report.load_ms:.1f} ms\n"
    )


_FOREIGN = "  isa      it is for {}: its answers were checked here, not its speed\n"


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not at least 1")
    return value


VERBS = {
    "check": Verb(
        "verify a bundle, run it here and compare with its golden vectors",
        _check_arguments,
        _check,
    ),
    "run": Verb("serve bundles through the local API", _run_arguments, _run),
    "enroll": Verb(
        "become one of a fleet's devices, by a one-time token",
        _enroll_arguments,
        _enroll,
    ),
    "status": Verb("ask the running agent how it is", _status_arguments, _status),
}


if __name__ == "__main__":
    sys.exit(main())
