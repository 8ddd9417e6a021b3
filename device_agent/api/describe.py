"""A served version as the protocol's documents: metadata, configuration, statistics."""

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from ..contract.audio import DecodeWav
from ..contract.image import DecodeImage
from ..contract.tensors import TensorSpec
from ..serving.served import Served
from ..serving.statistics import Duration
from . import wire

_ARTIFACTS = {"xml": "ir"}
"""How an artifact is called after its file's ending, where that says it badly."""


def metadata(served: Served, versions: Iterable[str]) -> wire.Metadata:
    """What a model takes and gives; ``versions`` are those that can be asked."""
    manifest, loaded = served.manifest, served.loaded
    parameters: dict[str, wire.Parameter] = {
        "sha256": loaded.sha256,
        "target": manifest.target,
        "precision": manifest.precision,
        "runtime": manifest.runtime.name,
        "takes": takes(served),
        "labels": len(loaded.postprocess.labels),
        "metric": manifest.metrics.accuracy.name,
        "metric_value": manifest.metrics.accuracy.value,
        "size_bytes": manifest.metrics.size_bytes,
        "latency_us": loaded.latency_ns / 1000,
    }
    return wire.Metadata(
        name=served.name,
        versions=list(versions),
        platform=platform(served),
        inputs=[_tensor(spec) for spec in served.inputs],
        outputs=[_tensor(spec) for spec in served.outputs],
        parameters=parameters,
    )


def takes(served: Served) -> str:
    """What predict decodes for the model: ``image``, ``wav``, or only ``numbers``."""
    first = next(iter(served.loaded.preprocess.steps), None)
    if isinstance(first, DecodeImage):
        return "image"
    return "wav" if isinstance(first, DecodeWav) else "numbers"


def platform(served: Served) -> str:
    """Runtime and kind of artifact, as Triton writes it: ``onnxruntime_onnx``."""
    kind = PurePosixPath(served.manifest.artifact).suffix.removeprefix(".")
    return f"{served.manifest.runtime.name}_{_ARTIFACTS.get(kind, kind)}"


def configuration(served: Served) -> wire.Config:
    """The model configuration, as far as Triton's words mean something here."""
    manifest, settings = served.manifest, served.config
    texts = {
        "preprocess": json.dumps(manifest.preprocess),
        "postprocess": json.dumps(manifest.postprocess),
        "preprocess_input": manifest.preprocess_input or served.inputs[0].name,
        "runtime_options": json.dumps(manifest.runtime.options),
        "sha256": served.loaded.sha256,
        "target": manifest.target,
        "precision": manifest.precision,
    }
    batching = None
    if served.batches and settings.max_batch > 1:
        batching = wire.DynamicBatching(
            preferred_batch_size=[settings.max_batch],
            max_queue_delay_microseconds=round(settings.max_delay_ms * 1000),
            default_queue_policy=wire.QueuePolicy(
                default_timeout_microseconds=round(settings.deadline_ms * 1000),
                max_queue_size=settings.queue_depth,
            ),
        )
    return wire.Config(
        name=served.name,
        platform=platform(served),
        backend=manifest.runtime.name,
        max_batch_size=settings.max_rows if served.batches else 0,
        input=[_config_tensor(spec, served.batches) for spec in served.inputs],
        output=[_config_tensor(spec, served.batches) for spec in served.outputs],
        instance_group=[wire.Instances(name=f"{served.name}_0")],
        default_model_filename=PurePosixPath(manifest.artifact).name,
        dynamic_batching=batching,
        parameters={key: wire.Text(string_value=text) for key, text in texts.items()},
    )


def statistics(served: Served) -> wire.ModelStats:
    """What the version has done since it was loaded."""
    numbers = served.statistics
    return wire.ModelStats(
        name=served.name,
        version=served.version,
        last_inference=numbers.last_ms,
        inference_count=numbers.inferences,
        execution_count=numbers.executions,
        inference_stats=wire.InferenceStats(
            success=_count(numbers.success),
            fail=_count(numbers.fail),
            queue=_count(numbers.queue),
            compute_infer=_count(numbers.infer),
        ),
        batch_stats=[
            wire.BatchStats(batch_size=rows, compute_infer=_count(duration))
            for rows, duration in sorted(numbers.batches.items())
        ],
        refused=dict(numbers.refused),
        waiting=served.waiting,
    )


def _count(duration: Duration) -> wire.Count:
    return wire.Count(count=duration.count, ns=duration.ns)


def _tensor(spec: TensorSpec) -> wire.Tensor:
    return wire.Tensor(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))


def _config_tensor(spec: TensorSpec, batches: bool) -> wire.ConfigTensor:
    return wire.ConfigTensor(
        name=spec.name,
        data_type=f"TYPE_{spec.datatype}",
        dims=list(spec.shape[1:] if batches else spec.shape),
    )
