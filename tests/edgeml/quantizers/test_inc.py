import os
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("neural_compressor")

from device_agent.contract.tensors import TensorSpec  # noqa: E402
from edgeml.errors import BackendError, MachineLacks  # noqa: E402
from edgeml.model import Model  # noqa: E402
from edgeml.quantizers.inc import quantize_module, quantize_origin, ways  # noqa: E402


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def samples():
    draw = np.random.default_rng(0)
    return [{"x": draw.normal(size=(1, 1, 8, 8)).astype(np.float32)} for _ in range(12)]


@pytest.fixture(scope="module")
def quantized(net, samples):
    return quantize_module(net, samples, output_names=["y"])


def run(model, feeds):
    session = ort.InferenceSession(model.SerializeToString())
    return session.run(None, dict(feeds))[0]


def test_the_weights_are_int8_and_the_answers_near_the_float_ones(
    net, samples, quantized
):
    onnx.checker.check_model(quantized, full_check=True)
    kinds = {item.data_type for item in quantized.graph.initializer if item.dims}
    assert onnx.TensorProto.INT8 in kinds
    assert [item.version for item in quantized.opset_import if not item.domain] == [21]
    for feeds in samples[:3]:
        exact = net(torch.from_numpy(feeds["x"])).detach().numpy()
        assert np.abs(run(quantized, feeds) - exact).max() < 0.05


def test_the_same_inputs_give_the_same_bytes(net, samples, quantized):
    again = quantize_module(net, samples, output_names=["y"])
    assert again.SerializeToString(deterministic=True) == quantized.SerializeToString(
        deterministic=True
    )


def test_a_kept_type_stays_in_float(net, samples):
    model = quantize_module(
        net, samples, output_names=["y"], act_algo="kl", keep_types=["Linear"]
    )
    (head,) = (node for node in model.graph.node if node.op_type == "Gemm")
    weights = {item.name: item for item in model.graph.initializer}
    assert weights[head.input[1]].data_type == onnx.TensorProto.FLOAT


def test_the_batch_may_stay_variable(net, samples):
    model = quantize_module(net, samples, output_names=["y"], dynamic_batch=True)
    assert run(model, {"x": np.zeros((5, 1, 8, 8), np.float32)}).shape == (5, 4)


def test_the_module_is_not_changed(samples):
    module = Net().train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    quantize_module(module, samples, output_names=["y"])
    assert module.training
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)


def test_what_cannot_be_traced_is_an_error_with_its_reason(samples):
    class Branching(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(BackendError, match="Neural Compressor could not"):
        quantize_module(Branching(), samples, output_names=["y"])


def test_an_unknown_type_to_keep_is_an_error(net, samples):
    with pytest.raises(BackendError, match="no layer type 'Dense'"):
        quantize_module(net, samples, output_names=["y"], keep_types=["Dense"])


def test_no_samples_is_an_error(net):
    with pytest.raises(BackendError, match="it got none"):
        quantize_module(net, [], output_names=["y"])


def test_a_machine_without_it_says_what_to_install(net, samples, monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_compressor.torch.export", None)
    with pytest.raises(MachineLacks, match=r"pip install 'edgeml\[torch\]'"):
        quantize_module(net, samples, output_names=["y"])
    assert "HABANA_LOGS" not in os.environ


def graph_of(net, batch):
    """A graph-level model that remembers ``net``; its own payload is not looked at."""
    x = TensorSpec(name="x", datatype="FP32", shape=(batch, 1, 8, 8))
    y = TensorSpec(name="scores", datatype="FP32", shape=(batch, 4))
    module = Model("module", net, (x,), (y,))
    return Model("graph", None, (x,), (y,), origin=lambda: module)


@pytest.mark.parametrize("batch", [1, pytest.param(-1, marks=pytest.mark.long)])
def test_the_origin_of_a_graph_is_quantized_with_the_graphs_names(net, samples, batch):
    backwards = [dict(reversed(feeds.items())) for feeds in samples]
    for options in ways((), True).values():
        made = quantize_origin(graph_of(net, batch), backwards, **options)
        assert [value.name for value in made.graph.input] == ["x"]
        assert [value.name for value in made.graph.output] == ["scores"]
        first = made.graph.input[0].type.tensor_type.shape.dim[0]
        assert first.HasField("dim_value") is (batch == 1)


def test_the_recipes_methods_and_granularity_reach_the_tool():
    assert ways((), True).keys() == {"minmax", "kl"}
    assert ways(("entropy", "percentile"), False) == {
        "kl": {"act_algo": "kl", "granularity": "per_tensor"}
    }


@pytest.mark.long
def test_per_tensor_weights_have_one_scale(net, samples):
    model = graph_of(net, 1)
    options = ways(("minmax",), False)["minmax"]
    wide, narrow = (
        quantize_origin(model, samples, **one)
        for one in (options, ways(("minmax",), True)["minmax"])
    )
    assert wide.ByteSize() < narrow.ByteSize()
