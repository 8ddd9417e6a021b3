"""What the fleet may ask a device to do once, and the answers.

The rules it keeps:

1. A command is done once: one that came before is answered as it was answered then.
   The last :data:`REMEMBERED` are remembered, until the agent ends.
2. A kind that is not in the table, or arguments that do not fit, are refused with a
   reason; nothing is guessed.
3. What is done here is quick and harmless; nothing of it can change what is served.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from ..contract.messages import Command, Response

REMEMBERED: Final = 256

Do = Callable[[dict[str, Any]], dict[str, Any]]
"""Does a command; raises ValueError where its arguments do not fit."""


class Commands:
    """The table of kinds, and what became of the last commands."""

    def __init__(self, table: dict[str, Do]) -> None:
        self._table = table
        self._answers: OrderedDict[str, Response] = OrderedDict()

    def answer(self, command: Command) -> Response:
        """Do it, or remember what came of it."""
        known = self._answers.get(command.id)
        if known is None:
            known = self._answers[command.id] = self._done(command)
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        return known

    def _done(self, command: Command) -> Response:
        do = self._table.get(command.kind)
        if do is None:
            kinds = ", ".join(sorted(self._table))
            why = f"{command.kind!r} is unknown; this agent knows {kinds}"
            return Response(id=command.id, ok=False, reason=why)
        try:
            return Response(id=command.id, ok=True, body=do(command.arguments))
        except ValueError as error:
            return Response(id=command.id, ok=False, reason=str(error))
