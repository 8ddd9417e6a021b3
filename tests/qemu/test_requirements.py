"""What is fetched for the image is what pyproject.toml asks for."""

import subprocess
import sys

import pytest
from commands import ROOT

SCRIPT = ROOT / "packaging" / "image" / "requirements"


@pytest.mark.parametrize(
    ("extra", "has", "has_not"),
    [
        ("agent", "onnxruntime>=", "litert"),
        ("agent-litert", "ai-edge-litert>=", "onnxruntime"),
    ],
)
def test_own_extras_are_spelt_out(extra: str, has: str, has_not: str):
    done = subprocess.run(
        [sys.executable, SCRIPT, extra], capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert any(line.startswith(has) for line in lines)
    assert not any(has_not in line or "edgeml" in line for line in lines)
    names = ("fastapi", "uvicorn", "numpy", "pydantic", "setuptools")
    assert all(any(line.startswith(name) for line in lines) for name in names)
