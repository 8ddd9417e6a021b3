"""Builds plausible outcomes: two targets, ten candidates each, one of them refused.

Everything follows from the seed, so equal calls give equal outcomes.
"""

import math
import random
from dataclasses import replace

from device_agent.runtimes.base import Coverage
from edgeml.candidate import LayerError
from edgeml.outcome import (
    BuildOutcome,
    Candidate,
    Evaluation,
    Flip,
    Latency,
    Miss,
    SearchOutcome,
    SearchTrial,
    TargetOutcome,
)

WORDS = (
    "down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes",
    "silence", "unknown",
)  # fmt: skip
SAMPLES = 1000
DIGEST = "5f0c" + "1e" * 30
FLOAT_BYTES = 97_824
FLOAT_MS = 0.412

# name, precision, correct of 1000, flipped, speed-up, bytes, what became of it
ONNXRUNTIME = (
    ("fp32 onnxruntime", "fp32", 913, 0, 1.0, 97_824, "missed"),
    ("fp16", "fp16", 913, 1, 0.71, 51_020, "slower"),
    ("int8 ort minmax u8s8 per-channel", "int8", 898, 31, 2.24, 38_112, "missed"),
    ("int8 ort minmax s8s8 per-channel", "int8", 907, 19, 1.31, 38_112, "fits"),
    ("int8 ort entropy u8s8 reduce-range", "int8", 905, 22, 2.19, 38_112, "fits"),
    ("int8 ort percentile 99.99 u8s8", "int8", 904, 24, 2.20, 38_112, "fits"),
    ("int8 nncf", "int8", 911, 11, 2.21, 39_870, "chosen"),
    ("int8 nncf fast bias correction", "int8", 902, 27, 2.22, 39_870, "missed"),
    ("int8 dynamic", "int8-dynamic", 912, 4, 0.49, 41_203, "slower"),
    ("mixed nncf 2 layers fp32", "mixed", 912, 8, 1.92, 44_010, "fits"),
    ("int8 inc pt2e", "int8", 0, 0, 0.0, 0, "failed"),
    ("int4 matmul", "int4", 0, 0, 0.0, 0, "skipped"),
)
OPENVINO = (
    ("fp32 openvino", "fp32", 913, 0, 1.0, 99_310, "missed"),
    ("fp16 openvino", "fp16", 913, 0, 1.02, 52_114, "missed"),
    ("int8 nncf openvino performance", "int8", 861, 88, 2.61, 40_980, "missed"),
    ("int8 nncf openvino mixed", "int8", 893, 41, 2.58, 41_020, "missed"),
    ("mixed keep stem", "mixed", 899, 30, 2.17, 47_662, "missed"),
    ("mixed keep stem, dw_1", "mixed", 901, 24, 1.90, 55_008, "missed"),
    ("int8 unsigned", "int8", 214, 803, 2.66, 40_980, "missed"),
)
BLOCKS = ("stem", "dw_1", "dw_2", "dw_3", "dw_4")
PARTS = ("depthwise/Conv", "pointwise/Conv", "relu/Clip")
LAYERS = (
    *(f"/{block}/{part}" for block in BLOCKS for part in PARTS),
    "/classifier/Gemm",
)


def outcome(seed: int = 7) -> BuildOutcome:
    """A build of a keyword spotter: one target ships int8, one is refused."""
    oracle = _evaluation(913, 0, seed)
    return BuildOutcome(
        name="kws",
        version="1.4.0",
        recipe_sha256="9b" * 32,
        model_summary={
            "source": "kws.onnx",
            "nodes": 38,
            "parameters": 23_756,
            "operators": {"Conv": 9, "Relu": 9, "Gemm": 1, "Softmax": 1},
            "inputs": [
                {"name": "input_1", "datatype": "FP32", "shape": [1, 49, 10, 1]}
            ],
            "outputs": [{"name": "Identity", "datatype": "FP32", "shape": [1, 12]}],
            "opset": 20,
        },
        metric="top1",
        better="higher",
        oracle=oracle,
        export_error=3.2e-06,
        calibration={
            "samples": 200,
            "sampler": "stratified",
            "seed": 0,
            "digest": "c4" * 32,
            "coverage": {
                "class_share": 1.0,
                "classes": {word: 16 + (n % 3 == 0) for n, word in enumerate(WORDS)},
                "range_share": {"input_1": 0.934},
            },
        },
        budget={
            "max_accuracy_drop": 0.01,
            "max_slice_drop": 0.02,
            "max_flip_rate": 0.03,
            "max_latency_ms": 0.35,
            "max_size_bytes": 65_536,
            "max_memory_bytes": None,
            "max_fallback_share": 0.0,
        },
        tools={
            "python": "3.11.2",
            "onnx": "1.23.2",
            "onnxruntime": "1.31.1",
            "openvino": "2026.4.1",
            "nncf": "3.4.0",
            "numpy": "2.4.6",
        },
        machine={
            "cpu": "Intel Xeon Processor (Sapphire Rapids)",
            "arch": "x86_64",
            "cores": 2,
            "flags": ["avx2", "avx512_vnni", "amx_int8"],
            "memory_bytes": 8 * 1024**3,
            "kernel": "Linux 6.1",
        },
        labels=WORDS,
        targets=(_onnxruntime(seed), _openvino(seed)),
        reproduce=("edgeml build kws.toml --out build",),
    )


