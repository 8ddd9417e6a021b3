"""The device's own check of a bundle: is it whole, does it run here, is it right here.

The steps, in order; the first that fails ends the check:

1. **bundle**: every byte is verified (:mod:`.contract.bundle`).
2. **isa**: architecture and CPU features that the artifact was validated for. Without
   them the same file is another model, so it is not even tried.
3. **runtime**: it is installed, in the version the manifest asks for or a later one.
4. **load**, in a process of its own with limits (:mod:`.runtimes.probe`).
5. **golden**: every golden vector within its tolerance.
6. **limits**: memory and latency that the manifest promises.

Peak memory is always gated. Latency is a promise about one machine: it is gated where
the figure was measured (same :func:`.contract.machine.name`), or when the caller says
that this machine is the device (``gate_latency``). Elsewhere - a build host, an
emulator - it is reported, and the report says that it was not gated.

A build host may look at a bundle for another architecture (``any_arch``): where the
runtime has the same kernels for both, its numbers are the same. That says nothing of
CPU features, so a device never does it.

Under an emulator (``emulated``) every step but the last is as on the device. Time and
memory are the emulator's, too: neither is gated, latency is not even reported, and each
input is run once; whoever emulates measures memory from outside.
"""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from .contract import machine
from .contract.bundle import Bundle, BundleLimits, read_bundle, unpack
from .contract.codes import Reason
from .contract.errors import (
    ArtifactError,
    BundleError,
    IsaError,
    MachineError,
    of_disk,
)
from .contract.golden import Golden, GoldenReport, judge, read_golden
from .contract.manifest import Manifest
from .contract.versions import version_key
from .runtimes import runtime as runtime_named
from .runtimes.base import placed
from .runtimes.probe import ProbeLimits, ProbeRequest, ProbeResult, probe

OK, GATE, REFUSED, LACKS = 0, 3, 4, 5
"""Exit codes; 1 (a difference) and 2 (usage) are not for a check to give."""


EMULATED = ProbeLimits(cpu_s=86_400, wall_s=86_400.0)
"""Limits under an emulator, which is slow; whoever started it holds the clock."""


@dataclass(frozen=True)
class Failure:
    """The step that failed, and why."""

    step: str
    reason: str
    code: Reason = Reason.LOAD_FAILED
    """The same for a fleet."""


@dataclass(frozen=True)
class CheckOptions:
    """How to check.

    ``features`` stands in for this machine's CPU features (an Arm emulator that shows
    its host's /proc/cpuinfo needs that); None: those found. ``any_arch``: step 2 looks
    past another architecture than this machine's. ``emulated``: this machine is.
    """

    features: Collection[str] | None = None
    gate_latency: bool = False
    any_arch: bool = False
    emulated: bool = False
    runs: int = 100
    seconds: float = 2.0
    bundle_limits: BundleLimits = field(default_factory=BundleLimits)
    probe_limits: ProbeLimits = field(default_factory=ProbeLimits)
    engines: Path | None = None
    """Where the runtime keeps what it compiles of the artifact; None: nowhere."""


