"""A network that plain int8 breaks: depthwise convolutions, swish, outlier channels.

Trained on scikit-learn's digits, then inflated without a change of what it computes: in
front of each depthwise convolution two of the channels are multiplied by 300, and the
convolution's weights take that back. One scale for the whole tensor no longer holds
both the two channels and the rest.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHANNELS = 24
BLOCKS = 3
EPOCHS = 20


@dataclass(frozen=True)
class HardNet:
    """The graph, held-out digits as feeds, their labels, and the float accuracy."""

    model: Any
    calibration: list[dict[str, NDArray[np.float32]]]
    validation: list[dict[str, NDArray[np.float32]]]
    labels: NDArray[np.int64]


def hardnet(seed: int = 0) -> HardNet:
    """Train (a few seconds), inflate, and give graph and data; deterministic."""
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(images))
    train, held = order[:1200], order[1200:]
    weights = _trained(images[train], digits.target[train], seed)
    feeds = [{"x": image[None]} for image in images]
    return HardNet(
        model=_graph(weights, np.random.default_rng(seed)),
        calibration=[feeds[index] for index in train[:100]],
        validation=[feeds[index] for index in held],
        labels=digits.target[held].astype(np.int64),
    )


def _trained(
    images: NDArray[np.float32], labels: NDArray[Any], seed: int
) -> dict[str, NDArray[np.float32]]:
    import torch
    from torch import nn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    layers: dict[str, nn.Module] = {"stem": nn.Conv2d(1, CHANNELS, 3, padding=1)}
    for block in range(BLOCKS):
        layers[f"dw{block}"] = nn.Conv2d(
            CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS
        )
        layers[f"pw{block}"] = nn.Conv2d(CHANNELS, CHANNELS, 1)
    layers["fc"] = nn.Linear(CHANNELS, 10)
    net = nn.ModuleDict(layers)

    def forward(x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(net["stem"](x))
        for block in range(BLOCKS):
            x = nn.functional.silu(net[f"dw{block}"](x))
            x = nn.functional.silu(net[f"pw{block}"](x))
        return net["fc"](x.mean((2, 3)))

    xs, ys = torch.from_numpy(images), torch.from_numpy(labels).long()
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 2e-2, total_steps=EPOCHS * 25
    )
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(xs)).split(48):
            loss = nn.functional.cross_entropy(forward(xs[batch]), ys[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    torch.set_num_threads(threads)
    return {name: value.detach().numpy() for name, value in net.state_dict().items()}


def _graph(weights: dict[str, NDArray[np.float32]], random: Any) -> Any:
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes, constants = [], []

    def constant(name: str, value: NDArray[Any]) -> str:
        constants.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(name: str, x: str, weight: NDArray[Any], **attributes: Any) -> str:
        inputs = [x, constant(f"{name}.w", weight)]
        inputs.append(constant(f"{name}.b", weights[f"{name}.bias"]))
        nodes.append(helper.make_node("Conv", inputs, [name], name, **attributes))
        return name

    def swish(x: str) -> str:
        nodes.append(helper.make_node("Sigmoid", [x], [f"{x}.s"], f"{x}.sigmoid"))
        nodes.append(helper.make_node("Mul", [x, f"{x}.s"], [f"{x}.y"], f"{x}.swish"))
        return f"{x}.y"

    x = swish(conv("stem", "x", weights["stem.weight"], pads=[1] * 4))
    for block in range(BLOCKS):
        # Two channels of 24 stand out; the depthwise weights take it back.
        factor = np.ones((1, CHANNELS, 1, 1), np.float32)
        factor[0, random.choice(CHANNELS, 2, replace=False)] = 300.0
        name = f"dw{block}"
        inflated = f"{name}.inflated"
        nodes.append(
            helper.make_node(
                "Mul", [x, constant(f"{name}.factor", factor)], [inflated], inflated
            )
        )
        weight = weights[f"{name}.weight"] / factor.reshape(CHANNELS, 1, 1, 1)
        x = swish(conv(name, inflated, weight, pads=[1] * 4, group=CHANNELS))
        x = swish(conv(f"pw{block}", x, weights[f"pw{block}.weight"]))
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pooled"], "pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"))
    constant("fc.w", weights["fc.weight"])
    constant("fc.b", weights["fc.bias"])
    nodes.append(
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["y"], "fc", transB=1)
    )
    graph = helper.make_graph(
        nodes,
        "hardnet",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    checker.check_model(model, full_check=True)
    return model
