"""predict: a photo, a sound or numbers in, labels and scores out.

The rules it keeps:

1. Decoding and pre- and postprocessing never run on the event loop; few run at once,
   few more wait, all others are refused. Large files are decoded one by one.
2. The steps are those of the bundle, by the implementation that it was measured with.
3. A version that is swapped while a sample is decoded is not asked any more: its
   successor decodes the sample again.
"""

import asyncio
import io
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
from ..contract.image import IMAGE_FORMATS, DecodeImage
from ..contract.preprocess import batched
from ..contract.steps import check_finite
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
"""Samples decoded at once; each may take what a large photo takes."""
DECODINGS_WAITING = 16
PIXELS_MAX = 16_000_000
"""Pixels of one image: a 12 megapixel photo, whose decoding takes some 200 MB."""
LARGE_PIXELS = 2_000_000
LARGE_BYTES = 256 << 10
"""From here on a body is decoded alone."""
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


class Predict:
    """Answers predict requests."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._turns = Turns(DECODINGS, DECODINGS_WAITING)
        self._alone = threading.Lock()

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
                _decoded, served, body, content_type, self._alone
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


def _decoded(
    served: Served, body: bytes, content_type: str, alone: threading.Lock
) -> _Decoded:
    began = time.perf_counter()
    reader = Reader.of(served)
    with _apart(alone, len(body) > LARGE_BYTES):
        samples = reader.read(body, content_type)
    feeds = [_feeds(served, reader, sample, alone) for sample in samples.items]
    return _Decoded(samples.wrap, feeds, _since(began))


@contextmanager
def _apart(alone: threading.Lock, large: bool) -> Iterator[None]:
    """What is large happens one by one, and its memory goes back to the system."""
    if not large:
        yield
        return
    with alone:
        try:
            yield
        finally:
            give_back()


def _feeds(
    served: Served, reader: Reader, sample: Sample, alone: threading.Lock
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
                with _apart(alone, _is_large(reader, value)):
                    value = served.loaded.preprocess(value)
            elif isinstance(value, bytes):
                raise RequestError(f"input {name!r}: expected numbers, found a file")
            feeds[name] = batched(value, spec)
        except StepError as error:
            raise RequestError(str(error)) from error
    return feeds


def _is_large(reader: Reader, value: Value) -> bool:
    if not isinstance(value, bytes):
        return False
    pixels = pixels_of(value) if isinstance(reader.decoder, DecodeImage) else 0
    if pixels > PIXELS_MAX:
        raise TooLargeError(
            f"the image has {pixels} pixels; at most {PIXELS_MAX} are decoded"
        )
    return pixels > LARGE_PIXELS or len(value) > LARGE_BYTES


def pixels_of(body: bytes) -> int:
    """Pixels of an image, by its header.

    Raises:
        TooLargeError: so many that Pillow does not even open it.
        RequestError: it is no image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(body), formats=IMAGE_FORMATS) as found:
            return found.width * found.height
    except Image.DecompressionBombError as error:
        raise TooLargeError(str(error)) from error
    except Exception as error:  # Pillow's decoders raise about any type
        raise RequestError(
            f"expected an image ({', '.join(IMAGE_FORMATS)}), "
            f"found bytes that cannot be opened: {error}"
        ) from error


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
