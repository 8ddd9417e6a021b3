"""Small networks of each kind, as a user would write them: factories without arguments.

Each takes ``x`` [N, 1, 28, 28] and gives 10 logits. They are seeded: two calls give the
same weights.

| kind | parameters | what is hard about it |
|---|---|---|
| ``plain`` | 214 k | channels are flattened, nine numbers each |
| ``residual`` | 151 k | channels of a stage are tied by additions |
| ``depthwise`` | 70 k | a channel goes through three layers, additions too |
| ``transformer`` | 155 k | heads in plain ``nn.Linear`` layers, LayerNorm, positions |

Beside these four: ``dense`` (concatenation) and ``encoder``
(``nn.TransformerEncoderLayer``, whose heads share their width with the residual
stream).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from device_agent.contract.tensors import TensorSpec
from edgeml.model import Model, Step

SEED = 0


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """What ``make`` makes from the seed; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return make().eval()


def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
         ) -> nn.Sequential:  # fmt: skip
    """Convolution, batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Plain(nn.Module):
    """Convolutions, one after the other, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(1, 32, 3, 2), nn.ReLU(),
            conv(32, 64, 3), nn.ReLU(),
            conv(64, 96, 3, 2), nn.ReLU(),
            conv(96, 96, 3), nn.ReLU(),
            nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.hidden = nn.Linear(96 * 9, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] → [N, 10]."""
        x = self.features(x).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


class Block(nn.Module):
    """Two convolutions beside an addition."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, 3, stride)
        self.second = conv(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = self.second(torch.relu(self.first(x)))
        return torch.relu(y + self.shortcut(x))


class Residual(nn.Module):
    """Three residual blocks in two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32, 3, 2)
        self.blocks = nn.Sequential(Block(32, 32), Block(32, 64, 2), Block(64, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] → [N, 10]."""
        x = self.blocks(torch.relu(self.stem(x)))
        return self.head(x.mean((2, 3)))


class Inverted(nn.Module):
    """Wide, depthwise, narrow again (MobileNetV2)."""

    def __init__(self, inputs: int, wide: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.expand = conv(inputs, wide, 1)
        self.depthwise = conv(wide, wide, 3, stride, groups=wide)
        self.project = conv(wide, outputs, 1)
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.expand(x))))
        y = self.project(y)
        return x + y if self.same else y


class Depthwise(nn.Module):
    """Three inverted residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32, 3, 2)
        self.blocks = nn.Sequential(
            Inverted(32, 128, 32), Inverted(32, 128, 64, 2), Inverted(64, 256, 64)
        )
        self.last = conv(64, 128, 1)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] → [N, 10]."""
        x = self.blocks(nn.functional.relu6(self.stem(x)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class Attention(nn.Module):
    """Self-attention as people write it by hand."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, width] → the same."""
        q, k, v = (
            one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for one in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and two linear layers, each beside an addition."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The layer."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A small vision transformer: 49 patches, three layers, four heads."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 64, 4, 4)
        self.positions = nn.Parameter(torch.randn(1, 49, 64) * 0.02)
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] → [N, 10]."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.layers(x)).mean(1))


class Dense(nn.Module):
    """Every convolution sees all maps before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32, 3, 2)
        self.first, self.second = conv(32, 48, 3, 2), conv(80, 64, 3)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 28, 28] → [N, 10]."""
        x = torch.relu(self.stem(x))
        y = torch.cat([self.pool(x), torch.relu(self.first(x))], 1)
        y = torch.cat([y, torch.relu(self.second(y))], 1)
        return self.head(y.mean((2, 3)))


def plain() -> nn.Module:
    """Plain convolutions."""
    return seeded(Plain)


def residual() -> nn.Module:
    """Residual blocks."""
    return seeded(Residual)


def depthwise() -> nn.Module:
    """Depthwise-separable convolutions."""
    return seeded(Depthwise)


def transformer() -> nn.Module:
    """A transformer encoder with attention by hand."""
    return seeded(lambda: Transformer([Layer(64, 4, 256) for _ in range(3)]))


def dense() -> nn.Module:
    """Concatenations."""
    return seeded(Dense)


def encoder() -> nn.Module:
    """A transformer encoder of torch's own layers."""
    return seeded(
        lambda: Transformer(
            [
                nn.TransformerEncoderLayer(
                    64, 4, 256, 0.0, batch_first=True, norm_first=True
                )
                for _ in range(2)
            ]
        )
    )


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": residual,
    "depthwise": depthwise,
    "transformer": transformer,
}
ALL = {**KINDS, "dense": dense, "encoder": encoder}


def model_of(module: nn.Module, shape: tuple[int, ...] = (1, 1, 28, 28)) -> Model:
    """As the importer would give it: input ``x``, output ``output``."""
    with torch.no_grad():
        size = module(torch.zeros(shape)).shape
    return Model(
        level="module",
        payload=module.eval(),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=shape),),
        outputs=(TensorSpec(name="output", datatype="FP32", shape=tuple(size)),),
        lineage=(Step("load", {"source": type(module).__name__}),),
    )


def network(kind: str) -> Model:
    """A fresh model of that kind (a key of ``ALL``)."""
    return model_of(ALL[kind]())
