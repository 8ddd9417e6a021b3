"""The device's check of a bundle, run on an emulated target; and its verdict.

What the device's program finds in the guest stands. The host adds what the guest cannot
know, each with its own reason and exit code 3:

1. **memory**: it took more than the target has, and was ended.
2. **isa**: it died of an instruction that the target's processor has not; which feature
   that is, another processor tells.
3. **operators**: the target's runtime has no such operator, or not that version.
4. **load**: the target's runtime refuses the artifact for another reason.
5. **limits**: its process takes more than the bundle promises.

An emulator that does not run, or not in time, is nobody's verdict: the machine lacks
something (exit code 5).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agent.contract import machine
from device_agent.contract.bundle import Bundle
from targets.profile import Target

from ..armv7 import missing
from ..bundling.bundle import opened
from ..errors import GATE, LACKS, REFUSED, MachineLacks, UsageError
from .engine import Engine
from .guest import Guest, Ran, guest
from .store import Said, Store

Facts = dict[str, Any]
RUN_S = float("inf")
_RICHER = {
    "aarch64": ("cortex-a76", "neoverse-v1", "max"),
    "armv7l": ("cortex-a15", "max"),
    "x86_64": ("Haswell", "max"),
}
"""Processors to try what another one died of on, poorer ones first."""
_NO_OPERATOR = (
    # LiteRT, of a builtin and of a custom operator
    re.compile(
        r"Didn't find op for builtin opcode '(?P<name>\w+)' version '(?P<v>\d+)'"
    ),
    re.compile(r"unresolved custom op: (?P<name>\w+)"),
    # ONNX Runtime
    re.compile(r"Could not find an implementation for (?P<name>\w+)\((?P<v>\d+)\)"),
    re.compile(
        r"No [Oo]p registered for (?P<name>\w+) with domain_version of (?P<v>\d+)"
    ),
    re.compile(r"(?P<name>[\w.:]+)\(-?\d+\) is not a registered function/op"),
)


@dataclass(frozen=True)
class Emulation:
    """What a check is to be run on."""

    target: Target
    cpu: str
    timeout_s: float
    engine: Engine | None = None
    """None: the pinned QEMU."""

    @property
    def machine(self) -> str:
        """What it stands for, in words."""
        if self.cpu == self.target.qemu_cpu:
            return f"{self.target.name} ({self.cpu})"
        return self.cpu


def plan(
    bundle: Bundle, target: Target | None, cpu: str | None, profile: Target | None,
    timeout_s: float, engine: Engine | None = None,
) -> Emulation | None:  # fmt: skip
    """What a bundle is to be checked on; None: this machine itself will do.

    Args:
        bundle: what is checked.
        target: the one that was asked for; None: the bundle's own.
        cpu: the processor that was asked for, as QEMU calls it.
        profile: the profile of the bundle's own target; None: it is not known here.
        timeout_s: how long an emulated check may take.
        engine: the container engine that was asked for.

    Raises:
        UsageError: nobody knows which processor to emulate.
    """
    arch = bundle.manifest.isa.arch
    wanted = target or profile
    if target is None and cpu is None and engine is None and arch == machine.arch():
        return None
    if wanted is None:
        raise UsageError(
            f"the bundle's target {bundle.manifest.target!r} is not known here; name "
            "its profile: --target FILE.toml"
        )
    if wanted.arch != arch:
        raise UsageError(
            f"the bundle is for {arch} and {wanted.name} is {wanted.arch}: no such "
            "target runs it"
        )
    chosen = cpu or wanted.qemu_cpu
    if chosen is None:
        raise UsageError(
            f"QEMU has no processor for {wanted.name} "
            f"({wanted.sources.get('qemu_cpu', 'none is named in its profile')}); "
            "--cpu names one"
        )
    return Emulation(wanted, chosen, timeout_s, engine)


def check(path: Path, emulation: Emulation, store: Store, said: Said) -> Facts:
    """The device's report of a bundle, with what the host adds.

    ``exit_code`` and ``failure`` are the verdict; ``emulation`` says on what.

    Raises:
        InputError: the bundle is refused by the reader.
        MachineLacks: the emulator cannot be had, or does not run.
    """
    bundle = opened(path)
    target = emulation.target
    provider = bundle.manifest.runtime.options.get("provider", "cpu")
    if provider != "cpu":
        raise MachineLacks(
            f"{path.name} runs on a GPU ({provider}), which QEMU does not have; "
            "edgeml-agent check on the device"
        )
    if emulation.engine is not None:
        return _contained(path, bundle, emulation, emulation.engine, said)
    with guest(store, target.arch, emulation.cpu, said) as host:
        said(f"emulator: {path.name} on {emulation.cpu}, QEMU {host.qemu_version}")
        ran = _run(host, path, emulation)
        report = _verdict(_report(ran, path, bundle), ran, emulation)
        if _died_of_isa(report):
            why = explained(
                store, emulation, host.features(),
                lambda other: _survives(other, path, emulation), said,
            )  # fmt: skip
            report = _failed(report, GATE, "isa", why)
    return {
        **report,
        "emulation": _about(emulation, f"qemu-user {host.qemu_version}", ran),
    }


def _contained(
    path: Path, bundle: Bundle, emulation: Emulation, engine: Engine, said: Said
) -> Facts:
    target, version = emulation.target, engine.version()
    image = engine.image_for(target.arch, bundle.manifest.runtime.name)
    said(f"emulator: {path.name} on {emulation.cpu} in {image}, {version}")
    ran = engine.check(
        path, image, target.arch, emulation.cpu, target.memory_bytes,
        emulation.timeout_s,
    )  # fmt: skip
    report = _report(ran, path, bundle)
    taken = report.get("peak_memory_bytes")
    report = {**_verdict(report, ran, emulation), "peak_memory_bytes": taken}
    return {**report, "emulation": {**_about(emulation, version, ran), "image": image}}


def _run(host: Guest, path: Path, emulation: Emulation) -> Ran:
    words = ["-m", "device_agent", "check", str(path.resolve()), "--json", "--emulated"]
    return host.run(
        words, memory_bytes=emulation.target.memory_bytes,
        timeout_s=emulation.timeout_s,
    )  # fmt: skip


def _report(ran: Ran, path: Path, bundle: Bundle) -> Facts:
    """What the device's program says; what is known of a bundle when it was ended."""
    if ran.ended == "memory":
        manifest = bundle.manifest
        return {
            "ok": False, "file": path.name, "exit_code": GATE, "failure": None,
            "emulated": True, "sha256": bundle.sha256, "name": manifest.name,
            "version": manifest.version, "target": manifest.target,
            "arch": manifest.isa.arch, "runtime": manifest.runtime.name,
        }  # fmt: skip
    if ran.ended == "time":
        raise MachineLacks(
            f"{path.name}: not done within {ran.wall_s:.0f} s under emulation; "
            "--timeout gives it more"
        )
    try:
        report: Facts = json.loads(ran.stdout)
    except ValueError:
        raise MachineLacks(
            f"{path.name}: the emulated program ended without a report: {ran.said()}"
        ) from None
    return report