def _onnxruntime(seed: int) -> TargetOutcome:
    return TargetOutcome(
        target="cpu-x86_64",
        runtime="onnxruntime",
        candidates=tuple(_candidate(row, seed, n) for n, row in enumerate(ONNXRUNTIME)),
        chosen="int8 nncf",
        choice_reason="fastest of 5 candidates that hold the budget, most accurate of "
        "3 equally fast ones",
        bundle_file="cpu-x86_64.edgeml",
        bundle_sha256="e1" * 32,
        bundle_bytes=112_640,
        artifact_entry="model.onnx",
        threads=1,
        search=search(),
    )


# point, precision, what became of it, correct of 500, ms, bytes, on the front
TRIALS = (
    ("prune 0, fp32", "fp32", "missed", 457, 0.412, 97_824, True),
    ("prune 0, int8 minmax, 200 samples", "int8", "fits", 455, 0.19, 39_870, True),
    ("prune 0.5, int8 minmax, 200 samples", "int8", "refuted", 453, 0.08, 12_870, True),
    ("prune 0.3, int8 entropy, 50 samples", "int8", "chosen", 454, 0.12, 22_100, True),
    ("prune 0, fp16", "fp16", "pruned", None, None, None, False),
    ("prune 0.7, distilled, fp32", "fp32", "failed", None, None, None, False),
)


def search() -> SearchOutcome:
    """A search in which every status occurs."""
    trials = []
    for number, row in enumerate(TRIALS):
        name, precision, status, correct, latency_ms, size, front = row
        misses = {
            "missed": (Miss("max_latency_ms", 0.35, 0.412, ("/stem",)),),
            "pruned": (Miss("max_latency_ms", 0.05, 0.09),),
        }
        trials.append(
            SearchTrial(
                number=number,
                name=name,
                point={"prune": 0.0, "distill": None, "precision": precision},
                status=status,
                reason="no reason" if status in {"pruned", "failed"} else "",
                candidate=f"{precision} candidate" if correct else "",
                precision=precision,
                kept_layers=("/stem/depthwise/Conv",) if number == 3 else (),
                value=correct and correct / 500,
                flip_rate=0.01 if correct else None,
                latency_ms=latency_ms,
                float_latency_ms=latency_ms and 0.412,
                size_bytes=size,
                macs=2_100_000,
                predicted_latency_ms=0.1,
                predicted_size_bytes=12_000,
                misses=misses.get(status, ()),
                front=front,
            )
        )
    return SearchOutcome(
        trials=tuple(trials),
        space={"prune": [0.0, 0.3, 0.5, 0.7], "distill": [False, True]},
        points=96,
        samples=500,
        samples_digest=DIGEST,
        float_value=0.914,
        chosen=3,
        worst_value=0.904,
    )


def _openvino(seed: int) -> TargetOutcome:
    return TargetOutcome(
        target="openvino-cpu",
        runtime="openvino",
        candidates=tuple(
            _candidate(row, seed + 50, n) for n, row in enumerate(OPENVINO)
        ),
        choice_reason="no candidate holds the budget",
        refusals=(
            "no candidate holds the budget; nearest: mixed keep stem, dw_1 misses "
            "max_accuracy_drop (0.012 > 0.01)",
        ),
        threads=1,
    )


def _evaluation(correct: int, flipped: int, seed: int) -> Evaluation:
    draw = random.Random(seed * 1000 + correct)
    share = correct / SAMPLES
    speakers = {"child": 148, "adult": 701, "senior": 151}
    noise = {"quiet": 420, "street": 330, "kitchen": 250}
    drop = (913 - correct) / SAMPLES
    return Evaluation(
        metrics={"top1": share, "top5": min(1.0, share + 0.071), "f1": share - 0.006},
        samples=SAMPLES,
        samples_digest=DIGEST,
        slices={
            "speaker": {
                "child": 0.858 - 1.5 * drop,
                "adult": 0.929 - drop,
                "senior": 0.894 - 0.7 * drop,
            },
            "noise": {
                "quiet": 0.95 - 0.5 * drop,
                "street": 0.9 - drop,
                "kitchen": 0.868 - 1.7 * drop,
            },
        },
        slice_counts={"speaker": speakers, "noise": noise},
        flip_rate=flipped / SAMPLES,
        flips=_flips(draw, correct, flipped),
        ece=0.021 + drop,
        confusion=_confusion(draw, share),
    )


