"""The errors of the agent: what a request, a configuration or a swap may end in.

::

    AgentError                500  root, a DeviceError
    ├── ConfigError                agent.toml or the command line is wrong
    ├── StorageError               the disk is full or returned an error; ``reason``
    │   └── DamagedError           what is on it is not what was written
    ├── LockedError                another process uses the state directory
    ├── IdentityError              what enrolment left cannot be used
    ├── EnrolmentError             this device was not enrolled; ``code`` says how
    ├── LinkError                  the session with the broker ended, or never began
    ├── UpdateError                a step towards another model failed; ``reason``
    ├── RefusedError          400  a bundle is not taken; ``step`` says at which step
    ├── RequestError          400  the request is not what the protocol or model takes
    │   ├── UnknownError      404  no such model, version or path
    │   ├── TooLargeError     413  more bytes, headers or rows than allowed
    │   └── UnwritableError   422  the answer cannot be written as was asked
    ├── AccessError           401  no token, or a wrong one
    ├── OverloadError         429  the queue is full, or too long for the deadline
    ├── UnavailableError      503  the model is not loaded, or its breaker is open
    ├── DeadlineError         504  the deadline passed before the answer was there
    └── InferenceError        500  the runtime failed on this request
"""

from typing import TYPE_CHECKING, Any, ClassVar

from .contract.codes import Reason
from .contract.errors import DeviceError

if TYPE_CHECKING:
    from .contract.messages import Desired


class AgentError(DeviceError):
    """Root of what the running agent raises on purpose; it ends as an HTTP answer."""

    status: ClassVar[int] = 500
    retry_after_s: int | None = None
    """Seconds after which the same request may be answered; None: not by waiting."""


class ConfigError(AgentError):
    """The configuration is wrong; the text holds every mistake, one a line."""


class StorageError(AgentError):
    """The disk did not do what was asked; the file in question is not to be trusted."""

    def __init__(self, reason: Reason, text: str) -> None:
        self.reason = reason
        """``NO_SPACE``: room may be made and the same done again. ``STORAGE``: not."""
        super().__init__(text)


class DamagedError(StorageError):
    """A file cannot be read as what it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(Reason.STORAGE, text)


class LockedError(AgentError):
    """Another process uses the same state directory; the text names it."""


class IdentityError(AgentError):
    """Who this device is, or what it shows for it, cannot be read or used."""


class EnrolmentError(AgentError):
    """This device was not enrolled; nothing of what it was before has changed."""

    def __init__(self, code: int, text: str) -> None:
        self.code = code
        """Exit code: 4 refused, 5 the server cannot be reached or believed."""
        super().__init__(text)


class LinkError(AgentError):
    """The session with the broker ended, or did not begin; the text says why."""

    def __init__(self, text: str, *, taken_over: bool = False) -> None:
        self.taken_over = taken_over
        """Somebody else connected as this device."""
        super().__init__(text)


class UpdateError(AgentError):
    """A step towards another model failed; what serves goes on serving."""

    def __init__(
        self, reason: Reason, text: str, evidence: dict[str, Any] | None = None,
        desired: "Desired | None" = None,
    ) -> None:  # fmt: skip
        self.reason = reason
        self.text = text
        self.evidence = evidence or {}
        self.desired = desired
        """What was asked for, where its signature is good."""
        super().__init__(f"{reason}: {text}")


class RefusedError(AgentError):
    """A bundle is refused; what served before goes on serving."""

    status = 400

    def __init__(
        self, step: str, reason: str, code: Reason = Reason.LOAD_FAILED
    ) -> None:
        self.step = step
        self.reason = reason
        self.code = code
        """The same for a fleet."""
        super().__init__(f"{step}: {reason}")


class RequestError(AgentError):
    """The request does not fit the protocol or the model."""

    status = 400


class UnknownError(RequestError):
    """There is no such model, version or path."""

    status = 404


class TooLargeError(RequestError):
    """The request has more bytes or rows than this device allows."""

    status = 413


class UnwritableError(RequestError):
    """The answer cannot be written in the form that was asked for."""

    status = 422


class AccessError(AgentError):
    """The listener asks for a token, and none or a wrong one came."""

    status = 401


class OverloadError(AgentError):
    """More work than can be done in time; nothing was started."""

    status = 429

    def __init__(self, text: str, retry_after_s: int = 1) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(text)


class UnavailableError(AgentError):
    """The model cannot be asked now."""

    status = 503

    def __init__(self, text: str, retry_after_s: int | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(text)


class DeadlineError(AgentError):
    """The deadline passed before the answer was there."""

    status = 504


class InferenceError(AgentError):
    """The runtime failed on a request that fits the model."""
