"""Neural Compressor through the whole build: the demo's network, both runtimes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, edgeml

pytest.importorskip("neural_compressor")

DEMO = ROOT / "demo" / "digits"


@pytest.mark.slow
def test_a_recipe_that_names_inc_gets_its_candidates_evaluated(tmp_path: Path) -> None:
    for name in ("model.py", "train.py", "recipe.toml"):
        shutil.copy(DEMO / name, tmp_path)
    if (DEMO / "weights.safetensors").exists():
        shutil.copy(DEMO / "weights.safetensors", tmp_path)
    else:
        train = [sys.executable, str(tmp_path / "train.py")]
        subprocess.run(train, check=True, cwd=ROOT)
    path = tmp_path / "recipe.toml"
    path.write_text(path.read_text() + '\n[quantize]\nquantizers = ["inc"]\n')
    done = edgeml("build", path, "--out", tmp_path / "build", cache=tmp_path / "cache")
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "build/digits-1.0.0/report.json").read_text())
    for target in report["targets"]:
        tried = {one["name"]: one for one in target["candidates"]}
        for name in ("int8 inc minmax", "int8 inc kl"):
            assert tried[name]["status"] != "failed", tried[name]["reason"]
        sizes = [tried[name]["size_bytes"] for name in ("int8 inc minmax", "fp32")]
        assert sizes[0] < 0.5 * sizes[1]


@pytest.mark.long
def test_a_model_that_came_as_onnx_says_so(tmp_path: Path) -> None:
    from digits import recipe, write

    write(tmp_path)
    extra = '[quantize]\nquantizers = ["inc"]'
    path = recipe(tmp_path, "cpu-x86_64", extra=extra)
    done = edgeml("build", path, "--out", tmp_path / "build", cache=tmp_path / "cache")
    assert done.code == 0, done.err
    assert "int8 inc minmax: failed: Neural Compressor works on torch" in done.err
