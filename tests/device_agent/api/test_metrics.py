"""/metrics: the counters as they stand, in a form that Prometheus reads."""

import json

import pytest
import sites
import zoo
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_metrics,
)
from prometheus_client.parser import text_string_to_metric_families as plain

from device_agent.serving.statistics import BUCKETS_US

ROW = [1.0, -2.0, 0.5, 3.0]
ONE = {"model": "linear", "version": "1.0.0"}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics")
    with sites.site(folder, zoo.write(folder, "linear", "pair")) as made:
        for body in (ROW, [ROW, ROW], {"instances": [ROW]}):
            made.ask("POST", "/v1/models/linear/predict", content=json.dumps(body))
        served = made.repository.find("linear")
        served.statistics.failed(1_000_000)
        served.statistics.refuse("queue")
        served.statistics.refuse("queue")
        served.statistics.refuse("cancelled")
        yield made


@pytest.fixture
def metrics(here):
    """(name, labels) → value."""
    answer = here.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in plain(answer.text)
        for sample in family.samples
    }


def value(metrics, name: str, **labels: str) -> float:
    return metrics[name, tuple(sorted(labels.items()))]


def test_counts_under_tritons_names(metrics, here):
    numbers = here.repository.find("linear").statistics
    for name, wanted in {
        "nv_inference_request_success": 3,
        "nv_inference_count": 4,
        "nv_inference_exec_count": 3,
        "nv_inference_request_duration_us": numbers.success.ns / 1000 + 1000,
        "nv_inference_queue_duration_us": numbers.queue.ns / 1000,
        "nv_inference_compute_infer_duration_us": numbers.infer.ns / 1000,
        "nv_inference_pending_request_count": 0,
    }.items():
        assert value(metrics, name, **ONE) == pytest.approx(wanted), name


def test_failures_by_tritons_reasons(metrics):
    found = {
        reason: value(metrics, "nv_inference_request_failure", **ONE, reason=reason)
        for reason in ("BACKEND", "CANCELED", "REJECTED")
    }
    assert found == {"BACKEND": 1, "CANCELED": 1, "REJECTED": 2}
    assert value(metrics, "edgeml_requests_refused_total", **ONE, reason="queue") == 2


def test_the_histogram_adds_up(metrics):
    name = "edgeml_inference_latency_seconds"
    buckets = {
        float(dict(labels)["le"]): count
        for (found, labels), count in metrics.items()
        if found == f"{name}_bucket" and ("model", "linear") in labels
    }
    assert sorted(buckets) == [*(edge / 1e6 for edge in BUCKETS_US), float("inf")]
    counts = [buckets[edge] for edge in sorted(buckets)]
    assert counts == sorted(counts)
    assert counts[-1] == value(metrics, f"{name}_count", **ONE) == 3
    assert value(metrics, f"{name}_sum", **ONE) > 0


def test_what_is_loaded(metrics, here):
    served = here.repository.find("linear")
    facts = {
        "sha256": served.loaded.sha256, "target": "cpu-x86_64",
        "precision": "fp32", "runtime": "onnxruntime",
    }  # fmt: skip
    assert value(metrics, "edgeml_model_info", **ONE, **facts) == 1
    assert value(metrics, "edgeml_model_state", **ONE, state="READY") == 1
    assert value(metrics, "edgeml_breaker_state", **ONE) == 0
    assert value(metrics, "edgeml_inferences_hung", **ONE) == 0
    assert 0 < value(metrics, "edgeml_inference_expected_seconds", **ONE) < 1


def test_the_agent_itself(metrics, here):
    assert value(metrics, "edgeml_agent_info", version="1.2.3") == 1
    assert value(metrics, "edgeml_start_time_seconds") == here.about.started_wall
    assert value(metrics, "edgeml_buffered_bytes") == 0
    assert value(metrics, "edgeml_lane_pending", lane="0") == 0
    assert value(metrics, "edgeml_lane_abandoned_total", lane="0") == 0
    assert value(metrics, "edgeml_connections", place="served") == 3
    assert value(metrics, "edgeml_connections", place="reserve") == 1
    assert value(metrics, "edgeml_connections_accepted_total") == 7
    assert value(metrics, "edgeml_connections_evicted_total", reason="idle") == 2
    assert value(metrics, "edgeml_http_refused_total", reason="headers") == 4
    assert value(metrics, "process_resident_memory_bytes") > 1e6
    assert value(metrics, "process_cpu_seconds_total") > 0


def test_open_breakers_show(here):
    breaker = here.repository.find("pair").breaker
    for _ in range(5):
        breaker.failure(0.0)
    text = here.ask("GET", "/metrics").text
    assert 'edgeml_breaker_state{model="pair",version="1.0.0"} 2.0' in text


def test_every_family_is_there_once_with_help_and_type(here):
    lines = here.ask("GET", "/metrics").text.splitlines()
    for word in ("HELP", "TYPE"):
        names = [line.split()[2] for line in lines if line.startswith(f"# {word} ")]
        assert len(names) == len(set(names)) > 20
        assert all(name.startswith(("nv_", "edgeml_", "process_")) for name in names)


def test_open_metrics_for_those_who_ask(here):
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = here.ask("GET", "/metrics", headers=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in open_metrics(answer.text)}
    assert {"nv_inference_count", "edgeml_requests_refused"} <= names


def test_a_swap_leaves_no_old_version_behind(tmp_path):
    one, two = zoo.write(tmp_path, "linear", "linear2")
    with sites.site(tmp_path, [one]) as moving:
        one.write_bytes(two.read_bytes())
        moving.ask("POST", "/v2/repository/models/linear/load")
        text = moving.ask("GET", "/metrics").text
    assert 'version="2.0.0"' in text
    assert 'nv_inference_count{model="linear",version="1.0.0"}' not in text


def test_without_any_model(tmp_path):
    with sites.site(tmp_path) as empty:
        answer = empty.ask("GET", "/metrics")
    assert answer.status_code == 200
    assert list(plain(answer.text))
