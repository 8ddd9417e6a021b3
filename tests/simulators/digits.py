"""A small real problem for end-to-end tests: scikit-learn's digits as npz and ONNX.

The network is a frozen ONNX graph with weights from a least-squares fit on random
convolution features, so it needs no torch and no training loop.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits


def splits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images [N, 1, 8, 8] from 0 to 1 and labels: 900 to calibrate, the rest to judge.

    A picture that is there twice is taken once.
    """
    digits = load_digits()
    _, first = np.unique(digits.data, axis=0, return_index=True)
    order = np.random.default_rng(0).permutation(np.sort(first))
    images = (digits.images[order] / 16).astype(np.float32)[:, None]
    labels = digits.target[order]
    return images[:900], labels[:900], images[900:1300], labels[900:1300]


def write(folder: Path, *, channels: int = 96) -> None:
    """``train.npz``, ``held.npz`` and ``model.onnx``."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels, held, answers = splits()
    np.savez(folder / "train.npz", x=images, y=labels)
    np.savez(folder / "held.npz", x=held, y=answers)
    (folder / "model.onnx").write_bytes(model(images, labels, channels))


def model(images: np.ndarray, labels: np.ndarray, channels: int) -> bytes:
    """conv 3x3 → relu → max pool → conv 3x3 → relu → mean pool 2 → linear."""
    generator = np.random.default_rng(1)
    first = generator.normal(0, 0.5, (channels, 1, 3, 3)).astype(np.float32)
    second = generator.normal(0, 0.05, (channels, channels, 3, 3)).astype(np.float32)
    head = np.zeros((channels * 4, 10), np.float32)
    features = _run(_graph(first, second, head, "features"), images)
    wanted = np.eye(10)[labels] * 2 - 1
    gram = features.T @ features + 1e-1 * np.eye(features.shape[1])
    head = np.linalg.solve(gram, features.T @ wanted).astype(np.float32)
    return _graph(first, second, head, "scores").SerializeToString()


def _run(proto: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(proto.SerializeToString())
    return session.run(None, {"image": images})[0].astype(np.float64)


def _graph(
    first: np.ndarray, second: np.ndarray, head: np.ndarray, output: str
) -> onnx.ModelProto:
    weights = {"first": first, "second": second, "head": head}
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["a"], "conv1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "relu1"),
        helper.make_node(
            "MaxPool", ["b"], ["c"], "pool1", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Conv", ["c", "second"], ["d"], "conv2", pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["e"], "relu2"),
        helper.make_node(
            "AveragePool", ["e"], ["f"], "pool2", kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Flatten", ["f"], ["features"], "flatten", axis=1),
        helper.make_node("MatMul", ["features", "head"], ["scores"], "head"),
    ]
    width = 10 if output == "scores" else head.shape[0]
    graph = helper.make_graph(
        nodes if output == "scores" else nodes[:-1],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()
         if output == "scores" or name != "head"],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


RECIPE = """\
[model]
source = "model.onnx"
name = "digits"
version = "1.0.0"

[data]
calibration = "train.npz"
validation = "held.npz"
inputs = "x"
label = "y"
samples = 64

[metric]
name = "top1"

{extra}

[build]
targets = [{targets}]
seed = 0
"""


def recipe(folder: Path, *targets: str, extra: str = "") -> Path:
    """``recipe.toml`` for these targets; ``extra`` is more TOML."""
    path = folder / "recipe.toml"
    names = ", ".join(f'"{name}"' for name in targets)
    path.write_text(RECIPE.format(targets=names, extra=extra))
    return path
