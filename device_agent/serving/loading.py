"""From a bundle's file to a session that has answered its golden vectors here.

The steps, in order; the first that fails is the one that the refusal names:

1. **bundle**: every byte is verified; **steps**: pre- and post-processing are known;
   **isa**, **runtime**: this machine has what it needs. Nothing of it has run yet.
2. **load**, **golden**, **limits**: it is tried in a process of its own, which it may
   crash; an engine that it needs is built there (:mod:`.engines`). A bundle that passed
   here before is not tried again (:mod:`.admitted`).
3. **load**, **signature**, **golden**: it is loaded into this process, has the inputs
   and outputs that its manifest says, and is right.

What is loaded is what was verified: every byte that is unpacked is compared with the
digest again, so the file may be replaced meanwhile. The unpacked folder stays until
:func:`discard`, so that a model can be opened again whatever became of its file.
Everything here blocks; it belongs neither on the event loop nor in a lane.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ..check import (
    CheckOptions,
    CheckReport,
    check_artifact,
    check_machine,
    golden_of,
    mismatch,
)
from ..config import SandboxConfig
from ..contract.bundle import Bundle, read_bundle, unpack
from ..contract.codes import Reason
from ..contract.errors import (
    ArtifactError,
    BundleError,
    MachineError,
    StepError,
    of_disk,
)
from ..contract.golden import Golden, judge
from ..contract.manifest import Manifest, Option
from ..contract.preprocess import Postprocess, Preprocess, parse_steps
from ..contract.tensors import TensorSpec
from ..errors import RefusedError
from ..runtimes import runtime as runtime_named
from ..runtimes.base import Session, placed
from ..runtimes.probe import PROTOCOL, ProbeLimits
from .admitted import Ground, admit, is_admitted
from .engines import empty, engine_folder, is_filled
from .folders import MEMORY, RunFolder
from .memory import give_back

_LOG = logging.getLogger(__name__)

_BUNDLE = "bundle"
GOLDEN_BYTES_MAX = 128 << 20
"""Golden vectors are read into this process, which has to go on serving."""
LABELS_BYTES_MAX = 4 << 20
WARM_RUNS = 20
WARM_S = 0.05
"""Warming ends after so many runs, or so much time once each vector has run."""
_DEVICE_OPTIONS: dict[str, dict[str, Option]] = {
    "onnxruntime": {"arena": False, "spinning": False},
}
"""Little memory and no busy waiting, unless the bundle's own options say otherwise."""


@dataclass(frozen=True)
class Loaded:
    """A model in memory, right on its golden vectors, warm."""

    manifest: Manifest
    sha256: str
    source: Path
    """The bundle's file."""
    session: Session
    preprocess: Preprocess
    postprocess: Postprocess
    golden: Golden
    latency_ns: int
    """Median of its warm runs on this device, one golden vector each."""
    folder: Path
    """Where its artifact was unpacked; removed by ``discard``."""
    place: RunFolder | None = None
    """What ``folder`` is in."""
    engines: Path | None = None
    """Where the runtime keeps what it compiled of it on this device."""


@dataclass(frozen=True)
class Candidate:
    """A bundle that is whole and for this machine; nothing of it has run."""

    bundle: Bundle
    source: Path
    preprocess: Preprocess
    postprocess: Postprocess
    golden: Golden
    report: CheckReport
    ground: Ground
    admitted: bool
    """Whether it has passed the sandbox here before."""

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.bundle.manifest


def load(path: Path, state: Path, sandbox: SandboxConfig) -> Loaded:
    """Verify, try in the sandbox, load and warm a bundle; blocks.

    Raises:
        RefusedError: the bundle is not taken; the step and the reason are named.
    """
    bundle = read(path)
    return bring_up(examine(bundle, path, state, sandbox), state, sandbox)


def read(path: Path, sha256: str | None = None) -> Bundle:
    """Step 1, its first part: a bundle that is whole.

    Args:
        path: its file.
        sha256: which bundle it must be; None: any.

    Raises:
        RefusedError: as for :func:`load`.
    """
    with _refusing("bundle"):
        # whether its members must be looked into is known by its digest, see examine
        bundle = read_bundle(path, scan=False)
    if sha256 not in (None, bundle.sha256):
        text = f"expected SHA-256 {sha256}, found {bundle.sha256}: its file has changed"
        raise RefusedError("bundle", text, Reason.STORAGE)
    return bundle


def rehearse(
    bundle: Bundle, path: Path, state: Path, sandbox: SandboxConfig, gate_latency: bool
) -> CheckReport:
    """Steps 1 and 2 alone: nothing of it comes into this process.

    Args:
        bundle: what :func:`read` gave.
        path: its file.
        state: where to unpack it for the time.
        sandbox: what it may use.
        gate_latency: whether this machine is the one that its limit is for.

    Raises:
        RefusedError: as for :func:`load`.
    """
    candidate = examine(bundle, path, state, sandbox)
    if candidate.admitted:
        return candidate.report
    place = _unpacked(bundle, state)
    try:
        folder = place.path / _BUNDLE
        with _refusing("bundle"):
            engines = _engines(candidate, state)
        return _try(candidate, folder, engines, state, sandbox, gate_latency)
    finally:
        place.remove()