@dataclass(frozen=True)
class CheckReport:
    """What the check found; fields of steps that were not reached are None."""

    file: str
    exit_code: int = OK
    failure: Failure | None = None
    machine: str = ""
    sha256: str | None = None
    size_bytes: int | None = None
    name: str | None = None
    version: str | None = None
    target: str | None = None
    arch: str | None = None
    foreign: bool = False
    """Whether it is for another architecture than this machine's."""
    emulated: bool = False
    isa_requires: tuple[str, ...] = ()
    isa_missing: tuple[str, ...] = ()
    runtime: str | None = None
    runtime_version: str | None = None
    load_ms: float | None = None
    golden_vectors: int | None = None
    golden_wrong: tuple[int, ...] = ()
    max_abs_diff: float | None = None
    """None also where it is not a number: a NaN, a wrong shape."""
    argmax_flips: int | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_limit_ms: float | None = None
    latency_gated: bool = False
    peak_memory_bytes: int | None = None
    baseline_memory_bytes: int | None = None
    peak_memory_limit_bytes: int | None = None

    @property
    def ok(self) -> bool:
        """Whether every step passed."""
        return self.exit_code == OK

    def document(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {"ok": self.ok, **asdict(self)}


def check(path: Path, options: CheckOptions | None = None) -> CheckReport:
    """Check one bundle; what is wrong with it is in the report, not raised."""
    options = options or CheckOptions()
    report = CheckReport(
        file=path.name, machine=machine.name(), emulated=options.emulated
    )
    try:
        bundle = read_bundle(path, options.bundle_limits)
        golden = golden_of(bundle)
    except BundleError as error:
        return _failed(report, REFUSED, "bundle", str(error), Reason.BUNDLE_INVALID)
    report = replace(
        check_machine(bundle, report.file, options.features, options.any_arch),
        emulated=options.emulated,
    )
    if not report.ok:
        return report
    with tempfile.TemporaryDirectory(prefix="edgeml-check-") as parent:
        folder = Path(parent, "bundle")
        try:
            unpack(bundle, folder)
        except BundleError as error:
            return _failed(report, REFUSED, "load", str(error), Reason.STORAGE)
        return check_artifact(report, bundle.manifest, folder, golden, options)


def check_machine(
    bundle: Bundle,
    file: str,
    features: Collection[str] | None = None,
    any_arch: bool = False,
) -> CheckReport:
    """Steps 2 and 3 for a verified bundle; nothing of it is run."""
    report = CheckReport(file=file, machine=machine.name())
    report = _identified(report, bundle)
    if any_arch and report.foreign:
        return _runtime(report, bundle.manifest)
    report = _isa(report, bundle.manifest, features)
    return _runtime(report, bundle.manifest) if report.ok else report


def check_artifact(
    report: CheckReport, manifest: Manifest, folder: Path, golden: Golden,
    options: CheckOptions,
) -> CheckReport:  # fmt: skip
    """Steps 4 to 6, going on from ``report``; ``folder`` is the unpacked bundle."""
    request = ProbeRequest(
        artifact=folder / manifest.artifact,
        runtime=manifest.runtime.name,
        options=placed(manifest.runtime.options, options.engines),
        feeds=golden.inputs,
        limits=options.probe_limits,
        **_timing(options),
    )
    try:
        result = probe(request)
    except OSError as error:
        return _failed(report, LACKS, "load", f"not tried: {error}", of_disk(error))
    except MachineError as error:
        return _failed(report, LACKS, "load", str(error), Reason.RUNTIME_LACKING)
    except IsaError as error:
        return _failed(report, GATE, "isa", str(error), Reason.ISA_LACKING)
    except ArtifactError as error:
        return _failed(report, REFUSED, "load", str(error), error.code)
    except BundleError as error:
        return _failed(report, REFUSED, "load", str(error), Reason.LOAD_FAILED)
    judged = judge(golden, result.outputs)
    report = _measured(report, manifest, result, judged, options)
    if not judged.ok:
        return _failed(report, GATE, "golden", mismatch(judged), Reason.GOLDEN_MISMATCH)
    return report if options.emulated else _limits(report)


def golden_of(bundle: Bundle) -> Golden:
    """The bundle's golden vectors; each fits the manifest's inputs.

    Raises:
        BundleError: there are none, or they are damaged or for other inputs.
    """
    path = bundle.path_of("golden")
    if path is None:
        raise BundleError("the bundle has no golden vectors: nothing says it is right")
    golden = read_golden(bundle.member(path), path)
    specs = {spec.name: spec for spec in bundle.manifest.inputs}
    for number, run in enumerate(golden.inputs):
        wrong = set(run) != set(specs) or not all(
            array.dtype == specs[name].dtype and specs[name].accepts(array.shape)
            for name, array in run.items()
        )
        if wrong:
            raise BundleError(
                f"{path}: vector {number} does not fit the manifest's inputs "
                f"{sorted(specs)}"
            )
    return golden


def mismatch(judged: GoldenReport) -> str:
    """How many golden vectors are wrong, and how the worst one is."""
    worst = judged.worst
    assert worst is not None, "a golden file is never empty"
    found = worst.found or (
        f"off by {worst.max_abs_diff:.6g}, {worst.excess:.3g} times what is allowed"
    )
    return (
        f"{len(judged.wrong_vectors)} of {judged.vectors} golden vectors are wrong; "
        f"worst: vector {worst.vector}, output {worst.output!r}: {found}"
    )


def _failed(
    report: CheckReport, exit_code: int, step: str, reason: str, code: Reason
) -> CheckReport:
    return replace(report, exit_code=exit_code, failure=Failure(step, reason, code))


def _identified(report: CheckReport, bundle: Bundle) -> CheckReport:
    manifest = bundle.manifest
    return replace(
        report, sha256=bundle.sha256, size_bytes=bundle.size_bytes,
        name=manifest.name, version=manifest.version, target=manifest.target,
        arch=manifest.isa.arch, foreign=manifest.isa.arch != machine.arch(),
        isa_requires=manifest.isa.requires,
        runtime=manifest.runtime.name,
    )  # fmt: skip


def _isa(
    report: CheckReport, manifest: Manifest, features: Collection[str] | None
) -> CheckReport:
    if report.foreign:
        reason = f"it is for {manifest.isa.arch}; this machine is {machine.arch()}"
        return _failed(report, GATE, "isa", reason, Reason.ISA_LACKING)
    found = machine.features() if features is None else features
    lacking = machine.lacks(manifest.isa.requires, found)
    if not lacking:
        return report
    reason = f"this processor has no {', '.join(lacking)}, which it was validated for"
    return _failed(
        replace(report, isa_missing=lacking), GATE, "isa", reason, Reason.ISA_LACKING
    )


def _runtime(report: CheckReport, manifest: Manifest) -> CheckReport:
    wanted = manifest.runtime
    try:
        found = runtime_named(wanted.name).version()
    except MachineError as error:
        return _failed(report, LACKS, "runtime", str(error), Reason.RUNTIME_LACKING)
    report = replace(report, runtime_version=found)
    if version_key(found) >= version_key(wanted.min_version):
        return report
    reason = f"{wanted.name} is {found} here; it needs {wanted.min_version} or later"
    return _failed(report, LACKS, "runtime", reason, Reason.RUNTIME_LACKING)


def _timing(options: CheckOptions) -> dict[str, Any]:
    if options.emulated:
        return {"warmup": 0, "runs": 0, "runs_min": 0}
    return {"runs": options.runs, "seconds": options.seconds}


def _quantile(values: Sequence[float], share: float) -> float:
    """As NumPy's, which loads a megabyte of code when it is called first."""
    ranks = np.arange(len(values))
    return float(np.interp(share * ranks[-1], ranks, np.sort(values)))


def _measured(
    report: CheckReport, manifest: Manifest, result: ProbeResult,
    judged: GoldenReport, options: CheckOptions,
) -> CheckReport:  # fmt: skip
    timed = manifest.metrics.latency
    same_machine = timed is not None and timed.machine == report.machine
    if result.latencies_ms:
        report = replace(
            report,
            latency_p50_ms=_quantile(result.latencies_ms, 0.50),
            latency_p99_ms=_quantile(result.latencies_ms, 0.99),
        )
    return replace(
        report,
        load_ms=result.load_ms,
        golden_vectors=judged.vectors,
        golden_wrong=judged.wrong_vectors,
        max_abs_diff=judged.max_abs_diff if isfinite(judged.max_abs_diff) else None,
        argmax_flips=judged.argmax_flips,
        latency_limit_ms=manifest.limits.latency_ms or None,
        latency_gated=bool(manifest.limits.latency_ms)
        and not options.emulated
        and (same_machine or options.gate_latency),
        peak_memory_bytes=result.peak_memory_bytes,
        baseline_memory_bytes=result.baseline_bytes,
        peak_memory_limit_bytes=manifest.limits.peak_memory_bytes or None,
    )


def _limits(report: CheckReport) -> CheckReport:
    peak, allowed = report.peak_memory_bytes, report.peak_memory_limit_bytes
    if allowed is not None and peak is not None and peak > allowed:
        reason = f"its process takes {peak} bytes at its peak; at most {allowed}"
        return _failed(report, GATE, "limits", reason, Reason.MEMORY_LIMIT)
    took, limit = report.latency_p50_ms, report.latency_limit_ms
    if report.latency_gated and took is not None and limit is not None and took > limit:
        reason = f"one inference takes {took:.3f} ms (p50); at most {limit:g} ms"
        return _failed(report, GATE, "limits", reason, Reason.LATENCY_LIMIT)
    return report
