"""A build of several targets: who is refused, what stays, random data."""

import platform
from dataclasses import replace
from pathlib import Path

import pytest
from digits import recipe, write
from timings import Timings

from device_agent.contract import machine
from edgeml.cache import Cache
from edgeml.outcome import BuildOutcome
from edgeml.pipeline import Build, Place, failure, host_refusals
from edgeml.progress import Silent
from edgeml.report import read_report
from targets.profile import load_target

QUICK = '[quantize]\nquantizers = ["ort"]\nmethods = ["minmax"]\n'


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write(tmp_path, channels=4)
    return tmp_path


def built(path: Path) -> BuildOutcome:
    out = path.parent / "build"
    return Build(path, Place(out, Cache(out / ".cache"), Timings()), Silent()).run()


def bundles(work: Path) -> list[str]:
    return sorted(path.name for path in work.glob("build/*/*.edgeml"))


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "armv7l"])
def test_a_target_of_another_architecture_cannot_be_validated_here(arch: str) -> None:
    target = replace(load_target("cpu-x86_64"), arch=arch, isa=())
    refusals = host_refusals(target)
    assert bool(refusals) == (arch != platform.machine())
    for refusal in refusals:
        assert arch in refusal
        assert platform.machine() in refusal


def test_every_missing_feature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "features", lambda: frozenset({"avx2"}))
    target = load_target("cpu-x86_64")
    isa = ("avx2", "avx_vnni|avx512_vnni", "amx_int8")
    target = replace(target, arch=platform.machine(), isa=isa)
    refusals = host_refusals(target)
    assert len(refusals) == 2
    assert "avx_vnni|avx512_vnni" in refusals[0]
    assert "amx_int8" in refusals[1]


def test_a_refused_target_does_not_stop_the_others(work: Path) -> None:
    outcome = built(recipe(work, "openvino-igpu", "cpu-x86_64", extra=QUICK))
    refused, made = outcome.targets
    assert refused.refusals
    assert refused.bundle_file is None
    assert made.bundle_file == "cpu-x86_64.edgeml"
    assert bundles(work) == ["cpu-x86_64.edgeml"]
    assert failure(outcome) == "no bundle for openvino-igpu; the report says why"


def test_a_target_whose_device_is_not_here_ships_and_says_so(work: Path) -> None:
    limit = "\n[budget]\nmax_latency_ms = 0.000001\n"
    outcome = built(recipe(work, "jetson-orin", extra=f"{QUICK}{limit}"))
    (made,) = outcome.targets
    if not made.validated_on:
        pytest.skip("this machine is a Jetson")
    assert made.bundle_file == "jetson-orin.edgeml"
    assert made.unchecked == ("max_latency_ms",)
    assert failure(outcome) is None
    raw = (work / "build" / "digits-1.0.0" / "report.json").read_bytes()
    (told,) = read_report(raw)["targets"]
    assert told["validated_on"] == made.validated_on
    assert told["unchecked"] == ["max_latency_ms"]
    assert told["latency"] is None


def test_the_bundle_of_a_target_that_now_misses_is_removed(work: Path) -> None:
    assert failure(built(recipe(work, "cpu-x86_64", extra=QUICK))) is None
    assert bundles(work) == ["cpu-x86_64.edgeml"]
    tight = QUICK + "\n[budget]\nmax_size_bytes = 10\n"
    outcome = built(recipe(work, "cpu-x86_64", extra=tight))
    assert bundles(work) == []
    assert "max_size_bytes" in outcome.targets[0].choice_reason
    assert (work / "build" / "digits-1.0.0" / "report.html").is_file()


def test_a_bundle_that_was_lost_is_made_again(work: Path) -> None:
    path = recipe(work, "cpu-x86_64", extra=QUICK)
    first = built(path)
    (file,) = work.glob("build/*/*.edgeml")
    before = file.read_bytes()
    file.unlink()
    assert built(path) == first
    assert file.read_bytes() == before


def test_random_samples_are_enough_for_agreement(work: Path) -> None:
    path = recipe(work, "cpu-x86_64", extra=QUICK)
    text = path.read_text().replace("train.npz", "random:40")
    text = text.replace("held.npz", "random:60").replace("top1", "agreement")
    text = text.replace('inputs = "x"\nlabel = "y"\n', "")
    path.write_text(text)
    outcome = built(path)
    assert failure(outcome) is None
    assert outcome.oracle.metrics["agreement"] == 1.0
    assert outcome.oracle.samples == 60
    assert outcome.calibration["pool"] == 40
