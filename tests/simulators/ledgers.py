"""The fleet's side of the ledger, as small as the contract lets it be, in memory.

Records are stored by (epoch, number), once. What is declared as dropped is kept beside
them and counts only where nothing is stored. The acknowledgement is the number before
the first gap.
"""

from typing import Any, Self

from device_agent.contract.messages import Batch, Dropped, Record

Key = tuple[str, int]


class Ledger:
    """What one device's fleet knows."""

    def __init__(self) -> None:
        self.stored: dict[Key, dict[str, Any]] = {}
        self.conflicts: list[Key] = []
        """Numbers that came twice, with different bodies."""
        self.damaged: set[str] = set()
        """Epochs whose rest was declared as lost."""
        self._dropped: dict[str, set[int]] = {}
        self._upto: dict[str, int] = {}

    @classmethod
    def of(cls, other: Self) -> Self:
        """Another one that knows the same."""
        found = cls()
        found.stored = dict(other.stored)
        found.damaged = set(other.damaged)
        found._dropped = {epoch: set(has) for epoch, has in other._dropped.items()}
        found._upto = dict(other._upto)
        return found

    def take(self, batch: Batch) -> int:
        """Store a batch; up to which number there is no gap in its epoch."""
        self._upto.setdefault(batch.epoch, 0)
        for record in batch.records:
            if record.kind == "dropped":
                self._bury(batch.epoch, record)
                continue
            key = batch.epoch, record.seq
            if self.stored.setdefault(key, record.body) != record.body:
                self.conflicts.append(key)
        while self._known(batch.epoch, self._upto[batch.epoch] + 1):
            self._upto[batch.epoch] += 1
        return self._upto[batch.epoch]

    def knows(self, epoch: str) -> None:
        """It heard of an epoch, of which nothing may have come."""
        self._upto.setdefault(epoch, 0)

    def missing(self) -> list[tuple[str, int, int]]:
        """Gaps: epoch, first and last number of each."""
        found = []
        for epoch, upto in self._upto.items():
            numbers = {seq for name, seq in self.stored if name == epoch}
            numbers |= self._dropped.get(epoch, set())
            before = upto
            for seq in sorted(one for one in numbers if one > upto):
                if seq > before + 1:
                    found.append((epoch, before + 1, seq - 1))
                before = seq
        return found

    def is_dropped(self, key: Key) -> bool:
        """Whether a number was declared as dropped and is not stored."""
        epoch, seq = key
        said = epoch in self.damaged or seq in self._dropped.get(epoch, set())
        return said and key not in self.stored

    def _bury(self, epoch: str, record: Record) -> None:
        run = Dropped.model_validate(record.body)
        assert run.last == record.seq, "a tombstone has the number of its last record"
        if run.reason == "damaged":
            self.damaged |= self._upto.keys() - {epoch}
        has = self._dropped.setdefault(epoch, set())
        has |= set(range(run.first, run.last + 1))

    def _known(self, epoch: str, seq: int) -> bool:
        return (epoch, seq) in self.stored or seq in self._dropped.get(epoch, set())
