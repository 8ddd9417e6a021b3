"""Wheels: what is unzipped, and what is said when one cannot be had."""

import hashlib
import zipfile
from dataclasses import replace

import pytest

from edgeml.emulator import wheels
from edgeml.emulator.lock import Wheel, lock
from edgeml.errors import MachineLacks

PART = replace(lock().guests["aarch64"], debs=())


def made(path, *names: str):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_modules_are_unzipped_scripts_are_not(tmp_path):
    wheel = made(
        tmp_path / "one.whl", "one/__init__.py", "one-1.dist-info/METADATA",
        "one-1.data/purelib/two.py", "one-1.data/scripts/run",
    )  # fmt: skip
    wheels.unzip(wheel, tmp_path / "site")
    found = {
        str(path.relative_to(tmp_path / "site"))
        for path in (tmp_path / "site").rglob("*")
        if path.is_file()
    }
    assert found == {"one/__init__.py", "one-1.dist-info/METADATA", "two.py"}


def test_a_damaged_one_is_refused(tmp_path):
    (tmp_path / "one.whl").write_bytes(b"PK odd")
    with pytest.raises(MachineLacks, match=r"one.whl cannot be unpacked"):
        wheels.unzip(tmp_path / "one.whl", tmp_path)


def test_pip_fetches_by_digest(tmp_path, monkeypatch):
    """From a folder, so that no network is needed."""
    (tmp_path / "links").mkdir()
    wheel = tmp_path / "links" / "edgeml_one-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: edgeml-one\nVersion: 1.0\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("edgeml_one-1.0.dist-info/METADATA", metadata)
        archive.writestr("edgeml_one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    for found, wanted in (("a", digest), ("b", "0" * 64)):
        part = replace(PART, wheels=(Wheel("edgeml-one", "1.0", 1, wanted),))
        (tmp_path / found).mkdir()
        if wanted == digest:
            assert wheels.fetch(part, tmp_path / found)[0].name == wheel.name
        else:
            with pytest.raises(MachineLacks, match=r"edgeml-one 1.0 for aarch64"):
                wheels.fetch(part, tmp_path / found)
    assert wheels.fetch(replace(PART, wheels=()), tmp_path) == []
