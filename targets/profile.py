"""Target profiles: what a kind of device is, and where each figure comes from.

The rules it keeps:

1. A profile is complete or refused, with all its mistakes at once.
2. Every figure has a line in ``[sources]``: a datasheet, a measurement or the word
   "chosen", so that nobody takes a choice for a fact.
3. Whoever asks for a target may name one of ours or a file of their own
   (``boards/mine.toml``); both are read by the same rules.
"""

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

ARCHITECTURES = ("x86_64", "aarch64", "armv7l")
RUNTIMES = ("onnxruntime", "openvino", "litert")
PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int4", "mixed")
"""``int4`` is of the weights alone, in blocks; what is computed stays float."""
PROFILE_BYTES_MAX = 64 << 10

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_OURS = Path(__file__).parent


class ProfileError(Exception):
    """A target does not exist, or its profile is wrong; names every mistake."""


@dataclass(frozen=True)
class Tolerance:
    """How far two correct runs may be apart: ``|a - b| <= atol + rtol * |b|``."""

    atol: float
    rtol: float


@dataclass(frozen=True)
class Target:
    """One kind of device.

    ``isa`` lists the CPU features every such device has, as /proc/cpuinfo names them
    (``a|b``: one of them). ``sources`` says for each figure where it is from.
    """

    name: str
    title: str
    arch: str
    """``x86_64``, ``aarch64`` or ``armv7l``, as ``uname -m`` prints it."""
    isa: tuple[str, ...]
    runtime: str
    runtime_options: dict[str, Any]
    """What the runtime is started with; ``threads`` is always among them."""
    threads: int
    memory_bytes: int
    storage_bytes: int
    precisions: tuple[str, ...]
    compatible: tuple[str, ...]
    channel_multiple: int
    """What channel counts are rounded to when a network is pruned for it."""
    qemu_cpu: str | None
    tolerances: dict[str, Tolerance]
    """Per precision."""
    preference: tuple[str, ...] = ()
    """Precisions, the best one first, where a build has none of them to time on."""
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def saturates_u8s8(self) -> bool:
        """Whether some device of this target adds u8×s8 products in 16 bits.

        x86 without VNNI does (vpmaddubsw): large products saturate silently.
        """
        return self.arch == "x86_64" and not any("vnni" in flag for flag in self.isa)


FIGURES = (
    "isa", "runtime_options", "threads", "memory_bytes", "storage_bytes",
    "precisions", "channel_multiple", "qemu_cpu", "tolerances",
)  # fmt: skip
"""What ``[sources]`` must explain (``qemu_cpu`` also when there is none)."""
OPTIONAL = ("qemu_cpu", "preference")
"""Keys that a profile may leave out."""


def target_names() -> list[str]:
    """The targets that come with this version, sorted."""
    return sorted(path.stem for path in _OURS.glob("*.toml"))


