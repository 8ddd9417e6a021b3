"""A disk that does what it is asked to, and remembers it."""

from pathlib import Path

from device_agent.durable import Disk, File


class Recording(Disk):
    """A disk that remembers what was done, by name."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    def write(self, file: File, data: bytes, offset: int) -> None:
        self.done.append(("write", file.path.name))
        super().write(file, data, offset)

    def sync(self, file: File) -> None:
        self.done.append(("sync", file.path.name))
        super().sync(file)

    def rename(self, old: Path, new: Path) -> None:
        self.done.append(("rename", new.name))
        super().rename(old, new)

    def sync_folder(self, path: Path) -> None:
        self.done.append(("sync_folder", path.name))
        super().sync_folder(path)
