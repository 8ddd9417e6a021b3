"""The key-compromise table of docs/trust.md, against what a thief can really do."""

import re
from pathlib import Path

import pytest
from thieves import Ground

from .compromise import NEVER, POWERS, Damage, Powers, damage, subsets

PAGE = Path(__file__).resolve().parents[3] / "docs/trust.md"
TELLING = (
    (), ("transport",), ("transport", "timestamp"), ("transport", "director"),
    ("transport", "snapshot", "timestamp"), ("transport", "root-2", "root-3"),
    ("transport", "director", "snapshot", "team", "timestamp"),
    ("transport", "director", "root-1", "snapshot", "timestamp"),
    ("director", "root-1", "root-2", "snapshot", "team", "timestamp"),
)  # fmt: skip
"""One of each kind. All 256 in scripts/test faults."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


def documented() -> list[tuple[list[str], str]]:
    """Rows of the table: what one must have, what one can do then."""
    text = PAGE.read_text().split("## What stolen keys allow")[1].split("\n## ")[0]
    rows = [
        line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")
    ]
    return [(re.findall(r"`([a-z]+)`", need), can) for need, can in rows]


def expected(powers: Powers) -> Damage:
    """What the page says of a set of powers: all rows count whose keys are in it."""
    found = {"arbitrary": False, "old": False, "choose": False}
    freeze: list[int] = []
    for need, can in documented():
        roots = sum(1 for one in powers if one.startswith("root"))
        others = {one for one in need if one != "root"}
        if roots < need.count("root") or not others <= powers:
            continue
        for word in found:
            found[word] |= re.search(rf"\b{word}\b", can) is not None
        freeze += [int(days) for days in re.findall(r"noticed after (\d+) days", can)]
        freeze += [NEVER] * ("never noticed" in can)
    days = None if not freeze else NEVER if NEVER in freeze else max(freeze)
    return Damage(**found, freeze=days)


def compared(some: list[Powers], ground: Ground, folder: Path) -> None:
    wrong = []
    for number, powers in enumerate(some):
        found = damage(powers, ground, folder / str(number))
        if found != expected(powers):
            wrong.append((sorted(powers), found, expected(powers)))
    print(f"subsets {len(some)}, differences {len(wrong)}")
    assert wrong == []


def test_the_page_says_what_each_key_alone_is_good_for() -> None:
    nothing = Damage(False, False, False, None)
    assert [expected(frozenset({one})) for one in POWERS[:-1]] == [nothing] * 7
    assert expected(frozenset(POWERS)) == Damage(True, True, True, NEVER)


@pytest.mark.long
def test_the_telling_sets(ground: Ground, tmp_path: Path) -> None:
    compared([frozenset(one) for one in TELLING], ground, tmp_path)


@pytest.mark.faults
def test_every_set(ground: Ground, tmp_path: Path) -> None:
    every = list(subsets())
    assert len(every) == 2 ** len(POWERS)
    compared(every, ground, tmp_path)
