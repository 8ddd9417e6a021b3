"""The model in one process, opened alike by everybody; alone, it is the bare session.

Also imported by the peers' servers, out of their own virtual environments: nothing but
NumPy and ONNX Runtime is needed here.

Usage: ``session.py MODEL INPUTS.npz`` prints ``ready``, then reads lines that hold a
number of seconds, runs the model for that long and prints one line of JSON for each.
"""

import json
import os
import sys
import time

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

ARENA = False
"""As in the target profiles: off, so that memory does not grow."""


def opened(model: str) -> ort.InferenceSession:
    """The artifact with one thread that does not spin, as in the target profiles."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = ARENA
    for kind in ("intra_op", "inter_op"):
        settings.add_session_config_entry(f"session.{kind}.allow_spinning", "0")
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def measured(
    session: ort.InferenceSession, feeds: dict[str, np.ndarray], seconds: float
) -> dict[str, float]:
    """Run one inference after the other for ``seconds``; times in µs."""
    names = [output.name for output in session.get_outputs()]
    taken = []
    cpu, now = time.process_time_ns(), time.perf_counter_ns()
    begun, end = now, now + int(seconds * 1e9)
    while now < end:
        session.run(names, feeds)
        after = time.perf_counter_ns()
        taken.append(after - now)
        now = after
    cpu = time.process_time_ns() - cpu
    p50, p90, p99 = np.percentile(taken, (50, 90, 99)) / 1e3
    return {
        "requests": len(taken), "errors": 0, "duration_s": (now - begun) / 1e9,
        "p50_us": p50, "p90_us": p90, "p99_us": p99, "max_us": max(taken) / 1e3,
        "cpu_us": cpu / 1e3 / len(taken),
    }  # fmt: skip


def main() -> None:
    """Answer every line of standard input."""
    session = opened(sys.argv[1])
    with np.load(sys.argv[2]) as archive:
        feeds = dict(archive)
    measured(session, feeds, 0.05)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measured(session, feeds, float(line))), flush=True)


if __name__ == "__main__":
    main()
