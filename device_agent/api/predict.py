"""predict: a photo, a sound or numbers in, labels and scores out.

The rules it keeps:

1. Decoding and pre- and postprocessing never run on the event loop; few run at once,
   few more wait, all others are refused. Large files are decoded one by one.
2. The steps are those of the bundle, by the implementation that it was measured with.
3. A version that is swapped while a sample is decoded is not asked any more: its
   successor decodes the sample again.
"""

import asyncio
import json
import reprlib
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..contract.answer import AnswerStep
from ..contract.errors import StepError
from ..contract.image import DecodeImage
from ..contract.picture import Plan
from ..contract.preprocess import batched
from ..contract.steps import Step, check_finite
from ..contract.tensors import Array, Feeds
from ..errors import (
    InferenceError,
    OverloadError,
    RequestError,
    TooLargeError,
    UnavailableError,
    UnwritableError,
)
from ..serving.memory import give_back
from ..serving.repository import Repository
from ..serving.served import Served
from .samples import Reader, Sample, Value, Wrap

DECODINGS = 2
"""Samples decoded at once; one of them may be large."""
DECODINGS_WAITING = 16
PIXELS_MAX = 16_000_000
"""Pixels of one image: those of a phone's photo, and some more."""
LARGE_DECODING_BYTES = 4_000_000
LARGE_SIDE_PIXELS = 4096
"""An image over one of these is decoded alone: resizing a narrow one takes much."""
LARGE_BYTES = 256 << 10
"""A body that is larger is decoded alone."""
VALUES_MAX = 1 << 18
"""Numbers in one answer that no step has made shorter."""
SWAPS_MAX = 3
"""Versions that one request follows, should they be swapped under it."""

_Outputs = dict[str, Array]


