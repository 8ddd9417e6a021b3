"""One model, everybody: starts, then rounds in turn, then memory.

1. All servers of one model run at the same time; one at a time is asked.
2. In every round every scenario runs once, in an order that changes.
3. Who fails is left out from then on, with the reason; the others go on.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from . import session as bare
from . import venvs, wire
from .entrants import BARE, OURS, Entrant, Site, environment, own_python
from .load import Figures, Load, LoadError
from .models import Model
from .processes import Server
from .results import Results, Scenario, Starts
from .wire import Address

START_S = 60.0
DEVIATION = 1e-3
"""How far an answer may be from what the model answers without a server."""
CLIENTS = {False: (1, 8, 32), True: (8, 32)}


@dataclass(frozen=True)
class Plan:
    """How long, how often, by how many."""

    rounds: int
    seconds: float
    later_starts: int
    clients: Sequence[int]
    transports: Sequence[str]
    program: Path
    """The load client."""


def plan(quick: bool, rounds: int | None, program: Path) -> Plan:
    """The full run, or one of two minutes."""
    if quick:
        return Plan(rounds or 3, 0.5, 1, CLIENTS[True], ("TCP",), program)
    return Plan(rounds or 5, 0.8, 3, CLIENTS[False], ("TCP", "unix"), program)


CROWD_S = 2.0
"""A round of many clients: p99 is of some dozens of their turns, and not of a few."""
CROWD = 32


class WrongAnswerError(Exception):
    """A server answered, and not what the model answers."""


class BareSession:
    """The model alone in a process, as a server that is asked by nobody."""

    def __init__(self, model: Model) -> None:
        self._process = subprocess.Popen(
            [sys.executable, bare.__file__, model.artifact, model.inputs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout and self._process.stdin
        self._said, self._ask = self._process.stdout, self._process.stdin
        if self._said.readline() != "ready\n":
            raise LoadError("the bare session does not start")

    def measure(self, seconds: float) -> Figures:
        """One round."""
        print(seconds, file=self._ask, flush=True)
        return Figures(**json.loads(self._said.readline()))

    def stop(self) -> None:
        """End it."""
        self._process.communicate()


@dataclass
class Ground:
    """One entrant with one model: started, asked, stopped."""

    entrant: Entrant
    site: Site
    server: Server | None = None
    loads: dict[str, Load] = field(default_factory=dict)

    def start(self) -> float:
        """Start it; seconds to its first answer.

        Raises:
            TimeoutError: it does not answer.
            WrongAnswerError: it answers something else than the model.
        """
        entrant, site = self.entrant, self.site
        ask = next(iter(entrant.asks.values()))
        request = ask.request(site.model.name, site.model.feed)
        site.folder.mkdir(parents=True, exist_ok=True)
        site.socket.unlink(missing_ok=True)
        self.server = server = Server(
            entrant.command(site), environment(entrant, site), site.folder
        )
        address = Address(site.port)
        try:
            wire.first_answer(address, request, lambda: server.alive, START_S)
        except TimeoutError as error:
            words = f"{error}; its last words: {server.last_words()}"
            raise TimeoutError(words) from error
        return server.age_s()

    def prepare(self, program: Path) -> None:
        """Write what will be asked and the answer that is right, for each encoding.

        Raises:
            WrongAnswerError: an answer is not that of the model.
        """
        model = self.site.model
        for encoding, ask in self.entrant.asks.items():
            request = ask.request(model.name, model.feed)
            answer = wire.exchange(Address(self.site.port), request)
            check(answer, ask.read, model)
            files = [
                self.site.folder / f"{encoding}.{end}" for end in ("ask", "answer")
            ]
            files[0].write_bytes(request)
            files[1].write_bytes(answer.body)
            self.loads[encoding] = Load(program, *files)

    def address(self, transport: str) -> Address:
        """Where it listens."""
        return Address(path=self.site.socket) if transport == "unix" else Address(
            self.site.port
        )  # fmt: skip

    def stop(self) -> None:
        """End it, if it runs."""
        if self.server is not None:
            self.server.stop()
            self.server = None


def check(answer: wire.Answer, read: wire.Reader, model: Model) -> None:
    """Compare one answer with what the model answers.

    Raises:
        WrongAnswerError: status or numbers are wrong.
    """
    if answer.status != 200:
        text = answer.body[:200].decode(errors="replace")
        raise WrongAnswerError(f"status {answer.status}: {text}")
    try:
        found = read(answer)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise WrongAnswerError(f"an answer that cannot be read: {error!r}") from error
    wanted = model.answer.ravel()
    if found.shape != wanted.shape or np.abs(found - wanted).max() > DEVIATION:
        raise WrongAnswerError(f"other numbers than the model's: {found[:4]}")


class Contest:
    """One model with all entrants."""

    def __init__(
        self, model: Model, plan: Plan, results: Results, folder: Path
    ) -> None:
        self._model = model
        self._plan = plan
        self._results = results
        self._folder = folder
        self._grounds: list[Ground] = []

    def run(self, entrants: Sequence[Entrant], pythons: dict[str, Path]) -> None:
        """Measure everything; whoever was started is ended, whatever happens."""
        with ExitStack() as ends:
            for entrant in entrants:
                if entrant.name in self._results.absent:
                    continue
                python = pythons.get(entrant.key, own_python())
                name = entrant.name.replace(" ", "-")
                folder = self._folder / f"{name}-{self._model.name}"
                site = Site(self._model, python, wire.free_port(), folder)
                ground = Ground(entrant, site)
                ends.callback(ground.stop)
                self._attempt(ground, partial(self._bring_up, ground))
            session = BareSession(self._model)
            ends.callback(session.stop)
            for number in range(self._plan.rounds):
                self._round(number, session)
            for ground in self._grounds:
                assert ground.server is not None
                key = ground.entrant.name, self._model.name
                self._results.memory[key] = ground.server.memory()

    def _bring_up(self, ground: Ground) -> None:
        first = ground.start()
        later = []
        for _ in range(self._plan.later_starts):
            ground.stop()
            later.append(ground.start())
        key = ground.entrant.name, self._model.name
        self._results.starts[key] = Starts(first, tuple(later))
        assert ground.server is not None
        self._results.loaded[key] = ground.server.memory()
        ground.prepare(self._plan.program)
        self._grounds.append(ground)

    def _attempt(self, ground: Ground, act: Callable[[], Any]) -> Any:
        """Do it; a failure ends this entrant's part and is noted."""
        try:
            return act()
        except (OSError, WrongAnswerError, LoadError) as error:
            name = ground.entrant.name
            told = f"{self._model.name}: {' '.join(str(error).split())}"
            print(f"{name}: {told}", file=sys.stderr)
            self._results.absent[name] = told[:300]
            ground.stop()
            if ground in self._grounds:
                self._grounds.remove(ground)
            return None

    def _round(self, number: int, session: BareSession) -> None:
        rounds = self._results.rounds
        name, seconds = self._model.name, self._plan.seconds
        for clients, encoding in product(self._plan.clients, ("JSON", "binary")):
            # Beside those that it is compared with, so that it meets the same machine.
            scenario = Scenario(BARE, name, encoding, "-", clients)
            rounds.setdefault(scenario, []).append(session.measure(seconds))
            for ground, transport in self._order(number, encoding):
                scenario = Scenario(
                    ground.entrant.name, name, encoding, transport, clients
                )
                fired = self._attempt(ground, partial(self._fire, ground, scenario))
                if fired is not None:
                    rounds.setdefault(scenario, []).append(fired)
        print(f"{name}: round {number + 1} of {self._plan.rounds}", file=sys.stderr)

    def _fire(self, ground: Ground, scenario: Scenario) -> Figures:
        assert ground.server is not None
        seconds = self._plan.seconds
        if scenario.clients >= CROWD:
            seconds = max(seconds, CROWD_S)
        return ground.loads[scenario.encoding].fire(
            ground.address(scenario.transport), scenario.clients, seconds,
            ground.server.cpu_s,
        )  # fmt: skip

    def _order(self, number: int, encoding: str) -> Iterator[tuple[Ground, str]]:
        """Everybody who speaks ``encoding``, over each transport, in changing order."""
        shift = number % max(len(self._grounds), 1)
        grounds = self._grounds[shift:] + self._grounds[:shift]
        if number % 2:
            grounds.reverse()
        for transport, ground in product(self._plan.transports, grounds):
            speaks = encoding in ground.entrant.asks
            listens = transport == "TCP" or ground.entrant.unix
            if speaks and listens and ground in self._grounds:
                yield ground, transport


def installed(
    entrants: Sequence[Entrant], folder: Path, results: Results
) -> dict[str, Path]:
    """The Python of each peer; whose does not install is noted as absent."""
    pythons: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for entrant in entrants:
        if entrant.requirements and entrant.key not in pythons.keys() | failed.keys():
            try:
                pythons[entrant.key] = venvs.environment(
                    entrant.key, entrant.requirements, folder
                )
            except venvs.InstallError as error:
                failed[entrant.key] = f"does not install: {error}"
        if entrant.key in failed:
            results.absent[entrant.name] = failed[entrant.key]
        elif entrant.name != OURS:
            python = pythons.get(entrant.key, own_python())
            asked = [one.partition("==")[0] for one in entrant.requirements[:1]]
            found = venvs.versions(python, [*asked, "onnxruntime"])
            results.versions[entrant.name] = ", ".join(
                f"{name} {version}" for name, version in found.items()
            )
    return pythons
