"""How the bench of the servers measures, and how it judges."""

import itertools
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import serve as bench
from serving import contest, entrants, load, models, tables, venvs, verdicts, wire
from serving.entrants import BARE, LITSERVE, OURS, RAW, WORKERS
from serving.load import Figures
from serving.processes import Memory, Server
from serving.results import Results, Scenario, Starts

from device_agent.contract.bundle import read_bundle

ROUND = Figures(100, 0, 1.0, 50.0, 1_000.0, 2_000.0, 3_000.0, 4_000.0)


# --- processes -------------------------------------------------------------------

BURN = "import time\nwhile time.process_time() < 0.2: pass\n"


def server(code: str, folder: Path) -> Server:
    return Server([sys.executable, "-c", code], {}, folder)


def until(folder: Path, text: str) -> None:
    while text not in (folder / "log").read_text():
        pass


@pytest.mark.parametrize("waited_for", [True, False])
def test_cpu_of_children_counts_also_when_they_are_gone(
    tmp_path: Path, waited_for: bool
) -> None:
    code = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {BURN!r} +"
        "'print(1, flush=True); input()'], stdin=subprocess.PIPE, "
        "stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline()\n"
        + ("child.communicate()\n" if waited_for else "")
        + "print('done', flush=True)\nimport time; time.sleep(60)"
    )
    one = server(code, tmp_path)
    try:
        until(tmp_path, "done")
        # A clock tick of what the system tells of ended children may be cut off.
        assert one.cpu_s() >= 0.2 - 0.02
        assert one.memory().processes == (1 if waited_for else 2)
        assert one.memory().rss_bytes >= one.memory().pss_bytes > 1e6
    finally:
        one.stop()


def test_nothing_outlives_a_server(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time, signal\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(600)'], "
        "start_new_session=True)\n"
        "print(f'child {child.pid}.', flush=True)\ntime.sleep(600)"
    )
    one = server(code, tmp_path)
    until(tmp_path, ".")
    child = int((tmp_path / "log").read_text().split()[1].rstrip("."))
    one.stop()
    assert not one.alive
    state = Path("/proc", str(child), "stat")
    assert not state.exists() or ") Z " in state.read_text()


def test_last_words(tmp_path: Path) -> None:
    one = server("print('a', flush=True); raise SystemExit('no such model')", tmp_path)
    while one.alive:
        pass
    assert one.last_words() == "no such model"
    one.stop()


# --- requests and answers --------------------------------------------------------


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_numbers_survive_every_encoding(values: list[float]) -> None:
    feed = np.array([values], np.float32)
    flat = feed.ravel()
    body = json.loads(wire.oip_json(feed)[0])["inputs"][0]
    assert body["shape"] == [1, len(values)] and len(body["data"]) == len(values)
    assert np.array_equal(np.array(body["data"], np.float32), flat)
    binary, headers = wire.oip_binary(feed)
    head = int(headers[wire.BINARY_HEADER])
    assert json.loads(binary[:head])["inputs"][0]["parameters"] == {
        "binary_data_size": feed.nbytes
    }
    assert np.array_equal(np.frombuffer(binary[head:], np.float32), flat)
    listed = json.loads(wire.listed("input")(feed)[0])["input"]
    assert np.array_equal(np.array(listed, np.float32), flat)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (500, b'{"error": "no"}', "status 500"),
        (200, b"<html>", "cannot be read"),
        (200, b'{"output": [1, 2]}', "other numbers"),
        (200, b'{"output": [1, 2, 3.01, 4]}', "other numbers"),
    ],
)
def test_a_server_that_answers_something_else_is_not_measured(
    status: int, body: bytes, words: str
) -> None:
    model = models.Model(
        "m", Path(), Path(), Path(), np.zeros((1, 2), np.float32),
        np.array([[1, 2, 3, 4]], np.float32),
    )  # fmt: skip
    read = wire.read_listed("output")
    right = wire.Answer(200, {}, b'{"output": [1, 2, 3, 4.0001]}')
    contest.check(right, read, model)
    with pytest.raises(contest.WrongAnswerError, match=words):
        contest.check(wire.Answer(status, {}, body), read, model)


# --- models ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> models.Model:
    return models.made("mlp", tmp_path_factory.mktemp("models"))


def test_our_bundle_holds_the_artifact_that_all_serve(mlp: models.Model) -> None:
    bundle = read_bundle(mlp.bundle)
    manifest = bundle.manifest
    assert models.mlp() == mlp.artifact.read_bytes(), "two runs make the same"
    artifact = next(one for one in manifest.members if one.path == manifest.artifact)
    assert artifact.size == mlp.artifact.stat().st_size
    assert manifest.runtime.options == models.OPTIONS
    assert 0 < manifest.metrics.latency.p50_ms <= manifest.metrics.latency.p99_ms


