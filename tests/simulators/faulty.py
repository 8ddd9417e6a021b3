"""Bundles that must not be taken: each is real, and wrong in its own way.

All are updates of the ``linear`` model of :mod:`bundles`, as version 2.0.0.

How a real artifact kills ONNX Runtime's process at load: local functions that call
each other 10,000 deep are inlined recursively, and the stack overflows (SIGSEGV). A
function that calls itself is refused politely; If-branches in If-branches never get
deep enough, for protobuf gives up at 100 levels. Functions that call the next one twice
double at each level: 30 levels inline for ever (hang at load). INT_MIN % -1 is a
division trap on x86 (SIGFPE at inference). A Loop over 2**40 hangs at inference. Small
constants that are expanded are folded at load and kept (memory at load); what is
expanded from an input is made at every run (memory at inference).
"""

import hashlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import bundles
import numpy as np
import onnx
from bundles import WEIGHT
from onnx import TensorProto, helper, numpy_helper

from device_agent.config import SandboxConfig
from device_agent.contract import machine, tar
from device_agent.contract.golden import Bound, write_golden
from device_agent.contract.manifest import Isa, Limits, Member, RuntimeSpec
from device_agent.contract.tensors import TensorSpec
from edgeml.bundling.bundle import pack

VERSION = "2.0.0"
SANDBOX = SandboxConfig(memory_bytes=1 << 30, cpu_s=3, wall_s=20.0)
"""Enough for what is good, soon over for what is not."""
TOML = "[sandbox]\nmemory_bytes = 1073741824\ncpu_s = 3\nwall_s = 20.0\n"

_OPSET = helper.make_opsetid("", 17)
_LOCAL = helper.make_opsetid("local", 1)


@dataclass(frozen=True)
class Fault:
    """What is wrong, and what the refusal must say."""

    name: str
    make: Callable[[], bytes]
    step: str
    text: str
    """A regular expression."""


def model(
    nodes: Sequence[Any], constants: Mapping[str, Any], functions: Sequence[Any] = ()
) -> bytes:
    """An ONNX model from x [-1, 4] to y [-1, 3], as ``linear`` is; unchecked."""
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes, "faulty", [value("x", shape=["n", 4])], [value("y", shape=["n", 3])],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()],
    )  # fmt: skip
    opsets = [_OPSET, _LOCAL] if functions else [_OPSET]
    made = helper.make_model(
        graph, opset_imports=opsets, ir_version=10, functions=list(functions)
    )
    return bytes(onnx.ModelProto.SerializeToString(made))


def bundle(artifact: bytes | None = None, **changes: Any) -> bytes:
    """Good but for the artifact, or for what is changed in the manifest."""
    members = bundles.members()
    if artifact is not None:
        members["artifact/model.onnx"] = ("artifact", artifact)
    return pack(bundles.manifest(**{"version": VERSION, **changes}), members)


def unchecked(members: Mapping[str, Any], **changes: Any) -> bytes:
    """A bundle as the packer would make it, if it did not look at what it packs."""
    listed = tuple(
        Member(path=path, size=len(data), role=role,
               sha256=hashlib.sha256(data).hexdigest())
        for path, (role, data) in sorted(members.items())
    )  # fmt: skip
    head = bundles.manifest(**{"version": VERSION, **changes}, members=listed)
    parts = [("manifest.json", head.canonical())]
    parts += [(one.path, members[one.path][1]) for one in listed]
    entries = [tar.header(n, len(d)) + d + tar.padding(len(d)) for n, d in parts]
    return b"".join([*entries, tar.END])


def _nodes(*lines: tuple[str, str, str], **attributes: Any) -> list[Any]:
    """Nodes from (operator, inputs, output); every graph ends in x @ w."""
    return [
        helper.make_node(operator, inputs.split(), [output], **attributes)
        for operator, inputs, output in lines
    ]


def _functions(depth: int, *calls: tuple[str, str]) -> list[Any]:
    """F0 … F``depth``; each but the last calls the next one, once for each of calls."""
    bodies = [
        [
            helper.make_node(f"F{level + 1}", [taken], [given], domain="local")
            for taken, given in calls
        ]
        for level in range(depth)
    ]
    bodies.append([helper.make_node("Relu", ["a"], ["b"])])
    return [
        helper.make_function("local", f"F{level}", ["a"], ["b"], body, [_OPSET, _LOCAL])
        for level, body in enumerate(bodies)
    ]


def _calling(functions: Sequence[Any]) -> bytes:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("F0", ["h"], ["y"], domain="local"),
    ]
    return model(nodes, {"w": WEIGHT}, functions)


