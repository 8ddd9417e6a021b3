"""convert-weights: what becomes safetensors, and what never runs."""

import importlib.util
import sys
from pathlib import Path

import pytest
from unlimited import HERE, read_apart, read_here  # noqa: F401

from edgeml.errors import ModelError, UsageError
from edgeml.intake.weights import convert_weights

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402

_SPEC = importlib.util.spec_from_file_location(
    "onnxfiles", Path(__file__).parents[2] / "simulators" / "malformed" / "onnxfiles.py"
)
hostile = importlib.util.module_from_spec(_SPEC)
sys.modules["onnxfiles"] = hostile
_SPEC.loader.exec_module(hostile)


def _converted(folder, value, **options):
    torch.save(value, folder / "w.pth", **options)
    facts = convert_weights(folder / "w.pth", folder / "w.safetensors")
    return facts, load_file(folder / "w.safetensors")


@pytest.mark.parametrize(
    ("zipped", "read"), [(True, "read_apart"), (False, "read_here")]
)
def test_a_state_dict(tmp_path, zipped, read, request):
    request.getfixturevalue(read)
    state = torch.nn.Linear(4, 3).state_dict()
    facts, loaded = _converted(tmp_path, state, _use_new_zipfile_serialization=zipped)
    assert facts["tensors"] == 2 and facts["parameters"] == 15
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.pth", "w.safetensors"]


@HERE
def test_a_checkpoint_is_unwrapped(tmp_path):
    state = {"module.a": torch.ones(2), "module.b": torch.zeros(3), "module.epoch": 7}
    facts, loaded = _converted(tmp_path, {"epoch": 3, "model": {"state_dict": state}})
    assert sorted(loaded) == ["a", "b"]
    assert facts["unwrapped"] == ["model", "state_dict", "module."]
    assert facts["left_out"] == {"module.epoch": "int"}


@HERE
def test_shared_and_strided_tensors(tmp_path):
    whole = torch.arange(6.0).reshape(2, 3)
    given = {"a": whole, "same": whole, "turned": whole.t(), "row": whole[1]}
    _, loaded = _converted(tmp_path, given)
    assert all(torch.equal(loaded[name], given[name]) for name in given)


@HERE
def test_the_same_weights_give_the_same_bytes(tmp_path):
    one, two = {"a": torch.ones(2), "b": torch.ones(3)}, {}
    two["b"], two["a"] = one["b"], one["a"]
    _converted(tmp_path, one)
    first = (tmp_path / "w.safetensors").read_bytes()
    _converted(tmp_path, two)
    assert first == (tmp_path / "w.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("protocol", "read"), [(0, "read_here"), (2, "read_apart"), (4, "read_here")]
)
def test_an_evil_pickle_never_runs(tmp_path, protocol, read, request):
    request.getfixturevalue(read)
    path = hostile.evil_pickle("w.pth", protocol)(tmp_path)
    with pytest.raises(ModelError) as caught:
        convert_weights(path, tmp_path / "w.safetensors")
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def test_an_evil_pickle_in_a_torch_archive_is_named(tmp_path):
    torch.save({"a": torch.ones(2), "b": hostile.Evil(str(tmp_path / "OWNED"))},
               tmp_path / "w.pth")  # fmt: skip
    with pytest.raises(ModelError, match=r"it wants to load .*open"):
        convert_weights(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]


def _refused(folder, reason):
    (folder / "w.safetensors").write_bytes(b"what was there")
    with pytest.raises(ModelError, match=reason) as caught:
        convert_weights(folder / "w.pth", folder / "w.safetensors")
    assert "\n" not in str(caught.value)
    assert (folder / "w.safetensors").read_bytes() == b"what was there"


@HERE
def test_a_whole_module_is_refused_by_its_class(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 3)), tmp_path / "w.pth")
    _refused(tmp_path, r"torch.nn.modules.container.Sequential.*state_dict\(\)")


@HERE
def test_torchscript_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(4, 3)).save(str(tmp_path / "w.pth"))
    _refused(tmp_path, "TorchScript")


@HERE
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "no tensors"),
        ({"epoch": 3}, "no tensors"),
        ([1, 2], "holds a list"),
        (torch.ones(2), "without a name"),
        ({"a": torch.ones(2, 2).to_sparse()}, "'a' is sparse_coo"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "'a' is strided complex64"),
    ],
)
def test_what_holds_no_weights(tmp_path, value, reason):
    torch.save(value, tmp_path / "w.pth")
    _refused(tmp_path, reason)


@HERE
def test_noise_and_absence(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02garbage" * 9)
    _refused(tmp_path, "no file of pickled weights")
    (tmp_path / "w.pth").write_bytes(b"")
    _refused(tmp_path, "0 bytes")
    (tmp_path / "w.pth").unlink()
    _refused(tmp_path, "no regular file")


def test_where_it_may_write(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"ends in \.safetensors"):
        convert_weights(tmp_path / "w.pth", tmp_path / "w.bin")
    with pytest.raises(UsageError, match="does not exist"):
        convert_weights(tmp_path / "w.pth", tmp_path / "no" / "w.safetensors")