class Turns:
    """Work that needs much memory: few at once, few more wait."""

    def __init__(self, size: int, waiting: int) -> None:
        self._free = asyncio.Semaphore(size)
        self._waiting_max = waiting
        self._waiting = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and have it.

        Raises:
            OverloadError: too many wait already.
        """
        if self._waiting >= self._waiting_max:
            raise OverloadError(f"{self._waiting} samples wait already to be decoded")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


@dataclass(frozen=True)
class _Decoded:
    """Samples as the model takes them."""

    wrap: Wrap
    feeds: list[dict[str, Array]]
    took_ms: float


class _Room:
    """Memory for decoding: what is large happens one by one, and gives it back."""

    def __init__(self, decoding_bytes: int) -> None:
        self.decoding_bytes = decoding_bytes
        """What one picture may take."""
        self._alone = threading.Lock()

    @contextmanager
    def apart(self, large: bool) -> Iterator[None]:
        """Wait until nothing else that is large is decoded, if this is."""
        if not large:
            yield
            return
        with self._alone:
            try:
                yield
            finally:
                give_back()


class Predict:
    """Answers predict requests."""

    def __init__(self, repository: Repository, decoding_bytes: int) -> None:
        self._repository = repository
        self._turns = Turns(DECODINGS, DECODINGS_WAITING)
        self._room = _Room(decoding_bytes)

    async def __call__(
        self, body: bytes, content_type: str, name: str, version: str | None
    ) -> bytes:
        """The answer as JSON, a line for every key.

        Raises:
            RequestError: the body is not understood, or not what the model takes.
            AgentError: as :meth:`Served.infer`.
        """
        served = self._repository.find(name, version)
        for _ in range(SWAPS_MAX):
            with served.held():
                decoded = await self._decode(served, body, content_type)
                chosen = self._repository.route(name, version)
                if chosen is served:
                    answer = await _ask(served, decoded)
                    if answer is not None:
                        return answer
                    chosen = self._repository.find(name, version)
            served = chosen
        raise UnavailableError(f"{name} is swapped again and again", 1)

    async def _decode(self, served: Served, body: bytes, content_type: str) -> _Decoded:
        if served.waiting:  # refuse before the work of decoding
            served.admit()
        async with self._turns.turn():
            return await asyncio.to_thread(
                _decoded, served, body, content_type, self._room
            )


async def _ask(served: Served, decoded: _Decoded) -> bytes | None:
    """The answer; None: the version was swapped before it had answered everything."""
    began = time.perf_counter()
    try:
        outputs = await _infer(served, decoded.feeds)
    except UnavailableError:
        if served.state == "ready":
            raise
        return None
    timing_ms = decoded.took_ms, _since(began)
    return await asyncio.to_thread(_write, served, decoded.wrap, outputs, timing_ms)


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)


def _decoded(served: Served, body: bytes, content_type: str, room: _Room) -> _Decoded:
    began = time.perf_counter()
    reader = Reader.of(served)
    with room.apart(len(body) > LARGE_BYTES):
        samples = reader.read(body, content_type)
    feeds = [_feeds(served, reader, sample, room) for sample in samples.items]
    return _Decoded(samples.wrap, feeds, _since(began))


def _feeds(
    served: Served, reader: Reader, sample: Sample, room: _Room
) -> dict[str, Array]:
    """One sample as the model takes it, batch dimension included."""
    if sample.keys() != reader.inputs.keys():
        raise RequestError(
            f"expected the inputs {', '.join(reader.inputs)}; "
            f"found {', '.join(map(reprlib.repr, sample))}"
        )
    feeds = {}
    for name, spec in reader.inputs.items():
        value = sample[name]
        try:
            if name == reader.main:
                with room.apart(_is_large(served, value, room)):
                    value = served.loaded.preprocess(value)
            elif isinstance(value, bytes):
                raise RequestError(f"input {name!r}: expected numbers, found a file")
            feeds[name] = batched(value, spec)
        except StepError as error:
            raise RequestError(str(error)) from error
    return feeds


def _is_large(served: Served, value: Value, room: _Room) -> bool:
    """Whether a file is decoded alone.

    Raises:
        TooLargeError: by its header it is not decoded at all.
        StepError: it is no image.
    """
    if not isinstance(value, bytes):
        return False
    steps = served.loaded.preprocess
    decoder = steps.steps[0] if steps.steps else None
    if not isinstance(decoder, DecodeImage):
        return len(value) > LARGE_BYTES
    plan = _plan(decoder, value, steps.after(0), room.decoding_bytes)
    return (
        plan.takes_bytes > LARGE_DECODING_BYTES
        or max(plan.height, plan.width) > LARGE_SIDE_PIXELS
        or len(value) > LARGE_BYTES
    )


def _plan(decoder: DecodeImage, body: bytes, then: Step | None, bytes_max: int) -> Plan:
    from PIL import Image

    try:
        plan = decoder.plan(body, then)
    except StepError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise TooLargeError(str(error.__cause__)) from error
        raise
    pixels = plan.width * plan.height
    found = f"the image has {pixels} pixels"
    if pixels > PIXELS_MAX:
        raise TooLargeError(f"{found}; at most {PIXELS_MAX} are decoded")
    if plan.takes_bytes > bytes_max:
        raise TooLargeError(
            f"{found} and would take {plan.takes_bytes / 1e6:.1f} MB to decode as "
            f"{plan.format} for this model; at most {bytes_max / 1e6:.0f} MB are given "
            "(decoding_bytes). Send fewer pixels; a JPEG that is not progressive takes "
            "least"
        )
    return plan


async def _infer(served: Served, feeds: list[dict[str, Array]]) -> list[_Outputs]:
    """The outputs of every sample; in one run where they can be joined."""
    if len(feeds) > 1 and served.batches and _alike(feeds):
        joined = {
            name: np.concatenate([one[name] for one in feeds]) for name in feeds[0]
        }
        outputs = await served.infer(joined, len(feeds))
        return [
            {name: value[row : row + 1] for name, value in outputs.items()}
            for row in range(len(feeds))
        ]
    return [await served.infer(one, _rows(served, one)) for one in feeds]


def _alike(feeds: Sequence[Feeds]) -> bool:
    """Whether every sample is one row, of the shapes of the first."""
    shapes = {name: (1, *value.shape[1:]) for name, value in feeds[0].items()}
    return all(
        {name: value.shape for name, value in one.items()} == shapes for one in feeds
    )


def _rows(served: Served, feeds: Feeds) -> int:
    if not served.batches:
        return 1
    counts = {name: len(value) for name, value in feeds.items()}
    rows = max(counts.values())
    if len(set(counts.values())) > 1 or not 1 <= rows <= served.config.max_rows:
        raise RequestError(
            f"the inputs have {counts} rows; expected as many for each, "
            f"1 to {served.config.max_rows} (max_rows)"
        )
    return rows


def _write(
    served: Served, wrap: Wrap, outputs: list[_Outputs], timing_ms: tuple[float, float]
) -> bytes:
    began = time.perf_counter()
    _check_size(served, outputs)
    answers = [_postprocessed(served, one) for one in outputs]
    document: dict[str, Any] = {
        "model_name": served.name,
        "model_version": served.version,
        **(answers[0] if wrap == "one" else {wrap: answers}),
    }
    prepared_ms, inferred_ms = timing_ms
    document["timing_ms"] = {
        "preprocess": prepared_ms,
        "infer": inferred_ms,
        "postprocess": _since(began),
    }
    return readable(document)


def _check_size(served: Served, outputs: list[_Outputs]) -> None:
    if any(
        isinstance(step, AnswerStep) and step.final
        for step in served.loaded.postprocess.steps
    ):
        return
    values = sum(value.size for one in outputs for value in one.values())
    if values > VALUES_MAX:
        raise UnwritableError(
            f"{served.name} gives {values} numbers; at most {VALUES_MAX} are written "
            f"here. Ask /v2/models/{served.name}/infer for binary data"
        )


def _postprocessed(served: Served, outputs: _Outputs) -> dict[str, Any]:
    try:
        for name, value in outputs.items():
            check_finite(value, f"output {name!r}")
    except StepError as error:
        raise UnwritableError(f"{served.name}: {error}") from error
    try:
        return served.loaded.postprocess(outputs)
    except StepError as error:  # the bundle's fault, not the caller's
        raise InferenceError(f"{served.name} {served.version}: {error}") from error


def readable(document: dict[str, Any]) -> bytes:
    """JSON for terminals: a line for every key and every listed object."""
    lines = [
        f"  {json.dumps(key)}: {_written(value)}" for key, value in document.items()
    ]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _written(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n    " + ",\n    ".join(map(_plain, value)) + "\n  ]"
    return _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
