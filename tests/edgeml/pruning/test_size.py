"""Parameters and multiplications, as counted by hand."""

import pytest

torch = pytest.importorskip("torch")

import kinds  # noqa: E402
from torch import nn  # noqa: E402

from edgeml.pruning.size import macs_of, parameters_of  # noqa: E402


def test_of_a_convolution_and_a_linear_layer() -> None:
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    assert parameters_of(module) == 2 * 4 * 9 + 4 + 64 * 5 + 5
    assert macs_of(module, (torch.zeros(1, 2, 6, 6),)) == 16 * 72 + 4 * 16 * 5


def test_of_torchs_own_encoder_layer() -> None:
    # in eval mode it has a fused path that no counter sees
    tokens, width, hidden = 49, 64, 256
    projections = 4 * width * width + 2 * width * hidden
    layer = projections * tokens + 2 * tokens * tokens * width
    found = macs_of(kinds.encoder(), (torch.zeros(1, 1, 28, 28),))
    assert found == 2 * layer + 16 * width * tokens + width * 10
