"""QAT: int8 gets back what quantization took, and the artifact computes what was
trained."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from digits import model as digits_model
from digits import splits
from hardnet import HardNet, hardnet
from sklearn.datasets import load_digits

from device_agent.contract.tensors import Feeds
from edgeml.backends.base import Base
from edgeml.candidate import Spec
from edgeml.errors import PassError
from edgeml.graphs.preparation import to_bytes
from edgeml.graphs.protos import is_quantized
from edgeml.intake.importer import load_model
from edgeml.model import Model
from edgeml.passes import load_pass
from edgeml.passes.base import Context, digest
from edgeml.training.task import Samples, Task, hold_out
from targets.profile import load_target

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads of a small network wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def right(outputs: Any, labels: Any) -> float:
    return float((next(iter(outputs.values())).argmax(1) == labels).mean())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A float graph with a variable batch, for digits."""
    folder = tmp_path_factory.mktemp("small")
    images, labels, _, _ = splits()
    (folder / "model.onnx").write_bytes(digits_model(images, labels, 4))
    return load_model("model.onnx", None, folder, {})


def task(work: Path | None = None, seed: int = 0) -> Task:
    images, labels, _, _ = splits()
    samples = Samples({"image": images[:400]}, labels[:400])
    return Task(*hold_out(samples, seed), right, Path(), seed, work=work)


def trained(model: Model, **parameters: Any) -> Model:
    given = {"epochs": 1, "batch": 32, "learning_rate": 1e-3, **parameters}
    return load_pass("qat", given)(model, Context(task=task()))


def outputs(proto: Any, feeds: list[Feeds], target: str = "cpu-x86_64") -> Any:
    """What the target's runtime gives, with the target's options."""
    from edgeml.backends.onnxruntime import OnnxRuntimeBackend

    chosen, backend = load_target(target), OnnxRuntimeBackend()
    model = Model("graph", proto, (), ())
    spec = Spec("int8 qat", "int8", "qat")
    artifact = backend.retrained(model, chosen, spec, Base(model, spec, feeds))
    options = {**chosen.runtime_options, **artifact.options}
    session = backend._open(artifact.files[artifact.entry], options)
    found = [next(iter(session.predict(feed).values())) for feed in feeds]
    session.close()
    return np.concatenate(found)


@pytest.mark.parametrize(("scheme", "kind"), [
    ("auto", onnx.TensorProto.UINT8), ("u8s8", onnx.TensorProto.UINT8),
    ("s8s8", onnx.TensorProto.INT8),
])  # fmt: skip
def test_a_float_graph_is_quantized_in_the_wanted_scheme(
    small: Model, scheme: str, kind: int
) -> None:
    made = load_pass("qat", {"epochs": 0, "scheme": scheme})(
        small, Context(feeds=tuple({"image": one[None]} for one in splits()[0][:8]))
    )
    types = {one.name: one.data_type for one in made.payload.graph.initializer}
    found = {types[node.input[2]] for node in made.payload.graph.node
             if node.op_type == "QuantizeLinear"}  # fmt: skip
    assert found == {kind}
    assert made.lineage[-1].parameters["begins"] == "ort minmax"


def test_without_feeds_the_training_samples_give_the_ranges(small: Model) -> None:
    assert is_quantized(trained(small, epochs=0).payload)


def test_without_either_it_says_so(small: Model) -> None:
    with pytest.raises(PassError, match="there are no training samples"):
        load_pass("qat")(small, Context())


def test_a_quantized_graph_is_trained_as_it_is(small: Model) -> None:
    before = trained(small, epochs=0)
    after = trained(before)
    assert after.lineage[-1].parameters["begins"] == "as given"
    assert [(one.op_type, one.input) for one in after.payload.graph.node] == [
        (one.op_type, one.input) for one in before.payload.graph.node
    ]
    assert digest(after) != digest(before)
    assert (after.inputs, after.outputs) == (small.inputs, small.outputs)


def test_the_same_seed_gives_the_same_bytes_and_resumes(
    small: Model, tmp_path: Path
) -> None:
    first, second = (to_bytes(trained(small).payload) for _ in range(2))
    assert first == second
    step = load_pass("qat", {"epochs": 1, "batch": 32, "learning_rate": 1e-3})
    for _ in range(2):  # the second finds what the first left
        made = step(small, Context(task=task(tmp_path)))
        assert to_bytes(made.payload) == first
    assert (tmp_path / "qat").is_dir()


def test_the_lineage_tells_what_was_learned(small: Model) -> None:
    facts = trained(small).lineage[-1].parameters
    assert facts["epochs_run"] == 1
    assert facts["holdout_after"] >= facts["holdout_before"]
    assert facts["learning_rate"] == 1e-3


@pytest.mark.parametrize("target", ["cpu-x86_64", "cpu-x86_64-vnni"])
@pytest.mark.parametrize("scheme", ["u8s8", "s8s8"])
def test_the_artifact_computes_what_was_trained(
    small: Model, target: str, scheme: str
) -> None:
    from edgeml.training.simulation import Simulation

    made = trained(small, scheme=scheme)
    images = splits()[2]
    with torch.no_grad():
        module = Simulation(made.payload, made.inputs).module
        wanted = next(iter(module(torch.from_numpy(images)).values())).numpy()
    found = outputs(made.payload, [{"image": one[None]} for one in images], target)
    step = np.diff(np.unique(found.round(6))).min()
    assert np.abs(found - wanted).max() <= 1.001 * step


# --- the acceptance: a network that quantization hurts


@cache
def hard() -> HardNet:
    return hardnet()


def hard_model() -> Model:
    from edgeml.graphs.protos import spec_of

    graph = hard().model.graph
    return Model(
        "graph", hard().model, tuple(map(spec_of, graph.input)),
        tuple(spec_of(one, "output") for one in graph.output),
    )  # fmt: skip


def hard_task() -> Task:
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    places = np.random.default_rng(0).permutation(len(images))[:1200]  # its own split
    samples = Samples({"x": images[places]}, digits.target[places])
    return Task(*hold_out(samples, 0), right, Path())


def accuracy(proto: Any) -> float:
    found = outputs(proto, list(hard().validation)).argmax(1)
    return float((found == hard().labels).mean())


@pytest.mark.long
def test_it_recovers_half_of_what_quantization_took() -> None:
    given = {"epochs": 12, "batch": 48, "learning_rate": 1e-2}
    context = Context(feeds=tuple(hard().calibration), task=hard_task())
    exact = accuracy(hard().model)
    plain = load_pass("qat", {"epochs": 0})(hard_model(), context)
    made = load_pass("qat", given)(hard_model(), context)
    lost = exact - accuracy(plain.payload)
    recovered = accuracy(made.payload) - accuracy(plain.payload)
    assert lost > 0.02
    assert recovered >= 0.5 * lost, f"lost {lost:.3f}, recovered {recovered:.3f}"