def crashes_at_load() -> bytes:
    return bundle(_calling(_functions(10_000, ("a", "b"))))


def hangs_at_load() -> bytes:
    return bundle(_calling(_functions(30, ("a", "t"), ("t", "b"))))


def crashes_at_inference() -> bytes:
    nodes = [
        *_nodes(("MatMul", "x w", "h"), ("Sub", "h h", "z")),
        helper.make_node("Cast", ["z"], ["i"], to=TensorProto.INT32),
        *_nodes(("Sub", "i one", "m"), ("Mod", "least m", "r")),
        helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
        *_nodes(("Add", "h f", "y")),
    ]
    least = np.full(3, np.iinfo(np.int32).min, np.int32)
    return bundle(model(nodes, {"w": WEIGHT, "one": np.int32(1), "least": least}))


def _loop(*step: tuple[str, str, str]) -> Any:
    """``many`` times from h to y; a step goes from s to t."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        _nodes(("Identity", "go", "more"), *step), "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []),
         value("s", TensorProto.FLOAT, None)],
        [value("more", TensorProto.BOOL, []), value("t", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return helper.make_node("Loop", ["many", "yes", "h"], ["y"], body=body)


def hangs_at_inference() -> bytes:
    nodes = [*_nodes(("MatMul", "x w", "h")), _loop(("Add", "s s", "t"))]
    many = {"many": np.int64(1 << 40), "yes": np.bool_(True)}
    return bundle(model(nodes, {"w": WEIGHT, **many}))


def hangs_when_asked() -> bytes:
    """Good until an input has a 1e18 in it; nothing that is tried before it is used."""
    nodes = [
        *_nodes(("MatMul", "x w", "m"), ("Relu", "m", "h")),
        *_nodes(("ReduceMax", "x", "most"), keepdims=0),
        *_nodes(("Cast", "most", "many"), to=TensorProto.INT64),
        _loop(("Identity", "s", "t")),
    ]
    return bundle(model(nodes, {"w": WEIGHT, "yes": np.bool_(True)}))


def eats_memory_at_load() -> bytes:
    """Thirty constants of 96 MB each, 4 bytes in the file."""
    nodes = _nodes(("MatMul", "x w", "h0"))
    constants: dict[str, Any] = {"w": WEIGHT, "big": np.array([4, 6_000_000], np.int64)}
    for at in range(30):
        constants[f"c{at}"] = np.array([at], np.float32)
        after = "y" if at == 29 else f"h{at + 1}"
        nodes += _nodes(("Expand", f"c{at} big", f"e{at}"))
        nodes += _nodes(("MatMul", f"x e{at}", f"g{at}"))
        nodes += [
            helper.make_node("ReduceMax", [f"g{at}"], [f"r{at}"], axes=[1], keepdims=1)
        ]
        nodes += _nodes(("Add", f"h{at} r{at}", after))
    return bundle(model(nodes, constants))


def eats_memory_at_inference() -> bytes:
    nodes = [
        *_nodes(("MatMul", "x w", "h"), ("Unsqueeze", "h first", "u")),
        *_nodes(("Expand", "u big", "e")),
        helper.make_node("ReduceSum", ["e", "first"], ["y"], keepdims=0),
    ]
    big = np.array([10_000_000_000, 1, 1], np.int64)
    first = np.array([0], np.int64)
    return bundle(model(nodes, {"w": WEIGHT, "big": big, "first": first}))


def gives_nan() -> bytes:
    nodes = _nodes(
        ("MatMul", "x w", "h"), ("Sub", "h h", "z"), ("Div", "z z", "n"),
        ("Add", "h n", "y"),
    )  # fmt: skip
    return bundle(model(nodes, {"w": WEIGHT}))


def has_other_inputs() -> bytes:
    spec = TensorSpec(name="pixels", datatype="FP32", shape=(-1, 4))
    runs = [{"pixels": run["x"]} for run in bundles.vectors()]
    members = bundles.members()
    golden = write_golden(runs, bundles.answers(), {"y": Bound(1e-5, 1e-5)})
    members["golden.npz"] = ("golden", golden)
    return pack(bundles.manifest(version=VERSION, inputs=(spec,)), members)


def holds_pickle() -> bytes:
    members = bundles.members()
    members["artifact/weights.bin"] = ("artifact", pickle.dumps({"w": [1.0]}))
    return unchecked(members)


def lacks_golden() -> bytes:
    members = bundles.members()
    del members["golden.npz"]
    return pack(bundles.manifest(version=VERSION), members)


def is_damaged() -> bytes:
    """One bit of the artifact is not what it was."""
    raw = bytearray(bundle())
    at = raw.index(WEIGHT.tobytes())
    raw[at] ^= 1
    return bytes(raw)


def is_of_another_format() -> bytes:
    raw = bundle()
    return raw.replace(b'"format":1', b'"format":9', 1)


def _runtime(**changes: Any) -> RuntimeSpec:
    return RuntimeSpec(**{"name": "onnxruntime", "min_version": "1", **changes})


_HERE = machine.arch()
_SLOW = {
    "limits": Limits(latency_ms=1e-9),
    "metrics": bundles.metrics(where=machine.name()),
}
_WIDE = TensorSpec(name="y", datatype="FP32", shape=(-1, 4))
_TRAP = ("load", r"crashed \(SIGFPE\)") if _HERE == "x86_64" else ("golden", "wrong")

_NO_TAR = b"<!doctype html>" + bytes(2000)
_WARP = _nodes(("MatMul", "x w", "h"), ("Warp", "h", "y"))

FAULTS: tuple[Fault, ...] = (
    Fault("not a tar", lambda: _NO_TAR, "bundle", "or no bundle"),
    Fault("cut off", lambda: bundle()[:-7000], "bundle", r"'golden\.npz' claims"),
    Fault("damaged", is_damaged, "bundle", r"'artifact/model\.onnx' has SHA-256"),
    Fault("another format", is_of_another_format, "bundle", "format 9 is unknown"),
    Fault("a pickle inside", holds_pickle, "bundle", r"weights\.bin' is a pickle"),
    Fault("no golden vectors", lacks_golden, "bundle", "no golden vectors"),
    Fault(
        "unknown step",
        lambda: bundle(preprocess=({"sharpen": 2},)),
        "steps",
        "preprocess step 1: unknown step 'sharpen'",
    ),
    Fault(
        "another architecture",
        lambda: bundle(isa=Isa(arch="riscv64")),
        "isa",
        "it is for riscv64; this machine is",
    ),
    Fault(
        "a processor feature is lacking",
        lambda: bundle(isa=Isa(arch=_HERE, requires=("warp|weft",))),
        "isa",
        r"has no warp\|weft",
    ),
    Fault(
        "a newer runtime is needed",
        lambda: bundle(runtime=_runtime(min_version="99.1")),
        "runtime",
        "needs 99.1 or later",
    ),
    Fault(
        "unknown runtime",
        lambda: bundle(runtime=_runtime(name="abacus")),
        "runtime",
        "no runtime 'abacus'",
    ),
    Fault(
        "unknown option",
        lambda: bundle(runtime=_runtime(options={"speed": 9})),
        "load",
        "no option 'speed'",
    ),
    Fault("no model", lambda: bundle(b"\x08\x0a" + b"\xff" * 99), "load", "Protobuf"),
    Fault(
        "unknown operator", lambda: bundle(model(_WARP, {"w": WEIGHT})), "load", "Warp"
    ),
    Fault("crash at load", crashes_at_load, "load", r"crashed \(SIGSEGV\)"),
    Fault("crash at inference", crashes_at_inference, *_TRAP),
    Fault("hang at load", hangs_at_load, "load", "3 s of processor time"),
    Fault("hang at inference", hangs_at_inference, "load", "3 s of processor time"),
    Fault("memory at load", eats_memory_at_load, "load", "1073741824 bytes of addr"),
    Fault("memory at inference", eats_memory_at_inference, "load", "allocate memory"),
    Fault(
        "wrong answers",
        lambda: bundles.bundle(golden=WEIGHT + np.float32(0.1), version=VERSION),
        "golden",
        "of 16 golden vectors are wrong; worst: vector",
    ),
    Fault("NaN", gives_nan, "golden", "output 'y': NaN"),
    Fault("other inputs", has_other_inputs, "load", "'pixels'"),
    Fault(
        "other outputs",
        lambda: bundle(outputs=(_WIDE,)),
        "signature",
        r"outputs are y FP32 \[-1, 4\]; the artifact's are y FP32 \[-1, 3\]",
    ),
    Fault(
        "more memory than promised",
        lambda: bundle(limits=Limits(peak_memory_bytes=1)),
        "limits",
        "bytes at its peak; at most 1$",
    ),
    Fault(
        "slower than promised",
        lambda: bundle(**_SLOW),
        "limits",
        r"ms \(p50\); at most 1e-09 ms",
    ),
)