def load_target(name: str, folder: Path | None = None) -> Target:
    """The target called ``name``, or the one in the file ``name`` (``*.toml``).

    Args:
        name: one of :func:`target_names`, or a path that ends in ``.toml``.
        folder: what such a path is relative to.

    Raises:
        ProfileError: there is no such target (with the nearest name), or its profile
            has mistakes.
    """
    if name.endswith(".toml"):
        return load_file((folder or Path()) / name)
    names = target_names()
    if name not in names:
        near = get_close_matches(name, names, 1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        raise ProfileError(
            f"no target {name!r}{guess}; known: {', '.join(names)}; "
            "or a path to a profile of your own (*.toml)"
        )
    return load_file(_OURS / f"{name}.toml")


def load_file(path: Path) -> Target:
    """The profile in ``path``; the target is called like the file.

    Raises:
        ProfileError: not readable, not TOML, or wrong; names every mistake.
    """
    try:
        raw = path.read_bytes()
        if len(raw) > PROFILE_BYTES_MAX:
            raise ProfileError(f"{path.name}: over {PROFILE_BYTES_MAX} bytes")
        value = tomllib.loads(raw.decode())
    except OSError as error:
        raise ProfileError(
            f"{path}: the profile cannot be read: {error.strerror}"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ProfileError(f"{path.name}: not TOML: {error}") from error
    mistakes = _mistakes(path.stem, value)
    if mistakes:
        raise ProfileError("\n".join(f"{path.name}: {mistake}" for mistake in mistakes))
    return _target(path.stem, value)


def describe(target: Target) -> dict[str, Any]:
    """Everything known of ``target``, as JSON can hold it."""
    return {**asdict(target), "saturates_u8s8": target.saturates_u8s8}


def _target(name: str, value: dict[str, Any]) -> Target:
    made: dict[str, Any] = {
        key: tuple(item) if isinstance(item, list) else item
        for key, item in value.items()
    }
    made["qemu_cpu"] = value.get("qemu_cpu")
    made["runtime_options"] = {"threads": value["threads"], **value["runtime_options"]}
    made["tolerances"] = {
        precision: Tolerance(float(item["atol"]), float(item["rtol"]))
        for precision, item in value["tolerances"].items()
    }
    return Target(name=name, **made)


def _mistakes(name: str, value: dict[str, Any]) -> list[str]:
    found = []
    if not _NAME.fullmatch(name):
        found.append(
            f"a target is called like its file: expected {_NAME.pattern}, got {name!r}"
        )
    known = [item.name for item in fields(Target) if item.name != "name"]
    for key in value.keys() - set(known):
        near = get_close_matches(key, known, 1)
        found.append(
            f"{key}: unknown key"
            + (f"; did you mean {near[0]!r}?" if near else f"; known: {known}")
        )
    for key in known:
        if key in value:
            found += [f"{key}: {text}" for text in _CHECKS[key](value[key])]
        elif key not in OPTIONAL:
            found.append(f"{key}: missing")
    return sorted(found) or _contradictions(value)


def _contradictions(value: dict[str, Any]) -> list[str]:
    """Mistakes between keys that are right each by itself."""
    found = []
    if set(value["precisions"]) != set(value["tolerances"]):
        found.append(
            f"tolerances: one per precision {value['precisions']}, "
            f"got {list(value['tolerances'])}"
        )
    if "fp32" not in value["precisions"]:
        found.append("precisions: fp32 is missing; all others are compared with it")
    preference = value.get("preference", [])
    if preference and sorted(preference) != sorted(value["precisions"]):
        found.append(
            f"preference: the precisions {value['precisions']} in another order, "
            f"got {preference}"
        )
    if "threads" in value["runtime_options"]:
        found.append("runtime_options.threads: belongs to the key threads alone")
    for figure in (*FIGURES, *(["preference"] if preference else [])):
        if not value["sources"].get(figure):
            found.append(f"sources.{figure}: missing; say where {figure} is from")
    return found


Check = Callable[[Any], list[str]]


def _text(value: Any) -> list[str]:
    good = isinstance(value, str) and bool(value.strip())
    return [] if good else [f"expected a text, got {value!r}"]


def _count(value: Any) -> list[str]:
    good = type(value) is int and value >= 1
    return [] if good else [f"expected a whole number from 1, got {value!r}"]


def _one_of(words: tuple[str, ...]) -> Check:
    def check(value: Any) -> list[str]:
        expected = f"expected one of {', '.join(words)}; got {value!r}"
        return [] if value in words else [expected]

    return check


def _many(check: Check, *, least: int) -> Check:
    def check_all(value: Any) -> list[str]:
        if not isinstance(value, list) or len(value) < least:
            return [f"expected a list of {least} or more, got {value!r}"]
        return [text for item in value for text in check(item)]

    return check_all


def _table(check: Callable[[str, Any], list[str]]) -> Check:
    def check_all(value: Any) -> list[str]:
        if not isinstance(value, Mapping):
            return [f"expected a table, got {value!r}"]
        return [text for key, item in value.items() for text in check(key, item)]

    return check_all


def _option(key: str, value: Any) -> list[str]:
    good = type(value) in (bool, int, float, str)
    return [] if good else [f"{key}: expected a number, text or true/false"]


def _tolerance(key: str, value: Any) -> list[str]:
    if key not in PRECISIONS:
        return [f"unknown precision {key!r}; known: {', '.join(PRECISIONS)}"]
    good = isinstance(value, Mapping) and value.keys() == {"atol", "rtol"}
    if good and all(
        type(number) in (int, float) and math.isfinite(number) and number >= 0
        for number in value.values()
    ):
        return []
    return [f"{key}: expected atol and rtol, finite and from 0; got {value!r}"]


_CHECKS: dict[str, Check] = {
    "title": _text,
    "arch": _one_of(ARCHITECTURES),
    "isa": _many(_text, least=0),
    "runtime": _one_of(RUNTIMES),
    "runtime_options": _table(_option),
    "threads": _count,
    "memory_bytes": _count,
    "storage_bytes": _count,
    "channel_multiple": _count,
    "precisions": _many(_one_of(PRECISIONS), least=1),
    "preference": _many(_one_of(PRECISIONS), least=1),
    "compatible": _many(_text, least=1),
    "qemu_cpu": _text,
    "tolerances": _table(_tolerance),
    "sources": _table(lambda key, value: [f"{key}: {t}" for t in _text(value)]),
}