def _verdict(report: Facts, ran: Ran, emulation: Emulation) -> Facts:
    target = emulation.target
    if ran.ended == "memory":
        return _failed(
            report, GATE, "memory",
            f"it takes more than the {target.memory_bytes} bytes of memory that "
            f"{target.name} has: {ran.total_bytes} bytes when it was ended",
        )  # fmt: skip
    report = {**report, "peak_memory_bytes": ran.peak_bytes or None,
              "baseline_memory_bytes": None}  # fmt: skip
    failure, code = report["failure"], report["exit_code"]
    if failure is None and ran.exact:
        limit = report["peak_memory_limit_bytes"]
        if limit is not None and ran.peak_bytes > limit:
            return _failed(
                report, GATE, "limits",
                f"its process takes {ran.peak_bytes} bytes at its peak; "
                f"at most {limit}",
            )  # fmt: skip
    if failure is None:
        return report
    if failure["step"] == "load" and code == REFUSED:
        return _failed(report, GATE, *_refusal(failure["reason"], report, target))
    if failure["step"] in ("runtime", "load") and code == LACKS:
        reason = f"{failure['reason']} (in the emulated system; scripts/lock-emulator)"
        return _failed(report, LACKS, failure["step"], reason)
    if failure["step"] == "isa" and report["isa_missing"]:
        reason = f"needs {', '.join(report['isa_missing'])}"
        return _failed(report, GATE, "isa", f"{reason}; {emulation.machine} has not")
    return report


def _refusal(reason: str, report: Facts, target: Target) -> tuple[str, str]:
    """The step and the reason of a runtime that does not load the artifact."""
    runtime = f"{report['runtime']} {report['runtime_version']} on {target.name}"
    for pattern in _NO_OPERATOR:
        found = pattern.search(reason)
        if found is None:
            continue
        name, version = found["name"], found.groupdict().get("v")
        what = f"{name} version {version}" if version else name
        if target.arch == "armv7l" and version:
            what = ", ".join(missing({name: int(version)})) or what
        return "operators", f"{runtime} has no operator {what}: {reason}"
    return "load", f"{runtime} refuses it: {reason}"


def _died_of_isa(report: Facts) -> bool:
    failure = report["failure"]
    return bool(failure) and failure["step"] == "isa" and not report.get("isa_missing")


def explained(
    store: Store, emulation: Emulation, had: frozenset[str],
    runs: Callable[[Guest], bool], said: Said,
) -> str:  # fmt: skip
    """Why something died of an instruction: what the first processor has that runs it.

    Args:
        store: where guests come from.
        emulation: what it died on.
        had: that processor's features.
        runs: whether it runs in a guest with another processor.
        said: told what is fetched.
    """
    arch = emulation.target.arch
    for richer in _RICHER[arch]:
        with guest(store, arch, richer, said) as other:
            more = sorted(other.features() - had)
            if not more or not runs(other):
                continue
        return (
            f"needs {' or '.join(more)}; {emulation.machine} has not: it died of an "
            f"instruction there (SIGILL) and runs on {richer}"
        )
    return f"it died of an instruction (SIGILL) that {emulation.machine} has not"


def _survives(host: Guest, path: Path, emulation: Emulation) -> bool:
    try:
        return not _died_of_isa(json.loads(_run(host, path, emulation).stdout))
    except ValueError:
        return False


def _failed(report: Facts, code: int, step: str, reason: str) -> Facts:
    failure = {"step": step, "reason": reason}
    return {**report, "ok": False, "exit_code": code, "failure": failure}


def _about(emulation: Emulation, engine: str, ran: Ran) -> Facts:
    return {
        "engine": engine,
        "target": emulation.target.name,
        "cpu": emulation.cpu,
        "memory_bytes": emulation.target.memory_bytes,
        "total_memory_bytes": ran.total_bytes,
        "memory_exact": ran.exact,
        "wall_s": round(ran.wall_s, 3),
    }
