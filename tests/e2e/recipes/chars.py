"""A small decoder that says the next character of a text, and the text as samples.

``corpus.txt`` lies beside this file; the test writes it there. A sample is a window of
characters as numbers, its label the character that follows. While it trains, the
network answers at every place of the window, and the places before the last are
labels, too.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WINDOW = 32
STRIDE = 8
HELD_SHARE = 0.15
ALPHABET = "\n !\"#%&'()*+,-./0123456789:;<=>?@[]_`abcdefghijklmnopqrstuvwxyz{|}~"
CALIBRATION, VALIDATION = 96, 300


class Layer(nn.Module):
    """Causal attention and two dense layers, each beside the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first = nn.LayerNorm(width)
        self.second = nn.LayerNorm(width)
        self.joint = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.register_buffer("later", torch.ones(WINDOW, WINDOW).triu(1) * -1e4)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.joint(self.first(x)).chunk(3, dim=2)
        )
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + self.later
        found = scores.softmax(-1) @ value
        x = x + self.output(found.transpose(1, 2).flatten(2))
        return x + self.narrow(nn.functional.gelu(self.wide(self.second(x))))


class Decoder(nn.Module):
    """``tokens`` [N, 32] as float numbers → scores of the next character."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.letters = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Parameter(torch.randn(WINDOW, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET))

    def forward(self, tokens: Tensor) -> Tensor | dict[str, Tensor]:
        known = tokens.long()
        x = self.last(self.layers(self.letters(known) + self.places))
        if self.training:
            return {"output": self.head(x), "known": known}
        return self.head(x[:, -1])


def decoder() -> nn.Module:
    """A fresh one; two calls give the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder()


def loss(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    """Cross entropy at every place."""
    wanted = torch.cat([outputs["known"][:, 1:], labels[:, None]], 1)
    return nn.functional.cross_entropy(
        outputs["output"].flatten(0, 1), wanted.flatten()
    )


def train() -> tuple[np.ndarray, np.ndarray]:
    """Windows of the first part of the text that calibration has not."""
    windows, labels = _windows(_text()[0], STRIDE)
    calibrated = {row.tobytes() for row in calibration()[0]}
    rest = [n for n, row in enumerate(windows) if row.tobytes() not in calibrated]
    return windows[rest], labels[rest]


def calibration() -> tuple[np.ndarray, np.ndarray]:
    """A few windows of the first part."""
    windows, labels = _windows(_text()[0], WINDOW)
    return windows[:CALIBRATION], labels[:CALIBRATION]


def validation() -> tuple[np.ndarray, np.ndarray]:
    """Windows of the last part of the text, none of which is in the first."""
    first = {row.tobytes() for row in _windows(_text()[0], 1)[0]}
    windows, labels = _windows(_text()[1], STRIDE)
    new = [n for n, row in enumerate(windows) if row.tobytes() not in first]
    return windows[new][:VALIDATION], labels[new][:VALIDATION]


def _text() -> tuple[np.ndarray, np.ndarray]:
    """The corpus as numbers: what is learned from, and what is held back."""
    text = Path(__file__).with_name("corpus.txt").read_text().lower()
    found = np.array([ALPHABET.index(one) for one in text if one in ALPHABET])
    split = round(len(found) * (1 - HELD_SHARE))
    return found[:split], found[split:]


def _windows(text: np.ndarray, stride: int) -> tuple[np.ndarray, np.ndarray]:
    views = np.lib.stride_tricks.sliding_window_view(text, WINDOW + 1)[::stride]
    _, first = np.unique(views[:, :-1], axis=0, return_index=True)
    views = views[np.sort(first)]
    return views[:, :-1].astype(np.float32), views[:, -1].astype(np.int64)
