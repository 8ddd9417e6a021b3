"""``python -m device_agent.trust``: one question on stdin, one answer on stdout.

Started by :mod:`.client` for one verification, so that the agent carries neither TUF
nor cryptography in its memory. Limits are set before anything is parsed.
"""

import os
import resource
import signal
import sys
from types import FrameType

ADDRESS_BYTES = 1 << 30
CPU_S = 60


def main() -> int:
    """Answer, and end."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    _confine()
    from tuf.api.exceptions import SlowRetrievalError

    from .judge import judged
    from .wire import Question

    question = Question.read(sys.stdin.buffer.read())

    def too_late(_: int, __: FrameType | None) -> None:
        raise SlowRetrievalError("the time for all metadata is over")

    # a server that sends a byte now and then holds a read for ever
    signal.signal(signal.SIGALRM, too_late)
    signal.setitimer(signal.ITIMER_REAL, question.limits.total_s, 1.0)
    raw = judged(question).write()
    signal.setitimer(signal.ITIMER_REAL, 0)
    with os.fdopen(answer_fd, "wb") as stream:
        stream.write(raw)
    return 0


def _confine() -> None:
    for what, limit in (
        (resource.RLIMIT_AS, ADDRESS_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 64 << 20),
    ):
        _, hard = resource.getrlimit(what)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, hard))


if __name__ == "__main__":
    sys.exit(main())
