"""Wheels for another platform: fetched by pip, checked by digest, unzipped.

pip is the client: it knows the user's index, proxies and cache. It cannot install for
another Python than its own, but it can fetch.
"""

import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from ..cache import file_digest
from ..errors import MachineLacks, one_line
from .lock import Part

_DATA = re.compile(r"[^/]+\.data/(?:purelib|platlib)/(.+)")


def fetch(part: Part, folder: Path) -> list[Path]:
    """Have a part's wheels as files in ``folder``.

    Raises:
        MachineLacks: there is no pip, or it does not get what the lock says.
    """
    if not part.wheels:
        return []
    if find_spec("pip") is None:
        raise MachineLacks(
            "this Python has no pip to fetch wheels with; "
            f"{sys.executable} -m ensurepip makes it"
        )
    wanted = folder / "requirements.txt"
    wanted.write_text(
        "".join(
            f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n"
            for one in part.wheels
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "pip", *_words(part), "-r", str(wanted),
         "-d", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {file_digest(path): path for path in folder.glob("*.whl")}
    missing = [one for one in part.wheels if one.sha256 not in found]
    if missing:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise MachineLacks(
            f"pip cannot get {missing[0].name} {missing[0].version} for {part.name}: "
            f"{one_line(said[-1]) if said else 'it gives another file'}; see to the "
            "network and to pip's index (pip config list)"
        )
    return [found[one.sha256] for one in part.wheels]


def _words(part: Part) -> list[str]:
    tag = "cp" + part.python.replace(".", "")
    return [
        "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--require-hashes", "--only-binary=:all:", "--implementation", "cp",
        "--python-version", part.python, "--abi", tag, "--abi", "abi3", "--abi", "none",
        *(word for one in part.platforms for word in ("--platform", one)),
    ]  # fmt: skip


def unzip(wheel: Path, folder: Path) -> None:
    """Write a wheel's modules into ``folder``; its scripts are left out.

    Raises:
        MachineLacks: it is no wheel.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                moved = _DATA.fullmatch(member.filename)
                if moved:
                    member.filename = moved[1]
                elif re.match(r"[^/]+\.data/", member.filename):
                    continue
                archive.extract(member, folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise MachineLacks(f"{wheel.name} cannot be unpacked: {error}") from error
