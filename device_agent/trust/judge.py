"""The verdict: director and registry agree, and it is for this device; or why not.

The order of it:

1. The director's signature, by the keys that are known here. It may be by a key that is
   new, so a wrong one is not the end, but nothing of the message is used yet.
2. Device, serial, not_after: what needs no network.
3. The registry's metadata. It names the director's keys, too: the signature is judged
   again by those.
4. The release of that digest, and that both say the same of it.
5. Counter above what was committed, compatible, new enough agent, runtime, size.
"""

from dataclasses import replace
from typing import Any

from tuf.api.metadata import TargetFile

from ..contract.bundle import SUFFIX
from ..contract.codes import Reason
from ..contract.envelope import Envelope
from ..contract.messages import Desired
from ..contract.versions import version_key
from ..errors import UpdateError
from . import desired as director
from .fetch import Fetcher
from .floors import Floors
from .registry import Registry, fingerprint, working_folder
from .wire import Answer, Facts, Goal, Question, Refusal


def judged(question: Question) -> Answer:
    """The answer; every refusal is one."""
    verdict = _Verdict(question)
    try:
        with working_folder() as folder:
            goal = verdict.goal(folder)
    except UpdateError as error:
        refusal = Refusal(error.reason, error.text, error.evidence)
        return replace(verdict.answer, refusal=refusal)
    return replace(verdict.answer, goal=goal)


class _Verdict:
    """One question, and what was found so far."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self.answer = Answer()

    def goal(self, folder: Any) -> Goal:
        asked = self._question
        if not asked.urls:
            raise UpdateError(
                Reason.TRUST_UNAVAILABLE, "this device knows no registry; enroll it"
            )
        registry = Registry(
            folder, f"{asked.urls[0].rstrip('/')}/metadata/",
            Fetcher([one.rstrip("/") for one in asked.urls], asked.limits, asked.ca),
            root=asked.root, metadata=asked.metadata, now=asked.now,
            limits=asked.limits,
        )  # fmt: skip
        envelope = director.opened(asked.envelope)
        known = registry.director() or asked.director
        if director.is_signed(envelope, director.keys_of(known)):
            self._heard(envelope, known)
        self._look(registry)
        named = registry.director() or asked.director
        if not director.is_signed(envelope, director.keys_of(named)):
            self.answer = replace(self.answer, payload=None, director="")
            raise _unsigned(envelope)
        wanted = self._heard(envelope, named)
        try:
            found = registry.find(
                wanted.release.model, wanted.release.version, wanted.digest
            )
        finally:
            seen = registry.seen(asked.floors)
            self.answer = replace(self.answer, seen=seen)
        custom = agreed(wanted, found)
        check_floor(wanted, str(custom["target"]), asked.floors)
        check_fit(custom, found.length, asked.facts, asked.limits.bundle_bytes)
        until = min(
            wanted.not_after.timestamp(), registry.valid_until(wanted.release.model)
        )
        return Goal(found.path, found.length, _urls(asked, found), custom, until)

    def _heard(self, envelope: Envelope, keys: Any) -> Desired:
        asked = self._question
        by = fingerprint(keys)
        self.answer = replace(self.answer, payload=envelope.payload, director=by)
        return director.check(envelope, asked.facts.device, asked.floors, by, asked.now)

    def _look(self, registry: Registry) -> None:
        try:
            registry.refresh()
        finally:
            seen = registry.seen(self._question.floors)
            self.answer = replace(self.answer, seen=seen)


def agreed(wanted: Desired, found: TargetFile) -> dict[str, Any]:
    """What the registry says of a release, where it is what the director wants.

    Raises:
        UpdateError: they contradict each other.
    """
    custom = found.unrecognized_fields.get("custom")
    if not isinstance(custom, dict):
        raise UpdateError(
            Reason.METADATA_MALFORMED, f"{found.path}: the registry says nothing of it"
        )
    said = (custom.get("model"), custom.get("version"), custom.get("release_counter"))
    asked = (wanted.release.model, wanted.release.version, wanted.counter)
    path = f"{wanted.release.model}/{wanted.release.version}/{custom.get('target')}"
    if said != asked or found.path != path + SUFFIX:
        raise UpdateError(
            Reason.TARGET_MISMATCH,
            f"the registry says model, version and counter {said} of {found.path}; "
            f"the director says {asked}",
        )
    return custom


def check_floor(wanted: Desired, target: str, floors: Floors) -> None:
    """Refuse a step back.

    Raises:
        UpdateError: something newer was committed here.
    """
    floor = floors.counters.get(f"{wanted.release.model}/{target}")
    if floor is None or wanted.counter > floor.counter:
        return
    if wanted.counter == floor.counter and wanted.digest == floor.digest:
        return
    raise UpdateError(
        Reason.RELEASE_ROLLBACK,
        f"{wanted.release.model} with release counter {wanted.counter} is not above "
        f"{floor.counter}, which was committed here; to go back, publish the old model "
        "again with a higher counter",
        {"counter": wanted.counter, "floor": floor.counter},
    )


def check_fit(
    custom: dict[str, Any], length: int, facts: Facts, bytes_max: int
) -> None:
    """Refuse before the download what cannot run here.

    Raises:
        UpdateError: another kind of device, an agent or runtime that is too old, or
            too large.
    """
    compatible = custom.get("compatible")
    if not isinstance(compatible, list) or not set(facts.compatible) & set(
        map(str, compatible)
    ):
        raise UpdateError(
            Reason.INCOMPATIBLE,
            f"it is for {compatible}; this device is {list(facts.compatible)}",
        )
    needed = str(custom.get("agent_min", "0"))
    if version_key(facts.agent) < version_key(needed):
        raise UpdateError(
            Reason.INCOMPATIBLE,
            f"it needs agent {needed} or later; this is {facts.agent}",
        )
    runtime = custom.get("runtime")
    runtime = runtime if isinstance(runtime, dict) else {}
    name, oldest = str(runtime.get("name")), str(runtime.get("min_version", "0"))
    here = facts.runtimes.get(name)
    if here is not None and (not here or version_key(here) < version_key(oldest)):
        raise UpdateError(
            Reason.RUNTIME_LACKING,
            f"it needs {name} {oldest} or later; {here or 'none'} is installed",
        )
    if length > bytes_max:
        raise UpdateError(
            Reason.DOWNLOAD_TOO_LARGE,
            f"it has {length} bytes; this device takes at most {bytes_max}",
        )


def _urls(asked: Question, found: TargetFile) -> tuple[str, ...]:
    folder, _, name = found.path.rpartition("/")
    stored = f"targets/{folder}/{found.hashes['sha256']}.{name}"
    return tuple(f"{one.rstrip('/')}/{stored}" for one in asked.urls)


def _unsigned(envelope: Envelope) -> UpdateError:
    ids = [one.keyid[:16] for one in envelope.signatures]
    return UpdateError(
        Reason.DESIRED_SIGNATURE,
        f"the message is not signed by a key of this device's director (key ids {ids})",
    )
