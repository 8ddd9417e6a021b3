"""A whole Arm machine under QEMU: a kernel, a root file system, a job.

::

    machine = Machine.of_target("rpi4", tools, work)
    done = machine.run(["sh", "-c", "uname -m"], root=make_ext4(...))
    assert done.code == 0 and done.out == "aarch64\n"

1. The memory and the processor are the target's (``targets/*.toml``); one core, no
   network.
2. The job is a tar on a raw virtio disk: its files and ``run.sh``, which runs where
   they lie. Its output and exit code come back over a virtio serial port, the kernel's
   messages over the console.
3. The machine boots an initrd of busybox and some modules. It finds disks by their
   serials, mounts ``edgeroot`` at ``/`` of the job (read-only unless asked otherwise)
   and ``edgedata`` at ``/mnt``, both ext4; ``/tmp`` and ``/run`` are tmpfs. It powers
   off when the job has ended.
4. ``/run/mark TEXT`` (root only) writes to the last sector of ``edgedata``, past its
   file system: what a job has promised by then, for :mod:`blocklogs`. It goes by a
   device of its own, ``edgemark``, that has the same disk and no cache: it flushes
   nothing else.
5. Time under emulation says nothing of the device's.

A drive with a ``log`` has every write kept; :mod:`blocklogs` replays them.
"""

import gzip
import io
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commands import ROOT, Done

LIMIT_S = 300.0
MARK_BYTES = 4096
MODULES = ("virtio/virtio.ko", "virtio/virtio_ring.ko", "virtio/virtio_mmio.ko",
           "block/virtio_blk.ko", "char/virtio_console.ko")  # fmt: skip
_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in virtio virtio_ring virtio_mmio virtio_blk virtio_console; do
  insmod /$module.ko
