"""Runs bundles and model files on this machine, each in a limited process of its own.

Figures are of this machine: a ``.tflite`` answers the same on an ARM device, at another
speed.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.contract import machine
from device_agent.contract.bundle import SUFFIX, Bundle, unpack
from device_agent.contract.errors import ArtifactError, BundleError, MachineError
from device_agent.contract.golden import read_golden
from device_agent.contract.tensors import Feeds, TensorSpec
from device_agent.runtimes.base import placed
from device_agent.runtimes.probe import ProbeRequest, ProbeResult, probe

from ..errors import InputError, MachineLacks
from .bundle import opened
from .facts import Facts, inspect

RUNS_MAX = 100_000
RUNTIMES = {".onnx": "onnxruntime", ".tflite": "litert"}
"""What runs a model file that is not in a bundle."""


def bench(path: Path, *, seconds: float = 2.0, threads: int | None = None) -> Facts:
    """Latency, load time and memory of a bundle or a model file, here.

    A bundle is run on its golden inputs, another model on zeros of batch 1.

    Raises:
        InputError: the file is refused by the reader or by its runtime.
        MachineLacks: the runtime is not here.
    """
    options = {} if threads is None else {"threads": threads}
    if path.suffix.lower() != SUFFIX:
        result = _loose(path, options, seconds)
        name = RUNTIMES[path.suffix.lower()]
        return {"file": path.name, "runtime": name, **_timed(result, options)}
    bundle = opened(path)
    spec = bundle.manifest.runtime
    own = {**spec.options, **options}
    result = run_bundle(bundle, golden_inputs(bundle), own, seconds)
    return {"file": path.name, "runtime": spec.name, **_timed(result, own)}


def check_file(path: Path) -> Facts:
    """Whether a model file that is not in a bundle is sound: it loads, runs on zeros
    of batch 1, and answers with finite numbers, the same ones twice.

    Raises:
        InputError: it is not; the text says which operator or output and why.
        MachineLacks: the runtime is not here.
    """
    first, second = _loose(path, {}, 0.0), _loose(path, {}, 0.0)
    for name, array in first.outputs[0].items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{path.name}: output {name!r} of zeros is not finite")
        if not np.array_equal(array, second.outputs[0][name]):
            raise InputError(f"{path.name}: output {name!r} differs from run to run")
    return {
        "file": path.name,
        "ok": True,
        "runtime": RUNTIMES[path.suffix.lower()],
        "runtime_version": first.version,
        "outputs": {name: list(one.shape) for name, one in first.outputs[0].items()},
        "load_ms": first.load_ms,
        "peak_memory_bytes": first.peak_memory_bytes,
    }


def _loose(path: Path, options: Mapping[str, Any], seconds: float) -> ProbeResult:
    facts = inspect(path)
    problems = facts.get("problems", ())
    if problems:
        raise InputError(f"{path.name}: {'; '.join(problems)}")
    request = ProbeRequest(
        path, RUNTIMES[path.suffix.lower()], options, [_zeros(facts["inputs"])],
        seconds=seconds, runs=RUNS_MAX if seconds else 1,
    )  # fmt: skip
    return _probed(request)


def golden_inputs(bundle: Bundle) -> list[Feeds]:
    """The inputs of the golden vectors; none where the bundle has none."""
    path = bundle.path_of("golden")
    if path is None:
        raise BundleError("the bundle has no golden vectors to run it on")
    return list(read_golden(bundle.member(path), path).inputs)


def _zeros(inputs: Sequence[Mapping[str, Any]]) -> Feeds:
    specs = [TensorSpec.model_validate(dict(one)) for one in inputs]
    return {
        spec.name: np.zeros([max(size, 1) for size in spec.shape], spec.dtype)
        for spec in specs
    }


def _timed(result: ProbeResult, options: Mapping[str, Any]) -> Facts:
    return {
        "runtime_version": result.version,
        "options": dict(options),
        "machine": machine.name(),
        "runs": len(result.latencies_ms),
        "latency_p50_ms": float(np.quantile(result.latencies_ms, 0.50)),
        "latency_p99_ms": float(np.quantile(result.latencies_ms, 0.99)),
        "load_ms": result.load_ms,
        "peak_memory_bytes": result.peak_memory_bytes,
        "baseline_memory_bytes": result.baseline_bytes,
    }


def _probed(request: ProbeRequest) -> ProbeResult:
    try:
        return probe(request)
    except ArtifactError as error:
        raise InputError(str(error)) from error
    except MachineError as error:
        raise MachineLacks(str(error)) from error
    except OSError as error:
        raise MachineLacks(f"not tried: {error}; is $TMPDIR full?") from error


def run_bundle(
    bundle: Bundle, feeds: Sequence[Feeds], options: Mapping[str, Any], seconds: float
) -> ProbeResult:
    """Run a verified bundle on feeds, with these runtime options.

    Raises:
        InputError: the runtime refuses it.
        MachineLacks: the runtime is not here.
    """
    try:
        options = placed(options, None)
    except ArtifactError as error:
        raise InputError(str(error)) from error
    with tempfile.TemporaryDirectory(prefix="edgeml-") as folder:
        unpack(bundle, Path(folder, "bundle"))
        return _probed(
            ProbeRequest(
                Path(folder, "bundle", bundle.manifest.artifact),
                bundle.manifest.runtime.name,
                options,
                feeds,
                seconds=seconds,
                runs=RUNS_MAX,
            )
        )