def examine(
    bundle: Bundle, path: Path, state: Path, sandbox: SandboxConfig
) -> Candidate:
    """The rest of step 1, for what :func:`read` gave.

    Raises:
        RefusedError: as for :func:`load`.
    """
    report = _passed(check_machine(bundle, path.name))
    ground = Ground(
        report.machine, report.runtime or "", report.runtime_version or "", PROTOCOL,
        sandbox.memory_bytes, sandbox.cpu_s, sandbox.wall_s,
    )  # fmt: skip
    admitted = is_admitted(state, bundle.sha256, ground)
    with _refusing("bundle"):
        if not admitted and read_bundle(path).sha256 != bundle.sha256:
            raise BundleError("the file changed while it was read; try again")
        _check_sizes(bundle)
        golden, labels = golden_of(bundle), _labels(bundle)
    with _refusing("steps"):
        preprocess = Preprocess(parse_steps(bundle.manifest.preprocess, "preprocess"))
        steps = parse_steps(bundle.manifest.postprocess, "postprocess")
    return Candidate(
        bundle, path, preprocess, Postprocess(steps, labels), golden, report, ground,
        admitted,
    )  # fmt: skip


def bring_up(candidate: Candidate, state: Path, sandbox: SandboxConfig) -> Loaded:
    """Steps 2 and 3.

    Raises:
        RefusedError: as for :func:`load`; nothing is left in memory or on disk.
    """
    place = _unpacked(candidate.bundle, state)
    try:
        folder = place.path / _BUNDLE
        with _refusing("bundle"):
            engines = _engines(candidate, state)
        if not candidate.admitted:
            _try(candidate, folder, engines, state, sandbox)
        session, latency_ns = _open(
            candidate.manifest, folder, candidate.golden, engines
        )
    except BaseException:
        place.remove()
        give_back()
        raise
    give_back()
    return Loaded(
        candidate.manifest, candidate.bundle.sha256, candidate.source, session,
        candidate.preprocess, candidate.postprocess, candidate.golden, latency_ns,
        folder, place, engines,
    )  # fmt: skip


def reopen(loaded: Loaded) -> Loaded:
    """Step 3 again for a bundle that is unpacked: the same, with a new session.

    Raises:
        RefusedError: as for :func:`load`; its folder stays.
    """
    session, latency_ns = _open(
        loaded.manifest, loaded.folder, loaded.golden, loaded.engines
    )
    give_back()
    return replace(loaded, session=session, latency_ns=latency_ns)


def release(loaded: Loaded) -> None:
    """Close the session and give its memory back; ``reopen`` makes it anew."""
    loaded.session.close()
    give_back()


def discard(loaded: Loaded) -> None:
    """Close the session, give its memory back to the system, remove its files."""
    release(loaded)
    if loaded.place is not None:
        loaded.place.remove()


def _unpacked(bundle: Bundle, state: Path) -> RunFolder:
    """A folder with the bundle in it: in memory where the disk is full."""
    try:
        return _unpacked_in(bundle, state, in_memory=False)
    except RefusedError as error:
        if error.code is not Reason.NO_SPACE or not MEMORY.is_dir():
            raise
        _LOG.warning("%s; it is kept in memory", error.reason)
    return _unpacked_in(bundle, state, in_memory=True)


def _unpacked_in(bundle: Bundle, state: Path, *, in_memory: bool) -> RunFolder:
    with _refusing("bundle"):
        place = RunFolder(state, in_memory=in_memory)
        try:
            unpack(bundle, place.path / _BUNDLE)
        except BaseException:
            place.remove()
            raise
    return place


@contextmanager
def _refusing(step: str) -> Iterator[None]:
    """What goes wrong inside becomes the refusal of that step."""
    try:
        yield
    except BundleError as error:
        disk = isinstance(error.__cause__, OSError)
        code = of_disk(error.__cause__) if disk else Reason.BUNDLE_INVALID
        raise RefusedError(step, str(error), code) from error
    except ArtifactError as error:
        raise RefusedError(step, str(error), error.code) from error
    except StepError as error:
        raise RefusedError(step, str(error), Reason.INCOMPATIBLE) from error
    except MachineError as error:
        raise RefusedError(step, str(error), Reason.RUNTIME_LACKING) from error
    except OSError as error:
        raise RefusedError(step, str(error), of_disk(error)) from error
    except MemoryError as error:
        text = "it needs more memory than there is"
        raise RefusedError(step, text, Reason.MEMORY_LIMIT) from error


def _passed(report: CheckReport) -> CheckReport:
    if report.failure is not None:
        failure = report.failure
        raise RefusedError(failure.step, failure.reason, failure.code)
    return report


