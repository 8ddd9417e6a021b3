"""The device's own check of bundles: on this machine, or emulated on their target.

The device's program runs in a process of its own and says what it finds as JSON: its
exit code is the verdict. A bundle for another architecture goes to the emulator, unless
only its answers are asked for (``here``).
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import typer

from device_agent.contract.bundle import Bundle

from . import armv7
from .errors import EdgemlError, InputError, MachineLacks, UsageError
from .outcome import BuildOutcome, TargetOutcome
from .terminal import tell

Facts = dict[str, Any]
TIMEOUT_S = 1800.0
_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Asked:
    """What a check is asked to run on; ``folder`` is what profiles are relative to."""

    target: str | None = None
    cpu: str | None = None
    here: bool = False
    count: bool = False
    timeout_s: float = TIMEOUT_S
    engine: str | None = None
    image: str | None = None
    folder: Path | None = None


def check_bundle(path: Path, asked: Asked, *, as_json: bool, quiet: bool) -> int:
    """Check one bundle and say what was found; the exit code."""
    report = checked(path, asked, quiet=quiet)
    if as_json or (report["ok"] and not quiet):
        tell(report, as_json, lambda: lines(report))
    _say_why(report)
    return int(report["exit_code"])


def check_built(
    outcome: BuildOutcome, folder: Path, profiles: Mapping[str, str],
    recipes: Path, *, quiet: bool,
) -> tuple[int, BuildOutcome]:  # fmt: skip
    """Check every bundle of a build; the worst exit code, and reports in the outcome.

    Args:
        outcome: what was built.
        folder: where its bundles are.
        profiles: target → what the recipe calls its profile.
        recipes: what profiles in files are relative to.
        quiet: say only what is wrong.
    """
    worst = 0
    targets: list[TargetOutcome] = []
    for one in outcome.targets:
        if one.bundle_file is None:
            targets.append(one)
            continue
        path = folder / one.bundle_file
        report = _checked_built(path, profiles[one.target], recipes, quiet)
        if report["ok"] and not quiet:
            tell(None, False, lambda report=report: lines(report))  # type: ignore[misc]
        _say_why(report)
        worst = max(worst, int(report["exit_code"]))
        targets.append(replace(one, check=report))
    return worst, replace(outcome, targets=tuple(targets))


def _checked_built(path: Path, profile: str, recipes: Path, quiet: bool) -> Facts:
    """A target that cannot be emulated here does not stop the others."""
    try:
        return checked(path, Asked(folder=recipes), quiet=quiet, profile=profile)
    except (MachineLacks, UsageError) as error:
        failure = {"step": "emulator", "reason": str(error)}
        return {
            "ok": False, "file": path.name, "exit_code": error.exit_code,
            "failure": failure,
        }  # fmt: skip


def checked(
    path: Path, asked: Asked, *, quiet: bool, profile: str | None = None
) -> Facts:
    """The report of the device's check of one bundle.

    ``profile`` is what to load the bundle's own target by, where that is no name.

    Raises:
        EdgemlError: the target is unknown or does not fit, or cannot be emulated.
    """
    from .bundling.bundle import opened

    bundle: Bundle | None = None
    with suppress(InputError):  # the device's program says what is wrong with it
        bundle = opened(path)
    if bundle is None or asked.here:
        return _here(path, bundle)
    from .cache import user_cache
    from .emulator.check import check, plan
    from .emulator.engine import Engine
    from .emulator.store import Store

    emulation = plan(
        bundle, _profile(asked.target, asked.folder), asked.cpu,
        _own(profile or bundle.manifest.target, asked.folder), asked.timeout_s,
        None if asked.engine is None else Engine(asked.engine, asked.image),
    )  # fmt: skip
    if emulation is None:
        if asked.count:
            raise UsageError("--count counts under emulation: name a --cpu to emulate")
        return _here(path, bundle)
    store, said = Store(user_cache() / "emulator"), _said(quiet)
    try:
        report = check(path, emulation, store, said)
    except MachineLacks as error:
        raise MachineLacks(f"{error} (--here checks the answers alone)") from error
    if report["ok"] and asked.count:
        from .emulator.count import count

        report["emulation"]["instructions"] = asdict(
            count(path, emulation, store, said)
        )
    return report


def _profile(name: str | None, folder: Path | None) -> Any:
    from targets.profile import load_target

    return None if name is None else load_target(name, folder)


def _own(name: str, folder: Path | None) -> Any:
    """The profile of a bundle's own target; None where nobody knows it."""
    from targets.profile import ProfileError, load_target

    try:
        return load_target(name, folder)
    except ProfileError:
        return None


