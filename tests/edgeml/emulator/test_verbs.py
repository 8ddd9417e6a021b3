"""``edgeml emulator`` and ``edgeml check`` as users run them."""

import json

import foreign
import pytest
from commands import Done, edgeml

from device_agent.contract import machine
from device_agent.contract.manifest import Isa
from edgeml.cache import user_cache


def test_an_empty_cache_is_told(tmp_path):
    done = edgeml("emulator", "list", cache=tmp_path)
    assert (done.code, done.out.split()) == (0, ["0.0", "MiB", "kept", "in", "all"])
    done = edgeml("emulator", "clean", "--all", "--json", cache=tmp_path)
    assert done.facts == {"removed": [], "size_bytes": 0}


def test_an_unknown_target_is_told(tmp_path):
    done = edgeml("emulator", "setup", "--target", "rpi9", cache=tmp_path)
    assert done.code == 2
    assert "no target 'rpi9'; did you mean" in done.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--here", "--target", "rpi4"], "--here emulates nothing"),
        (["--target", "armv7"], "is for aarch64 and armv7 is armv7l"),
        (["--target", "gpu-cuda"], "is for aarch64 and gpu-cuda is x86_64"),
    ],
)
def test_what_does_not_fit_together_is_told(tmp_path, words, why):
    done = edgeml("check", foreign.linear(tmp_path), *words, cache=tmp_path)
    assert done.code == 2
    assert why in done.err


def test_here_nothing_is_emulated(tmp_path):
    done = edgeml("check", foreign.linear(tmp_path), "--here", cache=tmp_path)
    assert done.code == 0, done.err
    if machine.arch() != "aarch64":
        assert "it is for aarch64: its answers were checked here, not its" in done.out


def test_a_damaged_bundle_is_refused_without_an_emulator(tmp_path):
    path = foreign.linear(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    done = edgeml("check", path, cache=tmp_path)
    assert done.code == 4
    assert done.err.startswith("model.edgeml: bundle: ")


@pytest.mark.long
def test_no_network_is_told_with_the_way_out(tmp_path, monkeypatch):
    if machine.arch() not in foreign.anywhere(tmp_path).lock.qemu:
        pytest.skip("no emulator for this host")
    monkeypatch.setenv("EDGEML_DEBIAN_MIRROR", f"file://{tmp_path}/none")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    isa = Isa(arch="armv7l" if machine.arch() == "aarch64" else "aarch64")
    target = "armv7" if isa.arch == "armv7l" else "rpi4"
    path = foreign.linear(tmp_path, isa=isa, target=target)
    done = edgeml("check", path, cache=tmp_path)
    assert done.code == 5
    assert "cannot be had" in done.err
    assert "--here checks the answers alone" in done.err
    assert len(done.err.strip().splitlines()) == 2


@pytest.mark.long
class TestEmulated:
    def checked(self, path, *words: str) -> Done:
        foreign.store("aarch64")
        return edgeml("check", path, *words, cache=user_cache().parent)

    def test_a_bundle_of_another_architecture(self, tmp_path):
        done = self.checked(foreign.linear(tmp_path))
        assert done.code == 0, done.err
        assert "linear 1.0.0 for rpi4: ok under qemu-user 10." in done.out
        assert "flips against the host" in done.out
        assert "latency  not measured" in done.out

    def test_the_report_is_json(self, tmp_path):
        path = foreign.linear(tmp_path, target="rpi5", isa=Isa(
            arch="aarch64", requires=("asimddp",)
        ))  # fmt: skip
        done = self.checked(path, "--json", "--target", "rpi4")
        assert done.code == 3
        report = json.loads(done.out)
        assert report["failure"]["step"] == "isa"
        assert report["emulation"]["target"] == "rpi4"
        assert "model.edgeml: isa: needs asimddp; rpi4 (cortex-a72) has not" in done.err

    def test_an_x86_processor_without_avx2(self, tmp_path):
        if machine.arch() != "x86_64":
            pytest.skip("the host is not x86_64")
        isa = Isa(arch="x86_64", requires=("avx2",))
        path = foreign.linear(tmp_path, target="cpu-x86_64", isa=isa)
        done = self.checked(path, "--cpu", "Haswell")
        assert done.code == 0, done.err
        done = self.checked(path, "--cpu", "Nehalem")
        assert done.code == 3
        assert "isa: needs avx2; Nehalem has not" in done.err
