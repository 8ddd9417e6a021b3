"""How many instructions one inference takes on an emulated processor.

The rules it keeps:

1. A count is a proxy of cost to compare two builds by; it is never shown as time.
2. One thread, fixed addresses, a fixed hash seed, a clock that moves when it is looked
   at, the same folder every time (its name is hashed, too): the count of an inference
   repeats to the instruction (of a load to 0.001 %) with the same emulator in the same
   place.
3. Only QEMU 7.2, dynamically linked, takes plugins among Debian's; it counts and its
   answers are not used. It shows guests the host's /proc/cpuinfo, so the guest's root
   has the one that the pinned QEMU shows.
"""

import json
import re
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from device_agent.contract.bundle import unpack

from ..bundling.bundle import opened
from ..cache import file_digest, part_of
from ..errors import MachineLacks, one_line
from .check import Emulation
from .guest import Guest, Plugin, guest
from .store import Said, Store

_SOURCE = Path(__file__).with_name("count.c")
_MARK = 0x7FEDCE11
_INFERENCES = 5
"""The least of them counts: now and then one waits for something of the host's."""
_FLAGS = ("-O2", "-shared", "-fPIC", "-fvisibility=hidden",
          "-Wl,--unresolved-symbols=ignore-all")  # fmt: skip
_RUN = f"""
import gc, json, os, sys
from pathlib import Path
from device_agent.contract.golden import read_golden
from device_agent.runtimes import runtime

def mark():
    try:
        os.close({_MARK})
    except OSError:
        pass

name, artifact, options, golden = json.loads(sys.argv[1])
feeds = read_golden(Path(golden).read_bytes(), golden).inputs[0]
loaded = runtime(name)
gc.collect()
gc.disable()
mark()
mark()
session = loaded.load(Path(artifact), options)
mark()
session.predict(feeds)
for _ in range({_INFERENCES}):
    mark()
    session.predict(feeds)
    mark()
"""


@dataclass(frozen=True)
class Count:
    """Instructions of the guest: to load the artifact, and of one warm inference."""

    load: int
    inference: int


def count(path: Path, emulation: Emulation, store: Store, said: Said) -> Count:
    """Count the instructions of a bundle's load and inference, by one thread.

    Raises:
        InputError: the bundle is refused by the reader.
        MachineLacks: there is no C compiler, the emulator cannot be had, or the bundle
            does not run in it: check it first.
    """
    bundle = opened(path)
    manifest = bundle.manifest
    golden = bundle.path_of("golden")
    if golden is None:
        raise MachineLacks(f"{path.name} has no golden vectors to count on")
    if emulation.target.arch == "x86_64":
        raise MachineLacks("instructions are counted for Arm targets only")
    plugin = _compiled(store)
    with ExitStack() as stack:
        host = stack.enter_context(
            guest(store, emulation.target.arch, emulation.cpu, said)
        )
        cpuinfo = _ran(host, ["-c", "print(open('/proc/cpuinfo').read())"], emulation)[
            0
        ]
        counted = stack.enter_context(
            guest(
                store, emulation.target.arch, emulation.cpu, said,
                plugin=Plugin(plugin, cpuinfo),
            )
        )  # fmt: skip
        unpack(bundle, counted.folder / "bundle")
        spec = manifest.runtime
        job = [
            spec.name, f"bundle/{manifest.artifact}", {**spec.options, "threads": 1},
            f"bundle/{golden}",
        ]  # fmt: skip
        _, told = _ran(counted, ["-c", _RUN, json.dumps(job)], emulation)
    marks = [
        int(one) for one in re.findall(r"^edgeml-count (\d+)$", told, re.MULTILINE)
    ]
    if len(marks) != 3 + 2 * _INFERENCES:
        raise MachineLacks(f"{path.name}: {len(marks)} counts; {one_line(told)}")
    empty = marks[1] - marks[0]  # what a mark itself takes
    runs = [
        after - before for before, after in zip(marks[3::2], marks[4::2], strict=True)
    ]
    return Count(marks[2] - marks[1] - empty, min(runs) - empty)


def _ran(host: Guest, words: list[str], emulation: Emulation) -> tuple[str, str]:
    ran = host.run(words, memory_bytes=None, timeout_s=emulation.timeout_s)
    if ran.code or ran.ended:
        raise MachineLacks(f"counting did not work: {ran.ended or ran.said()}")
    return ran.stdout, ran.stderr


def _compiled(store: Store) -> Path:
    """The plugin, made once per source."""
    made = store.folder / f"count-{file_digest(_SOURCE)[:16]}.so"
    if made.exists():
        return made
    compiler = shutil.which("cc")
    if compiler is None:
        raise MachineLacks("counting instructions needs a C compiler: apt install gcc")
    store.folder.mkdir(parents=True, exist_ok=True)
    part = part_of(made)
    done = subprocess.run(
        [compiler, *_FLAGS, "-o", str(part), str(_SOURCE)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise MachineLacks(f"{compiler} does not compile {_SOURCE}: {done.stderr}")
    part.replace(made)
    return made
