"""Trains the demo's network on scikit-learn's digits and saves its weights.

It reads the data and the pre-processing from the recipe, so that training sees what
calibration, evaluation and the device will see.
"""

import sys
import tomllib
from pathlib import Path

import numpy as np
import torch
from model import digits_cnn
from safetensors.torch import save_file
from torch.nn import functional

from calibration.dataset import Dataset, DataSource, load
from device_agent.contract.preprocess import Preprocess, parse_steps

FOLDER = Path(__file__).parent
EPOCHS = 14
BATCH = 64


def tensors(split: Dataset, steps: Preprocess) -> tuple[torch.Tensor, torch.Tensor]:
    """A split as images [N, 1, 32, 32] and labels [N]."""
    images = np.stack([steps(sample.value) for sample in split])
    labels = np.asarray([sample.label for sample in split])
    return torch.from_numpy(images), torch.from_numpy(labels).long()


def main() -> None:
    recipe = tomllib.loads((FOLDER / "recipe.toml").read_text())
    steps = Preprocess(parse_steps(recipe["preprocess"]["steps"], "preprocess"))
    splits = [
        tensors(load(DataSource(recipe["data"][name]), FOLDER), steps)
        for name in ("calibration", "validation")
    ]
    (images, labels), (held, answers) = splits
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the same weights on every machine of one kind
    model = digits_cnn().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    batches = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=6e-3, total_steps=EPOCHS * batches
    )
    for epoch in range(EPOCHS):
        order = torch.randperm(len(images))[: batches * BATCH].view(batches, BATCH)
        for batch in order:
            loss = functional.cross_entropy(
                model(images[batch]), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2}/{EPOCHS}  loss {loss.item():.3f}", file=sys.stderr)
    model.eval()
    with torch.no_grad():
        top1 = (model(held).argmax(1) == answers).float().mean().item()
    print(f"float32 top-1 on {len(held)} held-out images: {top1:.4f}")
    save_file(model.state_dict(), FOLDER / "weights.safetensors")


if __name__ == "__main__":
    main()
