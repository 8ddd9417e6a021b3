"""A container engine without containers: podman's command line, run on this host.

``run`` finds the bundle that is mounted and has this checkout's device program check
it, as an image of this host's architecture would. It refuses words that podman refuses,
and images that it does not have.
"""

import stat
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """\
#!{python}
import argparse, os, sys
if sys.argv[1] == "version":
    print("4.3.1"); sys.exit(0)
parser = argparse.ArgumentParser()
parser.add_argument("verb", choices=["run"])
for flag in ("--rm", "--read-only"):
    parser.add_argument(flag, action="store_true", required=True)
for word in ("--network", "--platform", "--memory", "--env", "--volume"):
    parser.add_argument(word, required=True)
parser.add_argument("image")
parser.add_argument("words", nargs=argparse.REMAINDER)
given = parser.parse_args()
if given.image != "localhost/edgeml-agent:here":
    print("Error: no such image " + given.image, file=sys.stderr); sys.exit(125)
if int(given.memory) < 64 << 20:
    sys.exit(137)  # what is left of a container that was killed
host, place, mode = given.volume.split(":")
words = [host if word == place else word for word in given.words]
name, _, value = given.env.partition("=")
os.environ[name] = value
os.environ["PYTHONPATH"] = "{root}"
os.execv(sys.executable, [sys.executable, "-m", "device_agent", *words])
"""


def engine(folder: Path) -> Path:
    """Write it as ``podman`` into a folder, which is to come first in PATH."""
    path = folder / "podman"
    path.write_text(_PROGRAM.format(python=sys.executable, root=ROOT))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
