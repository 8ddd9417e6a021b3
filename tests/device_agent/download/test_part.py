"""What is left of downloads that nobody goes on with."""

from pathlib import Path

from device_agent.download.downloader import Downloader, pool
from device_agent.download.rules import PART, DownloadLimits
from device_agent.durable import REAL


def test_parts_of_others_are_tidied_away(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}{PART}").write_bytes(b"x")
    downloader = Downloader(tmp_path, REAL, DownloadLimits(), pool())
    downloader.tidy(keep="b")
    assert [one.name for one in tmp_path.iterdir()] == [f"b{PART}"]
    downloader.tidy()
    assert list(tmp_path.iterdir()) == []
