"""Every profile is complete, and a wrong one is refused with all its mistakes."""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from device_agent.contract.manifest import Name
from device_agent.runtimes import RUNTIMES, runtime
from targets.profile import (
    FIGURES,
    ProfileError,
    describe,
    load_file,
    load_target,
    target_names,
)

OURS = {
    "cpu-x86_64", "cpu-x86_64-vnni", "openvino-cpu", "openvino-igpu", "gpu-cuda",
    "gpu-tensorrt", "rpi3", "rpi4", "rpi5", "armv7", "jetson-orin", "reference",
}  # fmt: skip


def test_the_targets_of_this_version():
    assert set(target_names()) == OURS
    assert target_names() == sorted(OURS)


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_profile_is_complete(name: str):
    target = load_target(name)
    assert target.name == TypeAdapter(Name).validate_python(name)
    assert set(target.tolerances) == set(target.precisions)
    assert all(target.sources[figure] for figure in FIGURES)
    assert target.compatible[0] == name
    assert target.runtime_options["threads"] == target.threads
    json.dumps(describe(target), allow_nan=False)


@pytest.mark.parametrize("name", sorted(OURS))
def test_each_runtime_knows_the_options_it_gets(name: str):
    target = load_target(name)
    if target.runtime not in RUNTIMES:
        pytest.skip(f"runtime {target.runtime} is not in this version")
    assert set(target.runtime_options) <= runtime(target.runtime).options


def test_which_targets_saturate():
    assert load_target("cpu-x86_64").saturates_u8s8
    assert load_target("openvino-cpu").saturates_u8s8
    assert not load_target("cpu-x86_64-vnni").saturates_u8s8
    assert not load_target("rpi5").saturates_u8s8


def test_a_gpu_says_which_precision_it_likes_and_where_that_is_from():
    for name in ("gpu-cuda", "gpu-tensorrt", "jetson-orin"):
        target = load_target(name)
        assert sorted(target.preference) == sorted(target.precisions)
        assert target.sources["preference"]
        assert target.runtime_options["cpu_fallback"] is False
    assert load_target("gpu-tensorrt").runtime_options["engine_cache"] == "device"
    assert load_target("cpu-x86_64").preference == ()


@pytest.mark.parametrize(
    ("after", "mistake"),
    [
        ('preference = ["fp16"]', "preference: the precisions"),
        ('preference = ["int2"]', "preference: expected one of"),
    ],
)
def test_a_wrong_preference(tmp_path: Path, after: str, mistake: str):
    text = ours("gpu-cuda")
    before = 'preference = ["fp16", "fp32", "int8"]'
    assert before in text
    (tmp_path / "mine.toml").write_text(text.replace(before, after))
    with pytest.raises(ProfileError, match=mistake):
        load_file(tmp_path / "mine.toml")


def test_a_preference_has_a_source(tmp_path: Path):
    text = ours("gpu-cuda").replace('preference = """\\', 'other = """\\')
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ProfileError, match=r"sources\.preference: missing"):
        load_file(tmp_path / "mine.toml")


def test_qemu_cpus():
    found = {name: load_target(name).qemu_cpu for name in target_names()}
    assert found["rpi3"] == "cortex-a53"
    assert found["rpi4"] == "cortex-a72"
    assert found["rpi5"] == found["jetson-orin"] == "cortex-a76"
    assert found["armv7"] == "cortex-a7"
    assert found["cpu-x86_64"] == "Haswell"
    assert found["cpu-x86_64-vnni"] is None


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(ProfileError, match=r"no target 'rpi44'; did you mean 'rpi4'"):
        load_target("rpi44")


def ours(name: str) -> str:
    folder = Path(__file__).resolve().parents[2] / "targets"
    return (folder / f"{name}.toml").read_text()


def test_a_profile_of_ones_own(tmp_path: Path):
    (tmp_path / "my-board.toml").write_text(ours("rpi4"))
    target = load_target("my-board.toml", tmp_path)
    assert (target.name, target.qemu_cpu) == ("my-board", "cortex-a72")
    assert load_file(tmp_path / "my-board.toml") == target


@pytest.mark.parametrize(
    ("before", "after", "mistake"),
    [
        ('arch = "x86_64"', 'arch = "sparc"', "arch: expected one of x86_64"),
        ("threads = 1", "threads = 0", "threads: expected a whole number from 1"),
        ("threads = 1", "thread = 1", "thread: unknown key; did you mean 'threads'"),
        ("threads = 1", "", "threads: missing"),
        ("[runtime_options]", "[runtime_options]\nthreads = 2", "belongs to the key"),
        ("fp32 = {", "fp33 = {", "tolerances: unknown precision 'fp33'"),
        ("atol = 1e-5", "atol = nan", "fp32: expected atol and rtol, finite"),
        ('"fp32", ', "", "tolerances: one per precision"),
        ('isa = """', 'iso = """', "sources.isa: missing"),
        ('compatible = ["cpu-x86_64"]', "compatible = []", "a list of 1 or more"),
        ("arena = false", "arena = []", "arena: expected a number, text"),
        ("title =", "title", "not TOML"),
        ("[tolerances]", "[[tolerances]]", "tolerances: expected a table"),
    ],
)
def test_a_wrong_profile(tmp_path: Path, before: str, after: str, mistake: str):
    text = ours("cpu-x86_64")
    assert before in text
    (tmp_path / "mine.toml").write_text(text.replace(before, after, 1))
    with pytest.raises(ProfileError) as caught:
        load_file(tmp_path / "mine.toml")
    assert mistake in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_all_mistakes_at_once(tmp_path: Path):
    (tmp_path / "mine.toml").write_text('title = ""\narch = 3\nthreads = true\n')
    with pytest.raises(ProfileError) as caught:
        load_file(tmp_path / "mine.toml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 13
    assert all(line.startswith("mine.toml: ") for line in lines)


def test_files_that_are_no_profiles(tmp_path: Path):
    with pytest.raises(ProfileError, match="cannot be read"):
        load_file(tmp_path / "absent.toml")
    (tmp_path / "Big Name.toml").write_text(ours("rpi3"))
    with pytest.raises(ProfileError, match="called like its file"):
        load_file(tmp_path / "Big Name.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(ProfileError, match="not TOML"):
        load_file(tmp_path / "bytes.toml")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 5000)
    with pytest.raises(ProfileError, match="not TOML"):
        load_file(tmp_path / "deep.toml")
