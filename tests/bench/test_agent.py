"""How the idle agent's bench reads the kernel's counters and judges."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
SS = """\
0 0 127.0.0.1:60 127.0.0.1:8883 users:(("python",pid=7,fd=9))
\t bbr rto:200 bytes_sent:300 bytes_acked:299 bytes_received:200 segs_out:5 segs_in:4
0 0 127.0.0.1:61 127.0.0.1:8883 users:(("python",pid=71,fd=9))
\t bbr bytes_sent:9999 segs_out:99
"""


@pytest.fixture(scope="module")
def bench() -> Any:
    sys.path.insert(0, str(BENCH))
    try:
        import agent
    finally:
        sys.path.remove(str(BENCH))
    return agent


def test_bytes_and_segments_of_the_agents_own_socket(bench: Any) -> None:
    assert bench.parse_ss(SS, 7) == (500, 9)
    with pytest.raises(ValueError, match="found 0"):
        bench.parse_ss(SS, 1)


def test_wakes_are_the_voluntary_ones(bench: Any) -> None:
    status = "Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t5\n"
    assert bench.parse_wakes(status) == 12


def test_what_is_above_its_limit_is_missed(bench: Any) -> None:
    nothing = bench.Counters(0, 0, 0.0, 0, 0)
    seconds = 864.0  # a hundredth of a day
    good = bench.Counters(10_000, 100, 8.0, 400_000, 5)
    assert good.network_bytes == 15_200
    found = bench.judged(nothing, good, int(129e6), seconds, 1000.0)
    assert [one.missed for one in found] == [False] * 5
    assert found[0].found == pytest.approx(1.52)
    worse = {
        0: replace(good, payload_bytes=20_000), 1: replace(good, cpu_s=9.0),
        3: replace(good, written_bytes=600_000),
    }  # fmt: skip
    for place, counters in worse.items():
        found = bench.judged(nothing, counters, int(129e6), seconds, 1000.0)
        assert [one.missed for one in found] == [n == place for n in range(5)]
    assert bench.judged(nothing, good, int(131e6), seconds, 1000.0)[2].missed
    assert bench.judged(nothing, good, int(129e6), seconds, 2000.0)[4].missed


def test_many_records_cost_little_each(bench: Any, tmp_path: Path) -> None:
    assert bench.burst_wear(tmp_path / "spool") < 4 << 10