def _flips(draw: random.Random, correct: int, flipped: int) -> tuple[Flip, ...]:
    lost = min(flipped, 913 - correct + max(0, (flipped - (913 - correct)) // 3))
    gained = min(flipped - lost, lost - (913 - correct))
    flips = []
    for n in range(flipped):
        label, other, third = draw.sample(range(12), 3)
        before, after = (
            (label, other) if n < lost
            else (other, label) if n < lost + gained
            else (other, third)
        )  # fmt: skip
        flips.append(
            Flip(
                f"{WORDS[label]}/{draw.randrange(16**8):08x}.wav", label, before, after
            )
        )
    return tuple(flips[:32])


def _confusion(draw: random.Random, share: float) -> tuple[tuple[int, ...], ...]:
    rows = []
    for n in range(12):
        total = 83 + (n < 4)
        row = [0] * 12
        wrong = round(total * (1 - share) * draw.uniform(0.4, 1.7))
        for _ in range(min(wrong, total)):
            row[draw.choice([m for m in range(12) if m != n])] += 1
        row[n] = total - sum(row)
        rows.append(tuple(row))
    return tuple(rows)


def _candidate(row, seed: int, number: int) -> Candidate:
    name, precision, correct, flipped, speed, size, status = row
    if status == "failed":
        return Candidate(
            name, precision, "failed",
            "neural-compressor: Unsupported operator Gather with 8 bits at node "
            "/classifier/Gather_2",
        )  # fmt: skip
    if status == "skipped":
        return Candidate(
            name, precision, "skipped", "target cpu-x86_64 lists no int4 precision"
        )
    draw = random.Random(seed * 97 + number)
    quantized = precision not in {"fp32", "fp16"}
    candidate = Candidate(
        name=name,
        precision=precision,
        status=status,
        reason=_reason(row),
        parameters={"method": "minmax", "per_channel": True} if quantized else {},
        kept_layers=("/stem/depthwise/Conv",) if precision == "mixed" else (),
        artifact_sha256=f"{number:02x}" * 32,
        size_bytes=size,
        proxy_sqnr_db=None if not quantized else 12 + (correct - 850) / 4,
        evaluation=_evaluation(correct, flipped, seed),
        latency=_latency(draw, FLOAT_MS / speed),
        peak_memory_bytes=18_350_080 + size * 6,
        load_ms=11.5,
        coverage=Coverage(38, (), ("CPUExecutionProvider",)),
        layer_errors=_layer_errors(draw, correct) if quantized else (),
    )
    return replace(candidate, misses=_misses(candidate, correct, flipped))


def _reason(row) -> str:
    speed, status = row[4], row[6]
    if status == "slower":
        return f"{FLOAT_MS / speed:.3g} ms against {FLOAT_MS:.3g} ms fp32"
    if status == "missed":
        return "misses " + ("max_latency_ms" if speed < 1.2 else "max_accuracy_drop")
    return ""


def _misses(candidate: Candidate, correct: int, flipped: int) -> tuple[Miss, ...]:
    if candidate.status != "missed":
        return ()
    layers = tuple(error.node for error in candidate.layer_errors[:3])
    misses = []
    if candidate.latency and candidate.latency.p50_ms > 0.35:
        misses.append(Miss("max_latency_ms", 0.35, candidate.latency.p50_ms))
    if 913 - correct > 10:
        drop = (913 - correct) / SAMPLES
        misses.append(Miss("max_accuracy_drop", 0.01, drop, layers))
    if flipped > 30:
        misses.append(Miss("max_flip_rate", 0.03, flipped / SAMPLES, layers))
    return tuple(misses)


def _latency(draw: random.Random, p50: float) -> Latency:
    steps = [
        p50
        * (0.93 + 0.14 * n / 20 + 0.35 * (n / 20) ** 14)
        * draw.uniform(0.997, 1.003)
        for n in range(21)
    ]
    quantiles = tuple(round(value, 5) for value in sorted(steps))
    return Latency(
        p50_ms=quantiles[10],
        p99_ms=quantiles[20] * 0.96,
        float_p50_ms=FLOAT_MS * draw.uniform(0.99, 1.01),
        threads=1,
        machine="Intel Xeon Processor (Sapphire Rapids)",
        runs=400,
        histogram_ms=quantiles,
    )


def _layer_errors(draw: random.Random, correct: int) -> tuple[LayerError, ...]:
    base = 22 + (correct - 913) / 8
    errors = [
        LayerError(
            node, "Conv" if "Conv" in node else node.rsplit("/", 1)[1],
            round(base + draw.uniform(-4, 9) - 6 * ("stem" in node), 2),
            round(abs(draw.gauss(1.2, 2.1)) + 7 * (node == LAYERS[0]), 2),
        )
        for node in LAYERS
    ]  # fmt: skip
    errors.append(
        LayerError("/pool/GlobalAveragePool", "GlobalAveragePool", math.inf, 0)
    )
    return tuple(sorted(errors, key=lambda one: (-one.added_db, one.node)))
