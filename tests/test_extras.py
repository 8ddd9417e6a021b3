"""Every extra alone, in an environment of its own: what it promises is there, no more.

Needs the package index, and some minutes: ``scripts/test slow``.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import bundles
import numpy as np
import pytest
from malformed import projects

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
RUNTIMES = "device_agent.runtimes."
PACKAGES = ("edgeml", "device_agent", "targets", "calibration")
TORCH = ("torch", "torchao", "neural_compressor")
HOST = (*TORCH, "onnx", "nncf", "typer", "jinja2", "pyarrow", "sympy")
OTHER = ("pandas", "scipy", "sklearn", "tensorflow")


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    folder: Path

    def run(self, *command: object, cwd: Path) -> "subprocess.CompletedProcess[str]":
        """A program of the environment, in a folder that is not the checkout."""
        program, *arguments = map(str, command)
        kept = {key: value for key, value in os.environ.items()
                if not key.startswith("PYTHON")}  # fmt: skip
        return subprocess.run(
            [str(self.folder / "bin" / program), *arguments],
            cwd=cwd, capture_output=True, text=True, check=False,
            env={**kept, "XDG_CACHE_HOME": str(self.folder / "cache"),
                 "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def install(self, *packages: str) -> None:
        """Packages beside what the extra has brought."""
        done = self.run("pip", "install", "--quiet", *packages, cwd=self.folder)
        assert done.returncode == 0, done.stderr

    def edgeml(self, *arguments: object, cwd: Path) -> str:
        """What the command says; it must end well."""
        done = self.run("edgeml", *arguments, cwd=cwd)
        assert done.returncode == 0, f"{arguments}: {done.stderr}{done.stdout}"
        return done.stdout

    def python(self, code: str) -> str:
        """What the code prints; it must end well."""
        done = self.run("python", "-c", code, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def imports(self, *names: str) -> None:
        self.python("".join(f"import {name}\n" for name in names))

    def lacks(self, *names: str) -> None:
        code = (
            "from importlib.util import find_spec\n"
            f"print([name for name in {names!r} if find_spec(name)])"
        )
        assert self.python(code).strip() == "[]"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a release is made of; pip writes into the folder that it builds from."""
    folder = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def installed(source: Path, folder: Path, extra: str) -> Environment:
    """An environment with one extra."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    made = Environment(folder)
    done = made.run(
        "pip", "install", "--quiet", "--disable-pip-version-check",
        "-c", source / "constraints.txt", f"{source}[{extra}]", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made


def modules(source: Path, package: str, *without: str) -> list[str]:
    """Names of all modules of a package, but those below ``without``."""
    found = []
    for path in sorted((source / package).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if parts[-1] != "__main__" and not name.startswith(without):
            found.append(name)
    return found


def checked(made: Environment, source: Path, home: Path, bundle: Path) -> dict:
    """The report of a copy of ``device_agent`` alone, edgeml being uninstalled."""
    made.run("pip", "uninstall", "--yes", "--quiet", "edgeml", cwd=home)
    made.lacks(*PACKAGES)
    shutil.copytree(source / "device_agent", home / "device_agent")
    done = made.run("python", "-m", "device_agent", "check", bundle, "--json", cwd=home)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def served(made: Environment, home: Path, bundle: Path) -> dict:
    """What a copy of ``device_agent`` alone answers to one inference and one look."""
    process = subprocess.Popen(
        [str(made.folder / "bin" / "python"), "-m", "device_agent", "run",
         "--bundle", str(bundle), "--listen", "127.0.0.1:0", "--state", "state"],
        cwd=home, stdout=subprocess.PIPE, text=True,
        env={key: value for key, value in os.environ.items()
             if not key.startswith("PYTHON")},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = re.search(r"http://\S+", line)
        assert url, line
        item = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
        body = json.dumps({"inputs": [item]}).encode()
        with urlopen(f"{url[0]}/v2/models/linear/infer", data=body) as answer:
            (output,) = json.load(answer)["outputs"]
        with urlopen(f"{url[0]}/v2") as answer:
            return {"output": output, "server": json.load(answer)}
    finally:
        process.terminate()
        assert process.wait(30) == 0


ANSWER = np.maximum(np.arange(1, 5, dtype=np.float32) @ bundles.WEIGHT, 0)


def test_agent(source: Path, tmp_path: Path) -> None:
    made = installed(source, tmp_path / "venv", "agent")
    made.lacks(*HOST, *OTHER, "openvino", "ai_edge_litert")
    others = (f"{RUNTIMES}openvino", f"{RUNTIMES}litert")
    made.imports(*modules(source, "device_agent", *others))
    bundle = tmp_path / "it.edgeml"
    bundle.write_bytes(bundles.bundle())
    done = made.run("edgeml-agent", "check", bundle, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = checked(made, source, tmp_path, bundle)
    assert report["ok"] and report["runtime"] == "onnxruntime"
    found = served(made, tmp_path, bundle)
    np.testing.assert_allclose(found["output"]["data"], ANSWER, rtol=1e-6)
    # where there are no wheels for these, it is slower and right
    fast = ("uvloop", "httptools", "orjson", "msgspec")
    made.run("pip", "uninstall", "--yes", "--quiet", *fast, cwd=tmp_path)
    made.lacks(*fast)
    slow = served(made, tmp_path, bundle)
    np.testing.assert_allclose(slow["output"]["data"], ANSWER, rtol=1e-6)
    assert slow["server"] == found["server"]


def test_agent_openvino(source: Path, tmp_path: Path) -> None:
    made = installed(source, tmp_path / "venv", "agent-openvino")
    made.lacks(*HOST, *OTHER, "onnxruntime", "ai_edge_litert")
    others = (f"{RUNTIMES}onnxruntime", f"{RUNTIMES}litert")
    made.imports(*modules(source, "device_agent", *others))
    recipe = projects.sound(tmp_path)
    recipe.write_text(projects.RECIPE.replace("cpu-x86_64", "openvino-cpu"))
    subprocess.run(
        [sys.executable, "-m", "edgeml", "build", str(recipe), "--quiet",
         "--out", str(tmp_path / "build")],
        check=True, cwd=ROOT,
    )  # fmt: skip
    bundle = tmp_path / "build" / "linear-1.0.0" / "openvino-cpu.edgeml"
    report = checked(made, source, tmp_path, bundle)
    assert report["ok"] and report["runtime"] == "openvino"


def test_agent_litert(source: Path, tmp_path: Path) -> None:
    """A Pi's bundle, for a Pi of this machine's architecture."""
    made = installed(source, tmp_path / "venv", "agent-litert")
    made.lacks(*HOST, *OTHER, "onnxruntime", "openvino")
    others = (f"{RUNTIMES}onnxruntime", f"{RUNTIMES}openvino")
    made.imports(*modules(source, "device_agent", *others))
    recipe = projects.sound(tmp_path)
    recipe.write_text(projects.RECIPE.replace("cpu-x86_64", "here.toml"))
    profile = (ROOT / "targets" / "rpi4.toml").read_text()
    profile = profile.replace('"aarch64"', f'"{platform.machine()}"')
    (tmp_path / "here.toml").write_text(profile.replace('isa = ["asimd"]', "isa = []"))
    subprocess.run(
        [sys.executable, "-m", "edgeml", "build", str(recipe), "--quiet",
         "--out", str(tmp_path / "build")],
        check=True, cwd=ROOT,
    )  # fmt: skip
    bundle = tmp_path / "build" / "linear-1.0.0" / "here.edgeml"
    report = checked(made, source, tmp_path, bundle)
    assert report["ok"] and report["runtime"] == "litert"
    found = served(made, tmp_path, bundle)
    assert len(found["output"]["data"]) == found["output"]["shape"][1]


def test_build(source: Path, tmp_path: Path) -> None:
    made = installed(source, tmp_path / "venv", "build")
    made.lacks(*TORCH, "tensorflow", "ai_edge_litert")
    made.imports(
        *modules(source, "edgeml", "edgeml.backends.litert", "edgeml.authority"),
        *modules(source, "device_agent/contract"),
        *modules(source, "device_agent/runtimes", f"{RUNTIMES}litert"),
    )
    recipe = projects.sound(tmp_path)
    recipe.write_text(
        projects.RECIPE.replace('"cpu-x86_64"', '"cpu-x86_64", "openvino-cpu"')
        .replace('"fp32"', '"fp32", "int8"')
    )  # fmt: skip
    done = made.run("edgeml", "build", recipe, "--check", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    built = tmp_path / "build" / "linear-1.0.0"
    assert {path.stem for path in built.glob("*.edgeml")} == {
        "cpu-x86_64", "openvino-cpu",
    }  # fmt: skip
    assert (built / "report.html").stat().st_size > 10_000
    report = json.loads((built / "report.json").read_text())
    tried = {
        one["name"]: one for target in report["targets"] for one in target["candidates"]
    }
    for name in ("int8 ort default", "int8 nncf default"):
        assert tried[name]["status"] != "failed", tried[name]["reason"]
    done = made.run("edgeml", "targets", "rpi4", cwd=tmp_path)
    assert "Cortex-A72" in done.stdout, "the profiles are part of the package"


def test_search(source: Path, tmp_path: Path) -> None:
    made = installed(source, tmp_path / "venv", "search")
    made.lacks(*TORCH, "tensorflow")
    recipe = projects.sound(tmp_path)
    done = made.run("edgeml", "search", recipe, "--trials", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    built = tmp_path / "build" / "linear-1.0.0"
    report = json.loads((built / "report.json").read_text())
    assert report["targets"][0]["search"]["trials"]


def test_build_names_what_a_torch_model_needs(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")  # or the next line would be true here as well
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgeml.cli import main; sys.argv[0] = 'edgeml'; main()"
    )
    recipe = projects.sound(tmp_path)
    projects.BROKEN["factory without input shapes"].change(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, "build", str(recipe), "--quiet",
         "--out", str(tmp_path / "build")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "torch is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_fleet(source: Path, tmp_path: Path) -> None:
    made = installed(source, tmp_path / "venv", "fleet")
    made.lacks("torch", "onnx", "onnxruntime", "openvino", "nncf", *OTHER)
    made.imports(
        "fastapi", "uvicorn", "sqlalchemy", "alembic", "paho.mqtt.client", "jinja2",
        "edgeml.authority",
        *modules(source, "device_agent.contract".replace(".", "/")),
        *modules(source, "targets"),
    )  # fmt: skip


def test_emulate(source: Path, tmp_path: Path) -> None:
    made = installed(source, tmp_path / "venv", "emulate")
    made.lacks(*HOST, *OTHER, "onnxruntime", "openvino", "PIL")
    made.imports(*modules(source, "device_agent/contract"), *modules(source, "targets"))


PIN = "1234"
OBJECT_STORE = """
import sys, time, fsspec, os
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
os.environ["AWS_ENDPOINT_URL"] = "http://%s:%d" % server.get_host_and_port()
fsspec.filesystem("s3").mkdir("models")
print("url", os.environ["AWS_ENDPOINT_URL"], flush=True)
sys.stdin.read()
"""
RACE = """
from concurrent.futures import ThreadPoolExecutor
from edgeml.registry.storage import storage
place = storage("s3://models/race")
def won(number):
    try:
        place.create("metadata/lock", b"%d" % number)
    except FileExistsError:
        return False
    return True