def _try(
    candidate: Candidate,
    folder: Path,
    engines: Path | None,
    state: Path,
    sandbox: SandboxConfig,
    gate_latency: bool = False,
) -> CheckReport:
    """Step 2; an engine that this bundle needs is built here, in the sandbox."""
    if engines is not None:
        empty(engines)  # of a try that was killed there may be half of one
    limits = ProbeLimits(
        address_bytes=sandbox.memory_bytes, cpu_s=sandbox.cpu_s, wall_s=sandbox.wall_s
    )
    options = CheckOptions(
        probe_limits=limits, engines=engines, gate_latency=gate_latency
    )
    report = _passed(
        check_artifact(
            candidate.report, candidate.manifest, folder, candidate.golden, options
        )
    )
    try:
        admit(state, candidate.bundle.sha256, candidate.ground)
    except OSError as error:
        # it costs the next start a second; the model itself is good
        _LOG.warning("%s: not kept on record: %s", candidate.source.name, error)
    return report


def _engines(candidate: Candidate, state: Path) -> Path | None:
    return engine_folder(
        state, candidate.manifest.runtime.options, candidate.bundle.sha256,
        candidate.ground.runtime_version,
    )  # fmt: skip


def _open(
    manifest: Manifest, folder: Path, golden: Golden, engines: Path | None
) -> tuple[Session, int]:
    """Step 3: a session, and the median time of its warm runs in nanoseconds."""
    session = _session(manifest, folder, engines)
    try:
        _check_signature("input", manifest.inputs, session.inputs)
        _check_signature("output", manifest.outputs, session.outputs)
        with _refusing("golden"):
            judged = judge(golden, [session.predict(one) for one in golden.inputs])
            if not judged.ok:
                raise RefusedError("golden", mismatch(judged), Reason.GOLDEN_MISMATCH)
            return session, _warm(session, golden)
    except BaseException:
        session.close()
        raise


def _session(manifest: Manifest, folder: Path, engines: Path | None) -> Session:
    path = folder / manifest.artifact
    with _refusing("load"):
        options = placed(manifest.runtime.options, engines)
        options = {**_DEVICE_OPTIONS.get(manifest.runtime.name, {}), **options}
        runtime = runtime_named(manifest.runtime.name)
        try:
            return runtime.load(path, options)
        except (ArtifactError, MachineError) as error:
            if engines is None or not is_filled(engines):
                raise
            # a new driver does not read the engines of the old one
            _LOG.warning("engines of %s are built again: %s", manifest.name, error)
            empty(engines)
            return runtime.load(path, options)


def _check_sizes(bundle: Bundle) -> None:
    bounds = {"golden": GOLDEN_BYTES_MAX, "labels": LABELS_BYTES_MAX}
    for member in bundle.manifest.members:
        if member.size > bounds.get(member.role, member.size):
            raise BundleError(
                f"member {member.path!r} has {member.size} bytes; this device takes "
                f"at most {bounds[member.role]} of {member.role}"
            )


def _labels(bundle: Bundle) -> tuple[str, ...]:
    path = bundle.path_of("labels")
    if path is None:
        return ()
    try:
        found = json.loads(bundle.member(path))
    except (ValueError, RecursionError) as error:
        raise BundleError(f"member {path!r} is not JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BundleError(f"member {path!r} is not a list of texts")
    return tuple(found)


def _check_signature(
    what: str, said: Sequence[TensorSpec], found: Sequence[TensorSpec]
) -> None:
    """Refuse an artifact that does not declare what its manifest says.

    A fixed dimension may stand where the artifact takes any.
    """
    has = {spec.name: spec for spec in found}
    fits = len(said) == len(has) and all(
        spec.name in has
        and spec.datatype == has[spec.name].datatype
        and len(spec.shape) == len(has[spec.name].shape)
        and all(
            there in (-1, here)
            for here, there in zip(spec.shape, has[spec.name].shape, strict=True)
        )
        for spec in said
    )
    if not fits:
        raise RefusedError(
            "signature",
            f"the manifest's {what}s are {_words(said)}; "
            f"the artifact's are {_words(found)}",
            Reason.SIGNATURE_MISMATCH,
        )


def _words(specs: Sequence[TensorSpec]) -> str:
    words = [f"{one.name} {one.datatype} {list(one.shape)}" for one in specs]
    return ", ".join(words)


def _warm(session: Session, golden: Golden) -> int:
    """Median time of a run, nanoseconds; the golden run before it was the warm-up."""
    spent: list[int] = []
    deadline = time.perf_counter() + WARM_S
    while len(spent) < WARM_RUNS and (not spent or time.perf_counter() < deadline):
        feeds = golden.inputs[len(spent) % len(golden)]
        started = time.perf_counter_ns()
        session.predict(feeds)
        spent.append(time.perf_counter_ns() - started)
    return sorted(spent)[len(spent) // 2]