done
disk() {
  for block in /sys/block/vd*; do
    [ "$(cat $block/serial)" != "$1" ] || echo /dev/${block##*/}
  done
}
said() { sed -n "s/.* $1=\\([^ ]*\\).*/\\1/p" /proc/cmdline; }
# The port comes when the two sides have spoken; its number is not ours to say.
until out=$(ls /dev/vport*p* 2>&1); do usleep 10000; done
end() { sync; printf '\\nEDGE-RC=%s\\n' $1 > $out; poweroff -f; }
fail() { echo "$1" > $out; end 125; }
job=$(disk edgejob) root=$(disk edgeroot) data=$(disk edgedata)
if [ -n "$root" ]; then
  mount -t ext4 -o $(said edge.root) $root /root || fail "edgeroot: cannot be mounted"
else
  mount -t tmpfs tmpfs /root
  mkdir /root/proc /root/sys /root/dev /root/tmp /root/run /root/mnt
  cp -a /bin /root/
fi
for folder in proc sys dev tmp run mnt; do
  [ -d /root/$folder ] || fail "edgeroot: expected a folder /$folder, found none"
done
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs devtmpfs /root/dev
mount -t tmpfs -o mode=1777 tmpfs /root/tmp
mount -t tmpfs -o mode=755 tmpfs /root/run
mkdir -p -m 755 /root/run/job
[ -z "$data" ] || mount -t ext4 $data /root/mnt || fail "edgedata: cannot be mounted"
ip link set lo up
cp /bin/busybox /root/run/
mark=$(disk edgemark)
if [ -n "$mark" ]; then
  last=$(($(cat /sys/block/${mark#/dev/}/size) - 1))
  cat > /root/run/mark <<END
#!/run/busybox sh
printf '%-512s' "\\$1" | /run/busybox dd of=$mark bs=512 seek=$last iflag=fullblock \\
  conv=notrunc,fsync 2>/dev/null
END
  chmod 755 /root/run/mark
fi
tar -x -f $job -C /root/run/job || fail "edgejob: expected a tar"
user=$(said edge.user)
[ "$user" = 0:0 ] && user= || user="-c $user"
chroot /root /run/busybox start-stop-daemon -S -p /run/none $user \\
  -x /run/busybox -- sh /run/job/run.sh > $out 2>&1
code=$?
[ -z "$data" ] || umount /root/mnt || fail "edgedata: busy though the job has ended"
end $code
"""


@dataclass(frozen=True)
class Tools:
    """Where what the machine is made of was unpacked (``scripts/qemu-test``)."""

    kernel: Path
    """The folder of Debian's linux-image package for cloud-arm64."""
    busybox: Path
    """The folder of Debian's busybox-static for arm64."""
    emulator: str = "qemu-system-aarch64"

    @classmethod
    def found(cls) -> "Tools":
        """What ``scripts/qemu-test`` names in the environment.

        Raises:
            LookupError: the first thing that is absent, and what brings it.
        """
        folders: list[Path] = []
        for name in ("EDGEML_QEMU_KERNEL", "EDGEML_QEMU_BUSYBOX"):
            folders.append(Path(os.environ.get(name, "absent")))
            if not folders[-1].is_dir():
                raise LookupError(f"${name} names no folder: scripts/qemu-test system")
        for program in (cls.emulator, "/sbin/mke2fs", "/sbin/debugfs"):
            if shutil.which(program) is None:
                raise LookupError(f"{program} is absent: scripts/qemu-test system")
        return cls(folders[0], folders[1])

    @property
    def image(self) -> Path:
        """The kernel itself."""
        (found,) = (self.kernel / "boot").glob("vmlinuz-*")
        return found

    def initrd(self) -> bytes:
        """The root file system that the kernel starts with: busybox, modules, init."""
        (modules,) = (self.kernel / "lib/modules").iterdir()
        files = {
            "init": _INIT.encode(),
            "bin/busybox": (self.busybox / "bin/busybox").read_bytes(),
        }
        for name in MODULES:
            path = modules / "kernel/drivers" / name
            files[path.name] = path.read_bytes()
        return gzip.compress(_newc(files), compresslevel=1, mtime=0)


@dataclass(frozen=True)
class Drive:
    """A raw disk with ext4 on it.

    ``log``: the file that QEMU's blklogwrites driver keeps every write in; it must not
    exist yet.
    """

    path: Path
    log: Path | None = None


@dataclass(frozen=True)
class Machine:
    """A kind of device; every run is a boot of its own."""

    tools: Tools
    work: Path
    """A folder for files of a run; it must exist."""
    cpu: str
    memory_bytes: int
    extra: tuple[str, ...] = field(default=())
    """Further arguments of QEMU."""

    @classmethod
    def of_target(cls, name: str, tools: Tools, work: Path) -> "Machine":
        """The machine that ``targets/NAME.toml`` describes."""
        target = tomllib.loads((ROOT / "targets" / f"{name}.toml").read_text())
        return cls(tools, work, target["qemu_cpu"], target["memory_bytes"])

    def run(
        self,
        words: Sequence[str],
        *,
        files: Mapping[str, bytes] | None = None,
        root: Drive | None = None,
        data: Drive | None = None,
        environment: Sequence[str] = ("PATH=/usr/bin:/bin",),
        user: str = "0:0",
        writable: bool = False,
        limit_s: float = LIMIT_S,
    ) -> Done:
        """Boot, run one command, power off.

        Args:
            words: the command; it runs in ``/run/job``.
            files: what lies there, by name.
            root: its root file system; None: busybox alone.
            data: mounted at ``/mnt``, writable; unmounted before power off.
            environment: ``NAME=value`` of the command, nothing else is set.
            user: user and group of the command, as numbers.
            writable: whether it may write to ``root``.
            limit_s: how long all that may take.

        Returns:
            Exit code and output of the command (both streams in ``out``); ``err`` has
            the console. 125: the machine could not start it, and ``out`` says why.

        Raises:
            RuntimeError: the machine ended without saying how the command did, or did
                not end in time; the text has its console.
        """
        job, initrd = self.work / "job.tar", self.work / "initrd.gz"
        job.write_bytes(_job(words, files or {}, environment))
        initrd.write_bytes(self.tools.initrd())
        console, output = self.work / "console.log", self.work / "output.log"
        drives = {"edgejob": Drive(job)}
        drives |= {"edgeroot": root} if root else {}
        drives |= {"edgedata": data} if data else {}
        command = self._command(drives, writable, user)
        try:
            subprocess.run(
                command, check=True, timeout=limit_s, cwd=self.work,
                stdin=subprocess.DEVNULL, capture_output=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = console.read_text(errors="replace")
            raise RuntimeError(f"not done in {limit_s:g} s:\n{said}") from error
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"QEMU: {error.stderr.decode()}") from error
        said = console.read_text(errors="replace")
        text = output.read_text(errors="replace")
        found = re.search(r"\nEDGE-RC=(\d+)\n\Z", text)
        if found is None:
            raise RuntimeError(f"it ended without a result:\n{said}\n{text}")
        return Done(int(found[1]), text[: found.start()], said)

    def _command(
        self, drives: Mapping[str, Drive], writable: bool, user: str
    ) -> list[str]:
        mode = "rw" if writable else "ro"
        command = [
            self.tools.emulator, "-M", "virt", "-cpu", self.cpu, "-smp", "1",
            "-m", f"{self.memory_bytes >> 20}M", "-accel", "tcg", "-nodefaults",
            "-no-reboot", "-display", "none", "-kernel", str(self.tools.image),
            "-initrd", "initrd.gz", "-append",
            f"console=ttyAMA0 quiet panic=-1 edge.root={mode} edge.user={user}",
            "-serial", "file:console.log", "-chardev", "file,id=out,path=output.log",
            "-device", "virtio-serial-device",
            "-device", "virtserialport,chardev=out", *self.extra,
        ]  # fmt: skip
        for serial, drive in drives.items():
            kept = serial == "edgejob" or (serial == "edgeroot" and not writable)
            command += _drive(serial, drive, read_only=kept)
        return command


def make_ext4(path: Path, size_bytes: int, content: Path | None = None) -> Drive:
    """A disk with an ext4 file system that holds what a folder does; no root needed.

    Whoever owns the files in ``content`` owns them there. The last ``MARK_BYTES`` are
    not the file system's.
    """
    with path.open("wb") as file:
        file.truncate(size_bytes)
    filled = ["-d", str(content)] if content else []
    # -E nodiscard, lazy_*=0: all of it is written now and the kernel writes none of it
    # later, so that a recording has the job's writes only.
    subprocess.run(
        ["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E",
         "nodiscard,lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
         *filled, str(path), f"{(size_bytes - MARK_BYTES) >> 10}k"],
        check=True, capture_output=True,
    )  # fmt: skip
    return Drive(path)


def _drive(serial: str, drive: Drive, read_only: bool) -> list[str]:
    node = serial.removeprefix("edge")
    can = "on" if read_only else "off"
    top = f"driver=raw,node-name={node},file={node}-file,read-only={can}"
    log: list[str] = []
    if drive.log is not None:
        drive.log.touch(exist_ok=False)
        top = f"driver=raw,node-name={node}-raw,file={node}-file"
        log = [
            "-blockdev", f"driver=file,node-name={node}-log,filename={drive.log}",
            "-blockdev", f"driver=blklogwrites,node-name={node},file={node}-raw,"
            f"log={node}-log,log-super-update-interval=1",
        ]  # fmt: skip
    device = f"virtio-blk-device,drive={node},serial="
    devices = ["-device", device + serial]
    if serial == "edgedata":
        devices = [
            "-device", f"{device}edgedata,share-rw=on",
            "-device", f"{device}edgemark,share-rw=on,write-cache=off",
        ]  # fmt: skip
    return [
        "-blockdev", f"driver=file,node-name={node}-file,filename={drive.path},"
        f"read-only={can}", "-blockdev", top, *log, *devices,
    ]  # fmt: skip


def _job(
    words: Sequence[str], files: Mapping[str, bytes], environment: Sequence[str]
) -> bytes:
    command = shlex.join(["/run/busybox", "env", "-i", *environment, *words])
    script = f"cd /run/job && exec {command}\n"
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in {**files, "run.sh": script.encode()}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content))
    return written.getvalue()


def _newc(files: Mapping[str, bytes]) -> bytes:
    """An initrd: files, and the folders that they are in, as cpio's newc format."""
    folders = sorted({path.split("/")[0] for path in files if "/" in path})
    parts = [_entry(number, name, 0o40755, b"") for number, name in enumerate(folders)]
    # /dev/console, or init has no streams: devtmpfs is not there yet
    parts.append(_entry(800, "dev", 0o40755, b""))
    parts.append(_entry(801, "dev/console", 0o20600, b"", (5, 1)))
    for number, (name, content) in enumerate(files.items(), start=900):
        parts.append(_entry(number, name, 0o100755, content))
    return b"".join([*parts, _entry(0, "TRAILER!!!", 0, b"")])


def _entry(
    number: int, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)
) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % one for one in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)