with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(won, range(8))))
"""


@pytest.fixture(scope="module")
def publisher(
    source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Environment]:
    """Where one signs and publishes, and builds nothing."""
    made = installed(source, tmp_path_factory.mktemp("publish") / "venv", "publish")
    made.lacks("torch", "onnx", "onnxruntime", "openvino", "nncf", *OTHER)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("EDGEML_PASSPHRASE", PIN)
        yield made


def test_publish_to_an_object_store(publisher: Environment, tmp_path: Path) -> None:
    made = publisher
    made.install("s3fs", "moto[s3]", "flask", "flask-cors")
    bundle = tmp_path / "linear.edgeml"
    bundle.write_bytes(bundles.bundle())
    secrets = {
        "AWS_ACCESS_KEY_ID": "one", "AWS_SECRET_ACCESS_KEY": "two",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as environment:
        for name, value in secrets.items():
            environment.setenv(name, value)
        store = subprocess.Popen(
            [str(made.folder / "bin" / "python"), "-c", OBJECT_STORE], cwd=tmp_path,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert store.stdout is not None
            lines = iter(store.stdout.readline, "")
            url = next(one.split()[1] for one in lines if one.startswith("url "))
            environment.setenv("AWS_ENDPOINT_URL", url)
            there, keys = "s3://models/one", ("--keys", tmp_path / "keys")
            for verb in (
                ("keys", "init", "--registry", there),
                ("keys", "add", "team", "--model", "linear", "--registry", there),
                ("publish", bundle, "--registry", there),
                *(("registry", name, there) for name in ("verify", "refresh", "gc")),
                ("registry", "list", there, "--json"),
            ):
                said = made.edgeml(*verb, *keys, cwd=tmp_path)
            (release,) = json.loads(said)["releases"]
            assert release["path"] == "linear/1.0.0/cpu-x86_64.edgeml"
            assert made.python(RACE).strip() == "1"
        finally:
            store.communicate("", 30)


TOKEN = """
import os, pkcs11
from pkcs11.util.ec import encode_named_curve_parameters
from securesystemslib.signer import HSMSigner
token = pkcs11.lib(os.environ["PYKCS11LIB"]).get_token(token_label="edgeml")
curve = {pkcs11.Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}
with token.open(user_pin="1234", rw=True) as session:
    made = session.create_domain_parameters(pkcs11.KeyType.EC, curve, local=True)
    made.generate_keypair(store=True, label="edgeml", id=bytes([2]))
