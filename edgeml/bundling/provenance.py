"""Where a bundle came from: the in-toto statement and the CycloneDX SBOM in it.

The rules it keeps:

1. Equal inputs give equal bytes: no timestamp, no random identifier, no path.
2. What is stated was handed in or read from installed packages; nothing is guessed.
   A licence that the package does not state as SPDX is given by name or left out.
3. Every digest is a SHA-256 in hexadecimal.

References: in-toto Attestation Framework, Statement v1; SLSA Provenance v1.0;
CycloneDX 1.6.
"""

import hashlib
import platform
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

from device_agent.contract.manifest import canonical_json

from ..model import Step

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edgeml:build:1"
BUILDER = "urn:edgeml:builder:1"
CYCLONEDX = "1.6"

Kind = Literal["application", "data", "file", "library", "machine-learning-model"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": None,  # which of the BSD licences it is, the classifier does not say
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "MIT No Attribution License (MIT-0)": "MIT-0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
}
_NAMES = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license v2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "bsd 3-clause": "BSD-3-Clause",
    "mit license": "MIT",
    "new bsd": "BSD-3-Clause",
    **{
        one.lower(): one
        for one in ("Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT",
                    "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense")
    },
}  # fmt: skip


@dataclass(frozen=True)
class Component:
    """One thing that a bundle is made of or was made with.

    ``licence`` is an SPDX expression where ``spdx`` is true, else a name in words.
    """

    name: str
    version: str = ""
    kind: Kind = "library"
    sha256: str | None = None
    licence: str | None = None
    spdx: bool = True
    purl: str | None = None
    description: str = ""

    @property
    def reference(self) -> str:
        """What other parts of the SBOM call this component."""
        if self.purl:
            return self.purl
        return f"{self.kind}:{self.name}@{self.version or self.sha256 or ''}"


def tool_versions(names: Iterable[str]) -> dict[str, str]:
    """Version of Python and of each named distribution; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in sorted(set(names)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def package_components(names: Iterable[str]) -> tuple[Component, ...]:
    """Installed distributions as components, by name; absent ones are left out."""
    return tuple(
        _package(name, version)
        for name, version in tool_versions(names).items()
        if name != "python"
    )


def provenance(
    subject: Mapping[str, str],
    *,
    recipe: Mapping[str, Any],
    recipe_sha256: str,
    sources: Mapping[str, str],
    data: Mapping[str, str],
    lineage: Sequence[Step],
    tools: Mapping[str, str],
    seeds: Mapping[str, int],
    commit: str | None = None,
    target: str = "",
) -> bytes:
    """The in-toto statement of one build for one target, as canonical JSON.

    Args:
        subject: Member path → digest of what was built.
        recipe: The recipe's tables, as data without absolute paths.
        recipe_sha256: Digest of the recipe file.
        sources: Model and weight files by name → digest.
        data: Data set by role (``calibration``, ``validation``) → digest.
        lineage: Everything that was done to the model, in order.
        tools: Tool → version, ``python`` included.
        seeds: What was seeded → seed.
        commit: Git commit of the recipe's repository, where there is one.
        target: Name of the target profile.

    Raises:
        ValueError: a digest is not a SHA-256, or there is no subject.
    """
    if not subject:
        raise ValueError("provenance needs at least one subject, found none")
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": {"recipe": dict(recipe), "target": target},
        "internalParameters": {
            "passes": [
                {"verb": step.verb, "parameters": dict(step.parameters)}
                for step in lineage
            ],
            "seeds": dict(seeds),
        },
        "resolvedDependencies": _materials(recipe_sha256, sources, data, commit),
    }
    return canonical_json(
        {
            "_type": STATEMENT,
            "subject": [_resource(name, subject[name]) for name in sorted(subject)],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": definition,
                "runDetails": {"builder": {"id": BUILDER, "version": dict(tools)}},
            },
        }
    )


def _materials(
    recipe_sha256: str,
    sources: Mapping[str, str],
    data: Mapping[str, str],
    commit: str | None,
) -> list[dict[str, Any]]:
    found = [_resource("recipe", recipe_sha256)]
    found += [_resource(f"source:{name}", sources[name]) for name in sorted(sources)]
    found += [_resource(f"data:{name}", data[name]) for name in sorted(data)]
    if commit is not None:
        found.append({"name": "repository", "digest": {"gitCommit": commit}})
    return found


def sbom(subject: Component, components: Sequence[Component]) -> bytes:
    """The CycloneDX SBOM of ``subject``, as canonical JSON.

    The serial number follows from the content (UUID version 5).

    Raises:
        ValueError: a digest is not a SHA-256, or two components share a reference.
    """
    ordered = sorted(components, key=lambda one: one.reference)
    references = [one.reference for one in (subject, *ordered)]
    twice = sorted({one for one in references if references.count(one) > 1})
    if twice:
        raise ValueError(
            f"SBOM components must differ, found twice: {', '.join(twice)}"
        )
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": CYCLONEDX,
        "version": 1,
        "metadata": {"component": _component(subject)},
        "components": [_component(one) for one in ordered],
        "dependencies": [
            {"ref": subject.reference, "dependsOn": references[1:]},
            *({"ref": one, "dependsOn": []} for one in references[1:]),
        ],
    }
    digest = hashlib.sha256(canonical_json(document)).hexdigest()
    serial = uuid.uuid5(uuid.NAMESPACE_URL, f"urn:edgeml:sbom:{digest}")
    return canonical_json({**document, "serialNumber": f"urn:uuid:{serial}"})


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": _checked(name, sha256)}}


def _checked(name: str, sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise ValueError(f"{name}: expected a SHA-256 in hexadecimal, found {sha256!r}")
    return sha256


def _component(one: Component) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": one.kind,
        "bom-ref": one.reference,
        "name": one.name,
    }
    if one.version:
        entry["version"] = one.version
    if one.description:
        entry["description"] = one.description
    if one.purl:
        entry["purl"] = one.purl
    if one.sha256:
        content = _checked(one.name, one.sha256)
        entry["hashes"] = [{"alg": "SHA-256", "content": content}]
    if one.kind == "data":
        entry["data"] = [{"type": "dataset", "name": one.name}]
    if one.licence:
        entry["licenses"] = [
            {"expression": one.licence}
            if one.spdx
            else {"license": {"name": one.licence}}
        ]
    return entry


def _package(name: str, version: str) -> Component:
    licence, spdx = _licence(name)
    plain = re.sub(r"[-_.]+", "-", name).lower()
    return Component(
        name=name, version=version, licence=licence, spdx=spdx,
        purl=f"pkg:pypi/{plain}@{version.replace('+', '%2B')}",
    )  # fmt: skip


def _licence(name: str) -> tuple[str | None, bool]:
    """The licence of an installed distribution and whether it is SPDX."""
    facts = metadata.metadata(name)
    if "License-Expression" in facts:
        return facts["License-Expression"], True
    words = facts["License"].strip() if "License" in facts else ""
    if words.lower() in _NAMES:
        return _NAMES[words.lower()], True
    classifiers = [
        one.rsplit(" :: ", 1)[-1]
        for one in facts.get_all("Classifier") or ()
        if one.startswith("License :: ")
    ]
    known = sorted({_CLASSIFIERS.get(one) or "" for one in classifiers} - {""})
    if known and len(known) == len(classifiers):
        return " OR ".join(known), True
    # Some packages put the whole licence text there; only a name is of use here.
    if words and "\n" not in words and len(words) <= 80:
        return words, False
    return (classifiers[0], False) if classifiers else (None, True)
