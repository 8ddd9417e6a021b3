"""What load_model takes, what it refuses, and what it says then."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from unlimited import HERE, read_here  # noqa: F401

from edgeml.errors import ModelError
from edgeml.intake.importer import kind_of, load_model, load_onnx
from edgeml.intake.sandbox import Limits

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def _generators():
    path = Path(__file__).parents[2] / "simulators" / "malformed" / "onnxfiles.py"
    spec = importlib.util.spec_from_file_location("onnxfiles", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["onnxfiles"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


hostile = _generators()


def _load(path: Path, **pinned):
    return load_model(path.name, None, path.parent, pinned)


def _save(folder: Path, model) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", hostile.MALFORMED)
def test_malformed_is_refused_in_one_line(name, tmp_path):
    case = hostile.MALFORMED[name]
    with pytest.raises(ModelError) as caught:
        _load(case.write(tmp_path))
    text = str(caught.value)
    assert re.search(case.reason, text, re.IGNORECASE), text
    assert "\n" not in text and "Traceback" not in text and len(text) <= 400
    assert not list(tmp_path.rglob("OWNED"))


def test_an_endless_loop_meets_the_clock(tmp_path):
    with pytest.raises(ModelError, match="more than the 2 s of CPU"):
        load_onnx(hostile.endless_loop(tmp_path), {}, Limits(cpu_s=2))


def test_a_sound_model_comes_in(tmp_path):
    model = _load(hostile.good(tmp_path))
    assert model.level == "graph"
    assert [spec.shape for spec in (*model.inputs, *model.outputs)] == [(1, 4)] * 2
    assert model.lineage[0].verb == "load"
    assert list(model.lineage[0].parameters["files"]) == ["m.onnx"]


@HERE
def test_initializers_are_no_inputs_and_nodes_get_names(tmp_path):
    weights = numpy_helper.from_array(np.ones((1, 4), np.float32), "w")
    made = hostile.model(
        [
            helper.make_node("Add", ["x", "w"], ["a"], name="same"),
            helper.make_node("Relu", ["a"], ["b"], name="same"),
            helper.make_node("Relu", ["b"], ["y"]),
        ],
        inputs=[hostile.tensor("x", [1, 4]), hostile.tensor("w", [1, 4])],
        initializers=[weights],
    )
    made.ir_version = 3
    model = _load(_save(tmp_path, made))
    assert [spec.name for spec in model.inputs] == ["x"]
    assert [value.name for value in model.payload.graph.input] == ["x"]
    names = [node.name for node in model.payload.graph.node]
    assert names == ["same", "Relu_1", "Relu_2"]


def test_external_data_beside_the_model_is_inlined(tmp_path):
    path = hostile.external("w.bin", lambda inner: (inner / "w.bin").write_bytes(
        np.arange(4, dtype=np.float32).tobytes()))(tmp_path)  # fmt: skip
    model = _load(path)
    (weights,) = model.payload.graph.initializer
    assert numpy_helper.to_array(weights).tolist() == [0, 1, 2, 3]
    assert sorted(model.lineage[0].parameters["files"]) == ["m.onnx", "w.bin"]


@HERE
def test_a_pin_binds_its_symbol_everywhere(tmp_path):
    made = hostile.model(
        inputs=[hostile.tensor("x", ["N", "T"])],
        outputs=[hostile.tensor("y", ["N", "T"])],
    )
    model = _load(_save(tmp_path, made), x=[-1, 6])
    assert model.inputs[0].shape == model.outputs[0].shape == (-1, 6)
    with pytest.raises(ModelError, match=r"pins 'x' to \[1\], but the model takes"):
        _load(tmp_path / "m.onnx", x=[1])
    with pytest.raises(ModelError, match="pins 'z', which is no input"):
        _load(tmp_path / "m.onnx", z=[1])


@HERE
def test_a_pin_may_not_contradict(tmp_path):
    with pytest.raises(ModelError, match=r"but the model takes \[1, 4\]"):
        _load(hostile.good(tmp_path), x=[1, 5])


@HERE
def test_the_batch_of_a_state_becomes_one(tmp_path):
    made = hostile.model(
        [helper.make_node("Identity", ["x"], ["y"]),
         helper.make_node("Identity", ["s"], ["t"])],
        inputs=[hostile.tensor("x", ["N", 4]), hostile.tensor("s", [2, "N", 3])],
        outputs=[hostile.tensor("y", ["N", 4]), hostile.tensor("t", [2, "N", 3])],
    )  # fmt: skip
    model = _load(_save(tmp_path, made))
    assert [spec.shape for spec in model.inputs] == [(1, 4), (2, 1, 3)]
    assert [spec.shape for spec in model.outputs] == [(1, 4), (2, 1, 3)]


@HERE
def test_remarks_and_paths_are_stripped(tmp_path):
    made = hostile.model(doc_string="made in /home/someone")
    made.graph.node[0].doc_string = "/home/someone/net.py:12"
    made.graph.node[0].metadata_props.add(key="pkg.torch.trace", value="/home/someone")
    assert b"someone" not in _load(_save(tmp_path, made)).payload.SerializeToString()


def test_the_same_file_gives_the_same_bytes(tmp_path):
    path = hostile.good(tmp_path)
    first, second = (_load(path).payload.SerializeToString() for _ in range(2))
    assert first == second


@HERE
@pytest.mark.parametrize(
    ("folder", "file", "pins"),
    [
        ("mnist", "mnist-8.onnx", {}),
        ("mlperf_tiny_kws", "kws_dscnn_float.onnx", {}),
        ("basic_pitch", "nmp.onnx", {}),
        ("ultraface", "version-RFB-320.onnx", {}),
        ("silero_vad", "silero_vad_openvino_16k.onnx", {}),
        ("silero_vad", "silero_vad_16k_op15.onnx", {"input": [1, 576]}),
        ("silero_vad", "silero_vad_half.onnx", {"input": [1, 576]}),
    ],
)
def test_real_models_come_in(folder, file, pins):
    path = DATA / folder / file
    if not path.exists():
        pytest.skip(f"../shared/data/{folder} is absent")
    model = load_model(str(path), None, path.parent, pins)
    onnx.checker.check_model(model.payload)
    assert all(-1 not in spec.shape[1:] for spec in model.inputs)
    names = [node.name for node in model.payload.graph.node]
    assert all(names) and len(set(names)) == len(names)


@HERE
def test_silero_with_both_rates_says_what_to_pin():
    path = DATA / "silero_vad" / "silero_vad.onnx"
    if not path.exists():
        pytest.skip("../shared/data/silero_vad is absent")
    with pytest.raises(ModelError, match=r"pin it in the recipe: \[model\] inputs"):
        load_model(str(path), None, path.parent, {})


NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        self.drop = torch.nn.Dropout()
    def forward(self, x):
        return {"logits": self.fc(self.drop(x))}

def make():
    return Net()
def broken():
    raise ValueError("no\\nluck")
def other():
    return 5
def leaves():
    raise SystemExit(3)
"""


