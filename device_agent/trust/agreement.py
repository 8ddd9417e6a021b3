"""Whether a bundle that was fetched is the one that both have signed for."""

from typing import Any, Protocol

from ..contract.bundle import Bundle
from ..contract.codes import Reason
from ..contract.messages import Desired
from ..errors import UpdateError


class Agreed(Protocol):
    """What both have said."""

    @property
    def desired(self) -> Desired:
        """The director's word."""

    @property
    def custom(self) -> dict[str, Any]:
        """What the registry says of it."""


def check_bundle(bundle: Bundle, authorized: Agreed) -> None:
    """Compare a verified bundle's manifest with what director and registry say.

    Raises:
        UpdateError: it is another bundle, or says other things of itself.
    """
    wanted, custom, manifest = authorized.desired, authorized.custom, bundle.manifest
    if bundle.sha256 != wanted.digest:
        raise UpdateError(
            Reason.DOWNLOAD_DIGEST,
            f"the bundle has SHA-256 {bundle.sha256}; {wanted.digest} was signed for",
            desired=wanted,
        )
    said = {
        "model": manifest.name, "version": manifest.version, "target": manifest.target,
        "release_counter": manifest.release_counter,
        "compatible": sorted(manifest.compatible),
    }  # fmt: skip
    meant = {
        "model": wanted.release.model, "version": wanted.release.version,
        "target": custom.get("target"), "release_counter": wanted.counter,
        "compatible": sorted(map(str, custom.get("compatible", ()))),
    }  # fmt: skip
    wrong = [key for key, value in said.items() if value != meant[key]]
    if wrong:
        raise UpdateError(
            Reason.BUNDLE_INVALID,
            "; ".join(
                f"its {key} is {said[key]!r}, {meant[key]!r} was signed for"
                for key in wrong
            ),
            desired=wanted,
        )
