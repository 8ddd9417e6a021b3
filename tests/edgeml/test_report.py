"""The report: complete, documented, deterministic, and safe to open."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from outcomes import outcome
from pages import Page

from edgeml.errors import InputError
from edgeml.outcome import BuildOutcome, Evaluation, Flip, TargetOutcome
from edgeml.report import read_report, report_html, report_json, summary_lines
from edgeml.report.document import metric_change
from edgeml.report.page import coverage
from edgeml.report.schema import fields
from edgeml.report.sections import tiles, view
from edgeml.report.words import (
    MINUS,
    NONE,
    TIMES,
    markdown,
    milliseconds,
    percent,
    signed,
    size,
)

DOCS = Path(__file__).resolve().parents[2] / "docs" / "report.md"
OPEN_TABLES = (
    "model", "calibration", "budget", "tools", "machine", "parameters", "point",
    "space",
)  # fmt: skip
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def build() -> BuildOutcome:
    return outcome()


@pytest.fixture(scope="module")
def page(build) -> str:
    return report_html(build).decode()


def paths(value, prefix=""):
    """Every field path in a report, as docs/report.md writes them."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}{key}"
            yield from paths(inner, f"{prefix}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, prefix[:-1] + "[].")


def written(path: str, known: set[str]) -> bool:
    """Whether ``path`` is documented, a key of a mapping standing as ``{}``."""
    if path in known:
        return True
    parts = path.split(".")
    if any(part.removesuffix("[]") in OPEN_TABLES for part in parts[:-1]):
        return True
    mappings = ("metrics", "slices", "slice_counts")
    at = next((n for n, part in enumerate(parts) if part in mappings), None)
    if at is None:
        return False
    rest = parts[at + 2 :]
    joined = ".".join([*parts[:at], parts[at] + "{}", *rest])
    return ".".join(parts[: at + 1]) in known and (
        not rest or parts[at] != "metrics" or joined in known
    )


# report.json


def test_every_key_of_a_rendered_report_is_documented(build):
    documented = set(re.findall(r"^\| `([^`]+)` \|", DOCS.read_text(), re.M))
    assert documented == {path for path, _ in fields()}
    rendered = set(paths(json.loads(report_json(build))))
    assert {one for one in rendered if not written(one, documented)} == set()


def test_every_documented_key_is_rendered(build):
    rendered = {
        one.replace("top1", "{}") for one in paths(json.loads(report_json(build)))
    }
    flat = {re.sub(r"\.?\{\}", "", one) for one in rendered}
    for path, _ in fields():
        if not path.startswith("oracle.flips[]"):  # float does not differ from itself
            assert path.replace("{}", "") in flat, path


def test_json_reads_back_and_says_the_same(build):
    raw = report_json(build)
    value = read_report(raw)
    assert raw.endswith(b"\n") and value == json.loads(raw)
    target = value["targets"][0]
    chosen = next(c for c in target["candidates"] if c["name"] == target["chosen"])
    assert target["metrics"]["top1"]["value"] == chosen["evaluation"]["metrics"]["top1"]
    assert target["metrics"]["top1"]["float"] == 0.913
    assert target["metrics"]["top1"]["samples"] == 1000
    assert target["artifact"]["file"] == "artifact/model.onnx"
    assert target["latency"]["threads"] == 1
    assert {one["status"] for one in target["refused"]} == {
        "failed", "missed", "skipped", "slower"
    }  # fmt: skip


def test_a_refused_target_has_reasons_and_no_figures(build):
    target = json.loads(report_json(build))["targets"][1]
    assert target["chosen"] is target["bundle"] is target["artifact"] is None
    assert target["metrics"] == {} and target["refusals"]
    assert len(target["candidates"]) == 7


def test_equal_outcomes_give_equal_bytes():
    assert report_json(outcome(3)) == report_json(outcome(3))
    assert report_html(outcome(3)) == report_html(outcome(3))
    assert report_json(outcome(3)) != report_json(outcome(4))


def test_numpy_values_become_plain_and_infinite_ones_null(build):
    calibration = {
        **build.calibration,
        "coverage": {"range": np.float32([0.5, np.inf])},
    }
    value = json.loads(report_json(replace(build, calibration=calibration)))
    assert value["calibration"]["coverage"]["range"] == [0.5, None]
    errors = value["targets"][0]["candidates"][2]["layer_errors"]
    assert None in [one["sqnr_db"] for one in errors]


def test_a_value_without_a_form_is_named():
    with pytest.raises(InputError, match=r"report\.machine\.cpu: .*found object"):
        report_json(replace(outcome(), machine={"cpu": object()}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema": 2}, "schema 2 is unknown; this program reads schema 1"),
        ({"targets": None}, "targets: Input should be a valid list"),
        ({"better": "sideways"}, "better"),
    ],
)
def test_reading_names_what_is_wrong(build, change, says):
    value = {**json.loads(report_json(build)), **change}
    with pytest.raises(InputError, match=re.escape(says)):
        read_report(json.dumps(value).encode())


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_reading_refuses_what_is_no_report(raw):
    with pytest.raises(InputError, match=r"report\.json"):
        read_report(raw)


def test_reading_ignores_fields_it_does_not_know(build):
    value = {**json.loads(report_json(build)), "later": 1}
    assert read_report(json.dumps(value).encode())["later"] == 1


# report.html


def test_page_is_one_file_without_script_or_outside_resource(page):
    parsed = Page(page)
    assert {tag for tag, _ in parsed.tags} & {
        "script",
        "img",
        "link",
        "iframe",
    } == set()
    for _, attributes in parsed.tags:
        assert not attributes.get("src")
        assert attributes.get("href", "#").startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_page_says_what_ships_and_what_does_not(page):
    text = Page(page).text
    assert "1 of 2 targets ship." in text
    for words in (
        "int8 nncf ships in cpu-x86_64.edgeml",
        "fastest of 5 candidates that hold the budget",
        "95 % interval of the change",
        "5 lost, 3 gained, 3 otherwise",
        "No bundle was written",
        "neural-compressor: Unsupported operator Gather",
        "target cpu-x86_64 lists no int4 precision",
        "edgeml unpack cpu-x86_64.edgeml",
        f"2.22{TIMES} faster",
    ):
        assert words in text


def test_page_lists_every_candidate_and_metric(build, page):
    text = Page(page).text
    for target in build.targets:
        for candidate in target.candidates:
            assert candidate.name in text
    for metric in build.oracle.metrics:
        assert metric in text


def test_page_is_accessible(page):
    parsed = Page(page)
    idents = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(set(idents)) == len(idents)
    plots = [a for tag, a in parsed.tags if tag == "svg" and a.get("role") == "img"]
    assert len(plots) == 10
    for plot in plots:
        assert set(plot["aria-labelledby"].split()) <= set(idents)
    assert all(a.get("scope") for tag, a in parsed.tags if tag == "th")
    assert ("html", {"lang": "en"}) in parsed.tags


def test_names_from_users_stay_text(build):
    target = build.targets[0]
    candidates = tuple(
        replace(
            one,
            name=EVIL if one.status == "chosen" else one.name,
            reason=EVIL, parameters={EVIL: EVIL}, kept_layers=(EVIL,),
            layer_errors=tuple(replace(e, node=EVIL) for e in one.layer_errors),
            evaluation=one.evaluation
            and replace(
                one.evaluation,
                slices={EVIL: {EVIL: 0.5}},
                flips=(Flip(EVIL, EVIL, EVIL, "x"),),
            ),
        )
        for one in target.candidates
    )  # fmt: skip
    evil = replace(
        build, name=EVIL, version=EVIL, metric="top1", labels=(EVIL,) * 12,
        tools={EVIL: EVIL}, machine={EVIL: [EVIL] * 5}, model_summary={EVIL: {EVIL: 1}},
        calibration={"coverage": {EVIL: {EVIL: 1}}}, reproduce=(EVIL,),
        targets=(
            replace(
                target, target=EVIL, runtime=EVIL, chosen=EVIL, choice_reason=EVIL,
                candidates=candidates, bundle_file=EVIL,
            ),
        ),
    )  # fmt: skip
    parsed = Page(report_html(evil).decode())
    assert {tag for tag, _ in parsed.tags} & {"script", "img"} == set()
    assert not any("onerror" in a for _, a in parsed.tags)
    assert parsed.text.count("<script>alert(1)</script>") > 20


def bare(**changes) -> BuildOutcome:
    """The least that a build can know."""
    fields = {
        "name": "m", "version": "1", "recipe_sha256": "0" * 64, "model_summary": {},
        "metric": "mae", "better": "lower",
        "oracle": Evaluation({"mae": 0.25}, 10, "0" * 64),
        "export_error": 0.0, "calibration": {}, "budget": {}, "tools": {},
        "machine": {},
    }  # fmt: skip
    return BuildOutcome(**{**fields, **changes})


def test_page_of_a_target_refused_before_anything_was_tried():
    refused = TargetOutcome("gpu-cuda", "onnxruntime", refusals=("no CUDA here",))
    build = bare(targets=(refused,))
    text = Page(report_html(build).decode()).text
    assert "The target does not ship." in text and "no CUDA here" in text
    read_report(report_json(build))


def test_what_stood_in_for_the_device_is_said_wherever_figures_are(build):
    """On the page, on the terminal and in the record; a limit is not called held."""
    target = build.targets[0]
    elsewhere = replace(
        target,
        candidates=tuple(
            replace(one, latency=None, peak_memory_bytes=None, coverage=None)
            for one in target.candidates
        ),
        validated_on="CPUExecutionProvider of this x86_64 machine",
        unchecked=("max_latency_ms", "max_fallback_share"),
    )
    made = replace(build, targets=(elsewhere,))
    text = Page(report_html(made).decode()).text
    said = (
        "validated on CPUExecutionProvider of this x86_64 machine, not on the target's "
        "own device; not timed; not checked: latency, median, operators run elsewhere"
    )
    assert said in text
    assert text.count("not checked here") == 2
    assert "latency, median" not in [
        row["name"] for row in tiles(view(made, elsewhere))
    ]
    assert any(said in line for line in summary_lines(made))
    (told,) = read_report(report_json(made))["targets"]
    assert told["validated_on"] == elsewhere.validated_on
    assert said not in Page(report_html(build).decode()).text


def test_page_where_lower_is_better_and_nothing_is_a_share(build):
    target = build.targets[0]
    candidates = tuple(
        replace(
            one,
            evaluation=one.evaluation
            and Evaluation({"mae": 0.25 + n / 100}, 10, "0" * 64),
        )
        for n, one in enumerate(target.candidates)
    )
    made = bare(
        targets=(replace(target, candidates=candidates),),
        budget={"max_accuracy_drop": 0.1},
    )
    text = Page(report_html(made).decode()).text
    assert "For mae no interval is given" in text
    assert "+0.0600" in text


def test_page_of_many_classes_lists_the_most_frequent_confusions(build):
    size_ = 40
    matrix = [[0] * size_ for _ in range(size_)]
    for n in range(size_):
        matrix[n][n] = 20
    matrix[3][7] = 9
    chosen = next(c for c in build.targets[0].candidates if c.status == "chosen")
    assert chosen.evaluation is not None
    big = replace(chosen.evaluation, confusion=tuple(map(tuple, matrix)))
    target = replace(build.targets[0], candidates=(replace(chosen, evaluation=big),))
    text = Page(report_html(replace(build, labels=(), targets=(target,))).decode()).text
    assert "Most frequent confusions" in text
    assert "3 7 9 of 29" in text


def test_coverage_of_very_many_classes_is_summed_up():
    rows = coverage({"classes": {str(n): n for n in range(1000)}, "class_share": 1.0})
    assert rows[0]["items"] == [
        {"name": "1000 items", "value": "0 to 999", "share": None}
    ]
    assert rows[1]["value"] == "100.0 %"


# words


def test_change_uses_the_examples_only_when_they_are_all(build):
    chosen = next(c for c in build.targets[0].candidates if c.status == "chosen")
    assert chosen.evaluation is not None
    exact = metric_change(build, chosen.evaluation, "top1")
    assert exact is not None and "5 lost and 3 gained" in exact.method
    some = replace(chosen.evaluation, flips=chosen.evaluation.flips[:4])
    bounded = metric_change(build, some, "top1")
    assert bounded is not None and "at most 11 discordant" in bounded.method
    assert metric_change(build, chosen.evaluation, "f1") is None


def test_figures_in_words():
    assert size(38_912) == "38.0 KiB" and size(12) == "12 B" and size(None) == NONE
    assert milliseconds(0.0225) == "22.5 µs" and milliseconds(0.186) == "0.186 ms"
    assert percent(0.913) == "91.3 %" and percent(0.0002) == "0.02 %"
    assert signed(-0.2, 1) == MINUS + "0.2" and signed(-0.01, 1) == "0.0"
    assert markdown("a|b\n<i>*x*") == r"a\|b \<i\>\*x\*"


def test_summary_tells_what_ships_and_why_not(build):
    first, found, second = summary_lines(build)
    assert found.strip().startswith("search: 6 of 96 points")
    assert first.startswith("cpu-x86_64    int8 nncf · top1 91.3 % → 91.1 %")
    assert f"2.22{TIMES} faster" in first and first.endswith("cpu-x86_64.edgeml")
    assert second.startswith("openvino-cpu  no bundle: no candidate holds the budget")


# the search


def test_the_page_shows_every_trial_of_a_search_and_what_became_of_it(build, page):
    search = build.targets[0].search
    text = Page(page).text
    assert "6 of 96 points were tried" in text
    assert "1 best, 1 holds budget, 1 misses budget, 1 misses on all samples" in text
    for trial in search.trials:
        assert trial.name in text
    assert "\N{GREATER-THAN OR EQUAL TO} 0.100 ms" in text, "a bound is told as one"
    assert "Latency, median 0.412 ms, 0.350 ms allowed" in text


def test_a_build_without_a_search_says_nothing_of_one(build):
    plain = [replace(one, search=None) for one in build.targets]
    outcome = replace(build, targets=tuple(plain))
    assert "<h3>Search</h3>" not in report_html(outcome).decode()
    assert json.loads(report_json(outcome))["targets"][0]["search"] is None
    assert not any("search:" in line for line in summary_lines(outcome))


def test_a_search_in_a_line(build):
    assert "search: 6 of 96 points, 4 on the front, best prune 0.3" in "\n".join(
        summary_lines(build)
    )
