"""Engines are built when a bundle is tried, kept in the state, and built anew."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import bundles
import pytest
from sessions import Linear

from device_agent.config import SandboxConfig
from device_agent.contract.errors import ArtifactError
from device_agent.contract.manifest import Option, RuntimeSpec
from device_agent.errors import RefusedError
from device_agent.runtimes.base import Coverage, Runtime, Session
from device_agent.serving import loading
from device_agent.serving.engines import KEPT, engine_folder, is_filled

ASKS = {"engine_cache": "device"}


class Compiling(Runtime):
    """Builds an engine where there is none; reads only those of its own version."""

    name = "onnxruntime"
    options = frozenset({"engine_cache"})

    def __init__(self) -> None:
        self.driver = "1"
        self.built = 0
        self.folders: list[str] = []

    def version(self) -> str:
        return "1.31"

    def load(self, path: Path, options: Mapping[str, Option]) -> Session:
        folder = Path(str(options["engine_cache"]))
        self.folders.append(str(folder))
        engine = folder / "it.engine"
        if not engine.exists():
            engine.write_text(self.driver)
            self.built += 1
        if engine.read_text() != self.driver:
            raise ArtifactError("the engine cannot be read")
        return Linear()

    def coverage(self, path: Path, options: Mapping[str, Option]):
        return Coverage(1)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Compiling:
    """In place of the real one in this process; the sandbox is not asked."""
    made = Compiling()
    monkeypatch.setattr(loading, "runtime_named", lambda name: made)
    monkeypatch.setattr(loading, "is_admitted", lambda *given: True)
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    spec = RuntimeSpec(name="onnxruntime", min_version="1.17", options=ASKS)
    path = tmp_path / "it.edgeml"
    path.write_bytes(bundles.bundle(runtime=spec))
    return path


def test_an_engine_is_built_once_and_found_again(
    bundle: Path, runtime: Compiling, tmp_path: Path
):
    state = tmp_path / "state"
    for _ in range(2):
        loading.discard(loading.load(bundle, state, SandboxConfig()))
    assert runtime.built == 1
    (folder,) = (state / "engines").iterdir()
    assert set(runtime.folders) == {str(folder)}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_reopened_model_reads_it_too(
    bundle: Path, runtime: Compiling, tmp_path: Path
):
    loaded = loading.load(bundle, tmp_path / "state", SandboxConfig())
    loading.release(loaded)
    loading.discard(loading.reopen(loaded))
    assert runtime.built == 1


def test_an_engine_of_another_driver_is_thrown_away_and_built_again(
    bundle: Path, runtime: Compiling, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    state = tmp_path / "state"
    loading.discard(loading.load(bundle, state, SandboxConfig()))
    runtime.driver = "2"
    loading.discard(loading.load(bundle, state, SandboxConfig()))
    assert runtime.built == 2
    assert "built again" in caplog.text


def test_what_cannot_be_loaded_without_engines_stays_refused(
    bundle: Path, runtime: Compiling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(path: Path, options: Mapping[str, Option]) -> Session:
        raise ArtifactError("it is broken")

    monkeypatch.setattr(runtime, "load", fail)
    with pytest.raises(RefusedError, match="it is broken"):
        loading.load(bundle, tmp_path / "state", SandboxConfig())


def test_a_bundle_that_names_a_folder_is_refused(runtime: Compiling, tmp_path: Path):
    spec = RuntimeSpec(
        name="onnxruntime", min_version="1.17", options={"engine_cache": "/etc"}
    )
    path = tmp_path / "it.edgeml"
    path.write_bytes(bundles.bundle(runtime=spec))
    with pytest.raises(RefusedError, match="the device chooses the folder"):
        loading.load(path, tmp_path / "state", SandboxConfig())
    assert runtime.folders == []


def test_bundle_and_version_of_the_runtime_have_a_folder_each(tmp_path: Path):
    assert engine_folder(tmp_path, {}, "a", "1") is None
    assert list(tmp_path.iterdir()) == []
    first = engine_folder(tmp_path, ASKS, "a", "1")
    assert first == engine_folder(tmp_path, ASKS, "a", "1")
    others = {engine_folder(tmp_path, ASKS, *one) for one in (("a", "2"), ("b", "1"))}
    assert len({first, *others}) == 3
    assert not is_filled(first)


def test_the_last_ones_stay(tmp_path: Path):
    made = []
    for number in range(KEPT + 3):
        folder = engine_folder(tmp_path, ASKS, str(number), "1")
        assert folder is not None
        (folder / "engine").write_text("")
        os.utime(folder, ns=(number, number))
        made.append(folder)
    assert engine_folder(tmp_path, ASKS, "0", "1") == made[0]
    left = {path.name for path in (tmp_path / "engines").iterdir()}
    assert len(left) == KEPT
    assert made[0].name in left, "the newest by use"
    assert made[-1].name in left
