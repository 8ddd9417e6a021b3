"""Sessions that answer right, and misbehave as a test tells them to.

They are put around one another: ``Counting(Slow(Linear(), 0.01))``.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import numpy as np

from device_agent.contract.errors import ArtifactError
from device_agent.contract.golden import Bound, Golden
from device_agent.contract.preprocess import Postprocess, Preprocess
from device_agent.contract.tensors import Array, Feeds
from device_agent.runtimes.base import Session
from device_agent.serving.loading import Loaded


class Linear(Session):
    """What :func:`bundles.linear` computes: y = relu(x @ WEIGHT)."""

    def __init__(self, weight: Array = bundles.WEIGHT) -> None:
        self.inputs = bundles.manifest().inputs
        self.outputs = bundles.manifest().outputs
        self.closed = False
        self._weight = weight

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        assert not self.closed, "asked after it was closed"
        # sums of three products, not a matrix product: the same bytes for any batch
        terms = feeds["x"][:, :, None] * self._weight
        return {"y": np.maximum(terms.sum(axis=1, dtype=np.float32), 0)}

    def close(self) -> None:
        self.closed = True


class Around(Session):
    """Another session, with something about it."""

    def __init__(self, inner: Session) -> None:
        self.inner = inner
        self.inputs = inner.inputs
        self.outputs = inner.outputs

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        return self.inner.predict(feeds)

    def close(self) -> None:
        self.inner.close()


class Slow(Around):
    """Takes ``run_s`` for a run and ``row_s`` for each row; both may be changed."""

    def __init__(self, inner: Session, run_s: float = 0.0, row_s: float = 0.0) -> None:
        super().__init__(inner)
        self.run_s = run_s
        self.row_s = row_s

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        time.sleep(self.run_s + self.row_s * rows_of(feeds))
        return super().predict(feeds)


class Failing(Around):
    """Fails where ``bad(feeds)`` holds; ``bad`` may be changed."""

    def __init__(
        self,
        inner: Session,
        bad: Callable[[Feeds], bool] = lambda _: True,
        error: Exception | None = None,
    ) -> None:
        super().__init__(inner)
        self.bad = bad
        self.error = error

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        if self.bad(feeds):
            raise self.error or ArtifactError("model.onnx: the test says so")
        return super().predict(feeds)


class Hanging(Around):
    """Every run waits until it is let go; ``started`` says that one has begun.

    One that nobody lets go ends after a minute, so that no test run lasts for ever.
    """

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self.started = threading.Event()
        self.gate = threading.Event()

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        self.started.set()
        assert self.gate.wait(60), "nobody opened the gate"
        return super().predict(feeds)

    def let_go(self) -> None:
        self.gate.set()

    def hold(self) -> None:
        """Hang again from the next run on."""
        self.started.clear()
        self.gate.clear()


class Counting(Around):
    """Counts runs, and how many were in the session at once at most."""

    def __init__(self, inner: Session) -> None:
        super().__init__(inner)
        self.runs: list[Array] = []
        """The first input of every run, in order."""
        self.threads: list[str] = []
        """Name of the thread of every run."""
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

    @property
    def rows(self) -> list[int]:
        """Rows of every run."""
        return [len(run) for run in self.runs]

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        with self._lock:
            self.runs.append(next(iter(feeds.values())))
            self.threads.append(threading.current_thread().name)
            self._inside += 1
            self.most = max(self.most, self._inside)
        try:
            return super().predict(feeds)
        finally:
            with self._lock:
                self._inside -= 1


class Detections(Around):
    """Says that its outputs are batches, and gives one row whatever it is given."""

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        outputs = super().predict(feeds)
        return {name: array.sum(axis=0)[None] for name, array in outputs.items()}


def rows_of(feeds: Feeds) -> int:
    return len(next(iter(feeds.values())))


def feeds(*values: float) -> dict[str, Array]:
    """Feeds of :class:`Linear`: a row for each value."""
    column = np.array(values, np.float32)[:, None]
    return {"x": column * np.arange(1, 5, dtype=np.float32)}


def loaded(session: Session, latency_s: float = 0.001, **changes: Any) -> Loaded:
    """A model in memory whose session is ``session``; ``changes``: its manifest's."""
    return Loaded(
        manifest=bundles.manifest(**changes),
        sha256=bundles.DIGEST,
        source=Path("linear.edgeml"),
        session=session,
        preprocess=Preprocess(),
        postprocess=Postprocess(),
        golden=Golden(
            tuple(bundles.vectors()), tuple(bundles.answers()), {"y": Bound(1e-5, 1e-5)}
        ),
        latency_ns=int(latency_s * 1e9),
        folder=Path("unpacked"),
    )
