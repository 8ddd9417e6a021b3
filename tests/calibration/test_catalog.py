"""The described data sets: they load, they are apart, they say where they are from."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from calibration import catalog
from calibration.dataset import DataSource, MissingData, check_disjoint, load

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SIZES = {
    "basic_pitch": {"calibration": 31, "validation": 22},
    "digits": {"train": 1343, "validation": 454},
    "fsdd": {"train": 2700, "validation": 300},
    "mlperf_tiny_kws": {"calibration": 100, "validation": 400},
    "occupancy": {"calibration": 8143, "validation": 12411},
    "ultraface": {"calibration": 80, "validation": 160},
    "silero_vad": {"calibration": 1250, "validation": 625},
}
FOLDERS = {"digits": None, "ultraface": None}


@pytest.mark.parametrize("name", SIZES)
def test_splits_have_their_size_and_are_disjoint(name: str) -> None:
    if name == "ultraface":
        pytest.importorskip("skimage")
    folder = FOLDERS.get(name, name)
    if folder and not (DATA / folder).is_dir():
        pytest.skip(f"../shared/data/{folder} is absent")
    splits = {
        split: load(DataSource(f"set:{name}/{split}"), Path()) for split in SIZES[name]
    }
    assert {split: len(one) for split, one in splits.items()} == SIZES[name]
    for one, other in combinations(splits.values(), 2):
        check_disjoint(one, other)


@pytest.mark.parametrize("name", catalog.names())
def test_every_set_says_where_it_is_from(name: str) -> None:
    about = catalog.describe(name)
    assert all(about[key].strip() for key in catalog.ABOUT)
    assert "validation" in about["splits"]


def test_recipe_goes_before_the_set() -> None:
    source, _, _ = catalog.resolve(DataSource("set:digits/train", limit=3))
    assert source.limit == 3
    assert source.location == "calibration.sets.digits:train"


def test_digits_are_digits() -> None:
    data = load(DataSource("set:digits/train"), Path())
    assert data[0].value.shape == (8, 8) and data[0].value.dtype == np.uint8
    assert set(data.labels or []) == set(range(10))


def test_absent_files_name_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    described = {
        "source": "a museum",
        "splits": {"train": {"location": "../nowhere/none.npz"}},
    }
    monkeypatch.setattr(catalog, "describe", lambda name: described)
    with pytest.raises(MissingData, match=r"none\.npz.*a museum"):
        catalog.resolve(DataSource("set:any/train"))


def test_speech_states_are_those_of_a_running_model() -> None:
    if not (DATA / "silero_vad").is_dir():
        pytest.skip("../shared/data/silero_vad is absent")
    data = load(DataSource("set:silero_vad/validation_16k", limit=20), Path())
    states = [one.value["state"] for one in data]
    assert not states[0].any()
    assert all(state.any() for state in states[1:])
    first, second = data[0].value["input"], data[1].value["input"]
    np.testing.assert_array_equal(first[:, -64:], second[:, :64])


def test_mnist_is_read_by_its_keys() -> None:
    if not (DATA / "mnist").is_dir():
        pytest.skip("../shared/data/mnist is absent")
    for split in ("train", "validation"):
        data = load(DataSource(f"set:mnist/{split}", limit=50), Path())
        assert len(data) == 50 and data[0].value.shape == (28, 28)
        assert set(data.labels or []) <= set(range(10))


def test_scenes_show_faces_and_repeat() -> None:
    pytest.importorskip("skimage")
    if not (DATA / "ultraface").is_dir():
        pytest.skip("../shared/data/ultraface is absent")
    import onnxruntime

    scenes = load(DataSource("set:ultraface/calibration", limit=24), Path())
    again = load(DataSource("set:ultraface/calibration", limit=24), Path())
    assert scenes.digest == again.digest
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(DATA / "ultraface" / "version-RFB-320.onnx"), options
    )
    seen = 0
    for scene in scenes:
        assert scene.value.shape == (240, 320, 3) and scene.value.dtype == np.uint8
        image = (scene.value.astype(np.float32) - 127) / 128
        scores, _ = session.run(None, {"input": image.transpose(2, 0, 1)[None]})
        seen += bool(scores[0, :, 1].max() > 0.5)
    assert seen >= 20
