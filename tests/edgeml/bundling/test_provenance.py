"""Provenance and SBOM: the specifications' required fields, and equal bytes."""

import json
import re
import subprocess
import sys

import pytest

from edgeml.bundling.provenance import (
    Component,
    package_components,
    provenance,
    sbom,
    tool_versions,
)
from edgeml.model import Step

A, B, C, D = ("a" * 64, "b" * 64, "c" * 64, "d" * 64)


def statement(**changes):
    arguments = {
        "recipe": {"model": {"name": "digits"}},
        "recipe_sha256": B,
        "sources": {"digits.onnx": C},
        "data": {"validation": A, "calibration": D},
        "lineage": (Step("export", {"opset": 20}), Step("quantize", {"bits": 8})),
        "tools": {"python": "3.11.2", "onnxruntime": "1.31.1"},
        "seeds": {"build": 0},
        "commit": "f" * 40,
        "target": "cpu-x86_64",
    }
    return provenance({"artifact/model.onnx": A}, **{**arguments, **changes})


def test_statement_has_what_in_toto_and_slsa_require():
    value = json.loads(statement())
    assert value["_type"] == "https://in-toto.io/Statement/v1"
    assert value["predicateType"] == "https://slsa.dev/provenance/v1"
    assert value["subject"] == [
        {"name": "artifact/model.onnx", "digest": {"sha256": A}}
    ]
    definition = value["predicate"]["buildDefinition"]
    assert re.match(r"^[a-z][a-z0-9+.-]*:", definition["buildType"])
    assert definition["externalParameters"]["target"] == "cpu-x86_64"
    assert value["predicate"]["runDetails"]["builder"]["id"]
    for entry in definition["resolvedDependencies"]:
        assert entry["name"] or entry["uri"]
        assert entry["digest"]


def test_statement_tells_the_passes_in_order_and_every_input():
    definition = json.loads(statement())["predicate"]["buildDefinition"]
    verbs = [step["verb"] for step in definition["internalParameters"]["passes"]]
    assert verbs == ["export", "quantize"]
    assert [one["name"] for one in definition["resolvedDependencies"]] == [
        "recipe",
        "source:digits.onnx",
        "data:calibration",
        "data:validation",
        "repository",
    ]


def test_statement_without_a_repository_names_none():
    assert b"gitCommit" not in statement(commit=None)


def test_statement_does_not_depend_on_the_order_of_mappings():
    assert statement() == statement(data={"calibration": D, "validation": A})


@pytest.mark.parametrize("wrong", ["", "A" * 64, "a" * 63])
def test_statement_refuses_what_is_no_digest(wrong):
    with pytest.raises(ValueError, match="SHA-256"):
        statement(recipe_sha256=wrong)


def test_statement_needs_a_subject():
    with pytest.raises(ValueError, match="at least one subject"):
        provenance(
            {}, recipe={}, recipe_sha256=A, sources={}, data={}, lineage=(),
            tools={}, seeds={},
        )  # fmt: skip


def bill(*more):
    return sbom(
        Component("digits", "1.0.0", "machine-learning-model", sha256=A),
        (
            *package_components(["numpy", "pydantic", "jinja2"]),
            Component("calibration", kind="data", sha256=B),
            *more,
        ),
    )


def test_sbom_has_what_cyclonedx_requires():
    value = json.loads(bill())
    assert value["bomFormat"] == "CycloneDX"
    assert value["specVersion"] == "1.6"
    assert value["version"] == 1
    assert re.fullmatch(
        r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}",
        value["serialNumber"],
    )
    assert value["metadata"]["component"]["type"] == "machine-learning-model"
    for entry in value["components"]:
        assert entry["type"] in {"library", "data"}
        assert entry["name"]
    references = [one["bom-ref"] for one in value["components"]]
    assert len(set(references)) == len(references)
    known = {*references, value["metadata"]["component"]["bom-ref"]}
    assert {one["ref"] for one in value["dependencies"]} == known


def test_sbom_states_versions_and_spdx_licences():
    entries = {one["name"]: one for one in json.loads(bill())["components"]}
    assert entries["numpy"]["version"] == tool_versions(["numpy"])["numpy"]
    assert entries["numpy"]["purl"].startswith("pkg:pypi/numpy@")
    assert entries["pydantic"]["licenses"] == [{"expression": "MIT"}]
    assert entries["calibration"]["data"] == [
        {"type": "dataset", "name": "calibration"}
    ]


def test_sbom_gives_a_licence_without_spdx_by_name():
    entries = json.loads(bill(Component("x", licence="Ours", spdx=False)))["components"]
    found = next(one for one in entries if one["name"] == "x")
    assert found["licenses"] == [{"license": {"name": "Ours"}}]


def test_sbom_serial_number_follows_the_content():
    assert bill() == bill()
    other = json.loads(bill(Component("x", "1")))
    assert other["serialNumber"] != json.loads(bill())["serialNumber"]


def test_sbom_refuses_twins():
    with pytest.raises(ValueError, match="twice"):
        bill(Component("x", "1"), Component("x", "1"))


def test_tool_versions_leave_out_what_is_absent():
    assert set(tool_versions(["numpy", "no-such-package"])) == {"numpy", "python"}


def test_bytes_are_the_same_in_another_process():
    code = (
        "import sys; from edgeml.bundling.provenance import *;"
        "sys.stdout.buffer.write(sbom(Component('m', '1'),"
        " package_components(['numpy', 'jinja2'])))"
    )
    here = sbom(Component("m", "1"), package_components(["jinja2", "numpy"]))
    assert subprocess.check_output([sys.executable, "-c", code]) == here
