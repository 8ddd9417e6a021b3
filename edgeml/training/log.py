"""The record of a training: ``log.csv``, and TensorBoard events where it is installed.

After a resume the file holds every epoch once: the rows that the checkpoint knew of,
then the new ones.
"""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One epoch: mean loss over its steps, score on the held-out samples."""

    epoch: int
    step: int
    learning_rate: float
    loss: float
    score: float
    best_epoch: int


class Log:
    """Where epochs are written down; ``folder`` None: nowhere."""

    def __init__(self, folder: Path | None, known: Sequence[Row] = ()) -> None:
        self._path: Path | None = None
        self._events: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "log.csv"
        with self._path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(field.name for field in fields(Row))
            writer.writerows(map(astuple, known))
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            after = known[-1].step + 1 if known else None
            self._events = SummaryWriter(str(folder), purge_step=after)

    def write(self, row: Row) -> None:
        """Add an epoch."""
        if self._path is None:
            return
        with self._path.open("a", newline="") as stream:
            csv.writer(stream).writerow(astuple(row))
        if self._events is not None:
            for name in ("learning_rate", "loss", "score"):
                self._events.add_scalar(name, getattr(row, name), row.step)

    def close(self) -> None:
        """Flush the events."""
        if self._events is not None:
            self._events.close()