def _said(quiet: bool) -> Any:
    return (lambda line: None) if quiet else (lambda line: typer.echo(line, err=True))


def _here(path: Path, bundle: Bundle | None) -> Facts:
    """By this machine, whatever it is: a build host may, a device does not.

    What is for 32-bit Arm is run by the release that it has, where that is here.
    """
    foreign = bundle is not None and bundle.manifest.isa.arch == "armv7l"
    release = armv7.python() if foreign else None
    found = {} if release is None else {"PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [str(release or sys.executable), "-m", "device_agent", "check", str(path),
         "--any-arch", "--json"],
        env={**os.environ, **found},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        report: Facts = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip().splitlines()
        raise EdgemlError(
            f"{path.name}: the device's program ended with code {done.returncode}: "
            f"{said[-1] if said else 'it said nothing'}"
        ) from None
    return report


def _say_why(report: Facts) -> None:
    failure = report["failure"]
    if failure is not None:
        reason = " ".join(failure["reason"].split())
        typer.echo(f"{report['file']}: {failure['step']}: {reason}", err=True)


def lines(report: Facts) -> list[str]:
    """The report of a check that passed, for people."""
    about = report.get("emulation")
    named = f"{report['name']} {report['version']} for {report['target']}: ok"
    flips = f", {report['argmax_flips']} flips against the host"
    memory = f"{(report['peak_memory_bytes'] or 0) / 2**20:.1f} MiB at its peak"
    found = [
        named + (f" under {about['engine']} as {about['cpu']}" if about else ""),
        f"  sha256   {report['sha256']}",
        f"  machine  {report['machine']}",
        f"  runtime  {report['runtime']} {report['runtime_version']}",
        f"  golden   {report['golden_vectors']} vectors right, "
        f"max |diff| {report['max_abs_diff']:.3g}" + (flips if about else ""),
        f"  latency  {_latency(report)}",
        f"  memory   {memory}" + _of(about),
    ]
    if report["foreign"]:
        text = f"it is for {report['arch']}: its answers were checked here"
        found.insert(3, f"  isa      {text}, not its speed")
    if about and "instructions" in about:
        counted = about["instructions"]
        found.append(
            f"  cost     {counted['inference']:,} instructions an inference, "
            f"{counted['load']:,} to load, by one thread"
        )
    if about:
        return [*found, f"  took     {about['wall_s']:.1f} s, which says nothing of it"]
    return [*found, f"  load     {report['load_ms']:.1f} ms"]


def _of(about: Facts | None) -> str:
    if about is None:
        return ""
    counted = "" if about["memory_exact"] else ", some of it its emulator's"
    return f", of {about['memory_bytes'] / 2**20:.0f} MiB{counted}"


def _latency(report: Facts) -> str:
    if report["latency_p50_ms"] is None:
        return "not measured: an emulator's time is not the device's"
    limit = report["latency_limit_ms"]
    if limit is None:
        gated = "no limit is stated"
    elif report["latency_gated"]:
        gated = f"at most {limit:g} ms"
    else:
        gated = "not gated: the limit is another machine's"
    p50, p99 = report["latency_p50_ms"], report["latency_p99_ms"]
    return f"p50 {p50:.3f} ms, p99 {p99:.3f} ms ({gated})"
