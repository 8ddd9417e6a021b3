"""The repository's own laws: what docs/architecture.md promises is checked here."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("edgeml", "device_agent", "targets", "calibration")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
HEAVY = {
    "torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy", "pyarrow",
    "sklearn", "scipy", "rich.console", "jinja2", "PIL", "fastapi",
    "uvicorn",
}  # fmt: skip
VERBS = (
    "init", "build", "search", "check", "inspect", "diff", "bench", "unpack", "targets",
    "convert-weights", "publish", "keys", "registry",
)  # fmt: skip
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
# Seams between threads: any error is handed to whoever waits for the result.
HANDED_ON = {"device_agent/serving/lane.py"}


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _imported_by(*command: str) -> set[str]:
    """Top-level modules that a Python process has loaded when ``command`` is done."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = {list(command)!r}\n"
        "try:\n"
        f"    runpy.run_module({command[0]!r}, run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "print('\\n' + ' '.join(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    "command",
    [
        ("edgeml", "--help"),
        *(("edgeml", verb, "--help") for verb in VERBS),
        ("device_agent", "--help"),
        *(
            ("device_agent", verb, "--help")
            for verb in ("check", "run", "status", "enroll")
        ),
    ],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    module = "edgeml.__main__" if command[0] == "edgeml" else command[0]
    assert not _imported_by(module, *command[1:]) & HEAVY


@pytest.mark.parametrize("package", PACKAGES)
def test_package_roots_are_light(package: str) -> None:
    code = f"import sys, {package}; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & HEAVY


@pytest.mark.parametrize(
    ("package", "table"),
    [
        ("edgeml.backends", "BACKENDS"),
        ("edgeml.passes", "PASSES"),
        ("edgeml.quantizers", "QUANTIZERS"),
        ("device_agent.runtimes", "RUNTIMES"),
    ],
)
def test_plugin_tables_equal_their_folders(package: str, table: str) -> None:
    module = importlib.import_module(package)
    listed = {
        path.partition(":")[0].rsplit(".", 1)[1]
        for path in getattr(module, table).values()
    }
    folder = Path(str(module.__file__)).parent
    not_plugins = {
        "__init__", "base", "candidates", "elsewhere", "installed", "probe", "sandbox",
        "tflite",
    }  # fmt: skip
    assert listed == {path.stem for path in folder.glob("*.py")} - not_plugins


def test_every_backend_has_a_runtime_of_the_same_name() -> None:
    from device_agent.runtimes import RUNTIMES
    from edgeml.backends import BACKENDS

    assert BACKENDS.keys() <= RUNTIMES.keys()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes_and_docstrings(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= FILE_LINES_MAX
    tree = _tree(path)
    assert ast.get_docstring(tree), "a module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_fails_softly(path: Path) -> None:
    if str(path.relative_to(ROOT)) in HANDED_ON:
        return
    for node in ast.walk(_tree(path)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        broad = node.type is None or (
            isinstance(node.type, ast.Name)
            and node.type.id in {"Exception", "BaseException"}
        )
        raises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
        assert raises or not broad, f"line {node.lineno}: broad except, nothing raised"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_words_that_say_nothing(path: Path) -> None:
    forbidden = {"utils", "helpers", "common", "manager", "handler", "misc"}
    assert path.stem not in forbidden


@pytest.mark.parametrize(
    "module",
    ["edgeml.errors", "device_agent.contract.errors", "device_agent.errors"],
)
def test_errors_are_in_their_tree(module: str) -> None:
    errors = importlib.import_module(module)
    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or ""))
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == module
    }
    assert defined - drawn == {
        max(
            defined,
            key=lambda name: name in ("EdgemlError", "DeviceError", "AgentError"),
        )
    }


def test_readme_commands_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    scripts = set(re.findall(r"scripts/[a-z-]+", readme))
    assert {"scripts/demo", "scripts/test"} <= scripts
    for script in scripts:
        assert (ROOT / script).stat().st_mode & 0o111, f"{script} is not executable"
    verbs = set(re.findall(r"^\$? ?edgeml ([a-z-]+)", readme, re.MULTILINE))
    from edgeml.cli import app

    known = {
        command.name or command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
        if command.callback is not None
    }
    groups = {group.name for group in app.registered_groups}
    assert verbs <= known | groups
    assert known == set(VERBS) - groups


@pytest.mark.long  # scripts/check asks too
def test_dependency_rules_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
