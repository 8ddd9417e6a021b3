"""Power cuts at every durable call, and every state that they may leave.

Each campaign finds nothing in the code as it is, and something in each mutant: a
campaign that finds nothing in those would find nothing at all. ``scripts/test faults``
runs the full ones.
"""

import logging
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from typing import Any

import cutstates
import mutants
import powercuts
import pytest
from faultflows import Campaign, names

STATES = 100_000
"""Of a full run, over all flows."""
SEEDS = 20
FLOWS = names()
LONGER = {"update"}
"""Flows that take too long for every run of the tests."""
QUICK = [
    pytest.param(one, marks=pytest.mark.long) if one in LONGER else one for one in FLOWS
]
QUICKEST = [
    one if one in ("replace", "spool") else pytest.param(one, marks=pytest.mark.long)
    for one in FLOWS
]


CUT_MUTANTS = {
    "state written in place": ("replace", mutants.written_in_place),
    "named before it is whole": ("replace", mutants.renamed_before_written),
    "old slot deleted before commit": ("update", mutants.old_slot_deleted),
}
STATE_MUTANTS: dict[str, tuple[str, frozenset[str], Any]] = {
    "no fsync on the file": ("replace", frozenset({"sync"}), nullcontext),
    "no fsync on the downloaded file": ("download", frozenset({"sync"}), nullcontext),
    "no fsync on the folder": ("replace", frozenset({"sync_folder"}), nullcontext),
    "no fsync on the slots' folder": (
        "download", frozenset({"sync_folder"}), nullcontext,
    ),
    "state written in place": ("replace", frozenset(), mutants.written_in_place),
    "WAL and NORMAL": ("spool", frozenset(), mutants.normal),
}  # fmt: skip


@pytest.mark.parametrize("name", QUICKEST)
def test_the_process_ends_at_every_durable_call(name: str) -> None:
    campaign = powercuts.cut_everywhere(name, seed=1)
    print(campaign)
    assert campaign.points > 5
    assert not campaign.violations, str(campaign)


@pytest.mark.parametrize("name", QUICK)
def test_states_that_a_cut_may_leave(name: str) -> None:
    campaign = cutstates.explore(name, seed=1, states=150)
    print(campaign)
    assert campaign.faults == 150
    assert not campaign.violations, str(campaign)


@pytest.mark.parametrize("mutant", CUT_MUTANTS)
def test_cuts_kill_the_mutant(mutant: str) -> None:
    name, made = CUT_MUTANTS[mutant]
    campaign = powercuts.cut_everywhere(name, seed=1, mutant=made, stop_at_first=True)
    assert campaign.violations, f"{mutant}: not found in {campaign}"


@pytest.mark.parametrize("mutant", STATE_MUTANTS)
def test_states_kill_the_mutant(mutant: str) -> None:
    name, without, made = STATE_MUTANTS[mutant]
    campaign = cutstates.explore(
        name, seed=1, states=3_000, without=without, mutant=made, stop_at_first=True
    )
    assert campaign.violations, f"{mutant}: not found in {campaign}"


@pytest.mark.faults
@pytest.mark.parametrize("name", FLOWS)
def test_every_call_of_many_runs_and_of_their_recovery(name: str) -> None:
    total = Campaign(f"crash at every call, pairs, {name}", seed=100)
    seeds = range(100, 100 + (SEEDS // 5 if name in LONGER else SEEDS))
    with _pool() as pool:
        for one in pool.map(_cut_pairs, [name] * len(seeds), seeds):
            total += one
    print(total)
    assert not total.violations, str(total)


@pytest.mark.faults
def test_a_hundred_thousand_states() -> None:
    total = Campaign("states after a cut, all flows", seed=0)
    share = -(-STATES // (2 * len(FLOWS)))
    work = [(name, seed, share) for name in FLOWS for seed in (0, 500)]
    with _pool() as pool:
        for one in pool.map(cutstates.explore, *zip(*work, strict=True)):
            print(one)
            total += one
    print(total)
    assert total.faults >= STATES
    assert not total.violations, str(total)


def _cut_pairs(name: str, seed: int) -> Campaign:
    return powercuts.cut_everywhere(name, seed, pairs=True)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), logging.disable, (logging.CRITICAL,)
    )
