"""What happens to a batch before teacher and student see it."""

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor
from torch.nn import functional

Inputs = Mapping[str, Tensor]

TURN = math.radians(12)
ZOOM = 0.1
MOVE_PIXELS = 2
SHIFT_FRAMES = 8
LOUDER = 0.5
"""Standard deviation of the loudness, in units of the normalized log energy."""
MASKED_FRAMES, MASKED_BANDS = 8, 6


def images(inputs: Inputs, generator: Generator) -> dict[str, Tensor]:
    """Each image turned, zoomed and moved a little."""
    (name, batch), = inputs.items()  # fmt: skip
    count, side = len(batch), batch.shape[-1]
    turn, zoom, x, y = 2 * torch.rand(4, count, generator=generator) - 1
    angle, size = TURN * turn, 1 + ZOOM * zoom
    move = 2 * MOVE_PIXELS / side
    rows = torch.stack(
        [
            torch.stack([size * angle.cos(), -size * angle.sin(), move * x], 1),
            torch.stack([size * angle.sin(), size * angle.cos(), move * y], 1),
        ],
        1,
    )
    grid = functional.affine_grid(rows, list(batch.shape), align_corners=False)
    return {name: functional.grid_sample(batch, grid, align_corners=False)}


def sounds(inputs: Inputs, generator: Generator) -> dict[str, Tensor]:
    """Each spectrogram [1, frames, bands] moved in time, louder or softer, masked.

    References:
        Park et al.: SpecAugment, 2019.
    """
    (name, batch), = inputs.items()  # fmt: skip
    count, _, frames, bands = batch.shape
    silence = batch.amin((1, 2, 3), keepdim=True)
    shift = torch.randint(0, SHIFT_FRAMES + 1, (count, 1), generator=generator)
    places = torch.arange(frames) - shift
    moved = batch.gather(
        2, places.clamp(min=0)[:, None, :, None].expand(-1, 1, -1, bands)
    )
    moved = torch.where((places >= 0)[:, None, :, None], moved, silence)
    louder = LOUDER * torch.randn(count, 1, 1, 1, generator=generator)
    moved = torch.where(moved > silence, moved + louder, silence).maximum(silence)
    keep = _kept(count, frames, MASKED_FRAMES, generator)[:, None, :, None]
    keep = keep & _kept(count, bands, MASKED_BANDS, generator)[:, None, None, :]
    return {name: torch.where(keep, moved, silence)}


def _kept(count: int, length: int, most: int, generator: Generator) -> Tensor:
    """``[count, length]``: false in a stretch of up to ``most`` places."""
    size = torch.randint(0, most + 1, (count, 1), generator=generator)
    start = torch.rand(count, 1, generator=generator) * (length - size)
    places = torch.arange(length)
    return (places < start) | (places >= start + size)