@pytest.fixture
def net(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "someonesnet.py").write_text(NET)
    yield tmp_path
    sys.modules.pop("someonesnet", None)


def _factory(folder, name="make", weights=None, **pinned):
    return load_model(f"someonesnet:{name}", weights, folder, pinned)


def test_a_factory_gives_a_module(net):
    model = _factory(net, x=[1, 4])
    assert model.level == "module" and not model.payload.training
    assert model.inputs[0].shape == (1, 4)
    assert [(spec.name, spec.shape) for spec in model.outputs] == [("logits", (1, 3))]
    assert str(net) not in sys.path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "raised ValueError: no luck"),
        ("other", "gave a int; expected a torch.nn.Module"),
        ("leaves", "raised SystemExit"),
        ("nowhere", "raised AttributeError"),
    ],
)
def test_a_factory_that_fails_is_told_in_one_line(net, name, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        _factory(net, name, x=[1, 4])
    assert "\n" not in str(caught.value)


def test_a_factory_needs_shapes_that_fit(net):
    with pytest.raises(ModelError, match="needs its input shapes"):
        _factory(net)
    with pytest.raises(ModelError, match=r"does not run on zeros .* x \[1, 5\]"):
        _factory(net, x=[1, 5])


def test_two_folders_may_have_a_module_of_one_name(net, tmp_path_factory):
    _factory(net, x=[1, 4])
    other = tmp_path_factory.mktemp("other")
    (other / "someonesnet.py").write_text(NET.replace("4, 3", "4, 7"))
    assert _factory(other, x=[1, 4]).outputs[0].shape == (1, 7)


def test_weights_load_strictly(net):
    import torch
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.ones(3, 4), "fc.bias": torch.zeros(3)}, net / "w.st")
    model = _factory(net, weights="w.st", x=[1, 4])
    assert model.payload.fc.weight.sum() == 12
    save_file({"fc.weight": torch.ones(2, 4), "z": torch.zeros(3)}, net / "w.st")
    with pytest.raises(ModelError) as caught:
        _factory(net, weights="w.st", x=[1, 4])
    text = str(caught.value)
    assert "missing: fc.bias" in text and "unexpected: z" in text
    assert "fc.weight [2, 4] instead of [3, 4]" in text
    save_file({"fc.weight": torch.ones(3, 4) / 0 * 0, "fc.bias": torch.zeros(3)},
              net / "w.st")  # fmt: skip
    with pytest.raises(ModelError, match=r"with NaN: fc\.weight"):
        _factory(net, weights="w.st", x=[1, 4])


def test_weights_must_be_safetensors(net):
    hostile.evil_pickle("w.safetensors")(net)
    with pytest.raises(ModelError, match=r"pickle; expected safetensors.*convert-w"):
        _factory(net, weights="w.safetensors", x=[1, 4])
    (net / "w.st").write_bytes(b"\x08\0\0\0\0\0\0\0{nojson}" + bytes(8))
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        _factory(net, weights="w.st", x=[1, 4])
    assert not (net / "OWNED").exists()


def test_an_exported_program_needs_trust(net):
    import torch

    path = net / "m.pt2"
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(1, 4),)), path)
    assert kind_of(path) == "pt2"
    with pytest.raises(ModelError, match="--trust-model-code"):
        load_model("m.pt2", None, net, {})
    model = load_model("m.pt2", None, net, {}, trust_model_code=True)
    assert model.level == "module"
    assert model.inputs[0].shape == (1, 4) and model.outputs[0].shape == (1, 3)


def test_real_torch_files_are_known_by_content(net):
    import torch

    module = torch.nn.Linear(4, 3)
    torch.save(module.state_dict(), net / "a.onnx")
    torch.save(module.state_dict(), net / "b.onnx",
               _use_new_zipfile_serialization=False)  # fmt: skip
    torch.jit.script(module).save(str(net / "c.onnx"))
    kinds = [kind_of(net / name) for name in ("a.onnx", "b.onnx", "c.onnx")]
    assert kinds == ["pickle", "pickle", "torchscript"]


@HERE
def test_double_precision_is_a_type_like_any_other(tmp_path):
    made = hostile.model(
        inputs=[hostile.tensor("x", [1, 4], TensorProto.DOUBLE)],
        outputs=[hostile.tensor("y", [1, 4], TensorProto.DOUBLE)],
    )
    assert _load(_save(tmp_path, made)).inputs[0].datatype == "FP64"