def test_the_image_model_is_int8_and_its_input_is_what_json_costs_most() -> None:
    import onnx

    graph = onnx.load_model_from_string(models.image()).graph
    kinds = {node.op_type for node in graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= kinds
    feed = models.drawn(1, [1, 3, 96, 96])[0]
    assert feed.size == 27_648
    assert len(wire.oip_json(feed)[0]) > 500_000


# --- a whole run -----------------------------------------------------------------


def test_who_fails_is_left_out_and_the_others_are_measured(
    mlp: models.Model, tmp_path: Path
) -> None:
    if not shutil.which("cc"):
        pytest.skip("no C compiler to make the load client")
    program = load.compiled(tmp_path)
    raw = next(one for one in entrants.ENTRANTS if one.name == RAW)
    broken = replace(
        raw, name=LITSERVE, command=lambda site: [site.python, "-c", "exit('no luck')"]
    )
    plan = contest.Plan(2, 0.05, 1, (1, 2), ("TCP", "unix"), program)
    results = Results()
    contest.Contest(mlp, plan, results, tmp_path).run([broken, raw], {})
    assert results.absent.keys() == {LITSERVE}
    assert "no luck" in results.absent[LITSERVE]
    expected = {
        Scenario(RAW, "mlp", *rest)
        for rest in itertools.product(("JSON", "binary"), ("TCP", "unix"), (1, 2))
    }
    expected |= {verdicts.bare(one) for one in expected}
    assert results.rounds.keys() == expected
    for scenario, rounds in results.rounds.items():
        assert len(rounds) == 2
        for one in rounds:
            assert one.errors == 0 and one.requests > 0 and one.cpu_us > 0, scenario
    assert results.starts[RAW, "mlp"].later_s
    assert results.memory[RAW, "mlp"].processes == 1
    drawn = tables.markdown(tables.tables(results, (1, 2)), [], ["x"])
    assert drawn.count(f"| {RAW} ") == 4 + 1


def test_a_peer_that_does_not_install_is_a_row_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> Path:
        raise venvs.InstallError("no wheel for this machine")

    monkeypatch.setattr(venvs, "environment", refused)
    results = Results()
    peers = entrants.chosen(["litserve"])
    assert contest.installed(peers, tmp_path, results) == {}
    assert results.absent == {LITSERVE: "does not install: no wheel for this machine"}
    assert tables.remarks(results)[-1].startswith(f"{LITSERVE}: absent: does not")


def test_a_virtual_environment_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[list[str]] = []
    monkeypatch.setattr(
        venvs, "_run",
        lambda command: (done.append(list(map(str, command))),
                         (tmp_path / "p").mkdir(exist_ok=True)),
    )  # fmt: skip
    for wanted in (["a==1"], ["a==1"], ["a==2"]):
        assert venvs.environment("p", wanted, tmp_path).parent.name == "bin"
    assert [command[-2] for command in done if "install" in command] == ["a==1", "a==2"]
    assert venvs.runtime() in done[1]


# --- figures and verdicts --------------------------------------------------------


def test_a_ratio_compares_equal_rounds() -> None:
    one, other = verdicts.MLP, verdicts.MLP._replace(who=WORKERS)
    results = Results()
    results.rounds[one] = [replace(ROUND, cpu_us=cpu) for cpu in (10, 20, 40)]
    results.rounds[other] = [replace(ROUND, cpu_us=cpu) for cpu in (150, 320, 640)]
    assert results.ratio(other, one, verdicts.cpu) == 16
    assert results.median(one, verdicts.cpu) == 20
    assert results.ratio(other, one._replace(clients=1), verdicts.cpu) is None


@given(st.integers(1, 64), st.floats(0.1, 10), st.integers(1, 10_000))
def test_equal_waits_give_a_ratio_of_one(
    clients: int, duration_s: float, requests: int
) -> None:
    wait_us = clients * duration_s / requests * 1e6
    one = replace(ROUND, requests=requests, duration_s=duration_s, p99_us=wait_us)
    assert one.wait_ratio(clients) == pytest.approx(1)


def good() -> Results:
    """Everything exactly at its limit."""
    results = Results()

    def put(scenario: Scenario, **figures: float) -> None:
        whole = replace(ROUND, **figures)  # type: ignore[arg-type]
        results.rounds[scenario] = [whole] * 3

    put(verdicts.MLP, cpu_us=60.0, requests=14_000)
    for who in (WORKERS, LITSERVE):
        put(verdicts.MLP._replace(who=who), cpu_us=900.0)
    put(verdicts.bare(verdicts.IMAGE), cpu_us=1_000.0)
    put(verdicts.bare(verdicts.IMAGE_JSON), cpu_us=1_000.0)
    put(verdicts.IMAGE, cpu_us=1_200.0)
    put(verdicts.IMAGE_JSON, cpu_us=2_200.0)
    for scenario in (verdicts.MLP, verdicts.IMAGE):
        crowd = scenario._replace(clients=32)
        put(crowd, requests=1_000, duration_s=0.8, p99_us=33_279.0)
    for model in ("mlp", "image"):
        results.memory[OURS, model] = Memory(110_000_000, 90_000_000, 1)
        results.starts[OURS, model] = Starts(2.0, (0.4, 0.5, 0.9))
    return results


def test_at_the_limits_every_promise_holds() -> None:
    judged = verdicts.verdicts(good())
    assert len(judged) == 11
    assert not [str(one) for one in judged if one.missed]
    assert all(str(one).startswith("holds ") for one in judged)
    assert any("first starts with a new bundle: 2, 2 s" in str(one) for one in judged)


@pytest.mark.parametrize(
    ("scenario", "change", "missed"),
    [
        (verdicts.MLP, {"cpu_us": 60.1}, ["CPU per", "less than M", "less than L"]),
        (verdicts.MLP, {"requests": 13_999}, ["rate"]),
        (verdicts.MLP._replace(who=WORKERS), {"cpu_us": 899.0}, ["less than MLServer"]),
        (verdicts.MLP._replace(who=LITSERVE), {"cpu_us": 899.0}, ["than LitServe"]),
        (verdicts.IMAGE, {"cpu_us": 1_201.0}, ["image, binary"]),
        (verdicts.IMAGE_JSON, {"cpu_us": 2_201.0}, ["image, JSON"]),
        (verdicts.MLP._replace(clients=32), {"p99_us": 34_000.0}, ["mlp, JSON"]),
        (verdicts.IMAGE._replace(clients=32), {"p99_us": 34_000.0}, ["image, binary"]),
        (verdicts.IMAGE, {"errors": 1}, ["wrong or lost"]),
    ],
    ids=str,
)
def test_beyond_a_limit_it_is_missed(
    scenario: Scenario, change: dict[str, float], missed: list[str]
) -> None:
    results = good()
    results.rounds[scenario] = [
        replace(one, **change)  # type: ignore[arg-type]
        for one in results.rounds[scenario]
    ]
    found = [one for one in verdicts.verdicts(results) if one.missed]
    assert len(found) == len(missed)
    for one, words in zip(found, missed, strict=True):
        assert words in one.promise and str(one).startswith("MISSED ")


def test_memory_and_start_are_judged_where_it_hurts_most() -> None:
    results = good()
    results.memory[OURS, "image"] = Memory(110_100_000, 0, 1)
    results.starts[OURS, "mlp"] = Starts(0.1, (0.4, 0.51, 0.9))
    missed = [one.promise for one in verdicts.verdicts(results) if one.missed]
    assert len(missed) == 2
    assert "memory" in missed[0] and "start" in missed[1]


def test_what_was_not_measured_is_neither_held_nor_missed() -> None:
    results = good()
    del results.rounds[verdicts.MLP._replace(who=LITSERVE)]
    results.absent[LITSERVE] = "does not install: no wheel"
    unknown = [one for one in verdicts.verdicts(results) if one.found is None]
    assert [str(one)[:3] for one in unknown] == ["-  "]
    assert "no wheel" in str(unknown[0]) and not unknown[0].missed


def test_without_ours_the_promise_is_missed() -> None:
    results = Results(absent={OURS: "mlp: it ended before it answered"})
    results.rounds[verdicts.bare(verdicts.MLP)] = [ROUND]
    judged = verdicts.verdicts(results)
    assert [one.missed for one in judged] == [True]
    assert "it ended before it answered" in str(judged[0])


# --- what is printed -------------------------------------------------------------


def test_a_row_gives_the_medians_by_clients() -> None:
    results = good()
    slow = verdicts.MLP._replace(clients=32)
    results.rounds[slow] = [replace(ROUND, cpu_us=cpu) for cpu in (70.0, 71.0, 99.0)]
    beside = verdicts.bare(verdicts.MLP)
    for encoding, cpu in (("JSON", 6.1), ("binary", 7.1), ("none", 6.3)):
        one = replace(ROUND, cpu_us=cpu)
        results.rounds[beside._replace(encoding=encoding)] = [one]
    table = tables.tables(results, (8, 32))[0]
    assert table.rows[0][3] == "CPU µs at 8 · 32"
    assert [row[0] for row in table.rows[1:]] == [BARE, OURS, WORKERS, LITSERVE]
    assert table.rows[1][3] == "6.30"
    assert table.rows[2][3] == "60 · 71"
    assert table.rows[3][3] == "900 · -"


def test_the_result_replaces_what_follows_the_mark(tmp_path: Path) -> None:
    file = tmp_path / "doc.md"
    file.write_text(f"# Kept\n\n{tables.MARK}\n\nold\n")
    for _ in range(2):
        tables.written("new\n", file)
        assert file.read_text() == f"# Kept\n\n{tables.MARK}\n\nnew\n"
    tables.written("alone\n", tmp_path / "other.md")
    assert (tmp_path / "other.md").read_text() == "alone\n"


def test_every_round_is_in_the_record() -> None:
    told = json.loads(json.dumps(good().as_json()))
    assert len(told["rounds"][0]["rounds"]) == 3
    assert told["rounds"][0]["who"] == OURS
    assert told["memory"][0]["rss_bytes"] == 110_000_000


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--peers", "triton"], "no ['triton']"), (["--rounds", "0"], "counts from 1")],
)
def test_a_mistake_on_the_command_line_is_said(words: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, bench.__file__, *words], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2 and said in done.stderr