uri, key = HSMSigner.import_(2, "edgeml", lambda _: "1234")
open("public.pem", "w").write(key.keyval["public"])
print(uri)
"""
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@pytest.mark.skipif(not SOFTHSM.exists(), reason="needs SoftHSM (apt install softhsm2)")
def test_a_key_that_never_leaves_its_token(
    publisher: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.install("python-pkcs11", "asn1crypto")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir={tmp_path}/tokens\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("PYKCS11LIB", str(SOFTHSM))
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "edgeml", "--pin", PIN,
         "--so-pin", "4321"], check=True,
    )  # fmt: skip
    (tmp_path / "generate.py").write_text(TOKEN)
    uri = publisher.run("python", "generate.py", cwd=tmp_path).stdout.strip()
    assert uri == "hsm:2?label=edgeml"
    bundle = tmp_path / "linear.edgeml"
    bundle.write_bytes(bundles.bundle())
    there = ("--registry", tmp_path / "registry", "--keys", tmp_path / "keys")
    brought = ("--uri", uri, "--public", tmp_path / "public.pem")
    publisher.edgeml("keys", "init", *there, cwd=tmp_path)
    publisher.edgeml(
        "keys", "add", "team", "--model", "linear", *brought, *there, cwd=tmp_path
    )
    monkeypatch.setenv("EDGEML_PASSPHRASE", "4444")
    done = publisher.run("edgeml", "publish", bundle, *there, cwd=tmp_path)
    assert done.returncode == 4, done.stderr
    assert "key team does not sign for linear: PinIncorrect" in done.stderr
    monkeypatch.setenv("EDGEML_PASSPHRASE", PIN)
    publisher.edgeml("publish", bundle, *there, cwd=tmp_path)
    said = publisher.edgeml(
        "registry", "verify", tmp_path / "registry", "--keys", tmp_path / "keys",
        cwd=tmp_path,
    )  # fmt: skip
    assert "0 problems" in said
    assert "linear/1.0.0/cpu-x86_64.edgeml" in said
