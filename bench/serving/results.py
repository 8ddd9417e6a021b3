"""What one run measured, and the figures that follow from it.

All rounds are kept. A figure is the median over them; a comparison of two servers is
the median of the ratios of equal rounds, so that a slow minute of the machine hits both
sides of it.
"""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .load import Figures
from .processes import Memory


class Scenario(NamedTuple):
    """Who was asked for what, how, by how many."""

    who: str
    model: str
    encoding: str
    transport: str
    clients: int


@dataclass(frozen=True)
class Starts:
    """Seconds from the start of the process to the first answer."""

    first_s: float
    """With nothing kept from before."""
    later_s: tuple[float, ...] = ()

    @property
    def later(self) -> float:
        """The median of the later starts, or the first where there are none."""
        return statistics.median(self.later_s or (self.first_s,))


@dataclass
class Results:
    """Everything that was measured, by scenario and by server and model."""

    rounds: dict[Scenario, list[Figures]] = field(default_factory=dict)
    starts: dict[tuple[str, str], Starts] = field(default_factory=dict)
    loaded: dict[tuple[str, str], Memory] = field(default_factory=dict)
    """After the first answer."""
    memory: dict[tuple[str, str], Memory] = field(default_factory=dict)
    """After all rounds."""
    absent: dict[str, str] = field(default_factory=dict)
    """Who could not be measured, or not to the end, and why."""
    versions: dict[str, str] = field(default_factory=dict)

    def median(
        self, scenario: Scenario, figure: Callable[[Figures], float]
    ) -> float | None:
        """Of one figure over the rounds; None where there is none."""
        rounds = self.rounds.get(scenario)
        return statistics.median(map(figure, rounds)) if rounds else None

    def ratio(
        self, one: Scenario, other: Scenario, figure: Callable[[Figures], float]
    ) -> float | None:
        """How many times the other's the one's figure is, in the same round."""
        pairs = zip(self.rounds.get(one, ()), self.rounds.get(other, ()), strict=False)
        ratios = [figure(a) / figure(b) for a, b in pairs if figure(b)]
        return statistics.median(ratios) if ratios else None

    def errors(self, who: str) -> int:
        """Wrong or lost answers of one server in all rounds."""
        return sum(
            figures.errors
            for scenario, rounds in self.rounds.items()
            for figures in rounds
            if scenario.who == who
        )

    def as_json(self) -> dict[str, Any]:
        """For a file; every round is in it."""
        return {
            "rounds": [
                {**scenario._asdict(), "rounds": [asdict(one) for one in rounds]}
                for scenario, rounds in self.rounds.items()
            ],
            "starts": [
                {"who": who, "model": model, **asdict(starts)}
                for (who, model), starts in self.starts.items()
            ],
            **{
                name: [
                    {"who": who, "model": model, **asdict(memory)}
                    for (who, model), memory in found.items()
                ]
                for name, found in (("loaded", self.loaded), ("memory", self.memory))
            },
            "absent": self.absent,
            "versions": self.versions,
        }
