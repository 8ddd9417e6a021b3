"""How an answer leaves, whoever parsed its request."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl

from .limited import send_error

COPIED_BYTES_MAX = 16384
"""Larger bodies are written after their head, not copied behind it in one piece."""


class Answering(ABC):
    """Goes before a ``RequestResponseCycle`` of uvicorn: the order of its messages."""

    # uvicorn's
    flow: FlowControl
    disconnected: bool
    response_started: bool
    response_complete: bool
    waiting_for_100_continue: bool

    async def send_500_response(self) -> None:
        """The application has failed."""
        await send_error(self.send, 500, "internal error; the log has it")

    async def send(self, message: ASGISendEvent) -> None:
        """One message of the application, as ASGI says."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if message["type"] != "http.response.start":
                raise RuntimeError(f"expected http.response.start, not {kind}")
            self.response_started = True
            self.waiting_for_100_continue = False
            self._begin(message["status"], message.get("headers", ()))
        elif self.response_complete or message["type"] != "http.response.body":
            raise RuntimeError(f"{kind} does not follow here")
        else:
            self._continue(message.get("body", b""), message.get("more_body", False))

    @abstractmethod
    def _begin(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep the head of the answer until its body comes."""

    @abstractmethod
    def _continue(self, body: bytes, more: bool) -> None:
        """Write a piece of the body, and the head before the first of them."""
