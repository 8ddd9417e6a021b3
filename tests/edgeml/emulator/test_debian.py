"""Packages are taken by their digests only, and nothing escapes from one."""

from pathlib import Path

import archives
import pytest
from archives import deb, file, folder, link, package

from edgeml.emulator import debian
from edgeml.errors import MachineLacks

DATA = deb(file("./usr/bin/tool", b"tool", 0o755))
PATH = "pool/main/t/tool/tool_1.0+b1_arm64.deb"


@pytest.fixture(params=["apt", "http"])
def client(request, monkeypatch):
    """By Debian's client where it is, and by our own."""
    if request.param == "http":
        monkeypatch.setattr(debian, "APT_HELPER", Path("/nonexistent"))
    elif not debian.APT_HELPER.exists():
        pytest.skip("this is no Debian")


def among(monkeypatch, first: str, second: str) -> None:
    monkeypatch.setenv(debian.MIRROR, first)
    monkeypatch.setattr(debian, "SNAPSHOT", second + "/{moment}")


@pytest.mark.usefixtures("client")
class TestFetch:
    def test_a_package_is_had_from_the_mirror(self, tmp_path, monkeypatch):
        with archives.archive({PATH.replace("+", "%2B"): DATA}) as url:
            among(monkeypatch, url, "http://127.0.0.1:9")
            (path,) = debian.fetch([package(PATH, DATA)], tmp_path, "20260101T000000Z")
        assert path.read_bytes() == DATA

    def test_what_the_mirror_dropped_is_in_the_snapshot(self, tmp_path, monkeypatch):
        old = {f"20260101T000000Z/{PATH.replace('+', '%2B')}": DATA}
        with archives.archive({}) as url, archives.archive(old) as snapshot:
            among(monkeypatch, url, snapshot)
            (path,) = debian.fetch([package(PATH, DATA)], tmp_path, "20260101T000000Z")
        assert path.read_bytes() == DATA

    def test_another_file_is_refused_and_told(self, tmp_path, monkeypatch):
        served = {PATH.replace("+", "%2B"): DATA + b"more"}
        with archives.archive(served) as url:
            among(monkeypatch, url, url)
            with pytest.raises(MachineLacks, match=rf"cannot be had.*{debian.MIRROR}"):
                debian.fetch([package(PATH, DATA)], tmp_path, "now")
        assert not list(tmp_path.glob("*.deb"))

    @pytest.mark.long
    def test_no_network_is_told_with_the_way_out(self, tmp_path, monkeypatch):
        among(monkeypatch, "http://127.0.0.1:9", "http://127.0.0.1:9")
        with pytest.raises(MachineLacks, match=r"tool_1.0.* and 1 more cannot be had"):
            other = package("pool/main/o/other.deb", b"other")
            debian.fetch([package(PATH, DATA), other], tmp_path, "now")


def unpacked(tmp_path: Path, *members) -> Path:
    path, root = tmp_path / "one.deb", tmp_path / "root"
    path.write_bytes(deb(*members))
    root.mkdir()
    debian.unpack(path, root, lambda name: not name.startswith("usr/share/doc/"))
    return root


def test_files_links_and_folders(tmp_path):
    root = unpacked(
        tmp_path, folder("./usr"), file("./usr/bin/tool", b"tool", 0o755),
        file("./usr/share/doc/tool/copyright"), link("./usr/bin/same", "tool"),
        link("./etc/tool", "/usr/bin/tool"),
        link("./copy", "./usr/bin/tool", hard=True),
    )  # fmt: skip
    assert (root / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (root / "usr/bin/same").read_bytes() == b"tool"
    assert (root / "etc/tool").readlink() == Path("../usr/bin/tool")
    assert (root / "copy").read_bytes() == b"tool"
    assert not (root / "usr/share/doc").exists()


def test_nothing_is_written_outside(tmp_path):
    (tmp_path / "out").mkdir()
    root = unpacked(
        tmp_path, file("../climbs"), file("./a/../../climbs"), file("/absolute"),
        link("./up", "../out"), file("./up/through"),
    )  # fmt: skip
    assert not (tmp_path / "climbs").exists()
    assert not list((tmp_path / "out").iterdir())
    assert (root / "absolute").exists()


def test_a_later_file_replaces_a_link(tmp_path):
    (tmp_path / "precious").write_bytes(b"kept")
    root = unpacked(tmp_path, link("./one", "../precious"), file("./one", b"new"))
    assert (tmp_path / "precious").read_bytes() == b"kept"
    assert (root / "one").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"no package", "not a Debian package"),
        (DATA[:-200], "cannot be unpacked"),
        (DATA[:70], "cannot be unpacked"),
        (deb(suffix="zst"), "newer Pythons"),
        (b"!<arch>\n", "no data.tar"),
    ],
)
def test_what_is_no_package_is_refused(tmp_path, data, why):
    path = tmp_path / "one.deb"
    path.write_bytes(data)
    with pytest.raises(MachineLacks, match=why):
        debian.unpack(path, tmp_path, lambda name: True)
